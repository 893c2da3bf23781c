"""Partitions that one worker serves together: what it says of each is what it would say of it alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.model.contract.logs import disorder, synthetic
from tests.support.partitions import Table, plain_rooms
from tests.support.plain_records import records_of
from tests.support.stack import wire
from worker.metrics import Metrics
from worker.partitions import Partitions
from worker.pieces import Scores
from worker.rooms import Pending
from worker.writer import together

NUMBERS = (5, 0, 3)
CHUNKS, TIMER = 40, 7
HOUR_SECONDS = 3600.0


def log(number: int) -> list[Any]:
    """A partition's records: users of the same names everywhere, some too late, some unreadable."""
    events = disorder(synthetic(1500, 30, 90, seed=number), seed=number, most_ms=120_000)
    records = [
        SimpleNamespace(key=event.user_id.encode(), value=wire(event), offset=offset, timestamp=event.timestamp)
        for offset, event in enumerate(events)
    ]
    for record in records[::101]:
        record.value = b"{"
    return records


def scored(pending: Pending) -> Scores:
    """Scores that depend on the row alone."""
    kept = pending.block.kind != 2
    chance = pending.block.ts[kept] % 9973 / 9973
    return Scores(
        np.repeat(chance, 12).reshape(-1, 2, 6).astype("f4"), np.repeat(chance, 20).reshape(-1, 20).astype("f4"),
        chance > 0.97,
    )  # fmt: skip


class Kept(Table):
    """A table that keeps what is written."""

    def __init__(self, rows: dict[int, dict[Any, Any]]) -> None:
        self.rows = rows

    def read(self, partition: int, key: bytes) -> bytes | None:
        value: bytes | None = self.rows[partition].get(key)
        return value


def served(numbers: Sequence[int], with_model: bool) -> tuple[dict[int, list[Any]], dict[int, dict[Any, Any]], Metrics]:
    """Serve some partitions together, chunk by chunk; return what was said of each, and their tables."""
    metrics = Metrics()
    said: dict[int, list[Any]] = {number: [] for number in numbers}
    tables: dict[int, dict[Any, Any]] = {number: {} for number in numbers}
    partitions = Partitions(numbers, Kept(tables), plain_rooms(metrics))
    logs = {number: log(number) for number in numbers}
    cuts = {number: random.Random(number) for number in numbers}
    for turn in range(CHUNKS):
        chunks = {}
        for place, number in enumerate(numbers):
            size = cuts[number].choice((0, 1, 7, 90))
            some, logs[number] = logs[number][:size], logs[number][size:]
            if some:
                chunks[place] = some
        work: list[tuple[Pending, Scores | None]] = []

        def keep(pending: Pending, work: Any = work) -> None:
            work.append((pending, scored(pending) if with_model else None))

        if chunks:
            for number, topic, outputs in partitions.take(chunks, float(turn), keep):
                said[number] += [(topic, *output) for output in outputs]
        if turn % TIMER == TIMER - 1:
            partitions.close_silent(turn + HOUR_SECONDS, keep)
        for pending, scores in work:
            for number, frames, triggers in partitions.answer(pending, scores, 99):
                said[number] += [("answer", *output) for output in records_of(frames)]
                said[number] += [("trigger", *output) for output in triggers]
        for number, updates in partitions.changes().items():
            tables[number] |= updates
        partitions.forget_idle()
    return said, tables, metrics


@pytest.mark.parametrize("with_model", [True, False])
def test_what_is_said_of_a_partition_does_not_depend_on_those_served_beside_it(
    with_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.partitions.USERS_KEPT", 20)
    said, tables, metrics = served(NUMBERS, with_model)
    samples = 0.0
    for number in NUMBERS:
        alone, table, counted = served([number], with_model)
        kinds = {place[0] for place in alone[number]}
        assert kinds == {"answer", "dead", "late", *(["trigger"] if with_model else [])}
        for kind in kinds:  # a block of several partitions ends elsewhere, so its triggers come after other answers
            assert of(kind, said[number]) == of(kind, alone[number])
        assert tables[number] == table[number]
        samples += counted.registry.get_sample_value("funnelcast_stage_probabilities_emitted_total") or 0
    assert metrics.registry.get_sample_value("funnelcast_stage_probabilities_emitted_total") == samples


def of(kind: str, said: list[Any]) -> list[Any]:
    return [one for one in said if one[0] == kind]


def test_chunks_are_folded_together_up_to_a_bound_and_a_large_one_alone() -> None:
    writers: list[Any] = [SimpleNamespace(waiting=SimpleNamespace(next_records=n)) for n in (3, 4, 9, 1, 8, 2)]
    groups = [[writer.waiting.next_records for writer in group] for group in together(writers, 8)]
    assert groups == [[3, 4], [9], [1], [8], [2]]

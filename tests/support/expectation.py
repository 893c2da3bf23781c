"""What a log should have been answered with: each partition read back in offset order and folded in one go.

It comes from the contract alone, not from the worker's own reading, cutting and timing.
"""

from __future__ import annotations

import collections
import json
from typing import Any, NamedTuple

import numpy as np

from model.contract.sequence import APPLIED, DUPLICATE, REVISED, Inputs, Sequences, default_rules
from worker.decode import Bounds, decode_chunk


class Kept(NamedTuple):
    """One record as a committed reader sees it."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    def json(self) -> dict[str, Any]:
        assert self.value is not None
        return dict(json.loads(self.value))


class Expectation(NamedTuple):
    """What a plain fold of the log says."""

    table: dict[tuple[int, bytes], bytes]
    answered: collections.Counter[
        tuple[str, int | None]
    ]  # (user, offset) of events, (user, -session end time) of session ends
    late: set[tuple[int, int]]
    dead: set[tuple[int, int]]
    duplicates: int
    inputs: list[
        tuple[Inputs, list[tuple[str, int, int]]]
    ]  # network inputs with (user, partition, offset or -end time) of each answer


def expect(log: list[Kept]) -> Expectation:
    """Fold each partition of a log with the contract, in one chunk; then close the sessions that are due."""
    result = Expectation({}, collections.Counter(), set(), set(), 0, [])
    duplicates = 0
    by_partition = collections.defaultdict(list)
    for record in sorted(log, key=lambda record: (record.partition, record.offset)):
        by_partition[record.partition].append(record)
    for partition, records in by_partition.items():
        sequences = Sequences(default_rules())
        chunk = decode_chunk(records, Bounds())
        result.dead.update((partition, records[i].offset) for i, _ in chunk.dead)
        good = [records[i] for i in chunk.index]
        offsets = np.array([record.offset for record in good], np.int64)
        for block in sequences.fold(sequences.columns(chunk.events, [record.key or b"" for record in good])):
            _answers(result, sequences, block, partition, offsets)
        result.late.update((partition, int(o)) for o in offsets[~np.isin(sequences.verdicts, (APPLIED, DUPLICATE))])
        duplicates += int((sequences.verdicts == DUPLICATE).sum())
        for block in sequences.close_due(sequences.streams[0]):
            _answers(result, sequences, block, partition, offsets)
        result.table.update({(partition, key): value for key, value in sequences.pack()[0].items()})
    return result._replace(duplicates=duplicates)


def place_of(record: Kept) -> tuple[str, int | None]:
    """Return (user, source offset) of an answered event, (user, -time) of an answered session end."""
    answer = record.json()
    assert record.key == answer["user_id"].encode()
    if answer["event_type"] == "session_end":
        return answer["user_id"], -answer["event_time"]
    _, partition, offset = answer["id"].rsplit("-", 2)
    assert int(partition) == record.partition
    return answer["user_id"], int(offset)


def source_of(record: Kept) -> tuple[int, int]:
    return int(record.headers["source_partition"]), int(record.headers["source_offset"])


def _answers(result: Expectation, sequences: Sequences, block: Any, partition: int, offsets: Any) -> None:
    names = []
    for i in np.flatnonzero(block.kind != REVISED):
        user, source = sequences.key_of(int(block.slot[i])).decode(), int(block.source[i])
        names.append((user, partition, int(offsets[source]) if source >= 0 else -int(block.ts[i])))
    result.answered.update((user, place) for user, _, place in names)
    result.inputs.append((sequences.inputs(block), names))

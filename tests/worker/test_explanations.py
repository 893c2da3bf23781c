"""Laws of sampled explanations: they say what `funnelcast explain` says, of answers that a replay would pick again."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from model.contract.bundle import SHIPPED, load_bundle
from model.contract.events import TYPES, ClickEvent
from model.contract.rows import RING
from model.contract.sequence import Sequences, default_rules
from tests.support.clicks import EXCERPT
from tests.support.explained import Offline, apart
from worker.explanations import Asked, Explainer, Sample
from worker.metrics import EXPLAINED, Metrics
from worker.records import Encoder, Model, Source
from worker.retell import LATEST, Explanation, explain
from worker.scorer import Scorer

ENCODER = Encoder(Source("app", "clickstream", 0), Model("taobao", "1", "ab" * 32))


@dataclass
class Asking:
    """Counts what it is not asked."""

    one_in: int = 1
    busy: bool = False
    counted: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> None:
        self.counted.append(outcome)


def picked(asking: Asking, events: list[ClickEvent], chunk: int = 1) -> Iterator[Asked]:
    """Fold a log, a transaction a chunk, and yield what is asked."""
    sequences = Sequences(default_rules())
    sample = Sample(asking, [ENCODER], sequences)
    for first in range(0, len(events), chunk):
        some = events[first : first + chunk]
        columns = sequences.columns(some, [event.user_id.encode() for event in some])
        for block in sequences.fold(columns):
            sample.look(block, np.arange(first, first + len(some)))
        asked = sample.take()
        yield from [asked] if asked is not None else []


@pytest.fixture(scope="module")
def offline() -> Offline:
    return Offline(EXCERPT)


def test_an_explanation_is_that_of_the_offline_command(offline: Offline) -> None:
    scorer, rules, asking = Scorer(load_bundle(SHIPPED)), default_rules(), Asking(one_in=300)
    told = [explain(asked.question, scorer, rules) for asked in picked(asking, offline.events)]
    assert len(told) > 10
    assert {explanation.event_type == "session_end" for explanation in told} == {True, False}
    assert max(len(explanation.events) for explanation in told) == LATEST
    assert max(apart(explanation, offline) for explanation in told) < 1e-5


def test_which_answers_are_explained_depends_on_their_ids_alone(offline: Offline) -> None:
    events = offline.events[:400]
    asking = Asking(one_in=5)
    ids = {asked.question.id for asked in picked(asking, events)}
    assert len(events) / 8 < len(ids) < len(events) / 3
    assert all(zlib.crc32(name.encode()) % 5 == 0 for name in ids)
    of_events = (b"abababab-0-%d" % offset for offset in range(len(events)))
    missed = {name.decode() for name in of_events if zlib.crc32(name) % 5 == 0} - ids
    assert len(missed) <= len(asking.counted) < len(ids) / 5  # the second one of a transaction
    together = Asking(one_in=5)
    some = {asked.question.id for asked in picked(together, events, chunk=50)}
    assert all(zlib.crc32(name.encode()) % 5 == 0 for name in some)
    assert set(together.counted) == {"busy"}


def test_a_busy_explainer_is_asked_nothing(offline: Offline) -> None:
    asking = Asking(busy=True)
    assert list(picked(asking, offline.events[:50])) == []
    assert asking.counted == ["busy"] * len(asking.counted) and len(asking.counted) >= 50


def test_a_history_that_lost_its_first_rows_is_not_retold() -> None:
    asking = Asking()
    events = [ClickEvent("ann", "click", 1_511_600_000_000 + number) for number in range(RING + 1)]
    assert [len(asked.question.type) for asked in picked(asking, events)] == list(range(1, RING + 1))
    assert asking.counted == ["long"]


def test_a_process_that_ends_costs_its_explanation_and_nothing_else(tmp_path: Path) -> None:
    metrics = Metrics()
    events = [ClickEvent("ann", TYPES[6], 1_511_600_000_000)]
    (asked,) = picked(Asking(), events)

    async def story() -> None:
        explainer = Explainer(1, tmp_path / "no bundle", "explanations", {}, metrics)
        running = asyncio.create_task(explainer.run())
        for _ in range(2):
            explainer.ask(asked)
            explainer.ask(asked)
            while explainer.busy:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()

    asyncio.run(story())
    counts = {
        outcome: metrics.registry.get_sample_value("funnelcast_explanations_total", {"outcome": outcome})
        for outcome in EXPLAINED
    }
    assert counts == {"published": 0, "busy": 2, "long": 0, "failed": 2}


def test_an_explanation_of_a_first_click_has_no_events() -> None:
    (asked,) = picked(Asking(), [ClickEvent("ann", "order", 1_511_600_000_000, category="hats")])
    told = explain(asked.question, Scorer(load_bundle(SHIPPED)), default_rules())
    assert isinstance(told, Explanation)
    assert (told.events, told.past_events, told.category, told.event_type) == ([], 0, "hats", "order")

"""A hot run of the fake network, and clicks for it."""

from __future__ import annotations

from model.contract.events import ClickEvent
from model.contract.pool import Pool
from tests.support.fake_network import STATE, BurstGraph, StepGraph, WholeGraph, fake_bundle
from tests.support.hot_runs import HotRun, distances
from worker.hotscorer import HotScorer
from worker.scorer import Scorer

START_MS = 1_700_000_000_000


class Bench(HotRun):
    """A hot run of the fake network; `expected` is what whole sequences are answered."""

    def __init__(self, slots: int, partitions: int = 2, seed: int = 0, most_turns: int = 40) -> None:
        self.whole, self.pool = WholeGraph(), Pool(STATE, slots)
        self.step = StepGraph(self.pool)
        self.burst = BurstGraph(self.step)
        self.scorer = Scorer(fake_bundle(), session=self.whole)
        self.reference = Scorer(fake_bundle(), session=WholeGraph())
        super().__init__(HotScorer(self.scorer, self.step, self.burst, self.pool), slots, partitions, seed, most_turns)
        self.whole.rows.clear()
        self.step.waves.clear()
        self.burst.rows.clear()

    async def verify(self) -> None:
        for said, scores in zip(self.said, await self.end(), strict=True):
            assert distances(scores, self.reference.score([said.inputs])[0]) == 0
        assert not self.hot.pending.any()


def click(user: str, second: int, event: str = "click") -> ClickEvent:
    return ClickEvent(user, event, START_MS + 1000 * second, "i1", "c1")


def clicks(user: str, seconds: range) -> list[ClickEvent]:
    return [click(user, second) for second in seconds]

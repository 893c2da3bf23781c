"""Outcomes: answers in; what came of earlier answers and campaigns out, as counts for the model's and marketer's eyes.

Calibration needs what happened later: one prediction per user, of an event's answer, is remembered until its horizon
has passed in the partition's event time. Orders are counted for campaigns that decided on the user within the last day,
fired or held out. Lost with the process: these are measurements, not state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.events import ORDER_TYPE, SESSION_END
from model.contract.rows import DAY_MS, REVISED, Block
from model.contract.stages import NO_STAGE, STAGES
from worker.metrics import Metrics
from worker.policy import NEVER, Numbers, Policy, in_holdout
from worker.records import Answers

OPEN_PREDICTIONS = 2000  # per partition, about 1 MB; further users wait until a place is free
N_STAGES = len(STAGES)


@dataclass(slots=True)
class Open:
    """A prediction whose horizon has not passed; deepest stages seen since, -1 for none."""

    time_ms: int
    category: int
    reach: npt.NDArray[np.float32]  # (2, 6)
    in_category: int = -1
    anywhere: int = -1


class Seen(NamedTuple):
    """Columns of a block's answered rows."""

    times: list[int]
    types: list[int]
    stages: list[int]
    categories: list[int]


class Followed:
    """The predictions of one partition whose horizon has not passed."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._open: dict[bytes, Open] = {}
        self._newest_ms = 0

    def observe(self, answers: Answers, rows: Iterable[int], seen: Seen) -> list[Open]:
        """Take some rows of a block's answers, in order; return the predictions that have passed, oldest first."""
        is_full = len(self._open) >= OPEN_PREDICTIONS
        for row in rows:
            self._newest_ms = max(self._newest_ms, seen.times[row])
            # In a backlog a session's end is answered when its user is back: it would be judged by hindsight.
            if seen.types[row] != SESSION_END and (not is_full or answers.keys[row] in self._open):
                self._follow(answers, row, seen)
        passed = itertools.takewhile(
            lambda user: self._open[user].time_ms + self._horizon_ms < self._newest_ms, self._open
        )
        return [self._open.pop(user) for user in list(passed)]

    def _follow(self, answers: Answers, row: int, seen: Seen) -> None:
        """Note what a followed user did, or begin to follow one."""
        opened, time_ms, stage = self._open.get(answers.keys[row]), seen.times[row], seen.stages[row]
        if opened is not None:
            if stage != NO_STAGE and opened.time_ms <= time_ms <= opened.time_ms + self._horizon_ms:
                _reached(opened, stage, seen.categories[row])
        elif len(self._open) < OPEN_PREDICTIONS and not answers.degraded[row]:
            assert answers.reach is not None
            self._open[answers.keys[row]] = Open(time_ms, seen.categories[row], answers.reach[row].copy())


class Outcomes:
    """What the users of some partitions did after they were scored."""

    def __init__(self, horizon_ms: int, policy: Policy, metrics: Metrics, partitions: int = 1) -> None:
        self._policy, self._metrics = policy, metrics
        self._followed = [Followed(horizon_ms) for _ in range(partitions)]

    def observe(self, answers: Answers, block: Block, memory: Numbers, shares: Sequence[tuple[int, range]]) -> None:
        """Take one block's answers, in order; `memory` (A, C) are the users' campaign memories before it.

        `shares` names each partition's rows of the answers.
        """
        self._metrics.answers(answers.type, answers.user_stage, answers.reach, answers.degraded)
        for row in np.flatnonzero(answers.type == ORDER_TYPE).tolist():
            self._order(answers.keys[row], int(answers.event_time[row]), memory[row].tolist())
        if answers.reach is None:
            return
        rows = block.kind != REVISED
        columns = answers.event_time, answers.type, block.stage[rows], block.category[rows]
        seen = Seen(*(column.tolist() for column in columns))
        self._resolve([done for place, share in shares for done in self._followed[place].observe(answers, share, seen)])

    def _resolve(self, done: list[Open]) -> None:
        """Count the predictions whose horizon has passed."""
        if not done:
            return
        deepest = np.array([(opened.in_category, opened.anywhere) for opened in done])  # (D, 2)
        observed = (deepest[:, :, None] >= np.arange(N_STAGES)).sum(axis=0)  # (2, 6)
        self._metrics.resolved(len(done), np.sum([opened.reach for opened in done], axis=0), observed)

    def _order(self, user: bytes, time_ms: int, memory: list[int]) -> None:
        for campaign, code in zip(self._policy.campaigns, memory, strict=True):
            if code != NEVER and 0 <= time_ms - (code >> 1) <= DAY_MS:
                group = "holdout" if in_holdout(user, campaign, self._policy.salt) else "treatment"
                self._metrics.campaign_orders.labels(campaign.name, group).inc()


def _reached(opened: Open, stage: int, category: int) -> None:
    opened.anywhere = max(opened.anywhere, stage)
    if category == opened.category:
        opened.in_category = max(opened.in_category, stage)

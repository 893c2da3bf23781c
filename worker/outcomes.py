"""Outcomes: answers in; what came of earlier answers and campaigns out, as counts for the model's and marketer's eyes.

Calibration needs what happened later: one prediction per user, of an event's answer, is remembered until its horizon
has passed in the partition's event time. Orders are counted for campaigns that decided on the user within the last day,
fired or held out. Lost with the process: these are measurements, not state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.events import ORDER_TYPE, SESSION_END
from model.contract.jit import jit
from model.contract.rows import DAY_MS, REVISED, Block, typed
from model.contract.stages import NO_STAGE, STAGES
from worker.metrics import Metrics
from worker.policy import NEVER, Flags, Numbers, Policy, in_holdout
from worker.records import Answers

OPEN_PREDICTIONS = 2000  # per partition, 140 KB; further users wait until a place is free
NOT_FOLLOWED = -1  # place of a user without an open prediction
IN_CATEGORY, ANYWHERE = 0, 1
N_STAGES = len(STAGES)
SEEN_DTYPES = [np.dtype(kind) for kind in ("i4", "i8", "i8", "?", "u1", "u4", "f4", "?")]


class Open(NamedTuple):
    """The predictions of P partitions whose horizon has not passed, N of each at most, in rings."""

    slot: Numbers  # (P, N) of the user
    time_ms: Numbers  # (P, N)
    category: npt.NDArray[np.uint32]  # (P, N)
    deepest: npt.NDArray[np.int8]  # (P, N, 2) stage seen since in the category and anywhere, -1 for none
    reach: npt.NDArray[np.float32]  # (P, N, 2, 6)
    first: Numbers  # (P,) place of the oldest one
    held: Numbers  # (P,) how many there are
    newest_ms: Numbers  # (P,) latest time seen


class Seen(NamedTuple):
    """The answered rows (A,) of a block, in order."""

    partition: npt.NDArray[np.int32]  # (A,) places
    slot: Numbers  # (A,) of the user
    time_ms: Numbers  # (A,)
    session_end: Flags  # (A,)
    stage: npt.NDArray[np.uint8]  # (A,) of the row
    category: npt.NDArray[np.uint32]  # (A,)
    reach: npt.NDArray[np.float32]  # (A, 2, 6)
    degraded: Flags  # (A,)


class Outcomes:
    """What the users of some partitions did after they were scored."""

    def __init__(self, horizon_ms: int, policy: Policy, metrics: Metrics, partitions: int = 1) -> None:
        self._horizon_ms, self._policy, self._metrics = horizon_ms, policy, metrics
        self._open = _none(partitions)
        self._place = np.full(0, NOT_FOLLOWED, np.int32)  # by the user's slot

    def observe(self, answers: Answers, block: Block, memory: Numbers, slots: Numbers, partitions: Numbers) -> None:
        """Take one block's answers, in order, with their users' slots and partitions (A,).

        `memory` (A, C) are the users' campaign memories before it.
        """
        self._metrics.answers(answers.type, answers.user_stage, answers.reach, answers.degraded)
        for row in np.flatnonzero(answers.type == ORDER_TYPE).tolist():
            self._order(answers.keys[row], int(answers.event_time[row]), memory[row].tolist())
        if answers.reach is None:
            return
        rows = block.kind != REVISED
        ended = answers.type == SESSION_END
        columns = (partitions, slots, answers.event_time, ended, block.stage[rows], block.category[rows])
        seen = Seen(*map(typed, (*columns, answers.reach, answers.degraded), SEEN_DTYPES))
        expected, observed = np.zeros((2, N_STAGES)), np.zeros((2, N_STAGES), np.int64)
        count = _follow(self._open, seen, self._places(slots), self._horizon_ms, expected, observed)
        if count:
            self._metrics.resolved(count, expected, observed)

    def are_followed(self, slots: Numbers) -> Flags:
        """Tell which users have a prediction whose horizon has not passed."""
        return np.asarray(self._places(slots)[slots] != NOT_FOLLOWED)

    def _places(self, slots: Numbers) -> npt.NDArray[np.int32]:
        users = int(slots.max(initial=-1)) + 1
        if users > len(self._place):
            more = max(users, 2 * len(self._place)) - len(self._place)
            self._place = np.pad(self._place, (0, more), constant_values=NOT_FOLLOWED)
        return self._place

    def _order(self, user: bytes, time_ms: int, memory: list[int]) -> None:
        for campaign, code in zip(self._policy.campaigns, memory, strict=True):
            if code != NEVER and 0 <= time_ms - (code >> 1) <= DAY_MS:
                group = "holdout" if in_holdout(user, campaign, self._policy.salt) else "treatment"
                self._metrics.campaign_orders.labels(campaign.name, group).inc()


def _none(partitions: int) -> Open:
    shape = (partitions, OPEN_PREDICTIONS)
    return Open(
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.uint32),
        np.zeros((*shape, 2), np.int8),
        np.zeros((*shape, 2, N_STAGES), np.float32),
        *(np.zeros(partitions, np.int64) for _ in range(3)),
    )


@jit
def _reach(opened: Open, partition: int, place: int, scope: int, stage: int) -> None:
    opened.deepest[partition, place, scope] = max(opened.deepest[partition, place, scope], stage)


@jit
def _note(opened: Open, seen: Seen, row: int, places: npt.NDArray[np.int32], horizon_ms: int) -> None:
    """Note what a followed user did, or begin to follow one, if there is room."""
    partition, slot, stage = seen.partition[row], seen.slot[row], seen.stage[row]
    place = int(places[slot])
    if place != NOT_FOLLOWED:
        since_ms = seen.time_ms[row] - opened.time_ms[partition, place]
        if stage != NO_STAGE and 0 <= since_ms <= horizon_ms:
            _reach(opened, partition, place, ANYWHERE, stage)
            if seen.category[row] == opened.category[partition, place]:
                _reach(opened, partition, place, IN_CATEGORY, stage)
    elif opened.held[partition] < opened.slot.shape[1] and not seen.degraded[row]:
        place = int(opened.first[partition] + opened.held[partition]) % opened.slot.shape[1]
        opened.held[partition] += 1
        places[slot] = place
        opened.slot[partition, place], opened.time_ms[partition, place] = slot, seen.time_ms[row]
        opened.category[partition, place] = seen.category[row]
        for scope in range(2):
            opened.deepest[partition, place, scope] = -1
            for of in range(N_STAGES):
                opened.reach[partition, place, scope, of] = seen.reach[row, scope, of]


@jit
def _follow(
    opened: Open,
    seen: Seen,
    places: npt.NDArray[np.int32],
    horizon_ms: int,
    expected: npt.NDArray[np.float64],
    observed: Numbers,
) -> int:
    """Note what followed users did, begin to follow others, and end what has passed, oldest first.

    Returns how many have; adds up their probabilities and what was reached, (2, 6) each.
    """
    for row in range(len(seen.slot)):
        partition, time_ms = seen.partition[row], seen.time_ms[row]
        opened.newest_ms[partition] = max(opened.newest_ms[partition], time_ms)
        # In a backlog a session's end is answered when its user is back: it would be judged by hindsight.
        if not seen.session_end[row]:
            _note(opened, seen, row, places, horizon_ms)
    count = 0
    for partition in range(len(opened.held)):
        while opened.held[partition]:
            place = opened.first[partition]
            if opened.time_ms[partition, place] + horizon_ms >= opened.newest_ms[partition]:
                break
            places[opened.slot[partition, place]] = NOT_FOLLOWED
            opened.first[partition] = (place + 1) % opened.slot.shape[1]
            opened.held[partition] -= 1
            count += 1
            for scope in range(2):
                for stage in range(N_STAGES):
                    expected[scope, stage] += opened.reach[partition, place, scope, stage]
                    observed[scope, stage] += opened.deepest[partition, place, scope] >= stage
    return count


def warm() -> None:
    """Compile what follows predictions, or load it from Numba's cache; the first time it takes seconds."""
    one = np.zeros(1, np.int64)
    columns = (one, one, one, one, one, one, np.zeros((1, 2, N_STAGES)), one)
    seen, sums = Seen(*map(typed, columns, SEEN_DTYPES)), np.zeros((2, N_STAGES))
    _follow(_none(1), seen, np.full(1, NOT_FOLLOWED, np.int32), 1, sums, sums.astype(np.int64))

"""Lanes: pieces of one kind that wait for the network, in order, and when the next micro-batch of them has to go."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from worker.pace import Pace
from worker.pieces import Piece, Scores
from worker.tracing import Origin

# The fixed cost of a run, measured with the shipped bundle: 0.4 ms of steps that take 14 us each, 1 ms of whole
# sequences at 12 us a row.
FIXED_USERS, FIXED_ROWS = 28, 90
BURST_ROWS = 16  # of a user in one run
AHEAD_SECONDS = 0.1  # what is for blocks to come waits no longer for spare time


@dataclass(frozen=True, slots=True)
class Limits:
    """What is configured: the size of micro-batches and their wait, the queue, the latency to keep.

    With `base_rates` (2, 6) the overload policy is to answer with them at once, else to wait. A run that is expected to
    take less than `inline_seconds` is done on the event loop: to hand it to a thread and back costs more.
    """

    batch_users: int = 256
    wait_seconds: float = 0.005
    waiting_users: int = 4096
    target_seconds: float = 0.1
    base_rates: npt.NDArray[np.float32] | None = None
    inline_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One piece that waits for its scores."""

    piece: Piece
    scores: asyncio.Future[Scores]
    since: float  # loop time
    number: int
    origin: Origin


Requests: TypeAlias = Sequence[Request] | deque[Request]


class Lane:
    """Pieces of one kind, in order; `pace` counts in users, or in rows."""

    def __init__(self, limits: Limits, size: int, by_rows: bool) -> None:
        self.waiting: deque[Request] = deque()
        fixed = FIXED_ROWS if by_rows else FIXED_USERS
        self.pace = Pace(size, limits.wait_seconds, limits.target_seconds, fixed)
        self.by_rows = by_rows

    def units(self, requests: Requests) -> int:
        """Return the size of some requests."""
        if self.by_rows:
            return sum(len(request.piece.inputs.type) for request in requests)
        return sum(request.piece.users for request in requests)

    def cost(self, requests: Requests) -> int:
        """Return what one run of some requests costs, in units: each run of a graph has its fixed cost."""
        if self.by_rows:
            return self.units(requests)
        rows = sum(
            len(request.piece.inputs.type) if request.piece.steps else request.piece.users for request in requests
        )
        longest = max((request.piece.longest for request in requests if request.piece.steps), default=1)
        return rows + FIXED_USERS * math.ceil((longest - 1) / BURST_ROWS)

    def drop_cancelled(self) -> None:
        """Forget requests that nobody waits for any more."""
        for request in self.waiting:
            if request.scores.done():
                request.piece.done(None)
        self.waiting = deque(request for request in self.waiting if not request.scores.done())

    def deadline(self, hurried: int, spared: int) -> float:
        """Return the time at which the oldest has to go; the past when they fill a micro-batch or it is hurried.

        What nobody waits for goes with what somebody does, else in spare time, up to number `spared`.
        """
        units = self.units(self.waiting)
        awaited = next((request for request in self.waiting if not request.piece.ahead), None)
        oldest, now = (self.waiting[0], spared) if awaited is None else (awaited, hurried)
        if units >= self.pace.size() or oldest.number <= now:
            return 0.0
        return oldest.since + (AHEAD_SECONDS if awaited is None else self.pace.wait_seconds(units))

    def take(self, before: int | None) -> list[Request]:
        """Take the oldest, at least one, until the micro-batch is full; none that came after number `before`."""
        batch, room = [self.waiting.popleft()], self.pace.size()
        room -= self.units(batch)
        while self.waiting and room > 0 and (before is None or self.waiting[0].number < before):
            batch.append(self.waiting.popleft())
            room -= self.units(batch[-1:])
        return batch

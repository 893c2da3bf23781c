"""Batcher: the pieces of blocks in, from all partitions; their scores out, one micro-batch at a time.

A micro-batch closes when it is full, or when its oldest piece has waited long enough; the next one fills while the
network runs. Pieces that go at once overtake those that rebuild, but no piece overtakes one of its own kind, and a
rebuild waits for all that goes at once and came before it: it may take over their users' slots. What is for blocks to
come runs in spare time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

from model.contract.rows import Inputs
from worker.lanes import Lane, Limits, Request
from worker.metrics import Metrics
from worker.pieces import Piece, Scores, base_rate_scores, join, whole
from worker.tracing import UNTRACED, Origin, Tracing

REBUILD_ROWS = 8192  # rows of a micro-batch of whole sequences, at most; those that go at once wait for it


class Scoring(Protocol):
    """What the batcher needs of a scorer."""

    def run(self, pieces: Sequence[Piece]) -> list[Scores]: ...


class BatcherClosedError(RuntimeError):
    """A request that came after `close`."""


class Batcher:
    """Collects pieces and runs the scorer in one thread, one micro-batch after the other."""

    def __init__(
        self,
        scorer: Scoring,
        limits: Limits,
        metrics: Metrics,
        executor: Executor | None = None,
        tracing: Tracing = UNTRACED,
    ) -> None:
        self._scorer, self._limits, self._metrics, self._tracing = scorer, limits, metrics, tracing
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._fast = Lane(limits, limits.batch_users, by_rows=False)
        self._slow = Lane(limits, REBUILD_ROWS, by_rows=True)
        self._latest = self._slow
        self._number = 0  # of the latest request,
        self._hurried = self._spared = 0  # of the latest that is not to wait, of the latest that had spare time
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def score(self, inputs: Inputs) -> Scores:
        """Return the scores of whole sequences."""
        return await self.submit([whole(inputs)])

    def submit(self, pieces: Sequence[Piece], origin: Origin = None) -> asyncio.Future[Scores]:
        """Queue the pieces of a block, in order; an error of the scorer reaches everybody in its micro-batch."""
        if self._closed:
            raise BatcherClosedError("the batcher is closed")
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run())
        asked: list[Request] = []
        for piece in pieces:
            self._number += 1
            asked.append(Request(piece, loop.create_future(), loop.time(), self._number, origin))
            lane = self._fast if piece.at_once else self._slow
            lane.waiting.append(asked[-1])
        self._changed.set()
        self._measure()
        return asyncio.ensure_future(_joined([request for request in asked if not request.piece.ahead]))

    async def room(self) -> None:
        """Wait until the queue is not full, if it is the overload policy to wait."""
        if self._limits.base_rates is None:
            await self._room.wait()

    @property
    def has_room(self) -> bool:
        """Whether a block that comes now is answered without the writer's waiting for room."""
        return self._room.is_set() or self._limits.base_rates is not None

    def wait_seconds(self, users: int) -> float:
        """Return how long that many may wait for others that go with them."""
        return self._fast.pace.wait_seconds(users)

    def hurry(self) -> None:
        """Let what waits go at once: no more will come until it is answered."""
        self._hurried = self._number
        self._changed.set()

    def spare(self) -> None:
        """Let what is for blocks to come run: nobody waits for an answer now."""
        self._spared = self._number
        self._changed.set()

    def shed(self, rows: int) -> asyncio.Future[Scores] | None:
        """Answer a block of that many wanted rows with base rates, if the queue is full and that is the policy."""
        base_rates = self._limits.base_rates
        if base_rates is None or self._room.is_set():
            return None
        self._metrics.shed.inc(rows)
        scores = asyncio.get_running_loop().create_future()
        scores.set_result(base_rate_scores(rows, base_rates))
        return scores

    async def close(self) -> None:
        """Score what waits, then end the thread."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._executor.shutdown()

    async def _run(self) -> None:
        while (lane := await self._due()) is not None:
            fast = self._fast.waiting
            batch = lane.take(fast[0].number if lane is self._slow and fast else None)
            self._measure()
            await self._answer(lane, batch)

    async def _due(self) -> Lane | None:
        """Wait until a micro-batch has to go; None when there will be none."""
        loop = asyncio.get_running_loop()
        while True:
            self._fast.drop_cancelled()
            self._slow.drop_cancelled()
            self._measure()
            self._changed.clear()
            lanes = self._able()
            if not lanes and self._closed:
                return None
            due = [lane for lane in lanes if self._closed or loop.time() >= lane.deadline(self._hurried, self._spared)]
            if due:
                return due[0]
            deadline = min((lane.deadline(self._hurried, self._spared) for lane in lanes), default=None)
            alarm = None if deadline is None else loop.call_at(deadline, self._changed.set)
            await self._changed.wait()
            if alarm is not None:
                alarm.cancel()

    def _able(self) -> list[Lane]:
        """Return the lanes whose oldest may go, in turn; a rebuild waits for what went at once and came before it."""
        fast, slow = self._fast.waiting, self._slow.waiting
        lanes = [self._fast] if fast else []
        if slow and not (fast and fast[0].number < slow[0].number):
            lanes.insert(0 if self._latest is self._fast else len(lanes), self._slow)
        return lanes

    def _measure(self) -> None:
        users = sum(request.piece.users for lane in (self._fast, self._slow) for request in lane.waiting)
        self._metrics.batch_waiting.set(users)
        late = False
        if self._limits.base_rates is not None:
            expected = sum(lane.pace.seconds(lane.cost(lane.waiting)) for lane in (self._fast, self._slow))
            late = expected > self._limits.target_seconds
        if users < self._limits.waiting_users and not late:
            self._room.set()
        else:
            self._room.clear()

    async def _score(self, pieces: list[Piece], inline: bool) -> asyncio.Future[list[Scores]]:
        """Run the network; return what came of it, an exception included."""
        loop = asyncio.get_running_loop()
        if not inline:
            run = loop.run_in_executor(self._executor, self._scorer.run, pieces)
            await asyncio.wait({run})
            return run
        run = loop.create_future()
        try:
            run.set_result(self._scorer.run(pieces))
        except Exception as error:  # noqa: BLE001  (as a thread's: it reaches everybody in the micro-batch)
            run.set_exception(error)
        return run

    async def _answer(self, lane: Lane, batch: list[Request]) -> None:
        loop = asyncio.get_running_loop()
        started, self._latest = loop.time(), lane
        users = sum(request.piece.users for request in batch)
        span = self._tracing.score((request.origin for request in batch), users)
        inline = lane.pace.inline_seconds(lane.cost(batch)) < self._limits.inline_seconds
        run = await self._score([request.piece for request in batch], inline)
        span.end()
        seconds = loop.time() - started
        lane.pace.ran(lane.cost(batch), seconds, inline)
        self._metrics.batch_users.observe(users)
        self._metrics.batch_wait_seconds.observe(started - batch[0].since)
        self._metrics.inference_seconds.observe(seconds)
        if lane is self._slow:
            self._metrics.hot_state_rebuild_seconds.observe(seconds)
        error = run.exception()
        for place, request in enumerate(batch):
            request.piece.done(None if error is not None else run.result()[place])
            if request.scores.done() or request.piece.ahead:
                continue  # cancelled meanwhile, or for nobody
            if error is not None:
                request.scores.set_exception(error)
            else:
                request.scores.set_result(run.result()[place])


async def _joined(asked: Sequence[Request]) -> Scores:
    scores = await asyncio.gather(*(request.scores for request in asked))
    return join([request.piece for request in asked], scores)

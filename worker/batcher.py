"""Batcher: network inputs of due users in, from all partitions; their scores out, one micro-batch at a time.

A micro-batch closes when it is full, or when its oldest request has waited long enough; the next one fills while the
network runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from model.contract.rows import Inputs
from worker.metrics import Metrics
from worker.scorer import Scores


class Scoring(Protocol):
    """What the batcher needs of a scorer."""

    def score(self, requests: Sequence[Inputs]) -> list[Scores]: ...


class BatcherClosedError(RuntimeError):
    """A request that came after `close`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One block that waits for its scores."""

    inputs: Inputs
    scores: asyncio.Future[Scores]
    since: float  # loop time

    @property
    def users(self) -> int:
        """Return the number of sequences that the network has to read."""
        return len(self.inputs.lengths)


class Batcher:
    """Collects requests and runs the scorer in one thread, one micro-batch after the other."""

    def __init__(
        self,
        scorer: Scoring,
        batch_size: int,
        wait_seconds: float,
        metrics: Metrics,
        executor: Executor | None = None,
    ) -> None:
        self._scorer, self._batch_size, self._wait_seconds = scorer, batch_size, wait_seconds
        self._metrics = metrics
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._waiting: deque[Request] = deque()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def score(self, inputs: Inputs) -> Scores:
        """Return the scores of one block; an error of the scorer reaches every request of its micro-batch."""
        if self._closed:
            raise BatcherClosedError("the batcher is closed")
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run())
        request = Request(inputs, loop.create_future(), loop.time())
        self._waiting.append(request)
        self._changed.set()
        return await request.scores

    async def close(self) -> None:
        """Score what waits, then end the thread."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._executor.shutdown()

    async def _run(self) -> None:
        while await self._due():
            batch = self._take()
            self._metrics.batch_waiting.set(self._users())
            await self._answer(batch)

    async def _due(self) -> bool:
        """Wait until a micro-batch has to go; false when there will be none."""
        loop = asyncio.get_running_loop()
        while True:
            self._waiting = deque(request for request in self._waiting if not request.scores.done())  # cancelled
            self._changed.clear()
            if not self._waiting:
                if self._closed:
                    return False
                await self._changed.wait()
                continue
            deadline = self._waiting[0].since + self._wait_seconds
            if self._closed or self._users() >= self._batch_size or loop.time() >= deadline:
                return True
            alarm = loop.call_at(deadline, self._changed.set)
            await self._changed.wait()
            alarm.cancel()

    def _users(self) -> int:
        return sum(request.users for request in self._waiting)

    def _take(self) -> list[Request]:
        """Take the oldest requests until the micro-batch is full; at least one."""
        batch, users = [self._waiting.popleft()], 0
        users += batch[0].users
        while self._waiting and users < self._batch_size:
            batch.append(self._waiting.popleft())
            users += batch[-1].users
        return batch

    async def _answer(self, batch: list[Request]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        run = loop.run_in_executor(self._executor, self._scorer.score, [request.inputs for request in batch])
        await asyncio.wait({run})
        self._metrics.batch_users.observe(sum(request.users for request in batch))
        self._metrics.batch_wait_seconds.observe(started - batch[0].since)
        self._metrics.inference_seconds.observe(loop.time() - started)
        error = run.exception()
        for place, request in enumerate(batch):
            if request.scores.done():
                continue  # cancelled meanwhile
            if error is not None:
                request.scores.set_exception(error)
            else:
                request.scores.set_result(run.result()[place])

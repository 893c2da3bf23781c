"""A micro-batch goes when it is full or its oldest request has waited; the next one fills meanwhile."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from model.contract.features import WIDTH
from model.contract.rows import Inputs
from worker.batcher import Batcher, BatcherClosedError, Limits
from worker.metrics import Metrics
from worker.pieces import Piece, Scores

WAIT_SECONDS = 5.0
LEISURE_SECONDS = 1e6  # a latency target that changes nothing
WAITING_USERS = 1000


class JumpingSelector(selectors.SelectSelector):
    """Instead of sleeping, moves the loop's clock to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(None if timeout is None else 0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when there is nothing to do."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class HandExecutor(Executor):
    """Runs what was submitted when the test says so."""

    def __init__(self) -> None:
        self.runs: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.ended = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert not kwargs
        self.runs.append((Future(), fn, args))
        return self.runs[-1][0]

    def finish(self) -> None:
        future, fn, args = self.runs.pop(0)
        try:
            future.set_result(fn(*args))
        except RuntimeError as error:
            future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.ended = True


class FakeScorer:
    """Answers each row with the first type of its request; remembers the micro-batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.broken = False

    def run(self, pieces: Sequence[Piece]) -> list[Scores]:
        requests = [piece.inputs for piece in pieces]
        self.batches.append([int(request.type[0]) for request in requests])
        if self.broken:
            raise RuntimeError("broken network")
        return [
            Scores(np.full((1, 2, 6), request.type[0], "f4"), np.zeros((1, 20), "f4"), np.zeros(1, bool))
            for request in requests
        ]


def request(name: int, users: int = 1) -> Inputs:
    return Inputs(
        lengths=np.ones(users, "i4"),
        type=np.full(users, name, "u1"),
        item=np.zeros(users, "u4"),
        category=np.zeros(users, "u4"),
        features=np.zeros((users, WIDTH), "u1"),
        owner=np.zeros(1, "i4"),
        position=np.zeros(1, "i4"),
    )


class Bench:
    """A batcher with hand-driven parts."""

    def __init__(self, batch_size: int = 4, wait_seconds: float = WAIT_SECONDS) -> None:
        self.scorer, self.executor, self.metrics = FakeScorer(), HandExecutor(), Metrics()
        limits = Limits(batch_size, wait_seconds, WAITING_USERS, LEISURE_SECONDS)
        self.batcher = Batcher(self.scorer, limits, self.metrics, self.executor)

    async def ask(self, name: int, users: int = 1) -> asyncio.Task[Scores]:
        task = asyncio.ensure_future(self.batcher.score(request(name, users)))
        await settle()
        return task

    async def finish(self) -> None:
        self.executor.finish()
        await settle()

    def value(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(name)
        assert value is not None
        return value


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(story())


def test_a_full_micro_batch_goes_at_once() -> None:
    async def story() -> None:
        bench = Bench(batch_size=4)
        tasks = [await bench.ask(name, users=2) for name in (1, 2)]
        assert len(bench.executor.runs) == 1
        await bench.finish()
        assert bench.scorer.batches == [[1, 2]]
        assert [float(task.result().reach[0, 0, 0]) for task in tasks] == [1.0, 2.0]
        assert asyncio.get_running_loop().time() == 0

    play(story)


def test_the_deadline_counts_from_the_oldest_request() -> None:
    async def story() -> None:
        bench, loop = Bench(), asyncio.get_running_loop()
        await bench.ask(1)
        await asyncio.sleep(4)
        await bench.ask(2)
        await asyncio.sleep(0.9)
        assert bench.executor.runs == []
        await asyncio.sleep(0.11)
        assert loop.time() == pytest.approx(5.01)
        await bench.finish()
        assert bench.scorer.batches == [[1, 2]]

    play(story)


def test_the_next_micro_batch_fills_while_the_network_runs_and_goes_when_it_is_free() -> None:
    async def story() -> None:
        bench = Bench(batch_size=2)
        await bench.ask(1, users=2)
        for name in (2, 3, 4):
            await bench.ask(name)
        assert len(bench.executor.runs) == 1  # one run at a time
        await asyncio.sleep(WAIT_SECONDS + 1)
        await bench.finish()
        await bench.finish()
        await bench.finish()
        assert bench.scorer.batches == [[1], [2, 3], [4]]

    play(story)


def test_a_request_that_came_during_a_run_waits_no_longer_than_its_deadline() -> None:
    async def story() -> None:
        bench, loop = Bench(), asyncio.get_running_loop()
        await bench.ask(1, users=4)
        await asyncio.sleep(3)
        task = await bench.ask(2)
        await bench.finish()
        await asyncio.sleep(4.9)
        assert bench.executor.runs == []
        await asyncio.sleep(0.2)
        await bench.finish()
        assert task.done()
        assert loop.time() == pytest.approx(8.1)

    play(story)


def test_a_request_larger_than_the_micro_batch_goes_alone() -> None:
    async def story() -> None:
        bench = Bench(batch_size=4)
        await bench.ask(1, users=100)
        await bench.ask(2, users=100)
        await bench.finish()
        await bench.finish()
        assert bench.scorer.batches == [[1], [2]]

    play(story)


def test_a_cancelled_waiter_costs_the_others_nothing() -> None:
    async def story() -> None:
        bench = Bench(batch_size=3)
        waiting = [await bench.ask(name) for name in (1, 2)]
        waiting[0].cancel()
        await settle()
        third = await bench.ask(3)
        assert bench.executor.runs == []  # the cancelled one fills no micro-batch
        fourth = await bench.ask(4)
        waiting[1].cancel()  # while the network runs
        await bench.finish()
        assert bench.scorer.batches == [[2, 3, 4]]
        assert float(third.result().reach[0, 0, 0]) == 3
        assert float(fourth.result().reach[0, 0, 0]) == 4
        assert waiting[0].cancelled()
        assert waiting[1].cancelled()

    play(story)


def test_when_all_waiters_are_cancelled_nothing_runs() -> None:
    async def story() -> None:
        bench = Bench()
        task = await bench.ask(1)
        task.cancel()
        await asyncio.sleep(WAIT_SECONDS * 2)
        assert bench.executor.runs == []
        await bench.batcher.close()

    play(story)


def test_an_error_of_the_scorer_reaches_its_micro_batch_and_the_next_one_is_served() -> None:
    async def story() -> None:
        bench = Bench(batch_size=2)
        tasks = [await bench.ask(name) for name in (1, 2)]
        bench.scorer.broken = True
        await bench.finish()
        for task in tasks:
            with pytest.raises(RuntimeError, match="broken network"):
                task.result()
        bench.scorer.broken = False
        task = await bench.ask(3, users=2)
        await bench.finish()
        assert task.result().reach[0, 0, 0] == 3

    play(story)


def test_close_scores_what_waits_at_once_and_ends_the_thread() -> None:
    async def story() -> None:
        bench = Bench()
        task = await bench.ask(1)
        closing = asyncio.ensure_future(bench.batcher.close())
        await settle()
        await bench.finish()
        await closing
        assert task.done()
        assert bench.executor.ended
        assert asyncio.get_running_loop().time() == 0
        with pytest.raises(BatcherClosedError):
            await bench.batcher.score(request(2))

    play(story)


def test_a_batcher_that_was_never_asked_closes() -> None:
    async def story() -> None:
        bench = Bench()
        await bench.batcher.close()
        assert bench.executor.ended

    play(story)


def test_size_and_wait_of_micro_batches_are_measured() -> None:
    async def story() -> None:
        bench = Bench(batch_size=4)
        await bench.ask(1, users=2)
        await asyncio.sleep(WAIT_SECONDS)
        await asyncio.sleep(2)
        await bench.ask(2, users=3)
        await bench.finish()
        assert bench.value("funnelcast_batch_users_sum") == 2
        assert bench.value("funnelcast_batch_wait_seconds_sum") == WAIT_SECONDS
        assert bench.value("funnelcast_inference_seconds_sum") == 2

    play(story)


def test_many_requests_through_a_real_thread_each_get_their_own_scores() -> None:
    async def story() -> None:
        batcher = Batcher(FakeScorer(), Limits(8, 0.001, WAITING_USERS, LEISURE_SECONDS), Metrics())
        names = [number % 200 for number in range(500)]
        scores = await asyncio.gather(*(batcher.score(request(name)) for name in names))
        assert [int(one.reach[0, 0, 0]) for one in scores] == names
        await batcher.close()

    asyncio.run(story())

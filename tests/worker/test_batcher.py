"""A micro-batch goes when it is full or its oldest request has waited; the next one fills meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from model.contract.features import WIDTH
from model.contract.rows import Inputs
from tests.support.hand_loop import HandExecutor, play, settle
from worker.batcher import Batcher, BatcherClosedError, Limits
from worker.metrics import Metrics
from worker.pieces import Piece, Scores, whole

WAIT_SECONDS = 5.0
LEISURE_SECONDS = 1e6  # a latency target that changes nothing
WAITING_USERS = 1000


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

    def __init__(self, batch_size: int = 4, wait_seconds: float = WAIT_SECONDS, limits: Limits | None = None) -> None:
        self.scorer, self.executor, self.metrics = FakeScorer(), HandExecutor(), Metrics()
        limits = limits or Limits(batch_size, wait_seconds, WAITING_USERS, LEISURE_SECONDS)
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


def rebuild(name: int, rows: int = 1) -> Piece:
    """A piece that does not go at once."""
    return replace(whole(request(name, users=rows)), at_once=False)


def ask(bench: Bench, *pieces: Piece) -> list[asyncio.Future[Scores]]:
    return [bench.batcher.submit([piece]) for piece in pieces]


def test_what_goes_at_once_overtakes_rebuilds() -> None:
    async def story() -> None:
        bench = Bench(batch_size=2, wait_seconds=0.0)
        ask(bench, rebuild(1, rows=8192), rebuild(2, rows=8192), whole(request(3)), rebuild(4), whole(request(5)))
        for _ in range(6):
            await settle()
            if bench.executor.runs:
                await bench.finish()
        assert bench.scorer.batches == [[3, 5], [1], [2], [4]]

    play(story)


def test_a_rebuild_never_overtakes_what_goes_at_once_and_came_before() -> None:
    async def story() -> None:
        bench = Bench(batch_size=1, wait_seconds=0.0)
        ask(bench, whole(request(1)), whole(request(2)), rebuild(3), whole(request(4)), whole(request(5)))
        await settle()
        while bench.executor.runs:
            await bench.finish()
        order = [name for batch in bench.scorer.batches for name in batch]
        assert order.index(3) == 2
        assert order == [1, 2, 3, 4, 5]

    play(story)


def test_a_run_of_rebuilds_holds_a_bounded_number_of_rows() -> None:
    async def story() -> None:
        bench = Bench(wait_seconds=0.0)
        ask(bench, *[rebuild(name, rows=3000) for name in range(1, 8)])
        await settle()
        while bench.executor.runs:
            await bench.finish()
        assert bench.scorer.batches == [[1, 2, 3], [4, 5, 6], [7]]
        assert bench.value("funnelcast_hot_state_rebuild_seconds_count") == 3

    play(story)


def test_a_full_queue_has_no_room_until_a_run_takes_from_it() -> None:
    async def story() -> None:
        bench = Bench(batch_size=1)
        ask(bench, whole(request(0)))
        await settle()  # the network is busy
        ask(bench, whole(request(1, users=WAITING_USERS)))
        assert not bench.batcher.has_room
        waiting = asyncio.ensure_future(bench.batcher.room())
        await settle()
        assert not waiting.done()
        assert bench.value("funnelcast_batch_waiting_users") == WAITING_USERS
        await bench.finish()
        assert waiting.done()
        assert bench.batcher.has_room

    play(story)


def test_the_outcome_of_a_piece_is_told_before_its_scores_are_and_so_is_its_cancellation() -> None:
    async def story() -> None:
        bench, told = Bench(batch_size=2), list[tuple[int, bool]]()
        pieces = [
            replace(whole(request(name)), done=lambda scores, name=name: told.append((name, scores is not None)))
            for name in (1, 2, 3)
        ]
        cancelled, *_ = ask(bench, *pieces)
        await settle()
        cancelled.cancel()
        await settle()
        await bench.finish()
        ask(bench, whole(request(4)))
        await settle()
        assert told == [(1, True), (2, True)]  # it was already with the network
        bench.scorer.broken = True
        await bench.finish()
        assert told[2:] == [(3, False)]

    play(story)


def test_too_many_waiting_users_are_answered_with_base_rates_where_that_is_the_policy() -> None:
    async def story() -> None:
        rates = np.linspace(0, 1, 12, dtype="f4").reshape(2, 6)
        bench = Bench(limits=Limits(1, 0.0, 2, LEISURE_SECONDS, rates))
        assert bench.batcher.shed(3) is None
        for name in (1, 2, 3):
            await bench.ask(name)
        await asyncio.wait_for(bench.batcher.room(), 1)  # nobody waits for it
        scores = bench.batcher.shed(3)
        assert scores is not None
        assert (scores.result().reach == rates).all()
        assert scores.result().degraded.tolist() == [True] * 3
        assert not scores.result().next_type.any()
        assert bench.value("funnelcast_answers_shed_total") == 3
        await bench.finish()
        assert bench.batcher.shed(1) is None

    play(story)


def test_what_waits_longer_than_the_latency_target_is_too_much_where_base_rates_are_the_policy() -> None:
    async def story(rates: np.ndarray | None) -> None:
        bench = Bench(limits=Limits(1, 0.0, WAITING_USERS, 3.0, rates))
        await bench.ask(0)
        await asyncio.sleep(1)
        await bench.finish()  # a user takes a second
        for name in range(1, 6):
            assert bench.batcher.shed(1) is None
            await bench.ask(name)
        assert (bench.batcher.shed(1) is not None) == (rates is not None)

    play(lambda: story(np.zeros((2, 6), "f4")))
    play(lambda: story(None))


def test_short_runs_are_done_on_the_event_loop_and_long_ones_in_the_thread() -> None:
    async def story() -> None:
        limits = Limits(1, 0.0, WAITING_USERS, LEISURE_SECONDS, inline_seconds=0.5)
        bench = Bench(limits=limits)
        assert (await bench.ask(1)).done()
        assert bench.executor.runs == []
        for _ in range(20):
            bench.batcher._fast.pace.ran(1, 1.0)
        third = await bench.ask(3)
        assert not third.done()
        await bench.finish()
        assert third.done()

    play(story)


def test_an_error_of_a_run_on_the_event_loop_reaches_who_asked() -> None:
    async def story() -> None:
        bench = Bench(limits=Limits(1, 0.0, WAITING_USERS, LEISURE_SECONDS, inline_seconds=0.5))
        bench.scorer.broken = True
        task = await bench.ask(1)
        with pytest.raises(RuntimeError, match="broken network"):
            await task
        bench.scorer.broken = False
        assert (await bench.ask(2)).done()

    play(story)

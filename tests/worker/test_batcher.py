"""A micro-batch goes when it is full or its oldest request has waited; the next one fills meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.batching import (
    LEISURE_SECONDS,
    WAIT_SECONDS,
    WAITING_USERS,
    Bench,
    FakeScorer,
    ask,
    request,
)
from tests.support.hand_loop import play, settle
from worker.batcher import Batcher, BatcherClosedError
from worker.lanes import Limits
from worker.metrics import Metrics
from worker.pieces import whole


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

"""A full queue has no room; what is too much waits or gets base rates; short runs stay on the event loop."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.support.batching import LEISURE_SECONDS, WAITING_USERS, Bench, ask, request
from tests.support.hand_loop import play, settle
from worker.lanes import Limits
from worker.pieces import whole


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
            bench.batcher._fast.pace.ran(1, 1.0, inline=True)
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

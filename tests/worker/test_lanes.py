"""Which pieces go before which, what a micro-batch of them holds, and what waits for spare time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from tests.support.batching import Bench, ask, rebuild, request
from tests.support.hand_loop import play, settle
from worker.lanes import AHEAD_SECONDS, Limits
from worker.pieces import whole


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


def test_what_is_for_blocks_to_come_waits_for_spare_time() -> None:
    async def story() -> None:
        bench = Bench(wait_seconds=0.0)
        ask(bench, replace(rebuild(1), ahead=True), whole(request(2)))
        await settle()
        await bench.finish()
        assert bench.scorer.batches == [[2]] and not bench.executor.runs
        bench.batcher.spare()
        await settle()
        await bench.finish()
        assert bench.scorer.batches == [[2], [1]]

    play(story)


def test_what_is_for_blocks_to_come_goes_without_spare_time_after_a_while() -> None:
    async def story() -> None:
        bench, loop = Bench(wait_seconds=0.0), asyncio.get_running_loop()
        asked = loop.time()
        ask(bench, replace(rebuild(1), ahead=True))
        while not bench.executor.runs:
            await asyncio.sleep(AHEAD_SECONDS / 10)
        assert AHEAD_SECONDS <= loop.time() - asked <= 1.2 * AHEAD_SECONDS
        await bench.finish()

    play(story)


def test_a_rebuild_that_somebody_waits_for_takes_what_is_for_blocks_to_come_along() -> None:
    async def story() -> None:
        bench = Bench(wait_seconds=0.0)
        ask(bench, replace(rebuild(1), ahead=True), rebuild(2))
        await settle()
        await bench.finish()
        assert bench.scorer.batches == [[1, 2]]

    play(story)


def test_a_users_long_chain_of_steps_makes_later_micro_batches_no_smaller() -> None:
    async def story() -> None:
        bench = Bench(limits=Limits(batch_users=64, wait_seconds=0.0, waiting_users=256, target_seconds=0.1))
        chain = request(1)._replace(lengths=np.full(1, 40, "i4"), type=np.ones(40, "u1"))
        ask(bench, replace(whole(chain), steps=True))
        await settle()
        await asyncio.sleep(0.012)  # 40 times the fixed cost of a run, 0.3 ms
        await bench.finish()
        ask(bench, *[whole(request(name)) for name in range(2, 80)])
        await settle()
        await bench.finish()
        assert len(bench.scorer.batches[1]) == 64

    play(story)

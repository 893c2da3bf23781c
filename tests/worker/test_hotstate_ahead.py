"""A user's next state is built before its base moves, and the scores are those of the whole sequences."""

from __future__ import annotations

import asyncio

import pytest

from model.contract.rows import LMAX, RING
from tests.support.hot_bench import Bench, click, clicks
from worker.hotstate import AHEAD_ROWS, IDLE_PLANS


async def before_the_base_moves(bench: Bench) -> None:
    """Let a hot user come near."""
    bench.fold(0, clicks("ann", range(RING - AHEAD_ROWS)))
    await bench.breathe(100)
    bench.whole.rows.clear()


def test_the_next_state_of_a_user_is_built_before_the_base_moves() -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        await before_the_base_moves(bench)
        bench.fold(0, [click("ann", RING - AHEAD_ROWS)])
        await bench.breathe(100)
        assert bench.whole.rows == [LMAX - AHEAD_ROWS + 1]
        for second in range(RING - AHEAD_ROWS + 1, RING + LMAX):
            bench.fold(0, [click("ann", second)])
            await bench.breathe(50)
        bench.fold(0, [click("ann", RING + LMAX)])
        await bench.verify()
        assert bench.whole.rows == [LMAX - AHEAD_ROWS + 1] * 2
        assert bench.value("misses_total") == 1  # new

    asyncio.run(story())


@pytest.mark.parametrize("turns", [0, 100])
def test_a_block_that_moves_the_base_follows_the_next_state_that_is_being_built(turns: int) -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        await before_the_base_moves(bench)
        bench.fold(0, clicks("ann", range(RING - AHEAD_ROWS, RING - 5)))
        await bench.breathe(turns)
        bench.fold(0, clicks("ann", range(RING - 5, RING + 5)))
        bench.fold(0, [click("ann", RING + 5)])
        await bench.verify()
        assert bench.whole.rows == [LMAX - 5]
        assert bench.value("misses_total") == 1

    asyncio.run(story())


def test_rows_on_both_sides_of_the_move_are_scored_from_both_states() -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        await before_the_base_moves(bench)
        bench.fold(0, clicks("ann", range(RING - AHEAD_ROWS, RING + 1)))
        await bench.verify()
        assert bench.whole.rows == [LMAX]
        assert bench.value("misses_total") == 1

    asyncio.run(story())


def test_a_late_insert_forgets_the_next_state_too() -> None:
    async def story() -> None:
        bench = Bench(slots=3, partitions=1)
        await before_the_base_moves(bench)
        bench.fold(0, clicks("ann", range(RING - AHEAD_ROWS, RING - 3)))
        await bench.breathe(100)
        bench.fold(0, [click("ann", RING - 5, "search")])
        await bench.breathe(100)
        bench.fold(0, clicks("ann", range(RING - 3, RING + 1)))
        await bench.verify()
        assert sorted(bench.whole.rows) == [LMAX - 3, LMAX - 2, RING - 2]
        assert bench.value("misses_total") == 2

    asyncio.run(story())


def test_a_next_state_that_cannot_be_built_costs_no_score_and_is_tried_again() -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        await before_the_base_moves(bench)
        bench.whole.failing = True
        bench.fold(0, [click("ann", RING - AHEAD_ROWS)])
        await bench.breathe(100)
        bench.whole.failing = False
        bench.fold(0, [click("ann", RING - AHEAD_ROWS + 1)])
        await bench.breathe(100)
        bench.fold(0, clicks("ann", range(RING - AHEAD_ROWS + 2, RING + 1)))
        await bench.verify()
        assert bench.whole.rows == [LMAX - AHEAD_ROWS + 2]
        assert bench.value("misses_total") == 1

    asyncio.run(story())


def test_users_who_are_rebased_in_one_block_are_all_scored() -> None:
    async def story() -> None:
        bench = Bench(slots=60, partitions=1)
        users = [f"user {number}" for number in range(40)]
        bench.fold(0, [event for user in users for event in clicks(user, range(RING))])
        await bench.breathe(400)
        misses = bench.value("misses_total")
        bench.fold(0, [click(user, RING) for user in users])
        await bench.breathe(100)
        rebuilt = bench.value("misses_total") - misses
        bench.fold(0, [click(user, RING + 1) for user in users])
        await bench.verify()
        assert 0 < rebuilt < 40  # of those whose next state had a place, none
        assert bench.value("misses_total") - misses == rebuilt

    asyncio.run(story())


@pytest.mark.parametrize("idle", [False, True])
def test_only_a_user_who_is_idle_for_long_gives_way_to_a_next_state(idle: bool) -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        bench.fold(0, [click("bob", 0)])
        await before_the_base_moves(bench)
        if idle:
            for _ in range(IDLE_PLANS):
                bench.hot.now()
        bench.fold(0, clicks("ann", range(RING - AHEAD_ROWS, RING + 1)))
        await bench.breathe(100)
        assert bench.value("evictions_total") == idle
        bench.fold(0, [click("bob", RING + 1)])
        await bench.verify()

    asyncio.run(story())

"""Hot state is a cache: whatever it forgets, and whenever, the scores are those of the whole sequences."""

from __future__ import annotations

import asyncio
import random

import pytest

from model.contract.events import ClickEvent
from model.contract.rows import LMAX, RING
from tests.support.fake_network import STATE
from tests.support.hot_bench import START_MS, Bench, click, clicks
from tests.support.hot_runs import distances
from worker.hotstate import FEW_ROWS

KINDS = ("product_view", "click", "search", "cart_add", "order")


def log(events: int, users: int, seed: int, mean_seconds: float = 40.0) -> list[ClickEvent]:
    """A log in time order of users of very different eagerness."""
    rng, ts, clicks = random.Random(seed), START_MS, []
    for _ in range(events):
        ts += int(rng.expovariate(1 / mean_seconds) * 1000)
        user = f"user {int(users * rng.random() ** 3)}"
        clicks.append(ClickEvent(user, rng.choice(KINDS), ts, f"i{rng.randrange(99)}", f"c{rng.randrange(9)}"))
    return clicks


def disordered(clicks: list[ClickEvent], seed: int, most_ms: int = 50_000) -> list[ClickEvent]:
    """Delay some of the events."""
    rng = random.Random(seed)
    arrival = [click.timestamp + rng.randrange(most_ms) * (rng.random() < 0.1) for click in clicks]
    return [clicks[n] for n in sorted(range(len(clicks)), key=arrival.__getitem__)]


@pytest.mark.parametrize("slots", [2, 12, 200])
@pytest.mark.parametrize("seed", range(3))
def test_scores_from_hot_state_are_those_of_whole_sequences(slots: int, seed: int) -> None:
    async def story() -> None:
        bench, rng = Bench(slots, seed=seed, most_turns=(0, 40, 200)[seed]), random.Random(seed)
        logs = [disordered(log(1000, 60, 10 * seed + number), seed) for number in range(2)]
        while any(logs):
            number = rng.randrange(2)
            size = rng.choice((1, 3, 30, 200))
            chunk, logs[number] = logs[number][:size], logs[number][size:]
            if chunk:
                bench.fold(number, chunk)
                bench.close_due(number, bench.partitions[number].sequences.streams[0] - 60_000)
            await bench.breathe(rng.randrange(30))
            match rng.randrange(60):
                case 0:
                    bench.hot.wipe()
                case 1:
                    bench.drop_users(number, keep=rng.randrange(40))
                case 2 if bench.partitions[number].sequences.streams[0]:
                    bench.revoke(number)
        await bench.verify()

    asyncio.run(story())


@pytest.mark.parametrize("slots", [2, 3, 12])
@pytest.mark.parametrize("seed", range(3))
def test_users_longer_than_the_ring_are_rebased_with_the_same_scores(slots: int, seed: int) -> None:
    async def story() -> None:
        bench, rng = Bench(slots, partitions=1, seed=seed, most_turns=(0, 40, 200)[seed]), random.Random(seed)
        events = disordered(log(3000, 2, seed, mean_seconds=5.0), seed, most_ms=9_000)
        while events:
            size = rng.choice((1, 7, 80))
            bench.fold(0, events[:size])
            events = events[size:]
            await bench.breathe(rng.randrange(60))
            if rng.randrange(200) == 0:
                bench.hot.wipe()
        await bench.verify()
        assert bench.partitions[0].sequences.rows(b"user 0").row[-1] > RING + LMAX

    asyncio.run(story())


def test_a_hot_user_costs_its_new_rows_only() -> None:
    async def story() -> None:
        bench = Bench(slots=4, partitions=1, most_turns=0)
        bench.fold(0, clicks("ann", range(400)))
        await bench.breathe(50)
        assert bench.whole.rows == [400]
        for second in range(400, 405):
            bench.fold(0, [click("ann", second)])
            await bench.breathe(50)
        bench.fold(0, clicks("ann", range(405, 408)))
        await bench.verify()
        assert bench.whole.rows == [400]
        assert (bench.step.waves, bench.burst.rows) == ([1] * 6, [STATE.window])
        assert (bench.value("hits_total"), bench.value("misses_total")) == (6, 1)

    asyncio.run(story())


def test_a_new_user_with_few_rows_is_fed_row_by_row_and_one_with_many_rebuilt() -> None:
    async def story() -> None:
        bench = Bench(slots=4, partitions=1)
        bench.fold(0, clicks("ann", range(FEW_ROWS)))
        bench.fold(0, clicks("bob", range(3 * FEW_ROWS)))
        await bench.verify()
        assert sum(bench.step.waves) + sum(bench.burst.rows) == FEW_ROWS
        assert bench.whole.rows == [3 * FEW_ROWS]

    asyncio.run(story())


def test_many_new_rows_of_a_user_are_fed_in_bursts_unless_a_rebuild_costs_less() -> None:
    async def story() -> None:
        bench = Bench(slots=4, partitions=1)
        bench.fold(0, clicks("ann", range(100)))
        await bench.breathe(100)
        bench.fold(0, clicks("ann", range(100, 160)))
        await bench.breathe(100)
        assert (bench.burst.rows, bench.step.waves, bench.whole.rows) == ([STATE.window] * 30, [], [100])
        bench.fold(0, clicks("ann", range(160, 160 + 160 + FEW_ROWS + 1)))
        await bench.verify()
        assert bench.whole.rows == [100, 160 + 160 + FEW_ROWS + 1]

    asyncio.run(story())


@pytest.mark.parametrize("way", ["failing", "spoiling"])
def test_steps_take_over_where_a_burst_fails(way: str) -> None:
    async def story() -> None:
        bench = Bench(slots=4, partitions=1)
        setattr(bench.burst, way, True)
        bench.fold(0, clicks("ann", range(9)))
        await bench.verify()
        assert (bench.burst.rows, bench.step.waves, bench.whole.rows) == ([], [1] * 9, [])

    asyncio.run(story())


def test_a_late_insert_rebuilds_its_user() -> None:
    async def story() -> None:
        bench = Bench(slots=4, partitions=1)
        bench.fold(0, clicks("ann", range(0, 80, 2)))
        bench.fold(0, [click("ann", 71)])
        bench.fold(0, [click("ann", 90)])
        await bench.verify()
        assert (bench.value("hits_total"), bench.value("misses_total")) == (1, 2)
        assert bench.whole.rows == [81]  # both rebuilds in one micro-batch: 40 rows, then 41

    asyncio.run(story())


def test_the_least_recently_used_user_gives_way() -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        for second, user in enumerate(("ann", "bob", "ann", "cy", "ann", "bob")):
            bench.fold(0, [click(user, second)])
            await bench.breathe(100)
        await bench.verify()
        assert bench.value("hits_total") == 2  # ann twice
        assert bench.value("evictions_total") == 2  # bob by cy, cy by bob
        assert bench.value("bytes") == 2

    asyncio.run(story())


def test_more_users_in_a_block_than_slots_are_all_scored() -> None:
    async def story() -> None:
        bench = Bench(slots=3, partitions=1)
        for second in range(5):
            bench.fold(0, [click(f"user {n}", second) for n in range(10)])
        await bench.verify()

    asyncio.run(story())


def test_hot_users_are_answered_before_the_rebuild_of_others() -> None:
    async def story() -> None:
        bench = Bench(slots=80, partitions=2)
        bench.fold(0, clicks("hot", range(3)))
        await bench.breathe(100)
        for number in range(60):  # rebuilds of 600 rows: five runs
            bench.fold(1, clicks(f"cold {number}", range(600)))
        bench.fold(0, [click("hot", 3)])
        runs = bench.executor.runs
        await bench.said[-1].scores
        assert bench.executor.runs <= runs + 3  # one rebuild, the hot user, and what began since
        assert not bench.said[-2].scores.done()
        await bench.verify()

    asyncio.run(story())


def test_a_row_that_no_run_survives_costs_its_user_the_score_and_the_state_only() -> None:
    async def story() -> None:
        bench = Bench(slots=8, partitions=1)
        bench.fold(0, [click(user, 0) for user in ("ann", "bob", "cy")])
        await bench.breathe(100)
        bench.step.failing_types = {13}
        bench.fold(0, [click("ann", 1), click("bob", 1, "checkout_step"), click("cy", 1)])
        await bench.breathe(100)
        bench.fold(0, [click(user, 2) for user in ("ann", "bob", "cy")])
        degraded = [scores.degraded.tolist() for scores in await bench.end()]
        assert degraded == [[False] * 3, [False, True, False], [False, True, False]]

    asyncio.run(story())


def test_what_is_not_finite_never_reaches_the_pool() -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        bench.step.nan_types = {13}
        bench.fold(0, [click("ann", 0), click("ann", 1, "checkout_step"), click("ann", 2)])
        bench.fold(0, [click("bob", 0), click("bob", 1)])
        scores = await bench.end()
        assert scores[0].degraded.tolist() == [False, True, True]
        assert distances(scores[1], bench.reference.score([bench.said[1].inputs])[0]) == 0
        assert bool((bench.pool.kv == bench.pool.kv).all())

    asyncio.run(story())


def test_a_failed_rebuild_is_tried_again_with_the_next_row() -> None:
    async def story() -> None:
        bench = Bench(slots=2, partitions=1)
        bench.whole.failing = True
        bench.fold(0, clicks("ann", range(40)))
        await bench.breathe(100)
        bench.whole.failing = False
        bench.fold(0, [click("ann", 40)])
        await bench.breathe(100)
        bench.fold(0, [click("ann", 41)])
        scores = await bench.end()
        assert [bool(block.degraded.any()) for block in scores] == [True, False, False]
        assert bench.whole.rows == [41]

    asyncio.run(story())


def test_a_cancelled_request_loses_the_state_of_its_users_and_no_score() -> None:
    async def story() -> None:
        bench = Bench(slots=4, partitions=1)
        bench.fold(0, clicks("ann", range(40)))
        await bench.breathe(1)
        bench.fold(0, [click("ann", 40)])
        bench.said.pop().scores.cancel()
        await bench.breathe(200)
        bench.fold(0, [click("ann", 41)])
        await bench.verify()

    asyncio.run(story())

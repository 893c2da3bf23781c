"""Rounds of fetching: what is fetched together goes together, and the next comes when it is of use; never for ever."""

from __future__ import annotations

import asyncio

import pytest

from worker import rounds as module
from worker.rounds import Rounds


def test_a_transaction_waits_for_all_chunks_of_a_round() -> None:
    async def story() -> None:
        rounds = Rounds()
        rounds.begin(3)
        rounds.came()
        together = asyncio.ensure_future(rounds.complete())
        for _ in range(2):
            await asyncio.sleep(0)
            assert not together.done()
            rounds.came()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert together.done()

    asyncio.run(story())


def test_a_chunk_that_a_rebalance_lost_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        rounds = Rounds()
        rounds.begin(2)
        rounds.came()
        await rounds.complete()
        monkeypatch.setattr(module, "TOGETHER_SECONDS", 3600)
        await rounds.complete()
        rounds.begin(1)
        rounds.came()
        await rounds.complete()

    asyncio.run(asyncio.wait_for(story(), 5))


def test_after_a_round_nothing_is_fetched_until_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SATED_SECONDS", 3600)

    async def story() -> None:
        rounds = Rounds()
        rounds.want(0.001)  # before the round: its records were not in that transaction
        fetched = asyncio.ensure_future(rounds.wanted())
        await asyncio.sleep(0.01)
        assert not fetched.done()
        rounds.want(0.004)
        await fetched
        assert rounds.wait_seconds == 0.004
        rounds.want(8.0)
        assert rounds.wait_seconds == module.COLLECT_SECONDS

    asyncio.run(asyncio.wait_for(story(), 5))


def test_more_is_fetched_in_the_end_even_if_nobody_wants_it() -> None:
    asyncio.run(asyncio.wait_for(Rounds().wanted(), 5))

"""What waits for a transaction is joined in order, bounded, and never across a gap."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tests.support.hand_loop import play, settle
from worker.waiting import Waiting


class Event:
    """Records first..last of a partition that was read to `start` before them."""

    def __init__(self, first: int, last: int, start: int | None = None) -> None:
        self.value = list(range(first, last + 1))
        self.message = SimpleNamespace(start=first if start is None else start, offset=last)
        self.acked = False

    def ack(self) -> None:
        self.acked = True


def test_events_that_go_on_where_the_last_one_ends_are_one_chunk_up_to_its_bound() -> None:
    async def story() -> None:
        waiting = Waiting(most_chunks=4, most_records=10)
        events = [Event(0, 2), Event(3, 6), Event(7, 9), Event(10, 11)]
        for event in events:
            await waiting.put(event)
        assert len(waiting) == 2
        first, second = waiting.take(), waiting.take()
        assert (first.start, first.records, first.end) == (0, list(range(10)), 10)
        assert (second.start, second.records, second.end) == (10, [10, 11], 12)
        first.ack()
        assert [event.acked for event in events] == [True, True, True, False]

    play(story)


def test_events_with_a_gap_between_them_stay_apart() -> None:
    async def story() -> None:
        waiting = Waiting(4, 10)
        await waiting.put(Event(0, 2))
        await waiting.put(Event(5, 6, start=5))
        assert [waiting.take().start, waiting.take().start] == [0, 5]

    play(story)


def test_markers_between_records_are_no_gap() -> None:
    async def story() -> None:
        waiting = Waiting(4, 10)
        await waiting.put(Event(0, 2))
        await waiting.put(Event(4, 6, start=3))
        assert waiting.take().records == [0, 1, 2, 4, 5, 6]

    play(story)


def test_a_chunk_that_was_taken_is_not_joined_any_more() -> None:
    async def story() -> None:
        waiting = Waiting(4, 10)
        await waiting.put(Event(0, 2))
        taken = waiting.take()
        await waiting.put(Event(3, 4))
        assert taken.records == [0, 1, 2]
        assert waiting.take().records == [3, 4]

    play(story)


def test_a_full_queue_lets_nothing_in_until_a_chunk_is_taken() -> None:
    async def story() -> None:
        waiting = Waiting(most_chunks=1, most_records=3)
        await waiting.put(Event(0, 2))
        put: asyncio.Task[Any] = asyncio.ensure_future(waiting.put(Event(3, 3)))
        await settle()
        assert not put.done()
        waiting.take()
        await settle()
        assert put.done()
        assert waiting.take().records == [3]

    play(story)

"""Waiting: Faust's events in, chunks of records out, in order; what waits is joined: a backlog is served cheaply.

Producers that send at once make fetches of a few records each, and a chunk costs a fold, a plan, a run of the network
and a batch of answers however small it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Chunk:
    """Records of one source partition, next to each other, and the events that brought them."""

    def __init__(self, event: Any) -> None:
        self.start: int | None = event.message.start  # offset that the partition was read to before them
        self.records: list[Any] = list(event.value)
        self._events = [event]

    @property
    def end(self) -> int:
        """Return the offset after the records."""
        return int(self._events[-1].message.offset) + 1

    def join(self, event: Any) -> None:
        """Add the records of the next event."""
        self.records += event.value
        self._events.append(event)

    def ack(self) -> None:
        """Free Faust's waiters."""
        for event in self._events:
            event.ack()


class Waiting:
    """The chunks of one partition that wait for their transaction: at most `most_chunks` of `most_records` each."""

    def __init__(self, most_chunks: int, most_records: int) -> None:
        self._most_chunks, self._most_records = most_chunks, most_records
        self._chunks: deque[Chunk] = deque()
        self._taken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def records(self) -> int:
        """How many records wait."""
        return sum(len(chunk.records) for chunk in self._chunks)

    @property
    def next_records(self) -> int:
        """How many records the oldest chunk has; there must be one."""
        return len(self._chunks[0].records)

    async def put(self, event: Any) -> None:
        """Queue an event's records; wait while there is no room."""
        while not self._fits(event) and len(self._chunks) >= self._most_chunks:
            self._taken.clear()
            await self._taken.wait()
        if self._fits(event):
            self._chunks[-1].join(event)
        else:
            self._chunks.append(Chunk(event))

    def _fits(self, event: Any) -> bool:
        """Tell whether the event goes on where the newest chunk ends, and into it."""
        if not self._chunks:
            return False
        newest = self._chunks[-1]
        return newest.end == event.message.start and len(newest.records) + len(event.value) <= self._most_records

    def take(self) -> Chunk:
        """Take the oldest chunk."""
        chunk = self._chunks.popleft()
        self._taken.set()
        return chunk

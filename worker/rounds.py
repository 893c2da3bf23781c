"""Rounds of fetching: what the transport and the one who serves tell each other; lives on the event loop.

One round a transaction: a fetch costs ms of CPU on its way through Faust, and what is fetched early is old when the
next transaction begins.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

TOGETHER_SECONDS = 0.01  # the chunks of a round that come later than this go with the next
COLLECT_SECONDS = 0.1  # a broker collects no longer: from its answers the worker knows how much waits
SATED_SECONDS = 0.1  # after which more is fetched even if nobody wants it: a full queue pauses fetching


class Rounds:
    """The rounds of a worker."""

    def __init__(self) -> None:
        self.wait_seconds = 0.0  # how long a broker may collect the next records; read by the fetcher's thread too
        self._coming = 0
        self._complete, self._wanted = asyncio.Event(), asyncio.Event()
        self._complete.set()

    def begin(self, chunks: int) -> None:
        """Say that so many chunks were fetched together and come now."""
        self._coming += chunks
        if self._coming:
            self._complete.clear()

    def came(self) -> None:
        """Say that a chunk has come."""
        self._coming -= 1
        if self._coming <= 0:
            self._end()

    def _end(self) -> None:
        self._coming = 0
        self._complete.set()

    async def complete(self) -> None:
        """Wait until what was fetched together has come; not for ever, because a rebalance loses chunks."""
        try:
            async with asyncio.timeout(TOGETHER_SECONDS):
                await self._complete.wait()
        except TimeoutError:
            self._end()

    def want(self, wait_seconds: float) -> None:
        """Say that more is of use now, and how long it may be collected; brokers do a part of it."""
        self.wait_seconds = min(wait_seconds, COLLECT_SECONDS)
        self._wanted.set()

    async def wanted(self) -> None:
        """Wait, after a round, until more is of use."""
        self._wanted.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(SATED_SECONDS):
                await self._wanted.wait()

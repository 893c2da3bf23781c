"""Fetching on demand: the broker is asked when somebody waits for records, not ahead.

aiokafka fetches ahead: what came while a transaction was written would be old when the next one begins, and every few
clicks would cost a fetch of their own. Private names of aiokafka; tests/worker/test_demand.py says so when they move.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

FEW_BYTES = 1 << 16  # a broker that has less waits for more, as long as it may
LONGEST_WAIT_MS = 500  # of a fetch that the next click ends
OTHERS_SECONDS = 0.002  # what the other brokers still have to say, once one has answered


class Demand:
    """The demand on a fetcher of aiokafka; lives on its thread."""

    def __init__(self, fetcher: Any) -> None:
        self.fetcher, self._actions = fetcher, fetcher._get_actions_per_node
        self._is_open = True
        self._collects_until = 0.0
        fetcher._get_actions_per_node = self._get_actions_per_node

    def open(self, wait_seconds: float) -> None:
        """Ask for records; each broker may collect them so long, then the first ones end the waiting."""
        if not self._is_open:
            self._is_open, self._collects_until = True, time.monotonic() + wait_seconds
            self.fetcher._notify(self.fetcher._wait_consume_future)

    def close(self) -> None:
        """Ask for no more than what is asked for already."""
        self._is_open = False

    async def others(self) -> bool:
        """Wait a moment for the other brokers that were asked; tell whether there were any."""
        asked = set(self.fetcher._pending_tasks)
        if asked:
            await asyncio.wait(asked, timeout=OTHERS_SECONDS)
        return bool(asked)

    def _get_actions_per_node(self, assignment: Any) -> Any:
        fetcher, left_ms = self.fetcher, int(1000 * (self._collects_until - time.monotonic()))
        collects = left_ms > 0
        fetcher._fetch_min_bytes = FEW_BYTES if collects else 1
        fetcher._fetch_max_wait_ms = left_ms if collects else LONGEST_WAIT_MS
        requests, *others = self._actions(assignment)
        return (requests if self._is_open else [], *others)

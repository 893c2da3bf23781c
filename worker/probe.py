"""Probe: a small question to the brokers every few seconds in; how long they have been silent out.

A connection of its own: fetches stand still under backpressure and transactions without traffic, so the silence of
either says nothing about the brokers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
TIMEOUT_SECONDS = 4.0
SILENT_SECONDS = 10.0  # two unanswered questions and some patience: one slow answer makes nobody unready


class Probe:
    """Asks for the metadata of one topic; any answer counts."""

    def __init__(
        self,
        brokers: list[str],
        topic: str,
        client_options: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = {
            "bootstrap_servers": brokers,
            "request_timeout_ms": int(1000 * TIMEOUT_SECONDS),
            **(client_options or {}),
        }
        self._topic, self._clock = topic, clock
        self._client: Any = None
        self._answered_at: float | None = None
        self._since = clock()

    @property
    def silent_seconds(self) -> float:
        """Return the time since the last answer, or since the start."""
        return self._clock() - (self._since if self._answered_at is None else self._answered_at)

    @property
    def answered(self) -> bool:
        """Tell whether a broker answered lately."""
        return self._answered_at is not None and self.silent_seconds <= SILENT_SECONDS

    async def run(self) -> None:
        """Ask until cancelled."""
        try:
            while True:
                await self.ask()
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            await self._close()

    async def ask(self) -> None:
        """Ask once; after a failure the next question starts from the bootstrap addresses again."""
        try:
            if await asyncio.wait_for(self._question(), TIMEOUT_SECONDS):
                self._answered_at = self._clock()
                return
        except (TimeoutError, KafkaError, OSError) as error:
            log.debug("the brokers do not answer: %r", error)
        await self._close()

    async def _question(self) -> bool:
        if self._client is None:
            self._client = AIOKafkaClient(**self._options)
            await self._client.bootstrap()
            self._client.set_topics([self._topic])
        return bool(await self._client.force_metadata_update())

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

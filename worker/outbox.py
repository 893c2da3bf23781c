"""Outbox: records in, the record batches of one Kafka transaction out; and the producer that writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer

from worker.records import BATCH_BYTES, Header, Output
from worker.tracing import UNTRACED, Tracing
from worker.transport import TP

# The broker answers CONCURRENT_TRANSACTIONS while the last commit's markers are written; aiokafka's pause of 20 ms
# doubles the median latency.
aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.002


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where and how transactions are written."""

    brokers: list[str]
    app_id: str
    changelog_topic: str
    transaction_chunks: int
    max_chunk: int
    transaction_timeout_seconds: float = 30.0
    client_options: dict[str, Any] = field(default_factory=dict)
    tracing: Tracing = UNTRACED

    def producer(self, tp: TP) -> AIOKafkaProducer:
        """Return the producer of a source partition; one name everywhere: the newest owner fences the others."""
        return AIOKafkaProducer(
            bootstrap_servers=self.brokers,
            transactional_id=f"{self.app_id}-{tp.topic}-{tp.partition}",
            transaction_timeout_ms=int(self.transaction_timeout_seconds * 1000),
            retry_backoff_ms=20,
            max_batch_size=BATCH_BYTES,
            **self.client_options,
        )


class Outbox:
    """The record batches of one transaction; every target partition has the number of the source partition."""

    def __init__(self, producer: AIOKafkaProducer, partition: int) -> None:
        self._producer = producer
        self._partition = partition
        self._pending: list[tuple[asyncio.Future[Any], int]] = []

    async def send(
        self, topic: str, records: Iterable[Output], context: Sequence[Header] = ()
    ) -> list[tuple[asyncio.Future[Any], int]]:
        """Send (key, value, headers) records in batches, `context` behind the headers of each.

        Returns the batches' acknowledgements with their sizes.
        """
        batch, size, sent = self._producer.create_batch(), 0, []
        for key, value, headers in records:
            headers = [*headers, *context] if context else headers
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                sent.append(await self.post(batch, topic, size))
                batch, size = self._producer.create_batch(), 0
                batch.append(key=key, value=value, timestamp=None, headers=headers)  # the first one always fits
            size += 1
        if size:
            sent.append(await self.post(batch, topic, size))
        return sent

    async def post(self, batch: Any, topic: str, size: int) -> tuple[asyncio.Future[Any], int]:
        """Send one record batch of that many records."""
        acknowledgement = await self._producer.send_batch(batch, topic, partition=self._partition)
        self._pending.append((acknowledgement, size))
        return self._pending[-1]

    async def acknowledged(self) -> None:
        """Wait for every batch: aiokafka would commit a transaction that holds a failed one."""
        for acknowledgement, _ in self._pending:
            await acknowledgement

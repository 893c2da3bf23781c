"""Outbox: records in, the record batches of one Kafka transaction out; and the producer that writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer

from worker.records import BATCH_BYTES, Header, Output
from worker.tracing import UNTRACED, Tracing
from worker.transactions import Transactions
from worker.transport import TP


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where and how transactions are written."""

    brokers: list[str]
    app_id: str
    answers_topic: str
    changelog_topic: str
    transaction_chunks: int
    max_chunk: int
    wait_seconds: float = 0.0  # of the oldest click for others that go with it, at most
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
    """The record batches of one source partition's part of a transaction; every target partition has its number."""

    def __init__(self, create_batch: Callable[[], Any], partition: int) -> None:
        self._create_batch, self._partition = create_batch, partition
        self._batches: list[tuple[Any, str]] = []
        self._acknowledgements: list[asyncio.Future[Any]] = []

    def send(self, topic: str, records: Iterable[Output], context: Sequence[Header] = ()) -> None:
        """Put (key, value, headers) records into batches, `context` behind the headers of each."""
        batch, size = self._create_batch(), 0
        for key, value, headers in records:
            headers = [*headers, *context] if context else headers
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                self.post(batch, topic)
                batch, size = self._create_batch(), 0
                batch.append(key=key, value=value, timestamp=None, headers=headers)  # the first one always fits
            size += 1
        if size:
            self.post(batch, topic)

    def post(self, batch: Any, topic: str) -> None:
        """Put a record batch that is complete."""
        self._batches.append((batch, topic))

    @property
    def topics(self) -> set[str]:
        """The topics of the batches."""
        return {topic for _, topic in self._batches}

    async def deliver(self, transactions: Transactions) -> None:
        """Send the batches, in order; a partition takes the next one when the last one is on its way."""
        for batch, topic in self._batches:
            self._acknowledgements.append(await transactions.send_batch(batch, topic, self._partition))

    async def acknowledged(self) -> None:
        """Wait for every batch: aiokafka would commit a transaction that holds a failed one."""
        for acknowledgement in self._acknowledgements:
            await acknowledgement

    def last_offset(self, topic: str) -> int | None:
        """Return the offset of the last record that a topic took, None if it got none."""
        sent = zip(self._batches, self._acknowledgements, strict=True)
        ends = [done.result().offset + batch.record_count() - 1 for (batch, to), done in sent if to == topic]
        return ends[-1] if ends else None

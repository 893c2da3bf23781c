"""Work: what one transaction holds: chunks of all partitions in; by partition, record batches and table updates out."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model.contract.rows import REVISED
from worker.batcher import Batcher
from worker.explanations import Asked
from worker.metrics import Metrics
from worker.outbox import Delivery, Outbox
from worker.partitions import Partitions
from worker.pieces import Scores
from worker.records import Output
from worker.rooms import Pending
from worker.sequences import Updates
from worker.tracing import Origin, Trace
from worker.transactions import Transactions
from worker.transport import TP
from worker.waiting import Chunk

TURNS = 4  # of the event loop, that an acknowledgement needs until the next batch is on its way


async def let_others_in() -> None:
    """Let scorer, producer and fetcher on after some ms of work; one turn each would stretch their every step."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Work:
    """One transaction's part of the partitions' lives; `places` are theirs inside."""

    def __init__(
        self,
        partitions: Partitions,
        places: Mapping[TP, int],
        batcher: Batcher | None,
        delivery: Delivery,
        create_batch: Callable[[], Any],
    ) -> None:
        self.started = time.monotonic()
        self.trace: Trace = delivery.tracing.transaction()
        self.chunks: dict[TP, list[Chunk]] = defaultdict(list)
        self.changes: dict[int, Updates] = {}  # by partition
        self.offsets: Mapping[TP, int] = {}  # where the source is read to
        self.picked: Asked | None = None  # an answer that is to be explained
        self._offsets_sent: asyncio.Future[None] | None = None
        self._partitions, self._places, self._batcher, self._delivery = partitions, places, batcher, delivery
        self._create_batch = create_batch
        self._blocks: list[tuple[Pending, asyncio.Future[Scores] | None]] = []
        self._outboxes: dict[int, Outbox] = {}  # by partition

    def fold(self, chunks: Mapping[TP, Chunk]) -> None:
        """Fold one chunk of each of some partitions; scoring of their blocks starts at once."""
        records = {tp: chunk.records for tp, chunk in chunks.items()}
        self.trace.chunk(records)
        for tp, chunk in chunks.items():
            self.chunks[tp].append(chunk)
        rejected = self._partitions.take(
            {self._places[tp]: some for tp, some in records.items()},
            time.monotonic(),
            lambda pending: self._score(pending, self.trace.origin),
        )
        for partition, topic, outputs in rejected:
            self._outbox(partition).send(topic, outputs, self.trace.headers)

    def close_silent(self) -> None:
        """Close the sessions of users who fell silent."""
        self._partitions.close_silent(time.monotonic(), lambda pending: self._score(pending, None))

    def _score(self, pending: Pending, origin: Origin) -> None:
        scores = None
        if self._batcher is not None:
            shed = self._batcher.shed(int((pending.block.kind != REVISED).sum()))
            scores = shed or self._batcher.submit(self._partitions.pieces(pending), origin)
        self._blocks.append((pending, scores))

    def _outbox(self, partition: int) -> Outbox:
        if partition not in self._outboxes:
            self._outboxes[partition] = Outbox(self._create_batch, partition)
        return self._outboxes[partition]

    async def answer(self) -> None:
        """Encode the answers and triggers, and what changed in the tables, which stands last."""
        topics, headers = self._partitions.topics, self.trace.headers
        for pending, future in self._blocks:
            scores = None if future is None else await future
            for partition, frames, triggers in self._partitions.answer(pending, scores, _now_ms(), headers):
                outbox = self._outbox(partition)
                for frame in frames:
                    outbox.post(frame, topics.stage_probabilities)
                outbox.send(topics.triggers, triggers, headers)
            await let_others_in()
        self.changes, self.picked = self._partitions.changes(), self._partitions.picked()
        for partition, updates in self.changes.items():
            changed: list[Output] = [(key, value, []) for key, value in updates.items()]
            self._outbox(partition).send(self._delivery.changelog_topic, changed)

    def send_offsets(self, transactions: Transactions) -> asyncio.Future[None]:
        """Send the source offsets within the open transaction, once; not while records are on their way.

        A large transaction sends them last: while they are pending, who asks for stable offsets only gets none.
        """
        if self._offsets_sent is None:
            self._offsets_sent = asyncio.ensure_future(transactions.send_offsets(self.offsets))
        return self._offsets_sent

    async def send(self, transactions: Transactions) -> None:
        """Send everything within the open transaction, but for offsets that were not sent before."""
        if self._offsets_sent is not None:
            await self._offsets_sent
        await asyncio.gather(*(outbox.deliver(transactions) for outbox in self._outboxes.values()))

    async def acknowledged(self) -> None:
        """Wait until everything is acknowledged."""
        for outbox in self._outboxes.values():
            await outbox.acknowledged()

    @property
    def topics(self) -> set[str]:
        """Where it writes to, once it is answered."""
        return {topic for outbox in self._outboxes.values() for topic in outbox.topics}

    def changelog_end(self, partition: int) -> int | None:
        """Return the offset of the last record that a partition's changelog took, None if it got none."""
        return self._outbox(partition).last_offset(self._delivery.changelog_topic)

    def count(self, metrics: Metrics) -> None:
        """Count the transaction, which was committed just now."""
        metrics.transaction(time.monotonic() - self.started)
        records = (record for chunks in self.chunks.values() for chunk in chunks for record in chunk.records)
        arrivals = np.array([record.timestamp for record in records])
        if len(arrivals):
            metrics.end_to_end_seconds.observe(np.maximum(0, time.time() * 1000 - arrivals) / 1000)


def _now_ms() -> int:
    return int(time.time() * 1000)

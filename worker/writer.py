"""Writer: one source partition's part of the transactions: what waits is folded, answered and, committed, stored."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import numpy as np

from model.contract.rows import REVISED
from worker.batcher import Batcher
from worker.explanations import Asked
from worker.lag import Lag
from worker.metrics import Metrics
from worker.outbox import Delivery, Outbox
from worker.partition import Partition, Pending
from worker.pieces import Scores
from worker.sequences import SequenceTable, Updates
from worker.tracing import Origin, Trace
from worker.transport import TP
from worker.waiting import Chunk, Waiting

Work = tuple[Pending, asyncio.Future[Scores] | None]


class Part:
    """What one partition has in one transaction."""

    def __init__(self, writer: PartitionWriter, outbox: Outbox) -> None:
        self.writer, self.outbox = writer, outbox
        self.started = time.monotonic()
        self.chunks: list[Chunk] = []
        self.work: list[Work] = []
        self.changes: Updates = {}
        self.picked: Asked | None = None  # an answer that is to be explained

    @property
    def oldest_ms(self) -> int | None:
        """Arrival of the oldest record."""
        return self.chunks[0].records[0].timestamp if self.chunks else None


class PartitionWriter:
    """Serves the chunks of one source partition, in order."""

    def __init__(
        self,
        tp: TP,
        partition: Partition,
        delivery: Delivery,
        batcher: Batcher | None,
        table: SequenceTable,
        metrics: Metrics,
    ) -> None:
        self.tp, self.partition = tp, partition
        self._delivery, self._batcher, self._table, self._metrics = delivery, batcher, table, metrics
        self.waiting = Waiting(delivery.transaction_chunks, delivery.max_chunk)
        self._next_offset: int | None = None
        self._lag = Lag()
        self._parts: deque[Part] = deque()  # of transactions that are not committed

    @property
    def busy(self) -> bool:
        """Whether a transaction that it has a part in is open."""
        return bool(self._parts)

    def open(self) -> None:
        """Take up the recovered table."""
        self.partition.open(time.monotonic(), int(time.time() * 1000))
        self._next_offset = self.partition.next_offset

    def begin(self, outbox: Outbox) -> Part:
        """Begin its part of the next transaction."""
        part = Part(self, outbox)
        self._parts.append(part)
        return part

    def fold(self, part: Part, trace: Trace) -> None:
        """Fold the chunk that waits longest; scoring of its blocks starts at once."""
        chunk = self.waiting.take()
        part.chunks.append(chunk)
        self._check_start(chunk.start)
        if self._next_offset is None:
            self._next_offset = chunk.records[0].offset
        trace.chunk(self.tp, chunk.records)
        rejected = self.partition.take(
            chunk.records, time.monotonic(), lambda pending: self._score(part, pending, trace.origin)
        )
        for topic, records in rejected:
            part.outbox.send(topic, records, trace.headers)

    def close_silent(self, part: Part) -> None:
        """Close the sessions of users who fell silent."""
        self.partition.close_silent(time.monotonic(), lambda pending: self._score(part, pending, None))

    def _score(self, part: Part, pending: Pending, origin: Origin) -> None:
        scores = None
        if self._batcher is not None:
            shed = self._batcher.shed(int((pending.block.kind != REVISED).sum()))
            scores = shed or self._batcher.submit(self.partition.pieces(pending), origin)
        part.work.append((pending, scores))

    async def answer(self, part: Part, trace: Trace) -> None:
        """Encode the answers and triggers, and what changed in the table, which stands last."""
        topics, outbox = self.partition.topics, part.outbox
        for pending, future in part.work:
            scores = None if future is None else await future
            frames, triggers = self.partition.answer(pending, scores, int(time.time() * 1000), trace.headers)
            for frame in frames:
                outbox.post(frame, topics.stage_probabilities)
            outbox.send(topics.triggers, triggers, trace.headers)
            await asyncio.sleep(0)
        part.changes, part.picked = self.partition.changes(), self.partition.picked()
        outbox.send(self._delivery.changelog_topic, ((key, value, []) for key, value in part.changes.items()))

    def _check_start(self, start: int | None) -> None:
        """Refuse a chunk that does not begin where the table ends: whatever lies between would be lost for ever."""
        end = self.partition.next_offset
        if start != end:
            self._table.forget_offset(self.tp.partition)
            raise RuntimeError(
                f"{self.tp}: the source is read on from offset {start}, but the table ends at {end}; if the group's "
                "offset was set by hand, set it back, or begin anew with another application name"
            )

    def committed(self, part: Part) -> None:
        """Store what the committed transaction changed, and free Faust's waiters."""
        self._store(part.changes, part.outbox.last_offset(self._delivery.changelog_topic))
        self._parts.popleft()
        if part.picked is not None:
            part.picked.explainer.ask(part.picked)
        for chunk in part.chunks:
            self._next_offset = chunk.end
            chunk.ack()
        self._count(part)

    def _store(self, changes: Updates, last: int | None) -> None:
        self._table.write(self.tp.partition, changes, last)

    def _count(self, part: Part) -> None:
        size = sum(len(key) + len(value or b"") for key, value in part.changes.items())
        self._metrics.committed(size, len(self.waiting), self.tp.partition)
        now_ms = time.time() * 1000
        for chunk in part.chunks:
            arrivals = np.array([record.timestamp for record in chunk.records])
            self._metrics.end_to_end_seconds.observe(np.maximum(0, now_ms - arrivals) / 1000)

    def close(self) -> None:
        """Free Faust's waiters only: what is not committed is read again by the next owner."""
        chunks = [chunk for part in self._parts for chunk in part.chunks]
        while self.waiting:
            chunks.append(self.waiting.take())
        for chunk in chunks:
            chunk.ack()

    def gauge(self, end: int | None, position: int | None, wall: float) -> None:
        """Measure what does not change with a transaction.

        `end` is the source partition's end offset and `position` the next one to read, as far as they are known.
        """
        number, metrics, part = str(self.tp.partition), self._metrics, self._parts[0] if self._parts else None
        metrics.table_users.labels(number).set(len(self.partition.sequences))
        metrics.queue_depth.labels(number).set(len(self.waiting))
        metrics.transaction_age_seconds.labels(number).set(time.monotonic() - part.started if part else 0)
        if self._next_offset is None and part is None and not self.waiting:
            self._next_offset = 0 if end == 0 else position  # nothing was read since the assignment: the committed one
        if end is None or self._next_offset is None:
            return
        metrics.lag.labels(number).set(max(0, end - self._next_offset))
        oldest_ms = part.oldest_ms if part else None
        metrics.lag_seconds.labels(number).set(self._lag.seconds(self._next_offset, end, oldest_ms, wall))

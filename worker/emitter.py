"""Emitter: one Kafka transaction makes answers, triggers, dead letters, changelog and source offset visible together.

One transactional producer per source partition; its start fences every earlier owner. Whatever could skip an event
ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from aiokafka import TopicPartition

from model.contract.rows import REVISED
from worker.batcher import Batcher
from worker.lag import Lag
from worker.metrics import Metrics
from worker.outbox import Delivery, Outbox
from worker.partition import Partition, Pending
from worker.pieces import Scores
from worker.sequences import SequenceTable, Updates
from worker.tracing import Origin, Trace
from worker.transport import TP
from worker.waiting import Chunk, Waiting

log = logging.getLogger(__name__)

EXIT_FATAL = 70  # EX_SOFTWARE: the supervisor restarts the worker
EXIT_GRACE_SECONDS = 5.0  # Faust's own shutdown after a crash was seen to hang
TICK_SECONDS = 0.5  # how often silent users are looked for
NO_BROKER_TRIES, NO_BROKER_PAUSE_SECONDS = 8, 0.5  # well inside the rebalance's time

Work = tuple[Pending, asyncio.Future[Scores] | None]


class PartitionWriter:
    """Serves the chunks of one source partition, in order, as transactions."""

    def __init__(
        self,
        tp: TP,
        partition: Partition,
        delivery: Delivery,
        batcher: Batcher | None,
        table: SequenceTable,
        metrics: Metrics,
    ) -> None:
        self.tp = tp
        self.partition = partition
        self.producer = delivery.producer(tp)
        self._delivery, self._batcher, self._table, self._metrics = delivery, batcher, table, metrics
        self.waiting = Waiting(delivery.transaction_chunks, delivery.max_chunk)
        self._ticked = 0.0
        self._next_offset: int | None = None
        self._lag = Lag()
        self._started: float | None = None  # of the open transaction
        self._oldest_ms: int | None = None  # arrival of the oldest record of the open transaction
        self.busy = False  # whether a chunk is at work

    async def fence(self) -> None:
        """Start the producer, which fences every earlier owner.

        A broker that just woke up names no broker for a moment, itself included, which aiokafka asserts; nothing has
        been asked in our name by then, so a new producer may begin again.
        """
        for _ in range(NO_BROKER_TRIES):
            try:
                await self.producer.start()
                return
            except AssertionError as error:
                log.warning("%s: the cluster names no broker yet: %s", self.tp, error)
                await self.producer.client.close()
                self.producer = self._delivery.producer(self.tp)
                await asyncio.sleep(NO_BROKER_PAUSE_SECONDS)
        await self.producer.start()

    async def run(self) -> None:
        """Serve until cancelled; any exception is fatal to the process."""
        chunks: list[Chunk] = []
        try:
            self.partition.open(time.monotonic(), int(time.time() * 1000))
            self._next_offset = self.partition.next_offset
            while True:
                if await self.waiting.arrival(TICK_SECONDS):
                    chunks, self.busy = [self.waiting.take()], True
                    if self._batcher is not None:
                        await self._batcher.room()  # meanwhile the queue fills, and then fetching pauses
                    await self._transact(chunks)
                elif self.partition.is_due(time.monotonic()):
                    await self._transact([])
        finally:
            while self.waiting:
                chunks.append(self.waiting.take())
            for chunk in chunks:
                chunk.ack()  # frees Faust's waiters only: what is not committed is read again by the next owner

    async def _transact(self, chunks: list[Chunk]) -> None:
        started, self.busy = time.monotonic(), True
        self._started = started
        if chunks:
            oldest = chunks[0].records[0]
            self._oldest_ms = oldest.timestamp
            self._next_offset = oldest.offset if self._next_offset is None else self._next_offset
        await self.producer.begin_transaction()
        outbox, trace = Outbox(self.producer, self.tp.partition), self._delivery.tracing.transaction(*self.tp)
        work = await self._fold(chunks, outbox, trace)
        trace.emit()
        await self._answer(work, outbox, trace)
        trace.event("answered")
        changes = self.partition.changes()
        changelog = await outbox.send(
            self._delivery.changelog_topic, ((key, value, []) for key, value in changes.items())
        )
        await outbox.acknowledged()
        trace.event("acknowledged")
        if chunks:
            # Not in parallel with the first produce: the broker would answer NOT_ENOUGH_REPLICAS, and retries cost.
            await self._send_offsets(chunks[-1].end)
            self._next_offset = chunks[-1].end
        await self._commit()
        trace.end()
        self._store(changes, changelog)
        self.partition.forget_idle()
        self.partition.explain()
        for chunk in chunks:
            chunk.ack()
        self.busy, self._started, self._oldest_ms = False, None, None
        self._count(chunks, changes, time.monotonic() - started)

    async def _fold(self, chunks: list[Chunk], outbox: Outbox, trace: Trace) -> list[Work]:
        """Fold the chunks, and those that arrive meanwhile up to the bound; scoring of their blocks starts at once."""
        work: list[Work] = []

        def on_block(pending: Pending) -> None:
            work.append((pending, self._score(pending, trace.origin)))

        index = 0
        while index < len(chunks):
            chunk = chunks[index]
            self._check_start(chunk.start)
            trace.chunk(chunk.records)
            for topic, records in self.partition.take(chunk.records, time.monotonic(), on_block):
                await outbox.send(topic, records, trace.headers)
            await asyncio.sleep(0)  # a chunk takes some ms: let the other partitions and the scorer in between
            index += 1
            has_room = self._batcher is None or self._batcher.has_room
            if self.waiting and has_room and index == len(chunks) < self._delivery.transaction_chunks:
                chunks.append(self.waiting.take())
        if time.monotonic() - self._ticked >= TICK_SECONDS:
            self._ticked = time.monotonic()
            self.partition.close_silent(time.monotonic(), on_block)
        return work

    def _score(self, pending: Pending, origin: Origin) -> asyncio.Future[Scores] | None:
        if self._batcher is None:
            return None
        shed = self._batcher.shed(int((pending.block.kind != REVISED).sum()))
        return shed or self._batcher.submit(self.partition.pieces(pending), origin)

    async def _answer(self, work: list[Work], outbox: Outbox, trace: Trace) -> None:
        topics = self.partition.topics
        for pending, future in work:
            scores = None if future is None else await future
            frames, triggers = self.partition.answer(pending, scores, int(time.time() * 1000), trace.headers)
            for frame in frames:
                await outbox.post(frame, topics.stage_probabilities, frame.record_count())
            await outbox.send(topics.triggers, triggers, trace.headers)
            await asyncio.sleep(0)

    def _check_start(self, start: int | None) -> None:
        """Refuse a chunk that does not begin where the table ends: whatever lies between would be lost for ever."""
        end = self.partition.next_offset
        if start != end:
            self._table.forget_offset(self.tp.partition)
            raise RuntimeError(
                f"{self.tp}: the source is read on from offset {start}, but the table ends at {end}; if the group's "
                "offset was set by hand, set it back, or begin anew with another application name"
            )

    async def _send_offsets(self, offset: int) -> None:
        await self.producer.send_offsets_to_transaction({TopicPartition(*self.tp): offset}, self._delivery.app_id)

    async def _commit(self) -> None:
        await self.producer.commit_transaction()

    def _store(self, changes: Updates, changelog: list[tuple[asyncio.Future[Any], int]]) -> None:
        last = None
        if changelog:
            acknowledgement, size = changelog[-1]
            last = acknowledgement.result().offset + size - 1
        self._table.write(self.tp.partition, changes, last)

    def _count(self, chunks: list[Chunk], changes: Updates, seconds: float) -> None:
        size = sum(len(key) + len(value or b"") for key, value in changes.items())
        self._metrics.transaction(seconds, size, len(self.waiting), self.tp.partition)
        now_ms = time.time() * 1000
        for chunk in chunks:
            arrivals = np.array([record.timestamp for record in chunk.records])
            self._metrics.end_to_end_seconds.observe(np.maximum(0, now_ms - arrivals) / 1000)

    def gauge(self, end: int | None, position: int | None, wall: float) -> None:
        """Measure what does not change with a transaction.

        `end` is the source partition's end offset and `position` the next one to read, as far as they are known.
        """
        number, metrics = str(self.tp.partition), self._metrics
        metrics.table_users.labels(number).set(len(self.partition.sequences))
        metrics.queue_depth.labels(number).set(len(self.waiting))
        started = self._started
        metrics.transaction_age_seconds.labels(number).set(0 if started is None else time.monotonic() - started)
        if self._next_offset is None and not self.busy and not self.waiting:
            self._next_offset = 0 if end == 0 else position  # nothing was read since the assignment: the committed one
        if end is None or self._next_offset is None:
            return
        metrics.lag.labels(number).set(max(0, end - self._next_offset))
        metrics.lag_seconds.labels(number).set(self._lag.seconds(self._next_offset, end, self._oldest_ms, wall))


class Emitter:
    """All partitions' writers: opened on assignment, closed on revocation (transport.Owner)."""

    def __init__(self, app: Any, make_writer: Callable[[TP], PartitionWriter], metrics: Metrics) -> None:
        self._app, self._make_writer, self._metrics = app, make_writer, metrics
        self.writers: dict[TP, PartitionWriter] = {}
        self._tasks: dict[TP, asyncio.Task[None]] = {}
        self.error: BaseException | None = None

    async def open(self, partitions: Iterable[TP]) -> None:
        """Take over partitions: fence and abort what earlier owners left open."""
        await self.close()
        writers = {tp: self._make_writer(tp) for tp in partitions}
        await asyncio.gather(*[writer.fence() for writer in writers.values()])
        self.writers = writers
        self._metrics.assignments.inc()
        for tp in writers:
            self._metrics.expect_partition(tp.partition)

    async def close(self) -> None:
        """Let go of all partitions; an open transaction is aborted by the next owner."""
        writers, tasks, self.writers, self._tasks = self.writers, self._tasks, {}, {}
        for tp, task in tasks.items():
            task.cancel()
            self._metrics.forget_partition(tp.partition)
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        stops = [asyncio.wait_for(writer.producer.stop(), 3.0) for writer in writers.values()]
        await asyncio.gather(*stops, return_exceptions=True)
        for writer in writers.values():
            writer.partition.close()

    async def submit(self, event: Any) -> None:
        """Queue one chunk for its partition; a chunk of an older assignment is left to the new owner."""
        message = event.message
        writer = self.writers.get(message.tp)
        if writer is None or message.generation_id != self._app.consumer_generation_id:
            event.ack()
            return
        await writer.waiting.put(event)

    def start(self) -> None:
        """Start serving, once the table is recovered."""
        for tp, writer in self.writers.items():
            if tp not in self._tasks:
                self._tasks[tp] = asyncio.ensure_future(self._run(writer))

    @property
    def serving(self) -> bool:
        """Whether the partitions are taken over and recovered."""
        return bool(self._tasks)

    def is_idle(self) -> bool:
        """Tell whether no chunk waits or is at work."""
        return not any(writer.busy or len(writer.waiting) for writer in self.writers.values())

    async def _run(self, writer: PartitionWriter) -> None:
        try:
            await writer.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  (fenced, timed out or broken: nothing was stored, the process ends)
            await self.fatal(error)

    async def fatal(self, error: BaseException) -> None:
        """End the process with an error. Never initialise transactions again: that would fence the real owner."""
        if self.error is not None:
            return
        self.error = error
        log.critical("worker ends, its open transactions are aborted by the next owner: %r", error, exc_info=error)
        timer = threading.Timer(EXIT_GRACE_SECONDS, os._exit, (EXIT_FATAL,))
        timer.daemon = True
        timer.start()
        await self._app.crash(error)

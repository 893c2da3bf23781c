"""Emitter: one Kafka transaction makes answers, triggers, dead letters, changelog and source offsets visible together.

All partitions of an assignment share its transactions: one costs worker and broker the same however few clicks it
holds. Whatever could skip an event ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from worker.batcher import Batcher
from worker.metrics import Metrics
from worker.outbox import Delivery, Outbox
from worker.tracing import Trace
from worker.transactions import ExpelledError, Transactions
from worker.transport import TP, Membership
from worker.writer import Part, PartitionWriter

log = logging.getLogger(__name__)

EXIT_FATAL = 70  # EX_SOFTWARE: the supervisor restarts the worker
EXIT_GRACE_SECONDS = 5.0  # Faust's own shutdown after a crash was seen to hang
STOP_SECONDS = 3.0  # for a producer to close its connections
EXPELLED_SECONDS = 60.0  # within which an expelled member has joined again
TICK_SECONDS = 0.5  # how often silent users are looked for
LITTLE_RECORDS = 1024  # so few wait for the open transaction to end: more will have come


class Assignment:
    """The partitions of one assignment and their transactions, one after the other.

    While one is delivered the next one is folded, scored and encoded, if much waits.
    """

    def __init__(
        self,
        writers: Sequence[PartitionWriter],
        transactions: Transactions,
        delivery: Delivery,
        batcher: Batcher | None,
        metrics: Metrics,
    ) -> None:
        self.writers = {writer.tp: writer for writer in writers}
        self.transactions = transactions
        self._delivery, self._batcher, self._metrics = delivery, batcher, metrics
        self._arrived = asyncio.Event()
        self._arrived_at = 0.0  # when the chunk came that waits longest
        self.ended = False  # what comes now is left to the next owner
        self._ticked = 0.0
        self.is_hungry = True  # for records: not while those of a transaction are answered
        self._delivering: asyncio.Task[None] | None = None

    async def put(self, event: Any) -> None:
        """Queue one chunk for its partition; wait while its queue is full."""
        writer = self.writers[event.message.tp]
        await writer.waiting.put(event)
        if not self._arrived.is_set():
            self._arrived_at = time.monotonic()
            self._arrived.set()
        if self.ended:
            writer.close()

    async def run(self) -> None:
        """Serve until cancelled; any exception is fatal to the process."""
        try:
            for writer in self.writers.values():
                writer.open()
            while True:
                if await self._has_work():
                    await self._transact()
        finally:
            self.ended = True
            if self._delivering is not None:
                self._delivering.cancel()
                await asyncio.wait({self._delivering})
            for writer in self.writers.values():
                writer.close()

    async def _has_work(self) -> bool:
        """Wait for a chunk, at most a tick; tell whether there is one, or a silent user's session to close."""
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self._arrived.wait()
        except TimeoutError:
            await self._delivered(only_if_done=True)
            return any(writer.partition.is_due(time.monotonic()) for writer in self.writers.values())
        return True

    async def _transact(self) -> None:
        """Prepare a transaction and hand it over to be delivered."""
        waiting = sum(writer.waiting.records for writer in self.writers.values())
        is_full = any(writer.partition.is_full for writer in self.writers.values())
        if waiting < LITTLE_RECORDS or is_full:
            await self._delivered()
            if self._batcher is not None:  # the oldest chunk waits for others a little
                since_seconds = time.monotonic() - self._arrived_at
                await asyncio.sleep(max(0.0, self._batcher.wait_seconds(waiting) - since_seconds))
            for writer in self.writers.values():
                writer.partition.forget_idle()
        if self._batcher is not None:
            await self._batcher.room()  # meanwhile the queues fill, and then fetching pauses
        started, trace = time.monotonic(), self._delivery.tracing.transaction()
        begun = self._delivering is None
        if begun:
            await self._begin([writer for writer in self.writers.values() if writer.waiting])
        parts = await self._fold(trace)
        trace.emit()
        await self._answer(parts, trace)
        trace.event("answered")
        await self._delivered()
        if not begun:
            await self._begin([part.writer for part in parts if part.chunks])
        self._delivering = asyncio.ensure_future(self._deliver(parts, started, trace))

    async def _begin(self, writers: Sequence[PartitionWriter]) -> None:
        """Begin the transaction; what these partitions will write to is registered at once."""
        topics = self._delivery.answers_topic, self._delivery.changelog_topic
        targets = [(topic, writer.tp.partition) for writer in writers for topic in topics]
        await self.transactions.begin(targets, bool(writers))

    async def _fold(self, trace: Trace) -> list[Part]:
        """Fold the chunks that wait, and those that arrive meanwhile, up to the bound; each partition in turn."""
        parts: dict[TP, Part] = {}

        def part_of(writer: PartitionWriter) -> Part:
            if writer.tp not in parts:
                outbox = Outbox(self.transactions.create_batch, writer.tp.partition)
                parts[writer.tp] = writer.begin(outbox)
            return parts[writer.tp]

        has_room = True
        for _ in range(self._delivery.transaction_chunks):
            ready = [writer for writer in self.writers.values() if writer.waiting]
            if not ready or not has_room:
                break
            for writer in ready:
                writer.fold(part_of(writer), trace)
                await asyncio.sleep(0)  # a chunk takes some ms: let the scorer in between
            has_room = self._batcher is None or self._batcher.has_room
        if time.monotonic() - self._ticked >= TICK_SECONDS:
            self._ticked = time.monotonic()
            for writer in self.writers.values():
                if writer.partition.is_due(self._ticked):
                    writer.close_silent(part_of(writer))
        if not any(writer.waiting for writer in self.writers.values()):
            self._arrived.clear()
        if self._batcher is not None:
            self._batcher.hurry()
        return list(parts.values())

    async def _answer(self, parts: Sequence[Part], trace: Trace) -> None:
        self.is_hungry = False
        for part in parts:
            await part.writer.answer(part, trace)
        self.is_hungry = True

    async def _deliver(self, parts: Sequence[Part], started: float, trace: Trace) -> None:
        """Write and commit what is prepared."""
        await asyncio.gather(*(part.outbox.deliver(self.transactions) for part in parts))
        for part in parts:
            await part.outbox.acknowledged()
        trace.event("acknowledged")
        offsets = {part.writer.tp: part.chunks[-1].end for part in parts if part.chunks}
        if offsets:
            await self.transactions.send_offsets(offsets)
        await self._commit()
        trace.end()
        for part in parts:
            part.writer.committed(part)
        self._metrics.transaction(time.monotonic() - started)

    async def _commit(self) -> None:
        await self.transactions.commit()

    async def _delivered(self, only_if_done: bool = False) -> None:
        """Wait for the transaction that is being delivered, if any; raise what it raised."""
        if self._delivering is not None and (self._delivering.done() or not only_if_done):
            await self._delivering
            self._delivering = None


class Emitter:
    """The assignment under way: opened on assignment, closed on revocation (transport.Owner)."""

    def __init__(self, app: Any, make: Callable[[Iterable[TP], Membership], Assignment], metrics: Metrics) -> None:
        self._app, self._make, self._metrics = app, make, metrics
        self._assignment: Assignment | None = None
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None

    @property
    def writers(self) -> Mapping[TP, PartitionWriter]:
        """The writers of the assigned partitions."""
        return {} if self._assignment is None else self._assignment.writers

    async def open(self, partitions: Iterable[TP], membership: Membership) -> None:
        """Take over partitions: fence and abort what earlier owners left open."""
        await self.close()
        assignment = self._make(partitions, membership)
        await assignment.transactions.start()
        self._assignment = assignment
        self._metrics.assignments.inc()
        for tp in assignment.writers:
            self._metrics.expect_partition(tp.partition)

    async def close(self) -> None:
        """Let go of all partitions; an open transaction is aborted by the next owner."""
        assignment, task, self._assignment, self._task = self._assignment, self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if assignment is None:
            return
        await asyncio.gather(asyncio.wait_for(assignment.transactions.stop(), STOP_SECONDS), return_exceptions=True)
        for tp, writer in assignment.writers.items():
            self._metrics.forget_partition(tp.partition)
            writer.partition.close()

    async def submit(self, event: Any) -> None:
        """Queue one chunk for its partition; a chunk of an older assignment is left to the new owner."""
        message = event.message
        if message.tp not in self.writers or message.generation_id != self._app.consumer_generation_id:
            event.ack()
            return
        assert self._assignment is not None
        await self._assignment.put(event)

    def start(self) -> None:
        """Start serving, once the table is recovered."""
        if self._assignment is not None and self._task is None:
            self._task = asyncio.ensure_future(self._run(self._assignment))

    @property
    def serving(self) -> bool:
        """Whether the partitions are taken over and recovered."""
        return self._task is not None and self._assignment is not None and not self._assignment.ended

    @property
    def is_hungry(self) -> bool:
        """Whether records that come now would be used soon."""
        return self._assignment is None or self._assignment.is_hungry

    def is_idle(self) -> bool:
        """Tell whether no chunk waits or is at work."""
        return not any(writer.busy or writer.waiting for writer in self.writers.values())

    async def _run(self, assignment: Assignment) -> None:
        try:
            await assignment.run()
        except asyncio.CancelledError:
            raise
        except ExpelledError as error:
            log.warning("nothing more is served until the partitions are assigned anew: %s", error)
            await asyncio.sleep(EXPELLED_SECONDS)
            await self.fatal(error)
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

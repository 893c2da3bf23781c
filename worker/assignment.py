"""Assignment: chunks of the assigned partitions in, Kafka transactions out, one after the other.

One transaction makes answers, triggers, dead letters, changelog and source offsets visible together. All partitions of
an assignment share it: it costs worker and broker the same however few clicks it holds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from worker.batcher import Batcher
from worker.metrics import Metrics
from worker.outbox import Delivery
from worker.partitions import Partitions
from worker.rounds import Rounds
from worker.sequences import SequenceTable
from worker.transactions import Transactions
from worker.transport import TP
from worker.work import Work, let_others_in
from worker.writer import PartitionWriter, together

TICK_SECONDS = 0.5  # how often silent users are looked for
LITTLE_RECORDS = 1024  # so few wait for the open transaction to end: more will have come
SOON_SECONDS = 0.1  # after a transaction that followed another within it the next is begun ahead


class Assignment:
    """The partitions of one assignment and their transactions, one after the other.

    While one is delivered the next one is folded, scored and encoded, if much waits.
    """

    def __init__(
        self,
        tps: Iterable[TP],
        partitions: Partitions,
        transactions: Transactions,
        delivery: Delivery,
        batcher: Batcher | None,
        table: SequenceTable,
        metrics: Metrics,
        rounds: Rounds,
    ) -> None:
        self.partitions, self.transactions = partitions, transactions
        self._places = {tp: place for place, tp in enumerate(tps)}
        self.writers = {
            tp: PartitionWriter(tp, partitions.progress[place], delivery, table, metrics)
            for tp, place in self._places.items()
        }
        self._delivery, self._batcher, self._metrics, self._rounds = delivery, batcher, metrics, rounds
        self._arrived = asyncio.Event()
        self.ended = False  # what comes now is left to the next owner
        self._ticked = 0.0
        self._delivering: asyncio.Task[None] | None = None
        self._sending: asyncio.Future[None] | None = None  # of the offsets of the transaction that is prepared
        self._latest = 0  # records that waited for the latest transaction
        self._topics = {delivery.answers_topic, delivery.changelog_topic}  # that the next one probably writes to
        self._begun = False  # whether a transaction is open that no work has yet
        self._stored = -math.inf  # when the latest one was

    async def put(self, event: Any) -> None:
        """Queue one chunk for its partition; wait while its queue is full."""
        writer = self.writers[event.message.tp]
        await writer.waiting.put(event)
        self._arrived.set()
        self._rounds.came()
        if self.ended:
            writer.close()

    async def run(self) -> None:
        """Serve until cancelled; any exception is fatal to the process."""
        try:
            self.partitions.open(time.monotonic(), int(time.time() * 1000))
            for writer in self.writers.values():
                writer.open()
            while True:
                if await self._has_work():
                    await self._transact()
        finally:
            self.ended = True
            for task in (self._delivering, self._sending):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})
            for writer in self.writers.values():
                writer.close()

    async def _has_work(self) -> bool:
        """Wait for a chunk, at most a tick; tell whether there is one, or a silent user's session to close."""
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self._arrived.wait()
        except TimeoutError:
            await self._delivered(only_if_done=True)
            if self._delivering is None:
                await self._end_unused()
            return self.partitions.is_due(time.monotonic())
        return True

    async def _transact(self) -> None:
        """Prepare a transaction and hand it over to be delivered."""
        self._latest = sum(writer.waiting.records for writer in self.writers.values())
        if self._latest < LITTLE_RECORDS or self.partitions.is_full:
            await self._delivered()
            await self._rounds.complete()
            if (rest := self._wait_seconds() - self._rounds.wait_seconds) > 0:
                await asyncio.sleep(rest)
            self.partitions.forget_idle()
        if self._batcher is not None:
            await self._batcher.room()  # meanwhile the queues fill, and then fetching pauses
        work = Work(self.partitions, self._places, self._batcher, self._delivery, self.transactions.create_batch)
        at_once = self._delivering is None
        if at_once:
            await self._begin([tp for tp, writer in self.writers.items() if writer.waiting])
        await self._fold(work)
        if at_once:
            self._sending = work.send_offsets(self.transactions)  # known long before the answers are
        work.trace.emit()
        await work.answer()
        self._topics = {self._delivery.answers_topic, self._delivery.changelog_topic, *work.topics}
        work.trace.event("answered")
        await self._delivered()
        if not at_once:
            await self._begin(work.chunks)
        self._begun = False
        self._delivering = asyncio.ensure_future(self._deliver(work))

    async def _begin(self, places: Collection[TP]) -> None:
        """Begin a transaction, if none is; what these partitions probably write to is registered at once.

        A topic that is registered when it is written, like that of the first triggers, costs a second round of writing.
        """
        if not self._begun:
            await self.transactions.begin()
            self._begun = True
        self.transactions.register([(topic, tp.partition) for tp in places for topic in self._topics], bool(places))

    async def _begin_ahead(self, places: Collection[TP]) -> None:
        """Begin the next transaction while its clicks are collected, where all partitions have some all the time."""
        now = time.monotonic()
        is_soon, self._stored = now - self._stored < SOON_SECONDS, now
        if is_soon and len(places) == len(self.writers):
            await self._begin(places)
            await let_others_in()

    async def _end_unused(self) -> None:
        """End the transaction that was begun ahead for clicks that did not come."""
        if self._begun:
            self._begun = False
            await self._commit()

    async def _fold(self, work: Work) -> None:
        """Fold the chunks that wait and those that arrive meanwhile, up to the bound: one of each partition in turn."""
        has_room = True
        for _ in range(self._delivery.transaction_chunks):
            ready = [writer for writer in self.writers.values() if writer.waiting]
            if not ready or not has_room:
                break
            for group in together(ready, self._delivery.max_chunk):
                work.fold({writer.tp: writer.take() for writer in group})
                self._hurry()
                await let_others_in()
            has_room = self._batcher is None or self._batcher.has_room
        if time.monotonic() - self._ticked >= TICK_SECONDS:
            self._ticked = time.monotonic()
            if self.partitions.is_due(self._ticked):
                work.close_silent()
        if not any(writer.waiting for writer in self.writers.values()):
            self._arrived.clear()
        # Of all partitions, also where only sessions end: whoever takes one over waits until none is pending for it.
        work.offsets = {tp: end for tp, writer in self.writers.items() if (end := writer.read_to) is not None}
        self._hurry(is_last=True)

    def _hurry(self, is_last: bool = False) -> None:
        """Let the network begin, if nothing more comes before it has answered."""
        if self._batcher is not None and (is_last or not any(writer.waiting for writer in self.writers.values())):
            self._batcher.hurry()

    async def _deliver(self, work: Work) -> None:
        """Write and commit what is prepared, then store it; meanwhile disks get what was stored before."""
        await work.send(self.transactions)
        await let_others_in()
        for writer in self.writers.values():
            if writer.flush():
                await let_others_in()
        await work.acknowledged()
        self._rounds.want(self._wait_seconds())  # it is there soon after this transaction is stored
        work.trace.event("acknowledged")
        await work.send_offsets(self.transactions)
        await self._commit()
        work.trace.end()
        for tp, writer in self.writers.items():
            if tp in work.chunks or tp.partition in work.changes:
                changes = work.changes.get(tp.partition, {})
                writer.committed(work.chunks.get(tp, []), changes, work.changelog_end(tp.partition))
        if work.picked is not None:
            work.picked.explainer.ask(work.picked)
        work.count(self._metrics)
        await self._begin_ahead(work.chunks)
        if self._batcher is not None:
            self._batcher.spare()  # the next round is still to come

    def _wait_seconds(self) -> float:
        """Return how long the oldest click may wait for others that go with it."""
        return self._delivery.wait_seconds if self._batcher is None else self._batcher.wait_seconds(self._latest)

    async def _commit(self) -> None:
        await self.transactions.commit()

    def gauge(self, ends: Callable[[TP], int | None], positions: Callable[[TP], int | None]) -> None:
        """Measure what does not change with a transaction; end and next offset of a partition, where they are known."""
        for tp, writer in self.writers.items():
            users = self.partitions.sequences.users(self._places[tp])
            writer.gauge(users, ends(tp), positions(tp), time.time())

    async def _delivered(self, only_if_done: bool = False) -> None:
        """Wait for the transaction that is being delivered, if any; raise what it raised."""
        if self._delivering is not None and (self._delivering.done() or not only_if_done):
            await self._delivering
            self._delivering = None

"""Transport: Kafka record batches in, one Faust event per (partition, chunk of records) out.

Faust keeps rebalancing and recovery; a chunk's offset is committed by its transaction (emitter), never by Faust. Uses
private names of faust-streaming 0.15.3, pinned; tests/worker/test_transport.py says so when they move.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, NamedTuple, Protocol

import faust
from aiokafka.errors import ConsumerStoppedError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, ensure_aiokafka_TPset
from faust.types import TP, ConsumerMessage
from faust.types.tuples import ack_lock
from mode.utils.futures import notify

from worker.demand import Demand
from worker.rounds import Rounds

__all__ = ["TP", "ChunkSchema", "Membership", "Owner", "install"]

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
GIVE_BACK_SECONDS = 0.02
MANY_RECORDS = 1024  # a round of so many is followed by the next at once, which is fetched ahead


class Membership(NamedTuple):
    """Who reads, and since which rebalance: what the group's coordinator accepts offsets from."""

    group: str
    generation: int
    member: str
    instance: str | None  # of a static member


class Owner(Protocol):
    """Who owns the partitions' transactions: opened before recovery reads, closed after the last chunk at work."""

    async def open(self, partitions: Iterable[TP], membership: Membership) -> None: ...

    async def close(self) -> None: ...

    async def fatal(self, error: BaseException) -> None: ...


class ChunkMessage(ConsumerMessage):
    """Records of one partition, fetched together.

    `start` is the offset that the partition was read to before them; None where the group has committed none yet.
    """

    __slots__ = ("start",)

    start: int | None


class CommittedReads(AIOKafkaConsumerThread):
    """Reads committed records only, without Faust's own exactly-once mode, and on demand."""

    rounds: Rounds
    _demand: Demand | None = None

    def _create_worker_consumer(self, transport: Any) -> Any:
        # Only here: Faust's transaction mode takes last stable offsets for the end, unknown before the first fetch.
        self.consumer.in_transaction = True
        try:
            return super()._create_worker_consumer(transport)
        finally:
            self.consumer.in_transaction = False

    async def _fetch_records(self, consumer: Any, active_partitions: Any, *limits: Any, **options: Any) -> Any:
        if self._demand is None or self._demand.fetcher is not consumer._fetcher:
            self._demand = Demand(consumer._fetcher)
        self._demand.open(self.rounds.wait_seconds)
        records = await super()._fetch_records(consumer, active_partitions, *limits, **options)
        if 0 < sum(map(len, records.values())) < MANY_RECORDS:
            self._demand.close()
            if await self._demand.others():
                more = await super()._fetch_records(consumer, active_partitions)
                records = {tp: [*records.get(tp, ()), *more.get(tp, ())] for tp in {**records, **more}}
        return records


class ChunkConsumer(Consumer):
    """Faust's consumer, delivering chunks for `chunk_topics` and single records for every other topic."""

    chunk_topics: ClassVar[frozenset[str]] = frozenset()
    max_chunk: ClassVar[int] = 2048
    owner: ClassVar[Owner]
    rounds: ClassVar[Rounds]

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        thread = CommittedReads(self, loop=self.loop, beacon=self.beacon)
        thread.rounds = self.rounds
        return thread

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                await self._drain_once()
        except (asyncio.CancelledError, ConsumerStoppedError):
            # Cancelled by a stop, the fetcher would take a rebalance under way for the reason and crash the worker.
            if not (self.app.should_stop or fetcher._stopped.is_set()):
                raise

    async def _drain_once(self) -> None:
        if not self.flow_active:
            # The next wait would wait for this too, and a generation taken before it would be the old one.
            await self.wait_first(self.can_resume_flow.wait())
        generation = self.app.consumer_generation_id
        records, active = await self._wait_next_records(POLL_SECONDS)
        if self.should_stop:
            return
        if not self.flow_active:
            await self._seek_while_stopped()
            return
        wanted = {
            tp: batch
            for tp, batch in (records or {}).items()
            if batch and (active is None or tp in active or tp in self._buffered_partitions)
        }
        sizes = [len(batch) for tp, batch in wanted.items() if tp.topic in self.chunk_topics]
        self.rounds.begin(sum(-(-size // self.max_chunk) for size in sizes))
        for tp, batch in wanted.items():
            await self._deliver_chunks(tp, batch, generation)
        if not records:
            await asyncio.sleep(0)
        elif sum(map(len, records.values())) < MANY_RECORDS:
            await self.rounds.wanted()

    async def _seek_while_stopped(self) -> None:
        try:
            await self.perform_seek()
        except Exception as error:  # noqa: BLE001  (a rebalance may take the partitions away: its own seek follows)
            log.info("seek while the flow is stopped: %r", error)

    async def perform_seek(self) -> None:
        """Seek to the committed offsets; where there is none yet, to the beginning.

        The stock one leaves such a partition where it was fetched to, and what was fetched while the flow stood still
        would be skipped.
        """
        await super().perform_seek()
        new = [tp for tp in self.assignment() if tp.topic in self.chunk_topics and self._read_offset[tp] is None]
        if new:
            await self._thread.seek_to_beginning(*ensure_aiokafka_TPset(new))

    def _is_current(self, generation: int) -> bool:
        return self.flow_active and self.app.consumer_generation_id == generation

    async def _deliver_chunks(self, tp: TP, records: list[Any], generation: int) -> None:
        wanted = self._read_offset[tp]  # for chunk topics always the NEXT offset
        if self.app.rebalancing or self.app.consumer_generation_id != generation:
            return await self._give_back(tp, wanted)
        records = [record for record in records if wanted is None or record.offset >= wanted]
        for low in range(0, len(records), self.max_chunk):
            if not self._is_current(generation):
                return
            chunk = records[low : low + self.max_chunk]
            await self.callback(self._chunk_message(tp, chunk, generation))
            if self.app.consumer_generation_id != generation:
                return  # the callback may have slept through a rebalance
            self._read_offset[tp] = chunk[-1].offset + 1

    def _chunk_message(self, tp: TP, chunk: Any, generation: int) -> ChunkMessage:
        last = chunk[-1]
        message = ChunkMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000.0, last.timestamp_type, None, None, chunk,
            None, 0, 0, tp, generation_id=generation,
        )  # fmt: skip
        message.start = self._read_offset[tp]
        return message

    async def _give_back(self, tp: TP, wanted: int | None) -> None:
        """Seek back: recovery resumes partitions before it clears the stream queues, which would drop this chunk."""
        if wanted is not None:
            await self.seek(tp, wanted)
        else:
            await self._thread.seek_to_beginning(*ensure_aiokafka_TPset([tp]))
        await asyncio.sleep(GIVE_BACK_SECONDS)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Stay silent: the stock check asserts a position that a partition just assigned does not have."""

    def ack(self, message: Any) -> bool:
        if not isinstance(message, ChunkMessage):
            return bool(super().ack(message))
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            self._unacked_messages.discard(message)
            self._n_acked += 1
            notify(self._waiting_for_ack)
            return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)  # waits for the chunks at work
        await self.owner.close()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        consumer: Any = self._thread._consumer
        consumer.pause(
            *ensure_aiokafka_TPset(tp for tp in assigned if tp.topic not in self.chunk_topics)
        )  # Restoring's
        group = consumer._coordinator
        membership = Membership(group.group_id, group.generation, group.member_id, group._group_instance_id)
        try:
            await self.owner.open((tp for tp in assigned if tp.topic in self.chunk_topics), membership)
        except Exception as error:  # noqa: BLE001  (whatever it is, the partitions are not ours: the process ends)
            return await self.owner.fatal(error)
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_stop(self) -> None:
        await super().on_stop()
        await self.owner.close()


class ChunkSchema(faust.Schema[Any, Any]):
    """Hands the chunk to the agent as it is: no codecs."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        async def decode(message: Any, **_: Any) -> Any:
            return app.create_event(message.key, message.value, {}, message)

        return decode


def install(app: faust.App, owner: Owner, topics: Iterable[str], max_chunk: int, rounds: Rounds) -> None:
    """Make `app` consume `topics` in chunks of at most `max_chunk` records, with `owner` told of every assignment."""
    members = {"chunk_topics": frozenset(topics), "max_chunk": max_chunk, "owner": owner, "rounds": rounds}
    consumer = type("Consumer", (ChunkConsumer,), members)
    stock = app._new_transport

    def transport() -> Any:
        made: Any = stock()
        made.Consumer = consumer
        return made

    app._new_transport = transport  # type: ignore[method-assign]

"""Transactions: one transactional producer for all partitions of an assignment, and what makes it safe to have one.

The source offsets carry the member and generation that the records were read in (KIP-447, Kafka 2.5 and later): the
group's coordinator refuses those of an earlier generation, so a zombie commits nothing. Each partition has a
transactional id, that of the lowest one is written with, and each owner starts all of its own: whatever an earlier
assignment left open is aborted at once. Who takes over another partition waits for that (`settle`): the offsets of all
partitions are pending then. Uses private names of aiokafka 0.14, pinned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import NodeNotReadyError, ProducerFenced, for_code
from aiokafka.producer.sender import TxnOffsetCommitHandler
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from worker.transport import TP, Membership

log = logging.getLogger(__name__)

NO_BROKER_TRIES, NO_BROKER_PAUSE_SECONDS = 8, 0.5  # well inside the rebalance's time
UNSTABLE_OFFSET_COMMIT = 88  # a transaction under way holds an offset of the partition
FENCED = {22, 25, 82}  # ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID
NO_LEADER_EPOCH = -1
NO_TAGS: dict[int, bytes] = {}
SETTLE_SECONDS = 0.02  # between two looks at what earlier owners left open

# The broker answers CONCURRENT_TRANSACTIONS while the last commit's markers are written; aiokafka's pause of 20 ms
# doubles the median latency.
aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.002

NAME, TAGS = CompactString("utf-8"), ("tags", TaggedFields)


class ExpelledError(ProducerFenced):
    """The group's coordinator takes no offsets from this member any more: it was too silent, or replaced."""


class TxnOffsetCommitResponse(Response):
    """Version 3."""

    API_KEY, API_VERSION = 28, 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("topics", CompactArray(
            ("topic", NAME),
            ("partitions", CompactArray(("partition", Int32), ("error_code", Int16), TAGS)),
            TAGS,
        )),
        TAGS,
    )  # fmt: skip


class TxnOffsetCommitStruct(RequestStruct):
    """Version 3, the first one with member and generation."""

    API_KEY, API_VERSION = 28, 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", NAME),
        ("group_id", NAME),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", NAME),
        ("group_instance_id", NAME),
        ("topics", CompactArray(
            ("topic", NAME),
            ("partitions", CompactArray(
                ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", NAME), TAGS
            )),
            TAGS,
        )),
        TAGS,
    )  # fmt: skip


class OffsetFetchResponse(Response):
    """Version 7."""

    API_KEY, API_VERSION = 9, 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("topics", CompactArray(
            ("topic", NAME),
            ("partitions", CompactArray(
                ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", NAME),
                ("error_code", Int16), TAGS,
            )),
            TAGS,
        )),
        ("error_code", Int16),
        TAGS,
    )  # fmt: skip


class OffsetFetchStruct(RequestStruct):
    """Version 7, the first one that can ask for stable offsets only."""

    API_KEY, API_VERSION = 9, 7
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = OffsetFetchResponse
    SCHEMA = Schema(
        ("group_id", NAME),
        ("topics", CompactArray(("topic", NAME), ("partitions", CompactArray(Int32)), TAGS)),
        ("require_stable", Boolean),
        TAGS,
    )


class TxnOffsetCommit(Request[TxnOffsetCommitStruct]):
    """Source offsets of a transaction."""

    API_KEY = 28

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[TxnOffsetCommitStruct]) -> TxnOffsetCommitStruct:
        return request_struct_class(*self._fields)


class OffsetFetch(Request[OffsetFetchStruct]):
    """Committed offsets."""

    API_KEY = 9

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[OffsetFetchStruct]) -> OffsetFetchStruct:
        return request_struct_class(*self._fields)


class GroupOffsets(TxnOffsetCommitHandler):
    """aiokafka's handler, with the membership that it lacks."""

    def __init__(self, sender: Any, offsets: Mapping[TopicPartition, Any], membership: Membership) -> None:
        super().__init__(sender, offsets, membership.group)
        self._membership = membership

    def create_request(self) -> TxnOffsetCommit:
        manager, member = self._sender._txn_manager, self._membership
        topics: dict[str, list[tuple[Any, ...]]] = {}
        for place, committed in sorted(self._offsets.items()):
            row = (place.partition, committed.offset, NO_LEADER_EPOCH, committed.metadata, NO_TAGS)
            topics.setdefault(place.topic, []).append(row)
        return TxnOffsetCommit(
            manager.transactional_id, member.group, manager.producer_id, manager.producer_epoch,
            member.generation, member.member, member.instance, [(*topic, NO_TAGS) for topic in topics.items()], NO_TAGS,
        )  # fmt: skip

    def handle_response(self, response: Any) -> float | None:
        errors = [(topic, [place[:2] for place in partitions]) for topic, partitions, _ in response.topics]
        if FENCED & {code for _, places in errors for _, code in places}:
            raise ExpelledError(f"the group goes on without {self._membership}")
        backoff: float | None = super().handle_response(SimpleNamespace(errors=errors))
        return backoff


class Transactions:
    """The transactions of one assignment, one after the other, and its fence against all earlier ones."""

    def __init__(
        self, make: Callable[[TP], AIOKafkaProducer], partitions: Iterable[TP], membership: Membership
    ) -> None:
        self._make, self._membership = make, membership
        self._partitions = sorted(partitions)
        self._producer: Any = None  # of the lowest partition
        self._has_offsets = False  # whether the open transaction will have source offsets

    async def start(self) -> None:
        """Start the producer of each partition, which aborts what runs under its name; keep the lowest one's."""
        if not self._partitions:
            return
        self._producer, *others = await asyncio.gather(*map(self._started, self._partitions))
        self._producer._sender._do_txn_offset_commit = self._commit_offsets
        self._producer._txn_manager.consumer_group_to_add = self._group_to_add
        await asyncio.gather(*(producer.stop() for producer in others))

    async def _started(self, tp: TP) -> Any:
        """Start a partition's producer, which fences every other one of its name.

        A broker that just woke up names no broker for a moment, itself included, which aiokafka asserts; nothing has
        been asked in our name by then, so a new producer may begin again.
        """
        for _ in range(NO_BROKER_TRIES):
            producer = self._make(tp)
            try:
                await producer.start()
                return producer
            except AssertionError as error:
                log.warning("%s: the cluster names no broker yet: %s", tp, error)
                await producer.client.close()
                await asyncio.sleep(NO_BROKER_PAUSE_SECONDS)
        producer = self._make(tp)
        await producer.start()
        return producer

    async def begin(self) -> None:
        """Begin a transaction."""
        self._has_offsets = False
        await self._producer.begin_transaction()

    def register(self, targets: Iterable[tuple[str, int]], has_offsets: bool) -> None:
        """Register what the open transaction will write to, while the answers are still computed."""
        self._has_offsets |= has_offsets
        for target in targets:
            self._producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(*target))

    def create_batch(self) -> Any:
        """Return an empty record batch."""
        return self._producer.create_batch()

    async def send_batch(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        """Send a record batch within the open transaction; return its acknowledgement."""
        acknowledgement: asyncio.Future[Any] = await self._producer.send_batch(batch, topic, partition=partition)
        return acknowledgement

    async def send_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Send the source offsets; before the first batch is sent or after all are acknowledged.

        In parallel with the first produce the broker would answer NOT_ENOUGH_REPLICAS, and retries cost.
        """
        if not offsets:
            return
        self._has_offsets = True
        places = {TopicPartition(*tp): offset for tp, offset in offsets.items()}
        await self._producer.send_offsets_to_transaction(places, self._membership.group)

    async def commit(self) -> None:
        """Commit the open transaction."""
        await self._producer.commit_transaction()

    async def stop(self) -> None:
        """Let go; an open transaction is aborted by the next owner."""
        if self._producer is not None:
            ended = self._producer._txn_manager.wait_for_transaction_end()
            if ended is not None and ended.done():
                ended.exception()  # raised long ago where it was written; not retrieved, it would be logged once more
            await self._producer.stop()

    def _group_to_add(self) -> str | None:
        """Let the sender register the group as soon as the partitions are, not only when there are offsets."""
        manager = self._producer._txn_manager
        wanted = self._has_offsets and manager.is_in_transaction() and manager._txn_consumer_group is None
        return self._membership.group if wanted else None

    async def _commit_offsets(self, offsets: Mapping[TopicPartition, Any], group: str) -> None:
        """Stand in for the sender's own, which sends no membership."""
        node = await self._producer._sender._find_coordinator(CoordinationType.GROUP, group)
        await GroupOffsets(self._producer._sender, offsets, self._membership).do(node)


async def settle(client: Any, group: str, partitions: Iterable[TP]) -> None:
    """Wait until no transaction under way holds an offset of these partitions.

    Those of earlier generations end: they commit, or another member's start aborts them; later ones are refused.
    """
    topics: dict[str, list[int]] = {}
    for tp in sorted(partitions):
        topics.setdefault(tp.topic, []).append(tp.partition)
    request = OffsetFetch(group, [(*topic, NO_TAGS) for topic in topics.items()], True, NO_TAGS)
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    while True:
        if not await client.ready(node, group=ConnectionGroup.COORDINATION):
            raise NodeNotReadyError(node)
        response = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        codes = {response.error_code, *(place[4] for _, places, _ in response.topics for place in places)}
        if failed := codes - {0, UNSTABLE_OFFSET_COMMIT}:
            raise for_code(failed.pop())
        if UNSTABLE_OFFSET_COMMIT not in codes:
            return
        await asyncio.sleep(SETTLE_SECONDS)

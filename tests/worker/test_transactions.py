"""Transactions of an assignment against a real broker: what an earlier generation or an earlier owner may still do."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.types import TP
from kafka.admin import KafkaAdminClient, NewTopic

from worker.outbox import Delivery, Outbox
from worker.restore import changelog_reader, stable_ends
from worker.transactions import ExpelledError, Transactions, settle
from worker.transport import Membership

WAIT_SECONDS = 0.5  # long enough to see that something waits


class Group:
    """A source topic, its answers, and a consumer group that reads it."""

    def __init__(self, broker: str, name: str) -> None:
        self.broker, self.name, self.source, self.answers = broker, name, f"{name}-clicks", f"{name}-answers"
        admin = KafkaAdminClient(bootstrap_servers=broker)
        admin.create_topics([NewTopic(topic, 2, 1) for topic in (self.source, self.answers)])
        admin.close()
        self.places = [TP(self.source, number) for number in range(2)]
        self.delivery = Delivery([broker], name, self.answers, "no-changelog", 1, 1)

    @asynccontextmanager
    async def member(self) -> Any:
        """Join the group; yield the consumer and its membership."""
        consumer = AIOKafkaConsumer(
            self.source, bootstrap_servers=self.broker, group_id=self.name, enable_auto_commit=False,
            auto_offset_reset="earliest",
        )  # fmt: skip
        await consumer.start()
        try:
            while not consumer.assignment():
                await asyncio.sleep(0.05)
            yield consumer, membership(consumer)
        finally:
            await consumer.stop()

    async def owner(self, member: Membership) -> Transactions:
        """Take over both partitions."""
        transactions = Transactions(self.delivery.producer, self.places, member)
        await transactions.start()
        return transactions

    async def transact(self, transactions: Transactions, offset: int, offsets_first: bool = False) -> None:
        """Write an answer of each partition and the source offsets; the transaction stays open."""
        await transactions.begin()
        transactions.register([(self.answers, 0)], True)
        if offsets_first:
            await transactions.send_offsets(dict.fromkeys(self.places, offset))
        for number in range(2):
            outbox = Outbox(transactions.create_batch, number)
            outbox.send(self.answers, [(b"user", b"answer", [])])
            await outbox.deliver(transactions)
            await outbox.acknowledged()
        if not offsets_first:
            await transactions.send_offsets(dict.fromkeys(self.places, offset))

    async def committed(self, consumer: AIOKafkaConsumer) -> list[int | None]:
        return [await consumer.committed(TopicPartition(*place)) for place in self.places]


def membership(consumer: AIOKafkaConsumer) -> Membership:
    coordinator: Any = consumer._coordinator
    return Membership(coordinator.group_id, coordinator.generation, coordinator.member_id, None)


@pytest.fixture
def group(broker: str, unique: Callable[[str], str]) -> Group:
    return Group(broker, unique("group"))


@pytest.mark.parametrize("offsets_first", [False, True])
def test_one_transaction_commits_the_answers_and_offsets_of_all_partitions(group: Group, offsets_first: bool) -> None:
    async def story() -> None:
        async with group.member() as (consumer, member):
            transactions = await group.owner(member)
            for offset in (3, 7):
                await group.transact(transactions, offset, offsets_first)
                await transactions.commit()
            await settle(consumer._client, group.name, group.places)  # the markers follow the commit
            assert await group.committed(consumer) == [7, 7]
            await transactions.stop()

    asyncio.run(story())


@pytest.mark.parametrize("stale", ["generation", "member"])
def test_offsets_of_an_earlier_generation_or_of_another_member_are_refused(
    group: Group, stale: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with group.member() as (consumer, member):
            earlier = {"generation": member.generation - 1} if stale == "generation" else {"member": "someone-else"}
            transactions = await group.owner(member._replace(**earlier))
            with pytest.raises(ExpelledError):
                await group.transact(transactions, 5)
            await transactions.stop()
            assert await group.committed(consumer) == [None, None]

    asyncio.run(story())
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("has_records", [True, False])
def test_a_new_owner_of_the_lowest_partition_aborts_what_was_left_open_for_all_of_them(
    group: Group, has_records: bool
) -> None:
    async def story() -> None:
        async with group.member() as (consumer, member):
            earlier = await group.owner(member)
            if has_records:
                await group.transact(earlier, 5)
            else:  # it ended while its answers were computed
                await earlier.begin()
                await earlier.send_offsets(dict.fromkeys(group.places, 5))
            waits = asyncio.ensure_future(settle(consumer._client, group.name, group.places[1:]))
            await asyncio.sleep(WAIT_SECONDS)
            assert not waits.done()  # the second partition's new owner must not read offsets yet
            later = Transactions(group.delivery.producer, group.places[:1], member)
            await later.start()
            await waits
            with pytest.raises(KafkaError):
                await earlier.commit()
            assert await group.committed(consumer) == [None, None]
            await asyncio.gather(earlier.stop(), later.stop(), return_exceptions=True)

    asyncio.run(story())


def test_a_transaction_that_nothing_was_written_to_is_committed_and_the_next_one_goes_on(group: Group) -> None:
    async def story() -> None:
        async with group.member() as (consumer, member):
            transactions = await group.owner(member)
            await transactions.begin()
            transactions.register([(group.answers, 0), (group.answers, 1)], True)
            await transactions.send_offsets({})
            await transactions.commit()
            await group.transact(transactions, 4, offsets_first=True)
            await transactions.commit()
            await settle(consumer._client, group.name, group.places)
            assert await group.committed(consumer) == [4, 4]
            await transactions.stop()

    asyncio.run(story())


def test_the_log_is_read_to_its_end_only_when_what_stands_there_is_committed_or_aborted(group: Group) -> None:
    async def story() -> None:
        async with group.member() as (_, member):
            transactions, reader = await group.owner(member), changelog_reader([group.broker], {})
            await reader.start()
            await group.transact(transactions, 1)
            answers = [TP(group.answers, number) for number in range(2)]
            ends = asyncio.ensure_future(stable_ends(reader, answers))
            await asyncio.sleep(WAIT_SECONDS)
            assert not ends.done()
            await transactions.commit()
            assert await ends == dict.fromkeys(answers, 2)  # the answer and the marker
            await asyncio.gather(transactions.stop(), reader.stop())

    asyncio.run(story())


class Client:
    closed = 0

    async def close(self) -> None:
        Client.closed += 1


class Producer:
    """Starts, or fails as it is told."""

    def __init__(self, error: BaseException | None) -> None:
        self.error, self.client, self._sender, self._txn_manager = error, Client(), Client(), Client()

    async def start(self) -> None:
        if self.error is not None:
            raise self.error


def starting(
    monkeypatch: pytest.MonkeyPatch, *errors: BaseException | None
) -> tuple[Transactions, list[BaseException | None]]:
    """Return transactions whose producers fail so at their starts, and the failures that are left."""
    monkeypatch.setattr("worker.transactions.NO_BROKER_PAUSE_SECONDS", 0)
    left = list(errors)
    make: Any = lambda tp: Producer(left.pop(0))  # noqa: E731
    return Transactions(make, [TP("clicks", 0)], Membership("group", 1, "member", None)), left


def test_a_cluster_that_names_no_broker_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Client.closed
    transactions, left = starting(monkeypatch, AssertionError("bootstrap"), AssertionError("bootstrap"), None)
    asyncio.run(transactions.start())
    assert not left
    assert Client.closed - before == 2


def test_any_other_failure_to_start_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    transactions, left = starting(monkeypatch, RuntimeError("fenced"), None)
    with pytest.raises(RuntimeError, match="fenced"):
        asyncio.run(transactions.start())
    assert left == [None]

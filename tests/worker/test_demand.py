"""Fetching on demand, at a real broker; it stands on private names of aiokafka: when one moves, this says which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from worker.demand import FEW_BYTES, LONGEST_WAIT_MS, Demand
from worker.rounds import Rounds
from worker.transport import MANY_RECORDS, CommittedReads

LONG_SECONDS = 0.7  # longer than a fetch waits at the broker


class Source:
    """A topic of two partitions, whose consumer fetches on demand."""

    def __init__(self, broker: str, topic: str) -> None:
        self._broker = broker
        self.places = [TopicPartition(topic, number) for number in range(2)]
        self._producer = KafkaProducer(bootstrap_servers=broker)
        self.demand: Demand

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        self.consumer = AIOKafkaConsumer(bootstrap_servers=self._broker, auto_offset_reset="earliest")
        await self.consumer.start()
        try:
            self.demand = Demand(self.consumer._fetcher)
            self.consumer.assign(self.places)
            yield self.consumer
        finally:
            await self.consumer.stop()
            self._producer.close()

    def click(self, partition: int = 0) -> None:
        place = self.places[partition]
        self._producer.send(place.topic, b"click", partition=place.partition).get(10)

    async def take(self, seconds: float) -> list[int]:
        """Return the partitions of the records that come within so long."""
        some = await self.consumer.getmany(timeout_ms=int(1000 * seconds))
        return [record.partition for records in some.values() for record in records]


@pytest.fixture
def source(broker: str, unique: Callable[[str], str]) -> Source:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics([NewTopic(unique("clicks"), 2, 1)])
    admin.close()
    return Source(broker, unique("clicks"))


def test_nothing_is_fetched_ahead(source: Source) -> None:
    async def story() -> None:
        async with source.read():
            source.click()
            assert await source.take(5) == [0]
            source.demand.close()
            await asyncio.sleep(LONG_SECONDS)  # what was asked for already ends
            for partition in (0, 1):
                source.click(partition)
            assert await source.take(LONG_SECONDS) == []
            source.demand.open(0.0)
            assert sorted(await source.take(5)) == [0, 1]

    asyncio.run(story())


def test_a_broker_collects_for_as_long_as_it_may_and_then_the_next_click_ends_the_waiting(source: Source) -> None:
    async def story() -> None:
        async with source.read() as consumer:
            source.demand.close()
            await asyncio.sleep(LONG_SECONDS)
            loop = asyncio.get_running_loop()
            source.click()
            since = loop.time()
            source.demand.open(0.4)
            assert await source.take(5) == [0]
            assert loop.time() - since > 0.3
            source.demand.close()
            await asyncio.sleep(LONG_SECONDS)
            source.demand.open(0.01)
            taking = asyncio.ensure_future(source.take(5))
            await asyncio.sleep(0.2)
            assert not taking.done()
            assert consumer._fetcher._fetch_max_wait_ms == LONGEST_WAIT_MS
            source.click()
            since = loop.time()
            await taking
            assert loop.time() - since < 0.3

    asyncio.run(story())


def test_the_requests_of_a_demand_say_how_long_to_collect() -> None:
    waits: list[tuple[int, int]] = []
    fetcher: Any = SimpleNamespace(_wait_consume_future=None, _notify=lambda future: None)

    def actions(assignment: Any) -> tuple[list[str], ...]:
        waits.append((fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms))
        return (["request"], ["other"])

    fetcher._get_actions_per_node = actions
    demand = Demand(fetcher)
    assert fetcher._get_actions_per_node(None) == (["request"], ["other"])
    demand.close()
    assert fetcher._get_actions_per_node(None) == ([], ["other"])
    demand.open(60.0)
    assert fetcher._get_actions_per_node(None) == (["request"], ["other"])
    assert waits[0] == waits[1] == (1, LONGEST_WAIT_MS)
    assert waits[2][0] == FEW_BYTES
    assert 59_000 < waits[2][1] <= 60_000


@pytest.mark.parametrize(("first", "asked"), [(1, [None, None]), (MANY_RECORDS, [None])])
def test_what_the_other_brokers_have_comes_with_the_answer_of_the_first(
    monkeypatch: pytest.MonkeyPatch, first: int, asked: list[None]
) -> None:
    """Else it would lie in the fetcher until the next round, and its own partitions would not be asked for then."""
    said = [{"p0": ["a"] * first}, {"p1": ["b"]}]
    calls: list[None] = []

    async def fetched(thread: Any, consumer: Any, active: Any, timeout: float = 0) -> Any:
        calls.append(None)
        return said[len(calls) - 1]

    monkeypatch.setattr(AIOKafkaConsumerThread, "_fetch_records", fetched)

    async def story() -> Any:
        later = asyncio.ensure_future(asyncio.sleep(0.001))
        consumer = SimpleNamespace(
            _fetcher=SimpleNamespace(
                _pending_tasks={later}, _get_actions_per_node=None, _wait_consume_future=None, _notify=lambda _: None
            )
        )
        thread: Any = object.__new__(CommittedReads)
        thread.rounds = Rounds()
        return await thread._fetch_records(consumer, set(), timeout=1.0)

    expected = said[0] | said[1] if len(asked) == 2 else said[0]
    assert asyncio.run(story()) == expected
    assert calls == asked


def test_a_private_name_is_still_there(source: Source) -> None:
    names = "_get_actions_per_node _notify _wait_consume_future _pending_tasks _fetch_min_bytes _fetch_max_wait_ms"

    async def story() -> None:
        async with source.read() as consumer:
            source.click()
            await source.take(5)
            for name in names.split():
                assert hasattr(consumer._fetcher, name), f"aiokafka has no {name} any more: worker/demand.py uses it"

    asyncio.run(story())

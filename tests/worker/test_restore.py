"""Restoring reads exactly the committed changelog, to its end, from where the local state ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from faust.types import TP

from tests.support.topics import create_topics
from worker.restore import changelog_reader, read_log


class Tables:
    """What was applied, by partition: the rows, and the position after each call."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = {0: {}, 1: {}}
        self.positions: dict[int, list[int]] = {0: [], 1: []}

    def apply(self, tp: TP, records: list[Any], position: int) -> None:
        self.rows[tp.partition].update((record.key, record.value) for record in records)
        self.positions[tp.partition].append(position)


async def write(broker: str, topic: str) -> None:
    """Leave committed, aborted and again committed rows: the log ends with a marker; partition 1 stays empty."""
    producer = AIOKafkaProducer(bootstrap_servers=broker, transactional_id=topic)
    await producer.start()
    for value, ends in ((b"kept", "commit"), (b"aborted", "abort"), (b"new", "commit"), (b"aborted", "abort")):
        await producer.begin_transaction()
        for number in range(50 if value == b"kept" else 10):
            await producer.send_and_wait(topic, value, b"%d" % number, partition=0)
        await (producer.commit_transaction() if ends == "commit" else producer.abort_transaction())
    await producer.stop()


async def read(broker: str, topic: str, starts: dict[int, int]) -> Tables:
    tables, consumer = Tables(), changelog_reader([broker], {})
    await consumer.start()
    try:
        tps = {TP(topic, number): start for number, start in starts.items()}
        await read_log(consumer, tps, await consumer.end_offsets(tps), tables.apply)
    finally:
        await consumer.stop()
    return tables


@pytest.fixture
def changelog(broker: str, unique: Callable[[str], str]) -> str:
    topic = unique("changelog")
    create_topics(broker, topic)
    asyncio.run(write(broker, topic))
    return topic


def test_committed_rows_are_restored_to_the_end_of_the_log_though_it_ends_with_aborted_ones(
    broker: str, changelog: str
) -> None:
    tables = asyncio.run(read(broker, changelog, {0: 0, 1: 0}))
    assert tables.rows[0] == {b"%d" % n: b"new" if n < 10 else b"kept" for n in range(50)}
    assert tables.positions[0][-1] == 84  # 80 records and the four markers
    assert tables.rows[1] == {}


def test_what_the_local_state_holds_is_not_read_again(broker: str, changelog: str) -> None:
    tables = asyncio.run(read(broker, changelog, {0: 51}))
    assert tables.rows[0] == {b"%d" % n: b"new" for n in range(10)}
    assert asyncio.run(read(broker, changelog, {0: 84})).positions[0] == []


def test_local_state_that_is_ahead_of_its_changelog_is_refused(broker: str, changelog: str) -> None:
    with pytest.raises(ValueError, match=r"ends at offset 85, the changelog at 84"):
        asyncio.run(read(broker, changelog, {0: 85}))

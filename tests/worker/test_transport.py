"""The transport stands on private names of Faust and aiokafka: when one moves, this says which."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.producer import sender
from faust.stores.rocksdb import Store
from faust.tables import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer

from worker.transport import MOST_PAUSES, PAUSE_SECONDS, ChunkConsumer

WHY = "worker/{} overrides or uses it: read its new form before raising the pinned version"


def test_faust_is_the_version_that_the_transport_was_written_for() -> None:
    assert version("faust-streaming") == "0.15.3"


@pytest.mark.parametrize(
    ("owner", "name", "user"),
    [
        (Consumer, "_drain_messages", "transport.py"),
        (Consumer, "_wait_next_records", "transport.py"),
        (Consumer, "_new_consumer_thread", "transport.py"),
        (Consumer, "perform_seek", "transport.py"),
        (Consumer, "verify_event_path", "transport.py"),
        (Consumer, "on_partitions_assigned", "transport.py"),
        (Consumer, "on_partitions_revoked", "transport.py"),
        (AIOKafkaConsumerThread, "_create_worker_consumer", "transport.py"),
        (AIOKafkaConsumerThread, "seek_to_beginning", "transport.py"),
        (Recovery, "_restart_recovery", "restore.py"),
        (Recovery, "_slurp_changelogs", "restore.py"),
        (Recovery, "_set_recovery_started", "restore.py"),
        (Recovery, "_wait", "restore.py"),
        (TableManager, "_recovery", "restore.py"),
        (Store, "_db_for_partition", "sequences.py"),
        (Store, "_open_for_partition", "sequences.py"),
        (Store, "offset_key", "sequences.py"),
        (sender, "BACKOFF_OVERRIDE", "outbox.py"),
    ],
)
def test_a_private_name_is_still_there(owner: object, name: str, user: str) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more; {WHY.format(user)}"


def test_a_consumer_starts_with_the_waits_that_it_was_given_after_its_making() -> None:
    async def story() -> None:
        consumer = AIOKafkaConsumer()
        try:
            assert (consumer._fetch_min_bytes, consumer._fetch_max_wait_ms) == (1, 500), WHY.format("transport.py")
        finally:
            await consumer.stop()

    asyncio.run(story())
    source = inspect.getsource(AIOKafkaConsumer.start)
    for name in ("fetch_min_bytes", "fetch_max_wait_ms"):
        assert f"{name}=self._{name}" in source, WHY.format("transport.py")


@pytest.mark.parametrize(("hungry_after", "pauses"), [(0, 1), (3, 4), (1000, MOST_PAUSES)])
def test_records_come_together_while_their_owner_has_no_use_for_more_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, hungry_after: int, pauses: int
) -> None:
    slept: list[float] = []

    class Busy:
        @property
        def is_hungry(self) -> bool:
            return len(slept) > hungry_after

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    consumer = object.__new__(ChunkConsumer)
    monkeypatch.setattr(ChunkConsumer, "owner", Busy(), raising=False)
    asyncio.run(consumer._pause())
    assert slept == [PAUSE_SECONDS] * pauses

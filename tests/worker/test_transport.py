"""The transport stands on private names of Faust and aiokafka: when one moves, this says which."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from aiokafka.producer import sender
from faust.stores.rocksdb import Store
from faust.tables import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer

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
        (AIOKafkaConsumerThread, "_fetch_records", "transport.py"),
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

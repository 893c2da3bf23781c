"""Rebalances in the middle of a recovery leave no hole in the table; a table with one is not served."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from tests.support.clicks import real_clicks
from tests.support.stack import Stack, wait
from worker.emitter import EXIT_FATAL

ROUNDS = 3


def test_a_worker_that_joins_while_another_recovers_leaves_no_hole_in_the_table(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stack = Stack(broker, unique, tmp_path)
    events = list(real_clicks(100))
    share = len(events) // (ROUNDS + 1)
    try:
        stack.start("a")
        stack.start("b")
        stack.wait_ready("a")
        stack.produce(events[:share])
        stack.wait_answered()
        for turn in range(1, ROUNDS + 1):
            for tag in ("a", "b"):
                stack.signal(tag, signal.SIGKILL)
                stack.wipe(tag)
            stack.produce(events[turn * share : (turn + 1) * share])
            stack.start("a")
            wait(stack.state("a").exists, 60, lambda: stack.log("a")[-2000:], every=0.02)
            time.sleep(0.3 * turn)
            stack.start("b")
        stack.wait_ready("a")
        stack.wait_ready("b")
        stack.wait_answered()
        stack.verify()
    finally:
        stack.close()


def test_a_table_that_does_not_end_where_the_group_has_read_to_is_not_served(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stack = Stack(broker, unique, tmp_path, partitions=1)
    events = list(real_clicks(5))
    try:
        stack.start("a")
        stack.wait_ready("a")
        stack.produce(events[:60])
        stack.wait_answered()
        assert stack.terminate("a") == 0
        commit(broker, stack.app_id, TopicPartition(stack.topics["clickstream"], 0), 55)
        stack.produce(events[60:70])
        stack.start("a")
        assert stack.workers["a"].wait(60) == EXIT_FATAL
        assert "is read on from offset 55, but the table ends at 60" in stack.log("a")
        commit(broker, stack.app_id, TopicPartition(stack.topics["clickstream"], 0), 60)
        stack.start("a")
        stack.wait_answered()
        stack.verify()
    finally:
        stack.close()


def commit(broker: str, group: str, tp: TopicPartition, offset: int) -> None:
    """Commit an offset by hand, as an operator would; the group must be empty."""
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False)
    consumer.assign([tp])
    consumer.commit({tp: OffsetAndMetadata(offset, "", -1)})
    consumer.close()

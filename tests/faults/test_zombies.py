"""A worker frozen past the session time-out, taken over, and let go: it must not add, repeat or change anything."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clicks import real_clicks
from tests.support.stack import Stack, wait

MANY_TRANSACTIONS = {"FUNNELCAST_MAX_CHUNK": "100", "FUNNELCAST_TRANSACTION_CHUNKS": "2"}


@pytest.mark.parametrize(("point", "heirs"), [("folded", 1), ("sent", 2), ("before_commit", 2), ("committed", 1)])
def test_a_zombie_stopped_in_its_transaction_changes_nothing(
    point: str, heirs: int, broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stack = Stack(broker, unique, tmp_path, environment=MANY_TRANSACTIONS)
    events = real_clicks(40)
    half = len(events) // 2
    flag = tmp_path / "struck"
    try:
        stack.produce(events[:half])
        stack.start("zombie", fault=f"{point}@{flag}:5:{int(signal.SIGSTOP)}")
        wait(flag.exists, 60, lambda: stack.log("zombie")[-3000:])
        for number in range(heirs):  # of two, only one takes over the partition that the transaction is named after
            stack.start(f"heir-{number}")
        for number in range(heirs):
            stack.wait_ready(f"heir-{number}")
        stack.wait_answered()
        stack.verify()
        stack.signal("zombie", signal.SIGCONT)
        stack.produce(events[half:], per_second=1000)
        time.sleep(5)
        if stack.workers["zombie"].poll() is not None:
            assert stack.workers["zombie"].returncode != 0
            stack.start("zombie")  # what a supervisor does
        stack.wait_answered()
        stack.verify()
    finally:
        stack.close()


def test_a_worker_that_the_group_gave_up_joins_again_and_goes_on(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stack = Stack(broker, unique, tmp_path, environment=MANY_TRANSACTIONS)
    events = real_clicks(40)
    third = len(events) // 3
    flag = tmp_path / "struck"
    try:
        stack.start("frozen", fault=f"sent@{flag}:5:{int(signal.SIGSTOP)}")
        stack.produce(events[:third])
        wait(flag.exists, 60, lambda: stack.log("frozen")[-3000:])
        time.sleep(8)  # twice the session time-out, with a transaction open
        stack.signal("frozen", signal.SIGCONT)
        stack.produce(events[third:])
        stack.wait_answered()
        stack.verify()
        assert "until the partitions are assigned anew" in stack.log("frozen")
        assert stack.terminate("frozen") == 0
    finally:
        stack.close()

"""A broker that is gone or frozen makes a worker unready, never dead; it comes back by itself and lost nothing."""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_kafka import LocalKafka

from tests.support.clicks import real_clicks
from tests.support.stack import Stack, wait

POLL_SECONDS = 0.25
AWAY_SECONDS = 20


class Watcher(threading.Thread):
    """Polls /live and /ready all the time and remembers what they said."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.stopped = port, threading.Event()
        self.live: list[bool] = []
        self.ready: list[bool] = []
        self.broker: list[bool] = []

    def run(self) -> None:
        while not self.stopped.wait(POLL_SECONDS):
            self.live.append(self.get("/live")["live"])
            found = self.get("/ready")
            self.ready.append(found["ready"])
            self.broker.append(found["conditions"]["broker"])

    def get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))


@pytest.fixture
def own_kafka(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalKafka]:
    monkeypatch.delenv("FUNNELCAST_BROKER", raising=False)
    with LocalKafka() as kafka:
        yield kafka


@pytest.mark.parametrize("fault", ["frozen", "stopped"])
def test_a_broker_that_goes_and_comes_back_makes_the_worker_unready_meanwhile_and_never_dead(
    fault: str, own_kafka: LocalKafka, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stack = Stack(own_kafka.bootstrap, unique, tmp_path, partitions=2)
    events = real_clicks(8)
    try:
        stack.start("a")
        stack.wait_ready("a")
        stack.produce(events[: len(events) // 2])
        stack.wait_answered()
        watcher = Watcher(stack.ports["a"])
        watcher.start()
        time.sleep(3)
        (own_kafka.pause if fault == "frozen" else own_kafka.stop)()
        wait(lambda: not watcher.ready[-1], 20, lambda: stack.log("a")[-2000:])
        time.sleep(AWAY_SECONDS)
        assert not watcher.ready[-1]
        (own_kafka.resume if fault == "frozen" else own_kafka.restart)()
        wait(lambda: watcher.ready[-1], 60, lambda: stack.log("a")[-4000:])
        time.sleep(5)
        watcher.stopped.set()
        watcher.join(10)
        assert all(watcher.live)
        assert [value for value, _ in itertools.groupby(watcher.broker)] == [True, False, True]
        assert watcher.ready[0] and stack.workers["a"].poll() is None
        stack.produce(events[len(events) // 2 :])
        stack.wait_answered()
        stack.verify()
        assert stack.terminate("a") == 0
    finally:
        stack.close()


def test_a_worker_beats_while_it_recovers_however_long_that_takes(
    own_kafka: LocalKafka, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stack = Stack(own_kafka.bootstrap, unique, tmp_path, partitions=2)
    try:
        stack.produce(real_clicks(8))
        stack.start("a", arguments=["--burst"])
        assert stack.workers["a"].wait(120) == 0, stack.log("a")
        stack.wipe("a")
        stack.start("a")
        wait(lambda: sample(stack, "funnelcast_partition_assignments_total") == 1, 60, lambda: stack.log("a"), 0.01)
        own_kafka.pause()  # in the middle of the recovery
        watcher = Watcher(stack.ports["a"])
        watcher.start()
        time.sleep(15)
        assert not any(watcher.ready), "the recovery ended before the broker was frozen"
        assert sample(stack, "funnelcast_event_loop_silent_seconds") < 5
        assert sample(stack, "funnelcast_broker_silent_seconds") > 10
        own_kafka.resume()
        stack.wait_ready("a")
        watcher.stopped.set()
        assert all(watcher.live)
        assert sample(stack, "funnelcast_recovery_remaining_messages") == 0
        stack.verify()
    finally:
        stack.close()


def sample(stack: Stack, name: str) -> float:
    """Return one number of the worker's metrics, -1 while there is none."""
    return stack.metrics("a").get(name, -1)

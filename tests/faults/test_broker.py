"""The broker is killed and comes back while the worker runs: it recovers unattended and nothing is lost or repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_kafka import LocalKafka

from tests.support.clicks import real_clicks
from tests.support.stack import Stack


def test_a_killed_broker_costs_no_event_and_no_answer(unique: Callable[[str], str], tmp_path: Path) -> None:
    events = real_clicks(60)
    half = len(events) // 2
    with LocalKafka() as kafka:
        if kafka.external:
            pytest.skip("FUNNELCAST_BROKER is set: this test kills its own broker only")
        stack = Stack(kafka.bootstrap, unique, tmp_path)
        try:
            stack.start("a")
            stack.wait_ready("a")
            stack.produce(events[:half])
            kafka.kill(1)
            time.sleep(6)  # longer than the session time-out
            kafka.restart(1)
            if stack.workers["a"].poll() is not None:
                assert stack.workers["a"].returncode != 0
                stack.start("a")  # what a supervisor does
            stack.produce(events[half:])
            stack.wait_answered(180)
            stack.verify()
            assert stack.log("a").count("Unable connect") < 200
            assert stack.terminate("a") == 0
        finally:
            stack.close()

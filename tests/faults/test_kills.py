"""SIGKILL at random moments under load: one and two workers, local state wiped, workers killed while they recover."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clicks import real_clicks
from tests.support.stack import Stack

RATE = 400.0


@pytest.mark.parametrize(("workers", "kills", "store"), [(1, 8, "rocksdb"), (2, 12, "rocksdb"), (2, 4, "memory")])
def test_random_kills_lose_and_repeat_nothing(
    workers: int, kills: int, store: str, broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    chance = random.Random(f"{workers}{store}")
    stack = Stack(broker, unique, tmp_path, environment={"FUNNELCAST_STORE": store})
    tags = [f"w{number}" for number in range(workers)]
    wiped = recovering = 0
    try:
        for tag in tags:
            stack.start(tag)
        stack.wait_ready(tags[0])
        load = stack.produce_in_background(real_clicks(300), RATE)
        for _ in range(kills):
            tag = chance.choice(tags)
            if chance.random() < 0.65:
                stack.wait_ready(tag)  # else it is killed while it starts, joins or recovers
            time.sleep(chance.uniform(0.2, 4.0))
            recovering += not stack.is_ready(tag)
            stack.signal(tag, signal.SIGKILL)
            if chance.random() < 0.3:
                wiped += 1
                stack.wipe(tag)
            time.sleep(chance.choice((0, 0, 0.5, 1.5)))
            stack.start(tag)
        load.join(240)
        for tag in tags:
            stack.wait_ready(tag)  # only workers that run close the last sessions
        stack.wait_answered(180)
        expected = stack.verify()
        moments = f"{recovering} while starting or recovering, {wiped} with the state wiped"
        print(f"{kills} kills ({moments}): {sum(expected.answered.values())} answers")
    finally:
        stack.close()

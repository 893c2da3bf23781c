"""The main job on a real broker, with real users, two workers and a SIGKILL in the middle."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from model.contract.bundle import SHIPPED, load_bundle
from model.contract.stages import STAGES
from tests.support.clicks import TAOBAO, real_clicks
from tests.support.expectation import place_of
from tests.support.stack import Stack


@pytest.fixture
def stack(broker: str, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(broker, unique, tmp_path)
    yield stack
    stack.close()


def test_two_workers_and_a_kill_leave_every_event_answered_once_and_scored_as_torch_does(stack: Stack) -> None:
    events = real_clicks(200 if TAOBAO.exists() else 100)
    stack.start("a")
    stack.start("b")
    stack.wait_ready("a")
    load = stack.produce_in_background(events, per_second=600)
    time.sleep(len(events) / 600 / 2)
    stack.signal("a", signal.SIGKILL)
    load.join(120)
    stack.start("a")
    stack.wait_answered(240)
    expected = stack.verify()
    assert len(expected.inputs) and sum(expected.answered.values()) >= len(events)
    assert stack.terminate("a") == 0
    assert stack.terminate("b") == 0
    assert worst_difference_from_torch(stack, expected.inputs) < 1e-5


def worst_difference_from_torch(stack: Stack, inputs: list) -> float:
    """Return the largest difference in probability between the records and the network in torch, over every answer."""
    from model.reformer import load_checkpoint
    from model.score import score_offline

    bundle = load_bundle(SHIPPED)
    model = load_checkpoint(SHIPPED / "checkpoint")
    said = {}
    for record in stack.read(stack.topics["stage_probabilities"]):
        answer = record.json()
        assert not answer["degraded"]
        scopes = answer["category_probabilities"], answer["user_probabilities"]
        said[place_of(record)] = [[scope[stage] for stage in STAGES] for scope in scopes]
    worst = 0.0
    for sequences, names in inputs:
        reach = score_offline(model, bundle.calibration, sequences)  # (A, 2, 6)
        for (user, _, place), expected in zip(names, reach, strict=True):
            worst = max(worst, float(np.abs(np.array(said[user, place]) - np.asarray(expected)).max()))
    return worst


def test_the_same_log_gives_the_same_records_in_two_runs(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    events = real_clicks(40)
    runs = []
    for run in ("first", "second"):
        directory = tmp_path / run
        directory.mkdir()
        stack = Stack(
            broker, lambda name, run=run: f"{unique(name)}-{run}", directory, environment={"FUNNELCAST_STORE": "memory"}
        )
        try:
            stack.start("a")
            stack.produce(events)
            stack.wait_answered()
            runs.append({name: ids(stack, name) for name in ("stage_probabilities", "triggers")})
        finally:
            stack.close()
    assert len(runs[0]["stage_probabilities"]) >= len(events)
    assert runs[0] == runs[1]


def ids(stack: Stack, topic: str) -> list[str]:
    return sorted(record.headers["ce_id"] for record in stack.read(stack.topics[topic]))


def test_burst_answers_what_is_there_and_exits_with_zero(stack: Stack) -> None:
    events = real_clicks(20)
    stack.produce(events)
    stack.start("a", arguments=["--burst"])
    assert stack.workers["a"].wait(120) == 0, stack.log("a")
    stack.verify()


def test_a_terminated_worker_drains_and_nothing_is_served_twice_after_its_restart(stack: Stack) -> None:
    load = stack.produce_in_background(real_clicks(60), per_second=800)
    stack.start("a")
    stack.wait_ready("a")
    time.sleep(2)
    assert stack.terminate("a") == 0
    stack.start("a")
    load.join(60)
    stack.wait_ready("a")  # only a worker that runs closes the last sessions
    stack.wait_answered()
    stack.verify()

"""A real worker explains some of its answers into a topic, as the offline command does, and answers as without it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from model.contract.bundle import SCOPES
from tests.support.clicks import EXCERPT
from tests.support.explained import Offline, apart, values
from tests.support.stack import Stack, wait
from worker.metrics import EXPLAINED
from worker.retell import Explanation

ONE_IN = 20
EXPLAINING = {"FUNNELCAST_EXPLAIN_ONE_IN": f"{ONE_IN}"}
CLICKS = 2500
BEFORE = 200  # clicks after which the process that explains is waited for


def test_some_answers_are_explained_as_offline_and_all_are_given_as_without(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    offline = Offline(EXCERPT)
    answers, told = served(Stack(broker, naming(unique, "on"), new(tmp_path / "on"), 1, EXPLAINING), offline)
    without, nothing = served(Stack(broker, naming(unique, "off"), new(tmp_path / "off"), 1), offline)
    assert answers.keys() == without.keys()
    assert max(unlike(answers[name], without[name]) for name in answers) < 1e-5
    assert len(told) >= 3 and not nothing
    for explanation in told:
        assert zlib.crc32(explanation.id.encode()) % ONE_IN == 0
        assert explanation.model == answers[explanation.id]["model"]
        assert unlike(msgspec.to_builtins(explanation), answers[explanation.id]) < 1e-5
        assert apart(explanation, offline) < 1e-5


def naming(unique: Callable[[str], str], tag: str) -> Callable[[str], str]:
    return lambda name: f"{unique(name)}-{tag}"


def new(directory: Path) -> Path:
    directory.mkdir()
    return directory


def served(stack: Stack, offline: Offline) -> tuple[dict[str, dict], list[Explanation]]:
    """Serve the log's first clicks; return the answers by their ids, and the explanations."""
    explaining, told = bool(stack.environment), []
    try:
        stack.start("a")
        stack.wait_ready("a")
        stack.produce(offline.events[:BEFORE])
        if explaining:
            wait(lambda: counted(stack, "published") > 0, 240, lambda: stack.log("a")[-3000:])
        stack.produce(offline.events[BEFORE:CLICKS], per_second=300 if explaining else None)
        stack.wait_answered()
        if explaining:
            told = explanations(stack)
        assert sum(counted(stack, outcome) for outcome in EXPLAINED) == 0 or explaining
        assert stack.terminate("a") == 0
        stack.verify()
        records = stack.read(stack.topics["stage_probabilities"])
        return {record.headers["ce_id"]: record.json() for record in records}, told
    finally:
        stack.close()


def explanations(stack: Stack) -> list[Explanation]:
    """Wait until nothing more is explained; return what was, which no answer was twice."""
    last = [-1.0]

    def quiet() -> bool:
        last.append(counted(stack, "published"))
        time.sleep(1)
        return last[-1] == last[-2] >= 3

    wait(quiet, 150, lambda: stack.log("a")[-3000:])
    assert counted(stack, "failed") == 0
    records = stack.read(stack.topics["explanations"])
    told = [msgspec.json.decode(record.value or b"", type=Explanation) for record in records]
    assert len({explanation.id for explanation in told}) == len(told) == counted(stack, "published")
    for record, explanation in zip(records, told, strict=True):
        assert record.key == explanation.user_id.encode()
        assert record.headers["ce_id"] == f"explanation-{explanation.id}"
    return told


def counted(stack: Stack, outcome: str) -> float:
    return stack.metrics("a")[f'funnelcast_explanations_total{{outcome="{outcome}"}}']


def unlike(one: dict, other: dict) -> float:
    """Return the largest difference of the probabilities of two answers to one event."""
    assert [one[name] for name in ("user_id", "event_time", "event_type", "category")] == [
        other[name] for name in ("user_id", "event_time", "event_type", "category")
    ]
    return max(
        float(np.abs(np.subtract(*(values(answer[f"{scope}_probabilities"]) for answer in (one, other)))).max())
        for scope in SCOPES
    )

"""Offline scores of a log are what a worker on a real broker emits for its events and session ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.contract.bundle import SCOPES
from model.datasets import read_log
from model.offline.output import SHOWN
from tests.support.clicks import EXCERPT
from tests.support.expectation import place_of
from tests.support.stack import Stack
from worker.cli import main

COLUMNS = [(scope, stage) for scope in SCOPES for stage in SHOWN]


def test_offline_scores_are_what_the_worker_emits_for_the_same_events(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    events = sorted(read_log(EXCERPT, "taobao"), key=lambda pair: pair[1].timestamp)
    stack = Stack(broker, unique, tmp_path, partitions=1)
    try:
        stack.produce(event for _, event in events)
        stack.start("a", arguments=["--burst"])
        assert stack.workers["a"].wait(240) == 0, stack.log("a")
        said = {}
        for record in stack.read(stack.topics["stage_probabilities"]):
            answer = record.json()
            said[place_of(record)] = [answer[f"{scope}_probabilities"][stage] for scope, stage in COLUMNS]
    finally:
        stack.close()
    offsets = {row: offset for offset, (row, _) in enumerate(events)}
    found = offline(tmp_path / "scores.csv", offsets)
    assert len(said) > len(events)
    assert found.keys() == said.keys()
    assert max(float(np.abs(np.subtract(found[place], said[place])).max()) for place in said) < 1e-5


def offline(out: Path, offsets: dict[int, int]) -> dict[tuple[str, int], list[float]]:
    """Score the excerpt from the command line; name each line as the records are named."""
    assert main(["score", str(EXCERPT), "--format", "taobao", "--out", str(out)]) == 0
    found = {}
    with out.open(newline="") as file:
        for line in csv.DictReader(file):
            place = offsets[int(line["row"])] if line["kind"] == "event" else -int(line["timestamp"])
            found[line["user_id"], place] = [float(line[f"{scope}_{stage}"]) for scope, stage in COLUMNS]
    return found

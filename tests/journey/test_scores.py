"""Offline scores of a log are what a worker on a real broker emits for its events and session ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from export.pack import pack
from model.checkpoint import Checkpoint, save_checkpoint
from model.contract.bundle import SCOPES, SHIPPED, Bundle, load_bundle
from model.datasets import read_log
from model.offline.output import SHOWN
from model.reformer import ClickModel, ReformerConfig
from tests.support.clicks import EXCERPT
from tests.support.expectation import place_of
from tests.support.stack import Stack
from worker.cli import main

COLUMNS = [(scope, stage) for scope in SCOPES for stage in SHOWN]


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An LSTM for what the shipped bundle is for."""
    folder, shipped = tmp_path_factory.mktemp("lstm"), load_bundle(SHIPPED)
    torch.manual_seed(3)
    config = ReformerConfig(network="lstm")
    contract = msgspec.structs.replace(shipped.contract, state=None)
    described = Checkpoint(name="lstm", model=config, contract=contract, calibration=shipped.calibration)
    save_checkpoint(folder, ClickModel(config), described)
    return pack(folder, folder / "bundle")[0]


@pytest.fixture(params=["shipped", "lstm"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(SHIPPED) if request.param == "shipped" else request.getfixturevalue("lstm")


def test_offline_scores_are_what_the_worker_emits_for_the_same_events(
    broker: str, unique: Callable[[str], str], tmp_path: Path, bundle: Bundle
) -> None:
    events = sorted(read_log(EXCERPT, "taobao"), key=lambda pair: pair[1].timestamp)
    stack = Stack(broker, unique, tmp_path, 1, {"FUNNELCAST_BUNDLE": str(bundle.path)})
    try:
        stack.produce(event for _, event in events)
        stack.start("a", arguments=["--burst"])
        assert stack.workers["a"].wait(240) == 0, stack.log("a")
        said = {}
        for record in stack.read(stack.topics["stage_probabilities"]):
            answer = record.json()
            assert (answer["model"]["sha256"], answer["degraded"]) == (bundle.model_sha256, False)
            said[place_of(record)] = [answer[f"{scope}_probabilities"][stage] for scope, stage in COLUMNS]
    finally:
        stack.close()
    offsets = {row: offset for offset, (row, _) in enumerate(events)}
    found = offline(tmp_path / "scores.csv", bundle, offsets)
    assert len(said) > len(events)
    assert found.keys() == said.keys()
    assert max(float(np.abs(np.subtract(found[place], said[place])).max()) for place in said) < 1e-5


def offline(out: Path, bundle: Bundle, offsets: dict[int, int]) -> dict[tuple[str, int], list[float]]:
    """Score the excerpt from the command line; name each line as the records are named."""
    assert main(["score", str(EXCERPT), "--format", "taobao", "--out", str(out), "--bundle", str(bundle.path)]) == 0
    found = {}
    with out.open(newline="") as file:
        for line in csv.DictReader(file):
            place = offsets[int(line["row"])] if line["kind"] == "event" else -int(line["timestamp"])
            found[line["user_id"], place] = [float(line[f"{scope}_{stage}"]) for scope, stage in COLUMNS]
    return found

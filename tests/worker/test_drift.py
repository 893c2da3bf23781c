"""A bundle whose calibration does not fit the world is seen in the metrics, one that fits is not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from model.contract.bundle import SCOPES, SHIPPED, Bundle, Calibration, Knots, load_bundle
from model.contract.events import ClickEvent
from model.contract.stages import STAGES
from model.datasets import read_log
from tests.support.clicks import EXCERPT
from tests.support.partitions import Table, plain_rooms
from tests.support.stack import wire
from worker.metrics import Metrics
from worker.partitions import Partitions
from worker.pieces import Scores
from worker.rooms import Pending
from worker.scorer import Scorer

TOO_FEW, TOO_MANY = 0.67, 1.5  # observed to expected, as the alert has it
ENOUGH, CHUNK = 100, 200


@pytest.fixture(scope="module")
def clicks() -> list[ClickEvent]:
    """Real clicks of nine days, as a worker gets them that reads a backlog."""
    return sorted((event for _, event in read_log(EXCERPT, "taobao")), key=lambda event: event.timestamp)


def shifted(bundle: Bundle, shift: float) -> Bundle:
    """Calibrate a bundle as if every logit were larger by so much."""
    old = bundle.calibration
    moved = [
        [b + scale * shift for scale, b in zip(*rows, strict=True)] for rows in zip(old.scale, old.shift, strict=True)
    ]
    knots = [[line and Knots([x - shift for x in line.x], line.p) for line in row] for row in old.knots]
    return msgspec.structs.replace(bundle, calibration=Calibration(old.scale, moved, old.kind, knots))


def ratios(bundle: Bundle, clicks: list[ClickEvent]) -> dict[tuple[str, str], float]:
    """Serve the clicks; return observed to expected by scope and stage, where enough was expected."""
    metrics, scorer = Metrics(), Scorer(bundle)
    rooms = replace(plain_rooms(metrics), horizon_ms=bundle.contract.horizon_ms)
    partitions = Partitions([0], Table(), rooms)
    for first in range(0, len(clicks), CHUNK):
        records = [
            SimpleNamespace(key=event.user_id.encode(), value=wire(event), offset=place, timestamp=event.timestamp)
            for place, event in enumerate(clicks[first : first + CHUNK], first)
        ]
        serve(partitions, records, scorer)
    sums = {
        name: [metrics.registry.get_sample_value(f"funnelcast_reach_{name}_total", label) or 0 for label in labels()]
        for name in ("observed", "expected")
    }
    found = zip(labels(), sums["observed"], sums["expected"], strict=True)
    return {(at["scope"], at["stage"]): seen / due for at, seen, due in found if due > ENOUGH}


def serve(partitions: Partitions, records: list[SimpleNamespace], scorer: Scorer) -> None:
    work: list[tuple[Pending, Scores]] = []

    def on_block(pending: Pending) -> None:
        work.append((pending, scorer.score([partitions.sequences.inputs(pending.block)])[0]))

    partitions.take({0: records}, 0.0, on_block)
    for pending, scores in work:
        list(partitions.answer(pending, scores, 0))


def labels() -> list[dict[str, str]]:
    return [{"scope": scope, "stage": stage} for scope in SCOPES for stage in STAGES]


@pytest.mark.parametrize("shift", [0, 2, -2])
def test_what_a_bundle_promises_too_much_or_too_little_is_measured(clicks: list[ClickEvent], shift: float) -> None:
    found = ratios(shifted(load_bundle(SHIPPED), shift), clicks)
    assert len(found) >= 2
    wrong = {place for place, ratio in found.items() if not TOO_FEW <= ratio <= TOO_MANY}
    assert bool(wrong) == bool(shift)
    assert all((found[place] < 1) == (shift > 0) for place in wrong)

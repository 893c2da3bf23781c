"""A network that is exact in integers: its state is a number per user, so a wrong state, order or count shows at once.

State: h = (31 h + type + 7 item + 3 category + the sum of the features) mod 8191; every answer is made of h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract.bundle import Bundle, Calibration, Contract
from model.contract.features import WIDTH
from model.contract.pool import Pool, State
from model.contract.stages import load_funnel

Array = npt.NDArray[Any]
STATE = State(depth=1, heads=1, dim_head=1, rounds=1, hash_buckets=1, window=2)
MODULUS = 8191


def worth(feed: Mapping[str, Array]) -> Array:
    """What a row adds to the state."""
    sums = feed["type"] + 7 * feed["item"] + 3 * feed["category"]
    return np.asarray(sums + feed["features"].astype(np.int64).sum(-1))


def logits(h: Array) -> tuple[Array, Array]:
    """Answers (..., 2, 6) and (..., 20) of states (...)."""
    reach = np.stack([np.sin(h * (k + 1) / 100) for k in range(12)], -1).astype("f4")
    next_type = np.stack([np.cos(h * (k + 1) / 100) for k in range(20)], -1).astype("f4")
    return reach.reshape(*h.shape, 2, 6), next_type


class WholeGraph:
    """What model.onnx would answer; `fails` tells which inputs no run survives."""

    def __init__(self) -> None:
        self.rows: list[int] = []  # fed by each run, padding excluded
        self.failing = False

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array]) -> Sequence[Array]:
        if self.failing:
            raise RuntimeError("the network is broken")
        added, lengths = worth(input_feed), input_feed["lengths"]
        self.rows.append(int(lengths.sum()))
        h, states = np.zeros(len(added), np.int64), np.zeros(added.shape, np.int64)
        for t in range(added.shape[1]):
            h = np.where(t < lengths, (31 * h + added[:, t]) % MODULUS, h)
            states[:, t] = h
        rings = np.zeros((len(added), 1, 2, 2, 1), "f4")
        rings[np.arange(len(added)), 0, 1, (lengths - 1) % 2, 0] = h
        outputs = dict(zip(("reach", "next_type"), logits(states), strict=True))
        outputs |= {"rings": rings, "counts": lengths[:, None].astype("i4")}
        return [outputs[name] for name in output_names or outputs]


class StepGraph:
    """What step.onnx would answer from a pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.waves: list[int] = []
        self.failing_types: set[int] = set()  # rows of these types break every run that they are in
        self.nan_types: set[int] = set()  # and these are answered with no numbers

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Array]) -> Sequence[Array]:
        slot = input_feed["slot"]
        assert len(np.unique(slot)) == len(slot), "two rows of one slot in a wave"
        if self.failing_types & set(input_feed["type"].tolist()):
            raise RuntimeError("the network is broken")
        self.waves.append(len(slot))
        return self.answers((31 * self.state_of(slot) + worth(input_feed)) % MODULUS, input_feed)

    def state_of(self, slot: Array) -> Array:
        """The states that slots hold."""
        count = self.pool.counts[slot]
        return np.where(count > 0, self.pool.kv[slot, 1, (count - 1) % 2, 0], 0).astype(np.int64)

    def answers(self, h: Array, input_feed: Mapping[str, Array]) -> Sequence[Array]:
        """The outputs of rows whose states are h."""
        reach, next_type = logits(h)
        value = h.astype("f4").reshape(-1, 1, 1, 1)
        spoilt = np.isin(input_feed["type"], list(self.nan_types))
        reach[spoilt], value[spoilt] = np.nan, np.nan
        return [reach, next_type, np.zeros_like(value), value, input_feed["slot"].reshape(-1, 1, 1)]


class BurstGraph:
    """What burst.onnx would answer: the same as the step graph, row after row."""

    def __init__(self, step: StepGraph) -> None:
        self.step = step
        self.rows: list[int] = []  # of each run
        self.failing = self.spoiling = False  # every run breaks, or is answered with no numbers

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Array]) -> Sequence[Array]:
        slot, before, state = input_feed["slot"], input_feed["previous"][:, 0], self.step.state_of
        assert (slot[before[before >= 0]] == slot[before >= 0]).all(), "rows before a row are its user's"
        if self.failing or self.step.failing_types & set(input_feed["type"].tolist()):
            raise RuntimeError("the network is broken")
        h, added = state(slot), worth(input_feed)
        for row, last in enumerate(before.tolist()):
            h[row] = (31 * (h[last] if last >= 0 else h[row]) + added[row]) % MODULUS
        answers = self.step.answers(h, input_feed)
        if self.spoiling:
            return [np.full_like(part, np.nan) if part.dtype.kind == "f" else part for part in answers]
        self.rows.append(len(slot))
        return answers


class FakeBundle(Bundle):
    """A bundle of the fake network that needs no files."""

    def golden(self) -> dict[str, Array]:
        rng, shape = np.random.default_rng(3), (3, 32)
        feed = {name: rng.integers(1, 20, shape) for name in ("type", "item", "category")}
        feed["features"] = rng.integers(0, 255, (*shape, WIDTH), "u1")
        feed["lengths"] = np.array([32, 1, 9])
        reach, next_type = WholeGraph().run(("reach", "next_type"), feed)
        return {**feed, "reach": reach, "next_type": next_type}


def fake_bundle() -> FakeBundle:
    """Return it."""
    contract = Contract(funnel=load_funnel(), window=2, base_rates=[[0.25] * 6] * 2, state=STATE)
    return FakeBundle(Path("fake"), contract, Calibration(scale=[[1.0] * 6] * 2, shift=[[0.0] * 6] * 2), {})

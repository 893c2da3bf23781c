"""Events/s of scoring on one thread: hot state next to what else would do it.

Hot state, cached keys and LSTM score one new row per user from a pool of states: gather and scatter included, slots
drawn at random from a pool too large for the processor's caches. The others score a user's whole sequence again for
each new row. All have the row embedding and heads of the shipped model; decode, fold, padding and calibration are in
none. Times are CPU time of this process; systems take turns in every round, so that a ratio is of one moment.
Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.scoring [--rounds 5] [--seconds 0.2]     (about 2 minutes)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
import torch

from export.parity import Arrays, random_inputs, session
from export.step import state_of
from export.to_onnx import INPUTS, ROW, STEP_OUTPUTS, export_onnx, export_step
from model.contract.bundle import MODEL, SHIPPED, STEP, load_bundle
from model.contract.pool import Pool
from model.reformer import TIERS, ClickModel, ReformerConfig, Rows, load_config
from tests.bench.measure import Figures, options, publish, say
from tests.bench.scoring_rivals import (
    HIDDEN,
    LAYERS,
    LSTM_OUTPUTS,
    export_full_attention,
    export_lstm,
    library_reformer,
)
from worker.hotscorer import Rows as NewRows
from worker.hotscorer import hot_scorer
from worker.scorer import Scorer

PACKAGES = ("onnxruntime", "torch", "reformer-pytorch", "numpy", "numba")
LENGTHS = (64, 512, 2048)
BATCHES = (1, 8, 32, 128, 512)
POOL_BYTES = 256 << 20
TITLES_AND_INCLUDES = {
    "hot_state": ("Hot state", "step.onnx of the shipped bundle: pool gather, graph, scatter"),
    "skewed": ("Hot state, rows of few users", "the worker's scorer, 2,000 rows of 500 users, steps and bursts"),
    "skewed_by_steps": ("Hot state, rows of few users, by steps", "the same, a row of each user in a run"),
    "hot_state_base": ("Hot state, tier base", "the same of tier base (dim 128, depth 4), random weights"),
    "lstm": ("LSTM step", f"{LAYERS} layers of {HIDDEN} in onnxruntime: state gather, graph, scatter"),
    "full_attention_cached": (
        "Full attention, cached keys", "the step graph with one ring of L keys and values: gather, graph, scatter",
    ),
    "whole_sequence": ("Whole sequence", "model.onnx of the shipped bundle, its final state included"),
    "full_attention": ("Full attention", "whole sequences, the same fused weights and runtime"),
    "library_reformer": (
        "reformer-pytorch", "its own LSH attention in torch, whole sequences, the same rounds, chunks of 32",
    ),
}  # fmt: skip


class Case(NamedTuple):
    """One thing to measure: `run` scores `batch` new events of users with `length` rows."""

    system: str
    length: int | None  # None: does not depend on it
    batch: int
    run: Callable[[], Any]


def steps(system: str, graph: Path, pool: Pool, length: int | None, batches: tuple[int, ...]) -> Iterator[Case]:
    """Yield the step graph at several micro-batches over a filled pool."""
    opened, rng = session(graph.read_bytes()), np.random.default_rng(1)
    rows = one_row_each(max(batches))
    for batch in batches:

        def run(batch: int = batch) -> None:
            given = {name: rows[name][:batch] for name in ROW} | {"slot": rng.integers(0, pool.slots // batch, batch)}
            given["slot"] += np.arange(batch) * (pool.slots // batch)  # distinct
            outputs = opened.run(STEP_OUTPUTS, given | {"pool": pool.blocks, "counts": pool.counts})
            pool.write(outputs[4], outputs[2], outputs[3])

        yield Case(system, length, batch, run)


def skewed(length: int, users: int = 500, rows: int = 2000) -> Iterator[Case]:
    """Yield the worker's scorer on rows of which a few users have many, with bursts and without."""
    bundle, rng = load_bundle(SHIPPED), np.random.default_rng(5)
    assert bundle.contract.state is not None
    network, given = hot_scorer(Scorer(bundle), bundle.contract.state, users, threads=1), one_row_each(rows)
    network.hold(np.arange(users), np.ones(users, int), length)

    def run(bursts: bool) -> None:
        slot = np.sort((users * rng.random(rows) ** 2).astype(int))
        turn = np.arange(rows) - np.searchsorted(slot, slot)
        network.feed(NewRows(given | {"slot": slot}, np.ones(rows, int), network.rows[slot] + turn), bursts)

    yield Case("skewed", length, rows, lambda: run(bursts=True))
    yield Case("skewed_by_steps", length, rows, lambda: run(bursts=False))


def lstm_steps(graph: Path, batches: tuple[int, ...]) -> Iterator[Case]:
    opened, rng = session(graph.read_bytes()), np.random.default_rng(1)
    rows = one_row_each(max(batches))
    state = np.zeros((POOL_BYTES // (2 * LAYERS * HIDDEN * 4), 2 * LAYERS, HIDDEN), np.float32)
    state[:] = rng.standard_normal(state.shape[1:])
    for batch in batches:

        def run(batch: int = batch) -> None:
            slots = rng.integers(0, len(state) // batch, batch) + np.arange(batch) * (len(state) // batch)
            given = {name: rows[name][:batch] for name in ROW}
            state[slots] = opened.run(LSTM_OUTPUTS, given | {"slot": slots, "state": state})[2]

        yield Case("lstm", None, batch, run)


def whole(system: str, graph: Path, length: int) -> Case:
    """Return the scoring of whole sequences, a few users at a time."""
    opened, batch = session(graph.read_bytes()), max(1, 2048 // length)
    drawn = random_inputs(ReformerConfig(), np.full(batch, length), length, np.random.default_rng(2))
    inputs = {value.name: drawn[value.name] for value in opened.get_inputs()}
    return Case(system, length, batch, lambda: opened.run(None, inputs))


def library(model: ClickModel, length: int) -> Case:
    batch = max(1, 2048 // length)
    inputs = random_inputs(ReformerConfig(), np.full(batch, length), length, np.random.default_rng(2))
    rows = Rows(*(torch.from_numpy(inputs[name]) for name in INPUTS))

    def run() -> None:
        with torch.no_grad():
            model(rows)

    return Case("library_reformer", length, batch, run)


def filled(graph: Path, config: ReformerConfig, length: int) -> Pool:
    """Return a pool of users with `length` rows, rebuilt by the whole-sequence graph."""
    pool = empty(config)
    few = random_inputs(config, np.full(4, length), length, np.random.default_rng(3))
    rings, counts = session(graph.read_bytes()).run(["rings", "counts"], few)
    for first in range(0, pool.slots - 3, 4):
        pool.load(np.arange(first, first + 4), rings, counts)
    return pool


def empty(config: ReformerConfig) -> Pool:
    state = state_of(config)
    return Pool(state, max(128, POOL_BYTES // state.bytes))


def one_row_each(users: int) -> Arrays:
    inputs = random_inputs(ReformerConfig(), np.ones(users, int), 1, np.random.default_rng(4))
    return {name: inputs[name][:, 0].copy() for name in ROW}


def cases(folder: Path) -> Iterator[Case]:
    """Yield everything that is measured; models and pools live as long as their cases."""
    torch.manual_seed(0)
    small, base = load_config(SHIPPED / "checkpoint"), TIERS["base"]
    export_lstm(small, folder / "lstm.onnx")
    yield from lstm_steps(folder / "lstm.onnx", BATCHES)
    yield from skewed(512)
    model = ClickModel(base).eval()
    export_onnx(model, folder / "base.onnx")
    export_step(model, folder / "base_step.onnx")
    pool = filled(folder / "base.onnx", base, 512)
    yield from steps("hot_state_base", folder / "base_step.onnx", pool, 512, (1, 32, 128))
    export_full_attention(small, folder / "full.onnx")
    for length in LENGTHS:
        pool = filled(SHIPPED / MODEL, small, length)
        yield from steps("hot_state", SHIPPED / STEP, pool, length, BATCHES)
        yield whole("whole_sequence", SHIPPED / MODEL, length)
        yield whole("full_attention", folder / "full.onnx", length)
        yield library(library_reformer(small), length)
        cached = msgspec.structs.replace(small, hash_buckets=1, window=length)
        export_step(ClickModel(cached).eval(), folder / f"cached{length}.onnx")
        pool = empty(cached)
        pool.kv[:], pool.counts[:] = 0.1, length
        yield from steps("full_attention_cached", folder / f"cached{length}.onnx", pool, length, (1, 32, 128))


def rate(case: Case, seconds: float) -> float:
    """Return events per second of CPU time: the median call of about `seconds`, at least three."""
    spent: list[float] = []
    case.run()
    while len(spent) < 3 or sum(spent) < seconds:
        start = time.process_time()
        case.run()
        spent.append(time.process_time() - start)
    return case.batch / statistics.median(spent)


def ratios(rates: list[dict[tuple[str, int | None, int], float]]) -> dict[str, float]:
    """Return medians over the rounds of ratios taken within each round, each system at its best micro-batch."""

    def best(found: dict[tuple[str, int | None, int], float], system: str, length: int | None) -> float:
        return max(value for key, value in found.items() if key[:2] == (system, length))

    pairs = {
        f"hot_state_to_{other}_{length}": (("hot_state", length), (other, length))
        for other in ("whole_sequence", "full_attention", "full_attention_cached", "library_reformer")
        for length in LENGTHS
    }
    pairs["hot_state_to_lstm"] = ("hot_state", 512), ("lstm", None)
    pairs["hot_state_base_to_lstm"] = ("hot_state_base", 512), ("lstm", None)
    pairs["bursts_to_steps"] = ("skewed", 512), ("skewed_by_steps", 512)
    pairs["hot_state_512_to_2048"] = ("hot_state", 512), ("hot_state", 2048)
    return {
        name: round(statistics.median(best(found, *one) / best(found, *other) for found in rates), 2)
        for name, (one, other) in pairs.items()
    }


def measured(args: Any) -> tuple[list[dict[tuple[str, int | None, int], float]], float]:
    """Return the rates of each round, and how many CPUs other programs used meanwhile."""
    rates: list[dict[tuple[str, int | None, int], float]] = []
    with tempfile.TemporaryDirectory(prefix="funnelcast-bench-") as folder:
        every = list(cases(Path(folder)))
        started, mine, machine = time.monotonic(), time.process_time(), busy_seconds()
        for number in range(args.rounds):
            rates.append({case[:3]: rate(case, args.seconds) for case in every})
            say(f"round {number + 1} of {args.rounds}, {time.monotonic() - started:.0f} s")
        others = busy_seconds() - machine - (time.process_time() - mine)
    return rates, others / (time.monotonic() - started)


def busy_seconds() -> float:
    """Return CPU seconds that the whole machine has spent."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each system, in turn (default 5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="CPU time of one measurement (default 0.2)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.01
    torch.set_num_threads(1)
    started = time.monotonic()
    rates, others = measured(args)
    systems: Figures = {
        name: {"title": title, "includes": text, "figures": []} for name, (title, text) in TITLES_AND_INCLUDES.items()
    }
    for system, length, batch in rates[0]:
        found = sorted(one[system, length, batch] for one in rates)
        systems[system]["figures"].append({
            "history": length, "batch": batch, "events_per_second": round(statistics.median(found)),
            "events_per_second_min_max": [round(found[0]), round(found[-1])],
            "us_per_event": round(1e6 / statistics.median(found), 2),
        })  # fmt: skip
    found = {"systems": systems, "ratios": ratios(rates), "threads": 1, "other_cpu_share": round(others, 2)}
    publish("scoring", args, PACKAGES, found | {"minutes": round((time.monotonic() - started) / 60, 1)})


if __name__ == "__main__":
    main()

"""Parity of the step graphs: row by row from a pool, does step.onnx score as model.onnx does on whole sequences?

In: a ClickModel and its ONNX files. Out: figures for the provenance, or ParityError.
Many users of 1 to 2,000 rows are fed in shuffled micro-batches. Hash decisions are compared at every position first,
then values; then a state rebuilt by model.onnx must go on as the incremental one, and a row's bits must not depend on
its micro-batch, nor on whether burst.onnx takes it with others of its user.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.parity import (
    TOLERANCE,
    Arrays,
    ParityError,
    difference,
    random_inputs,
    run_torch,
    session,
    sigmoid,
    softmax,
    with_decisions,
)
from export.step import state_of
from export.to_onnx import ROW, STEP_OUTPUTS, WHOLE_OUTPUTS
from model.contract.pool import Pool, previous_of
from model.reformer import ClickModel

Array = npt.NDArray[Any]

LONGEST = 2000  # rows of the longest user
USERS = 32
PRESENT = 0.8  # share of the users that have a row in a micro-batch
CROWD = 512  # rows of the largest micro-batch, whose bits are compared with those of smaller ones
SIZES = (1, 2, 3, 7, 32, 129)  # rows of these
AGAIN = "nothing was written: export again, and report it if it repeats"


class StepParity(NamedTuple):
    """What was compared, and the worst that was found."""

    positions: int
    longest: int
    decisions: int
    near_ties_flipped: int
    reach: float  # largest difference in probability, step graph against whole-sequence graph
    next_type: float
    rebuilt: float  # the same for the next row from a rebuilt state against the incremental one


class Fed(NamedTuple):
    """What the step graph answered at each row."""

    reach: Array  # (B, L, 2, S)
    next_type: Array  # (B, L, T)
    decisions: Array  # (layers, B, L, H*R)


def check_step(
    model: ClickModel, whole: Path, step: Path, burst: Path, longest: int = LONGEST, seed: int = 0
) -> StepParity:
    """Compare the graphs on random users, one of each extreme length; ParityError on the first failure."""
    rng, window = np.random.default_rng(seed), model.config.window
    lengths = rng.integers(1, longest + 1, USERS)
    lengths[:4] = 1, longest, min(window, longest), min(window + 1, longest)
    inputs = random_inputs(model.config, lengths, -(-(longest + 1) // window) * window, rng)  # a row follows the last
    graph, pool = session(step.read_bytes()), Pool(state_of(model.config), USERS)
    slots = rng.permutation(USERS)
    fed = feed(graph, pool, inputs, slots, rng)
    *expected, rings, counts, decisions = run_whole(whole, inputs)
    good, flipped = same_decisions(model, inputs, fed.decisions, decisions)
    reach = difference(sigmoid(fed.reach), sigmoid(expected[0]), good)
    next_type = difference(softmax(fed.next_type), softmax(expected[1]), good)
    refuse(max(reach, next_type), "scores of the step graph differ from the whole-sequence graph")
    held = good[np.arange(USERS), lengths - 1]  # (B,) users whose states are comparable
    rebuilt = check_rebuilt(graph, pool, inputs, slots, (rings, counts), held)
    check_bits(graph, pool, inputs, rng)
    check_bursts(session(burst.read_bytes()), fed, pool, inputs, slots, rng)
    positions, (layers, *_, rounds) = int(lengths.sum()), decisions.shape
    return StepParity(positions, longest, positions * layers * rounds, flipped, reach, next_type, rebuilt)


def feed(
    graph: onnxruntime.InferenceSession,
    pool: Pool,
    inputs: Arrays,
    slots: Array,
    rng: np.random.Generator,
    most: int = 0,
) -> Fed:
    """Feed all rows in order, those of some users at a time, and collect the answers; bursts of up to `most` rows."""
    everyone, padded = inputs["type"].shape
    state, waiting, answers = pool.state, np.zeros(everyone, int), None
    first = np.arange(state.depth * state.heads * state.rounds).reshape(state.depth, -1) * state.hash_buckets
    while (waiting < inputs["lengths"]).any():
        there = np.flatnonzero((waiting < inputs["lengths"]) & (rng.random(everyone) < PRESENT))
        there = rng.permutation(there)
        if not len(there):
            continue
        ahead = inputs["lengths"][there] - waiting[there]
        new = np.minimum(ahead, rng.integers(1, max(most, 1) + 1, len(there)))  # (B,)
        users, turn = np.repeat(there, new), np.concatenate([np.arange(count) for count in new])  # (N,)
        rows = waiting[users] + turn
        reach, next_type, key, value, ring = run_step(
            graph, pool, inputs, users, rows, slots[users], previous_of(turn) if most else None
        )
        pool.write(ring, key, value)
        made = ring - slots[users, None, None] * state.rings - first  # (N, layers, H*R)
        if answers is None:
            answers = [np.zeros((everyone, padded, *part.shape[1:]), part.dtype) for part in (reach, next_type, made)]
        for kept, part in zip(answers, (reach, next_type, made), strict=True):
            kept[users, rows] = part
        waiting[there] += new
    assert answers is not None
    return Fed(answers[0], answers[1], answers[2].transpose(2, 0, 1, 3))


def run_step(
    graph: onnxruntime.InferenceSession,
    pool: Pool,
    inputs: Arrays,
    users: Array,
    rows: Array,
    slots: Array,
    previous: Array | None = None,
) -> tuple[Array, ...]:
    """Run the step graph, or that of bursts, for given rows of given users; nothing is written to the pool."""
    given = {name: inputs[name][users, rows] for name in ROW} | ({} if previous is None else {"previous": previous})
    return tuple(graph.run(STEP_OUTPUTS, given | {"slot": slots, "pool": pool.blocks, "counts": pool.counts}))


def check_bursts(
    graph: onnxruntime.InferenceSession, steps: Fed, held: Pool, inputs: Arrays, slots: Array, rng: np.random.Generator
) -> None:
    """Feed the same rows in bursts; all bits must be those of the steps, and so must the state be."""
    pool = Pool(held.state, held.slots)
    bursts = feed(graph, pool, inputs, slots, rng, held.state.window)
    same = [np.array_equal(one, other) for one, other in zip(bursts, steps, strict=True)]
    if not all(same) or not np.array_equal(pool.counts, held.counts) or not np.array_equal(pool.kv, held.kv):
        raise ParityError(f"rows of bursts are scored otherwise than one by one, expected the same bits; {AGAIN}")


def run_whole(path: Path, inputs: Arrays) -> tuple[Array, ...]:
    """Return every output of the whole-sequence graph, and its hash decisions (layers, B, L, H*R)."""
    found = session(with_decisions(path)).run(None, inputs)
    outputs, decisions = found[: len(WHOLE_OUTPUTS)], found[len(WHOLE_OUTPUTS) :]
    return (*outputs, np.stack(decisions))


def same_decisions(model: ClickModel, inputs: Arrays, found: Array, expected: Array) -> tuple[Array, int]:
    """Return the positions (B, L) before any hash decision fell differently, and how many users had such a one.

    Only a near-tie may fall differently; after it the user's sequence is not comparable.
    """
    real = np.arange(found.shape[2]) < inputs["lengths"][:, None]  # (B, L)
    differ = (found != expected) & real[None, :, :, None]  # (layers, B, L, H*R)
    good = real & ~np.logical_or.accumulate(differ.any((0, 3)), 1)  # (B, L)
    flipped = np.flatnonzero(differ.any((0, 2, 3)))
    if len(flipped):
        _, _, ties = run_torch(model, {name: array[flipped] for name, array in inputs.items()})
    for place, user in enumerate(flipped):
        row = good[user].sum()
        layer = differ[:, user, row].any(-1).argmax()
        if (differ[layer, user, row] & ~ties[layer, place, row]).any():
            raise ParityError(
                f"hash decisions of the step graph differ from the whole-sequence graph at row {row} of a user of"
                f" {inputs['lengths'][user]} beyond near-ties, expected none; {AGAIN}"
            )
    return good, len(flipped)


def check_rebuilt(
    graph: onnxruntime.InferenceSession,
    pool: Pool,
    inputs: Arrays,
    slots: Array,
    state: tuple[Array, Array],
    held: Array,
) -> float:
    """Score the row after the last from the state of the whole-sequence graph and from the incremental one."""
    users = np.flatnonzero(held)
    if not np.array_equal(pool.counts.reshape(len(slots), -1)[slots[users]], state[1][users]):
        raise ParityError(f"a rebuilt state holds other tokens than the incremental one, expected the same; {AGAIN}")
    rebuilt = Pool(pool.state, len(slots))
    rebuilt.load(slots, *state)
    rows = inputs["lengths"][users]
    one, other = (run_step(graph, kept, inputs, users, rows, slots[users]) for kept in (pool, rebuilt))
    every = np.ones(len(users), bool)
    worst = max(
        difference(sigmoid(one[0]), sigmoid(other[0]), every),
        difference(softmax(one[1]), softmax(other[1]), every),
    )
    refuse(worst, "scores from a rebuilt state differ from the incremental one")
    return worst


def check_bits(graph: onnxruntime.InferenceSession, pool: Pool, inputs: Arrays, rng: np.random.Generator) -> None:
    """Score the same rows in micro-batches of several sizes; all bits must agree."""
    users, padded = inputs["type"].shape
    who, when, slots = (rng.integers(0, limit, CROWD) for limit in (users, padded, pool.slots))
    together = run_step(graph, pool, inputs, who, when, slots)
    for size in SIZES:
        chosen = rng.permutation(CROWD)[:size]
        alone = run_step(graph, pool, inputs, who[chosen], when[chosen], slots[chosen])
        for name, one, many in zip(STEP_OUTPUTS, alone, together, strict=True):
            if not np.array_equal(one, many[chosen]):
                raise ParityError(
                    f"{name} of a row differs between micro-batches of {size} and {CROWD}, expected the same bits;"
                    f" {AGAIN}"
                )


def refuse(worst: float, what: str) -> None:
    if not worst <= TOLERANCE:
        raise ParityError(f"{what} by {worst:.1e} in probability, expected at most {TOLERANCE:.0e}; {AGAIN}")

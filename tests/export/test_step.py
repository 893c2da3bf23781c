"""Laws of the step graphs: rows fed one at a time score as the whole sequence does, in any micro-batch, for ever."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.parity import ParityError, random_inputs, session
from export.step import state_of
from export.step_parity import Fed, check_step, feed, run_step, same_decisions
from export.to_onnx import INPUTS, ROW, STEP_INPUTS, WHOLE_OUTPUTS, export_onnx, export_step
from model.contract.pool import Pool
from model.reformer import ClickModel, ReformerConfig

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

TINY = ReformerConfig(dim=16, depth=2, heads=2, hash_buckets=4, window=8, item_hashes=32, category_hashes=200)
LONGEST = 300

Exported: TypeAlias = tuple[ClickModel, Path, Path, Path]  # with its graphs: whole sequences, steps, bursts


def lively(config: ReformerConfig = TINY) -> ClickModel:
    """A model with random weights whose attention matters."""
    torch.manual_seed(11)
    model = ClickModel(config).eval()
    for layer in model.attentions():
        layer.toqk.weight.data *= 4
        layer.to_out.weight.data *= 3
    return model


def export(model: ClickModel, folder: Path) -> tuple[Path, Path, Path]:
    whole, step, burst = (folder / name for name in ("model.onnx", "step.onnx", "burst.onnx"))
    export_onnx(model, whole)
    export_step(model, step)
    export_step(model, burst, burst=True)
    return whole, step, burst


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = lively()
    return (model, *export(model, tmp_path_factory.mktemp("graphs")))


@pytest.mark.parametrize(
    "changes", [{}, {"rounds": 2}, {"hash_buckets": 1}, {"depth": 1, "heads": 4}, {"rounds": 3, "window": 4}]
)
def test_rows_one_by_one_score_as_the_whole_sequence_at_every_position(tmp_path: Path, changes: dict[str, int]) -> None:
    model = lively(msgspec.structs.replace(TINY, **changes))
    parity = check_step(model, *export(model, tmp_path), longest=LONGEST)
    assert max(parity.reach, parity.next_type, parity.rebuilt) <= 1e-5
    assert parity.positions > 3000
    assert parity.near_ties_flipped <= 1


def test_a_user_of_2000_rows_scores_as_its_whole_sequence(exported: Exported) -> None:
    assert check_step(*exported).longest == 2000


def test_early_rows_matter_to_late_scores_so_that_parity_has_teeth(
    exported: Exported,
) -> None:
    graph, rng = session(exported[1].read_bytes()), np.random.default_rng(2)
    inputs = random_inputs(TINY, np.array([64]), 64, rng)
    before = graph.run(["reach"], inputs)[0]
    inputs["type"][0, 3] = 20 - inputs["type"][0, 3]
    assert np.abs(graph.run(["reach"], inputs)[0] - before)[0, 40:].max() > 1e-3


def test_a_rebuilt_state_goes_on_as_the_incremental_one(exported: Exported) -> None:
    _, whole, step, _ = exported
    rng, users, cut, end = np.random.default_rng(3), 6, 70, 128
    inputs = random_inputs(TINY, np.full(users, end), end, rng)
    expected = session(whole.read_bytes()).run(["reach"], inputs)[0]
    rings, counts = session(whole.read_bytes()).run(["rings", "counts"], inputs | {"lengths": np.full(users, cut)})
    pool, slots = Pool(state_of(TINY), users + 2), rng.permutation(users + 2)[:users]
    pool.load(slots, rings, counts)
    rest = {name: inputs[name][:, cut:] for name in ROW} | {"lengths": np.full(users, end - cut)}
    fed = feed(session(step.read_bytes()), pool, rest, slots, rng)
    np.testing.assert_allclose(fed.reach, expected[:, cut:], atol=1e-5)


def test_a_row_has_the_same_bits_alone_and_in_any_micro_batch(exported: Exported) -> None:
    graph, rng = session(exported[2].read_bytes()), np.random.default_rng(4)
    inputs = random_inputs(TINY, rng.integers(1, 80, 40), 80, rng)
    pool = Pool(state_of(TINY), 40)
    feed(graph, pool, inputs, np.arange(40), rng)
    users, rows = np.arange(40), rng.integers(0, 80, 40)
    together = run_step(graph, pool, inputs, users, rows, users)
    for size in (1, 2, 5, 16, 33):
        some = rng.permutation(40)[:size]
        for one, many in zip(run_step(graph, pool, inputs, some, rows[some], some), together, strict=True):
            assert np.array_equal(one, many[some])


def test_what_other_slots_hold_and_what_a_slot_held_before_does_not_matter(
    exported: Exported,
) -> None:
    graph, rng = session(exported[2].read_bytes()), np.random.default_rng(5)
    inputs = random_inputs(TINY, np.full(2, 40), 40, rng)
    clean, used = Pool(state_of(TINY), 2), Pool(state_of(TINY), 9)
    used.kv[:] = rng.standard_normal(used.kv.shape)
    used.counts[:] = rng.integers(0, 99, used.counts.shape)
    slots = np.array([7, 2])
    used.reset(slots)
    one = feed(graph, clean, inputs, np.arange(2), np.random.default_rng(6))
    other = feed(graph, used, inputs, slots, np.random.default_rng(6))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_running_the_graph_changes_nothing_in_the_pool(exported: Exported) -> None:
    graph, rng = session(exported[2].read_bytes()), np.random.default_rng(7)
    pool = Pool(state_of(TINY), 3)
    pool.kv[:], pool.counts[:] = rng.standard_normal(pool.kv.shape), 5
    before = pool.kv.copy(), pool.counts.copy()
    run_step(graph, pool, random_inputs(TINY, np.ones(3, int), 8, rng), np.arange(3), np.zeros(3, int), np.arange(3))
    assert np.array_equal(pool.kv, before[0]) and np.array_equal(pool.counts, before[1])


def test_names_types_and_dynamic_axes_are_those_of_the_contract(exported: Exported) -> None:
    graph = session(exported[2].read_bytes())
    inputs = {value.name: (value.type, value.shape) for value in graph.get_inputs()}
    assert inputs == {
        "type": ("tensor(int64)", ["batch"]),
        "item": ("tensor(int64)", ["batch"]),
        "category": ("tensor(int64)", ["batch"]),
        "features": ("tensor(uint8)", ["batch", TINY.features]),
        "slot": ("tensor(int64)", ["batch"]),
        "pool": ("tensor(float)", ["blocks", TINY.window, 8]),
        "counts": ("tensor(int32)", ["rings"]),
    }
    assert tuple(inputs) == STEP_INPUTS
    assert {value.name: (value.type, value.shape) for value in graph.get_outputs()} == {
        "reach": ("tensor(float)", ["batch", 2, 6]),
        "next_type": ("tensor(float)", ["batch", TINY.types]),
        "key": ("tensor(float)", ["batch", 2, 2, 8]),
        "value": ("tensor(float)", ["batch", 2, 2, 8]),
        "ring": ("tensor(int64)", ["batch", 2, 2]),
    }


def test_all_graphs_hold_the_same_weights(exported: Exported) -> None:
    whole, step, burst = (
        {part.name: numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer} for path in exported[1:]
    )
    shared = {name for name, array in step.items() if array.dtype == np.float32 and array.size > 1 and "." in name}
    assert {name for name in shared if "joined" in name} == {"layers.0.joined", "layers.1.joined"}
    assert len(shared) > 20
    for name in shared & set(whole):
        np.testing.assert_array_equal(whole[name], step[name])
    for name in shared:
        np.testing.assert_array_equal(burst[name], step[name])


def nudge(array: np.ndarray) -> np.ndarray:
    return array + np.float32(1e-2)


def shift(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1)


def spoil(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [("joined", shift, "hash decisions"), ("reach.bias", nudge, "scores of the step"), ("reach.bias", spoil, "scores")],
)
def test_a_damaged_step_graph_is_refused(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], expected: str
) -> None:
    model = lively()
    whole, step, burst = export(model, tmp_path)
    graph = onnx.load(step)
    for part in graph.graph.initializer:
        if name in part.name:
            part.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(part)), part.name))
    onnx.save(graph, step)
    with pytest.raises(ParityError, match=expected):
        check_step(model, whole, step, burst, longest=40)


@pytest.mark.parametrize("changes", [{}, {"rounds": 2}, {"hash_buckets": 1}])
def test_rows_of_a_burst_have_the_bits_of_one_step_after_the_other(tmp_path: Path, changes: dict[str, int]) -> None:
    model, rng = lively(msgspec.structs.replace(TINY, **changes)), np.random.default_rng(6)
    _, step, burst = (session(path.read_bytes()) for path in export(model, tmp_path))
    inputs, slots = random_inputs(TINY, rng.integers(30, 90, 20), 96, rng), np.arange(20)
    stepped, together = Pool(state_of(model.config), 20), Pool(state_of(model.config), 20)
    expected = feed(step, stepped, inputs, slots, rng)
    found = feed(burst, together, inputs, slots, rng, most=TINY.window)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert np.array_equal(together.kv, stepped.kv) and np.array_equal(together.counts, stepped.counts)


def test_a_burst_graph_that_sees_no_earlier_rows_of_the_burst_is_refused(tmp_path: Path) -> None:
    model = lively()
    whole, step, burst = export(model, tmp_path)
    graph = onnx.load(burst)
    for node in graph.graph.node:
        node.input[:] = ["nobody" if name == "previous" else name for name in node.input]
    graph.graph.node.insert(0, onnx.helper.make_node("Sub", ["previous", "previous"], ["nought"]))
    graph.graph.node.insert(1, onnx.helper.make_node("Sub", ["nought", "one"], ["nobody"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.int64), "one"))
    onnx.save(graph, burst)
    with pytest.raises(ParityError, match="rows of bursts"):
        check_step(model, whole, step, burst, longest=40)


def test_a_rebuilt_state_that_lacks_a_token_is_refused(tmp_path: Path) -> None:
    model = lively()
    whole, step, burst = export(model, tmp_path)
    graph = onnx.load(whole)
    graph.graph.node.append(onnx.helper.make_node("Sub", ["counts", "one"], ["fewer"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.int32), "one"))
    graph.graph.output[WHOLE_OUTPUTS.index("counts")].name = "fewer"
    onnx.save(graph, whole)
    with pytest.raises(ParityError, match="holds other tokens"):
        check_step(model, whole, step, burst, longest=40)


def test_only_a_near_tie_may_fall_differently_and_what_follows_it_is_not_compared() -> None:
    model, rng = lively(), np.random.default_rng(8)
    inputs = random_inputs(TINY, np.array([16, 9]), 16, rng)
    expected = np.zeros((2, 2, 16, 2), int)  # (layers, B, L, H*R)
    found = expected.copy()
    found[:, 1, 12] = 1  # padding
    assert same_decisions(model, inputs, found, expected)[1] == 0
    found[1, 0, 5] = 1
    with pytest.raises(ParityError, match="at row 5 of a user of 16"):
        same_decisions(model, inputs, found, expected)
    for layer in model.attentions():
        layer.toqk.weight.data[:] = 0  # everything is a tie
    found[0, 0, 9] = 3
    good, flipped = same_decisions(model, inputs, found, expected)
    assert flipped == 1
    assert good.sum(1).tolist() == [5, 9]


def test_answers_come_back_at_their_rows(exported: Exported) -> None:
    rng = np.random.default_rng(9)
    inputs = random_inputs(TINY, np.array([5, 1]), 8, rng)
    fed = feed(session(exported[2].read_bytes()), Pool(state_of(TINY), 2), inputs, np.array([1, 0]), rng)
    assert isinstance(fed, Fed)
    assert (fed.reach != 0).any((2, 3)).tolist() == [[True] * 5 + [False] * 3, [True] + [False] * 7]
    assert set(INPUTS) == set(inputs)

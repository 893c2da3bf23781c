"""Laws of the exported graph: it scores as torch does, whatever the batch and padding; a damaged graph is refused."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.parity import ParityError, check_parity, expected_outputs, random_inputs, session
from export.to_onnx import INPUTS, OUTPUTS, export_onnx
from model.reformer import ClickModel, ReformerConfig

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

TINY = ReformerConfig(dim=16, depth=2, heads=2, hash_buckets=4, window=8, item_hashes=32, category_hashes=200)
CLASSES = (16, 32, 64)


def lively(config: ReformerConfig = TINY) -> ClickModel:
    """A model with random weights whose attention matters."""
    torch.manual_seed(11)
    model = ClickModel(config).eval()
    for layer in model.attentions():
        layer.toqk.weight.data *= 4
        layer.to_out.weight.data *= 3
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClickModel, Path]:
    model, path = lively(), tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(model, path)
    return model, path


@pytest.mark.parametrize("changes", [{}, {"rounds": 2}, {"hash_buckets": 1}, {"depth": 1, "heads": 4}])
def test_the_graph_scores_as_torch_does_in_every_length_class(tmp_path: Path, changes: dict[str, int]) -> None:
    model = lively(msgspec.structs.replace(TINY, **changes))
    export_onnx(model, tmp_path / "model.onnx")
    parity = check_parity(model, tmp_path / "model.onnx", CLASSES)
    assert max(parity.reach, parity.next_type) <= 1e-5
    assert parity.positions > 400
    assert parity.near_ties_flipped <= 1


def test_a_user_gets_the_same_bits_alone_and_in_any_batch_under_any_padding(exported: tuple[ClickModel, Path]) -> None:
    graph = session(exported[1].read_bytes())
    rng = np.random.default_rng(5)
    user = random_inputs(TINY, np.array([13]), 16, rng)
    alone = graph.run(list(OUTPUTS), user)
    for users, padded in ((1, 32), (4, 16), (9, 64)):
        crowd = random_inputs(TINY, rng.integers(1, padded, users), padded, rng)
        place = users // 2
        crowd["lengths"][place] = 13
        for name in INPUTS[:4]:
            crowd[name][place, :13] = user[name][0, :13]
        for one, many in zip(alone, graph.run(list(OUTPUTS), crowd), strict=True):
            assert np.array_equal(one[0, :13], many[place, :13])


def test_names_types_and_dynamic_axes_are_those_of_the_contract(exported: tuple[ClickModel, Path]) -> None:
    graph = session(exported[1].read_bytes())
    inputs = {value.name: (value.type, value.shape) for value in graph.get_inputs()}
    assert inputs == {
        "type": ("tensor(int64)", ["batch", "length"]),
        "item": ("tensor(int64)", ["batch", "length"]),
        "category": ("tensor(int64)", ["batch", "length"]),
        "features": ("tensor(uint8)", ["batch", "length", TINY.features]),
        "lengths": ("tensor(int64)", ["batch"]),
    }
    types = {value.name: value.type for value in graph.get_outputs()}
    assert types == dict.fromkeys((*OUTPUTS, "rings"), "tensor(float)") | {"counts": "tensor(int32)"}


def test_the_graph_draws_no_random_numbers(exported: tuple[ClickModel, Path]) -> None:
    operators = {node.op_type for node in onnx.load(exported[1]).graph.node}
    assert not {name for name in operators if name.startswith(("Random", "Dropout", "Bernoulli"))}


def nudge(array: np.ndarray) -> np.ndarray:
    return array + np.float32(1e-2)


def shift(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1)


def spoil(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)


def damage(path: Path, name: Callable[[str], bool], change: Callable[[np.ndarray], np.ndarray]) -> None:
    graph = onnx.load(path)
    hit = [part for part in graph.graph.initializer if name(part.name)]
    for part in hit:
        part.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(part)), part.name))
    assert hit
    onnx.save(graph, path)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("joined", shift, "hash decisions"),
        ("reach.bias", nudge, "scores .* differ"),
        ("reach.bias", spoil, "scores .* differ"),
    ],
)
def test_a_damaged_graph_is_refused(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], expected: str
) -> None:
    model = lively()
    export_onnx(model, tmp_path / "model.onnx")
    damage(tmp_path / "model.onnx", lambda found: name in found, change)
    with pytest.raises(ParityError, match=expected):
        check_parity(model, tmp_path / "model.onnx", CLASSES)


def test_a_graph_of_other_weights_is_refused(exported: tuple[ClickModel, Path]) -> None:
    torch.manual_seed(12)
    with pytest.raises(ParityError):
        check_parity(ClickModel(TINY).eval(), exported[1], CLASSES)


def test_a_batch_without_real_rows_scores(exported: tuple[ClickModel, Path]) -> None:
    inputs = random_inputs(TINY, np.array([0]), 16, np.random.default_rng(0))
    reach, *_, counts = session(exported[1].read_bytes()).run(None, inputs)
    assert np.isfinite(reach).all()
    assert not counts.any()
    assert reach.shape == expected_outputs(exported[0], inputs)["reach"].shape

"""The bundle: complete and undamaged or refused in one sentence; and the graph inputs made from sequences."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from model.contract.bundle import (
    BURST,
    CALIBRATION,
    CONTRACT,
    FILES,
    GOLDEN,
    MODEL,
    PROVENANCE,
    STEP,
    Calibration,
    Contract,
    check_against,
    load_bundle,
    pad,
    pad_class,
    to_json,
)
from model.contract.errors import BundleError
from model.contract.events import ClickEvent
from model.contract.features import WIDTH
from model.contract.pool import State
from model.contract.sequence import Sequences, default_rules
from model.contract.stages import Funnel, load_funnel
from model.contract.vocabulary import Vocabulary

STATE = State(depth=2, heads=4, dim_head=16, rounds=1, hash_buckets=8, window=16)
RATES = [[0.1] * 6, [0.2] * 6]


def contract(**changes: Any) -> Contract:
    return Contract(**{"funnel": load_funnel(), "window": 16, "base_rates": RATES} | changes)


def write(folder: Path, contract: Contract | bytes, calibration: Calibration | None = None) -> Path:
    """A bundle without a real graph."""
    folder.mkdir(exist_ok=True)
    (folder / MODEL).write_bytes(b"a graph")
    (folder / STEP).write_bytes(b"a step")
    (folder / BURST).write_bytes(b"a burst")
    (folder / CONTRACT).write_bytes(contract if isinstance(contract, bytes) else to_json(contract))
    (folder / CALIBRATION).write_bytes(to_json(calibration or Calibration([[1.0] * 6] * 2, [[0.0] * 6] * 2)))
    np.savez(folder / GOLDEN, lengths=np.array([3]))
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (*FILES, STEP, BURST)}
    (folder / PROVENANCE).write_bytes(to_json({"name": "small", "version": "7", "files": files, "seed": 1}))
    return folder


def test_a_written_bundle_loads_with_its_identity(tmp_path: Path) -> None:
    bundle = load_bundle(write(tmp_path / "bundle", contract()))
    assert (bundle.name, bundle.version) == ("small", "7")
    assert bundle.model_sha256 == hashlib.sha256(b"a graph").hexdigest()
    assert bundle.model_path.read_bytes() == b"a graph"
    assert bundle.contract == contract()
    assert bundle.golden()["lengths"].tolist() == [3]


@pytest.mark.parametrize("name", [STEP, BURST])
def test_a_bundle_with_a_state_has_both_step_graphs_undamaged(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "bundle", contract(state=STATE))
    bundle = load_bundle(folder)
    assert bundle.contract.state == STATE
    assert (bundle.step_path.read_bytes(), bundle.burst_path.read_bytes()) == (b"a step", b"a burst")
    (folder / name).write_bytes(b"another")
    with pytest.raises(BundleError, match=f"{name} has sha256 .* says"):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"no readable {name}"):
        load_bundle(folder)


@pytest.mark.parametrize("change", [{"window": 32}, {"rounds": 0}, {"heads": -4}])
def test_a_state_that_cannot_be_laid_out_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    folder = write(tmp_path, contract(state=msgspec.structs.replace(STATE, **change)))
    with pytest.raises(BundleError, match=r"has a state of .* sizes of at least 1 and a window of 16; export"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [*FILES, PROVENANCE])
def test_a_bundle_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (write(tmp_path, contract()) / name).unlink()
    with pytest.raises(BundleError, match=f"no readable {name}"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_other_than_the_provenance_names_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, contract()) / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match=f"{name} has sha256 .* says .*; copy or export"):
        load_bundle(tmp_path)


def test_another_contract_version_is_refused_naming_both(tmp_path: Path) -> None:
    newer = msgspec.json.decode(to_json(contract())) | {"version": 2, "colour": "red"}
    with pytest.raises(BundleError, match="contract version 2, but this program reads 1"):
        load_bundle(write(tmp_path, to_json(newer)))


def test_a_contract_that_is_no_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read as a Contract"):
        load_bundle(write(tmp_path, b'{"version": 1}'))


def test_a_contract_whose_funnel_is_wrong_is_refused(tmp_path: Path) -> None:
    wrong = to_json(contract()).replace(b'"wishlist_add"', b'"wishlist"')
    with pytest.raises(BundleError, match="unknown event 'wishlist'"):
        load_bundle(write(tmp_path, wrong.replace(b'"wishlist"', b'"wishlist_add"', 1)))


def test_base_rates_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"base_rates in .* has rows of \[6\], expected 2 rows of 6"):
        load_bundle(write(tmp_path, contract(base_rates=RATES[:1])))


def test_a_provenance_without_identity_is_refused(tmp_path: Path) -> None:
    write(tmp_path, contract())
    (tmp_path / PROVENANCE).write_bytes(b'{"name": "small"}')
    with pytest.raises(BundleError, match="lacks version, files"):
        load_bundle(tmp_path)


def test_a_bundle_for_the_workers_own_rules_is_accepted(tmp_path: Path) -> None:
    own = contract(vocabulary=Vocabulary(item_hashes=100), horizon_ms=1, window=32)
    check_against(load_bundle(write(tmp_path, own)), load_funnel())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"gap_ms": 5}, "gap_ms 5, but .* for 1800000"),
        ({"late_ms": 5}, "late_ms 5, but"),
        ({"features": ("a",)}, "features .*a"),
        ({"stages": ("a",)}, "stages"),
        ({"types": ("a",)}, "types"),
        ({"lmax": 7}, "lmax 7, but .* for 512"),
        ({"vocabulary": Vocabulary(hash="md5")}, "vocabulary"),
        ({"funnel": Funnel(1, "other", {})}, "funnel"),
    ],
)
def test_a_bundle_for_other_rules_is_refused_naming_found_and_expected(
    tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(BundleError, match=f"was made for {fault}"):
        check_against(load_bundle(write(tmp_path, contract(**change))), load_funnel())


def test_the_fingerprint_covers_what_training_and_serving_must_agree_on_and_nothing_else() -> None:
    same = [contract(window=32), contract(base_rates=[]), contract(thresholds={}), contract(horizon_ms=1)]
    other = [contract(gap_ms=1), contract(features=()), contract(funnel=Funnel(1, "other", {}))]
    assert {c.fingerprint() for c in same} == {contract().fingerprint()}
    assert len({contract().fingerprint(), *(c.fingerprint() for c in other)}) == 4


def test_calibration_is_a_sigmoid_per_scope_and_stage() -> None:
    calibration = Calibration([[2.0] * 6, [1.0] * 6], [[1.0] * 6, [0.0] * 6])
    p = calibration.apply(np.array([[[0.5] * 6, [-800.0] * 6]], np.float32))
    assert p.shape == (1, 2, 6)
    assert p[0, 0, 0] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert p[0, 1, 0] == pytest.approx(0.0)


def test_a_deeper_stage_is_never_likelier_than_the_one_before() -> None:
    calibration = Calibration([[1.0] * 6] * 2, [[0.0] * 6] * 2)
    logits = np.array([[[0.5, 1.0, -2.0, -1.0, -3.0, 4.0], [-1.0] * 6]], np.float32)
    p = calibration.apply(logits)
    assert (np.diff(p, axis=-1) <= 0).all()
    assert p[0, 0, 1] == p[0, 0, 0] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert p[0, 0, 5] == pytest.approx(1 / (1 + np.exp(3.0)))


def mixed(**changes: Any) -> dict[str, Any]:
    """Return a calibration, as JSON has it, whose table of purchase in the category is isotonic."""
    kind = [["platt"] * 6, ["platt"] * 6]
    kind[0][4] = "isotonic"
    knots = [[None] * 6, [None] * 6]
    knots[0][4] = {"x": [-2.0, 0.0, 1.0], "p": [0.1, 0.1, 0.3]}
    return {"scale": [[1.0] * 6] * 2, "shift": [[0.0] * 6] * 2, "kind": kind, "knots": knots} | changes


def test_an_isotonic_table_is_a_line_through_its_knots_and_level_beyond(tmp_path: Path) -> None:
    bundle = load_bundle(write(tmp_path, contract(), msgspec.convert(mixed(), Calibration)))
    logits = np.full((4, 2, 6), 9.0, np.float32)
    logits[:, 0, 4] = [-7, -1, 0.5, 8]
    assert bundle.calibration.apply(logits)[:, 0, 4] == pytest.approx([0.1, 0.1, 0.2, 0.3])
    assert bundle.calibration.isotonic() == [(0, 4)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"knots": []}, "isotonic table 0, 4 has no knots"),
        ({"kind": "isotonic", "knots": []}, "isotonic table 0, 0 has no knots"),
        ({"kind": [["spline"] * 6] * 2}, "Invalid enum value 'spline'"),
        ({"kind": [["platt"] * 6]}, r"kind in .* has rows of \[6\], expected 2 rows of 6"),
        ({"scale": [[1.0] * 5] * 2}, r"scale in .* has rows of \[5, 5\]"),
        ({"scale": [["a"] * 6] * 2}, "Expected `float`, got `str`"),
        ({"knots": [[{"x": [], "p": []}]]}, "0 logits and 0 probabilities are no knots"),
        ({"knots": [[{"x": [1.0], "p": [0.1, 0.2]}]]}, "1 logits and 2 probabilities"),
        ({"knots": [[{"x": [1.0, 1.0], "p": [0.1, 0.2]}]]}, "knots must rise"),
        ({"knots": [[{"x": [1.0, 2.0], "p": [0.2, 0.1]}]]}, "knots must rise"),
        ({"knots": [[{"x": [1.0, 2.0], "p": [0.2, 1.1]}]]}, "lie between 0 and 1"),
    ],
)
def test_a_malformed_calibration_is_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = write(tmp_path, contract())
    data = msgspec.json.encode(mixed(**change))
    (folder / CALIBRATION).write_bytes(data)
    provenance = msgspec.json.decode((folder / PROVENANCE).read_bytes())
    provenance["files"][CALIBRATION] = hashlib.sha256(data).hexdigest()
    (folder / PROVENANCE).write_bytes(to_json(provenance))
    with pytest.raises(BundleError, match=said):
        load_bundle(folder)


@pytest.mark.parametrize(("length", "expected"), [(1, 32), (32, 32), (33, 64), (1024, 1024)])
def test_a_sequence_gets_the_smallest_length_class_that_holds_it(length: int, expected: int) -> None:
    assert pad_class(length) == expected


def test_no_length_class_holds_more_than_the_ring() -> None:
    with pytest.raises(ValueError, match="holds 1025 rows"):
        pad_class(1025)


def test_graph_inputs_hold_each_users_rows_and_then_padding() -> None:
    sequences, vocabulary = Sequences(default_rules()), Vocabulary()
    users = [b"u", b"v", b"v", b"w", b"v"]
    events = [ClickEvent("", "click", 1_700_000_000_000 + n, "i", None, 1.0) for n in range(5)]
    (block,) = sequences.fold(sequences.columns(events, users))
    inputs = sequences.inputs(block)
    graph = pad(inputs, [1, 0], 4, vocabulary)
    assert graph["lengths"].tolist() == [3, 1]
    assert graph["type"].tolist() == [[6, 6, 6, 0], [6, 0, 0, 0]]
    item = int(vocabulary.item_index(inputs.item)[0])
    assert graph["item"].tolist() == [[item] * 3 + [0], [item, 0, 0, 0]]
    assert graph["category"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert graph["features"].shape == (2, 4, WIDTH)
    assert np.array_equal(graph["features"][0, :3], sequences.rows(b"v").features)
    assert not graph["features"][0, 3:].any()
    assert {name: str(column.dtype) for name, column in graph.items()} == {
        "type": "int64", "item": "int64", "category": "int64", "features": "uint8", "lengths": "int64",
    }  # fmt: skip

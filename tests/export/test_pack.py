"""Laws of the bundle: complete and checked, or not there at all."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch

from export.__main__ import main
from export.pack import pack, sha256
from export.parity import TOLERANCE, ParityError, expected_outputs, random_inputs, session
from export.to_onnx import INPUTS, OUTPUTS, ROW, STEP_OUTPUTS
from model.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from model.contract.bundle import BURST, FILES, PROVENANCE, STEP, Calibration, Contract, check_against, load_bundle
from model.contract.errors import FunnelcastError
from model.contract.pool import Pool, State
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.reformer import WEIGHTS, ClickModel, ReformerConfig

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

TINY = ReformerConfig(dim=16, depth=1, heads=2, hash_buckets=4, window=8, item_hashes=32, category_hashes=200)
STATE = State(depth=1, heads=2, dim_head=8, rounds=1, hash_buckets=4, window=8)


def contract() -> Contract:
    vocabulary = Vocabulary(item_hashes=TINY.item_hashes, category_hashes=TINY.category_hashes)
    return Contract(
        funnel=load_funnel(), window=8, vocabulary=vocabulary, length_classes=(16, 32), base_rates=[[0.5] * 6] * 2
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(1)
    described = Checkpoint(
        name="tiny",
        model=TINY,
        contract=contract(),
        calibration=Calibration([[1.0] * 6] * 2, [[0.0] * 6] * 2),
        training={"seed": 1},
        data={"fingerprint": "abc"},
        metrics={"test": 1.0},
    )
    save_checkpoint(folder, ClickModel(TINY), described)
    return folder


def test_a_bundle_comes_back_through_the_contract(tmp_path: Path, checkpoint: Path) -> None:
    packed, parity, step = pack(checkpoint, tmp_path / "made" / "bundle")
    assert step is not None
    bundle = load_bundle(tmp_path / "made" / "bundle")
    check_against(bundle, load_funnel())
    assert bundle == packed
    assert bundle.contract == msgspec.structs.replace(contract(), state=STATE)
    assert (bundle.name, len(bundle.version)) == ("tiny", 12)
    assert parity.positions > 0
    assert (step.positions > 0, step.longest) == (True, 2000)
    assert sorted(file.name for file in bundle.path.iterdir()) == sorted((*FILES, STEP, BURST, PROVENANCE))
    assert list((tmp_path / "made").iterdir()) == [bundle.path]


def change_network(checkpoint: Path, network: str) -> None:
    other = msgspec.structs.replace(TINY, network=network)
    _, described = read_checkpoint(checkpoint)
    save_checkpoint(checkpoint, ClickModel(other), msgspec.structs.replace(described, model=other))


@pytest.mark.parametrize("network", ["transformer", "library_reformer"])
def test_a_network_that_has_no_graph_is_refused_by_its_name(tmp_path: Path, checkpoint: Path, network: str) -> None:
    change_network(checkpoint, network)
    with pytest.raises(FunnelcastError, match=f"of the kind {network}, but only reformer, lstm, gru can be exported"):
        pack(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("network", ["lstm", "gru"])
def test_a_recurrent_network_has_a_bundle_without_step_graphs_that_scores_as_torch_does(
    tmp_path: Path,
    checkpoint: Path,
    network: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_network(checkpoint, network)
    monkeypatch.setattr("sys.argv", ["export", str(checkpoint), str(tmp_path / "bundle")])
    assert main() == 0
    assert f"step     none: a network of the kind {network} keeps no hot state" in capsys.readouterr().out
    bundle = load_bundle(tmp_path / "bundle")
    check_against(bundle, load_funnel())
    assert bundle.contract.state is None
    assert sorted(file.name for file in bundle.path.iterdir()) == sorted((*FILES, PROVENANCE))
    assert bundle.provenance["parity"]["positions"] > 0
    assert bundle.provenance["parity"]["reach"] <= TOLERANCE
    model, _ = read_checkpoint(checkpoint)
    inputs = random_inputs(model.config, np.array([1, 9, 32]), 32, np.random.default_rng(4))
    expected, real = expected_outputs(model, inputs), np.arange(32)[None] < inputs["lengths"][:, None]
    for name, array in zip(OUTPUTS, session(bundle.model_path.read_bytes()).run(OUTPUTS, inputs), strict=True):
        np.testing.assert_allclose(array[real], expected[name][real], atol=1e-5)


def test_provenance_names_the_source_and_the_sha256_of_every_file(tmp_path: Path, checkpoint: Path) -> None:
    bundle, *_ = pack(checkpoint, tmp_path / "bundle", name="renamed", gate={"users": 7})
    told = bundle.provenance
    assert told["gate"] == {"users": 7}
    assert told["name"] == "renamed"
    assert told["data"] == {"fingerprint": "abc"}
    assert told["training"] == {"seed": 1}
    assert told["metrics"] == {"test": 1.0}
    assert told["model"]["dim"] == 16
    assert {"git_commit", "versions", "parity", "contract_fingerprint"} <= set(told)
    assert told["files"] == {name: sha256(bundle.path / name) for name in (*FILES, STEP, BURST)}


def test_both_graphs_repeat_the_identity_of_the_bundle(tmp_path: Path, checkpoint: Path) -> None:
    bundle, *_ = pack(checkpoint, tmp_path / "bundle")
    for path in (bundle.model_path, bundle.step_path, bundle.burst_path):
        assert {entry.key: entry.value for entry in onnx.load(path).metadata_props} == {
            "name": "tiny",
            "version": bundle.version,
            "contract_version": "1",
            "contract_fingerprint": bundle.contract.fingerprint(),
            "vocabulary_fingerprint": bundle.contract.vocabulary.fingerprint(),
        }


def test_golden_outputs_are_what_the_graph_gives(tmp_path: Path, checkpoint: Path) -> None:
    bundle, *_ = pack(checkpoint, tmp_path / "bundle")
    golden = bundle.golden()
    found = session(bundle.model_path.read_bytes()).run(list(OUTPUTS), {name: golden[name] for name in INPUTS})
    real = np.arange(golden["type"].shape[1])[None] < golden["lengths"][:, None]
    for name, array in zip(OUTPUTS, found, strict=True):
        np.testing.assert_allclose(array[real], golden[name][real], atol=1e-5)


def test_golden_answers_are_what_the_step_graph_gives_row_by_row(tmp_path: Path, checkpoint: Path) -> None:
    bundle, *_ = pack(checkpoint, tmp_path / "bundle")
    assert bundle.contract.state is not None
    golden, graph = bundle.golden(), session(bundle.step_path.read_bytes())
    users = len(golden["lengths"])
    pool = Pool(bundle.contract.state, users)
    for row in range(golden["lengths"].max()):
        slot = np.flatnonzero(golden["lengths"] > row)
        given = {name: golden[name][slot, row] for name in ROW}
        given |= {"slot": slot, "pool": pool.blocks, "counts": pool.counts}
        reach, next_type, key, value, ring = graph.run(STEP_OUTPUTS, given)
        pool.write(ring, key, value)
        np.testing.assert_allclose(reach, golden["reach"][slot, row], atol=1e-5)
        np.testing.assert_allclose(next_type, golden["next_type"][slot, row], atol=1e-5)
    np.testing.assert_array_equal(pool.counts.reshape(users, -1), golden["counts"])


def test_the_same_checkpoint_gives_the_same_graphs(tmp_path: Path, checkpoint: Path) -> None:
    one, other = (pack(checkpoint, tmp_path / name)[0] for name in ("a", "b"))
    assert one.provenance["files"] == other.provenance["files"]


def test_nothing_is_written_when_the_graph_does_not_score_as_torch(tmp_path: Path, checkpoint: Path) -> None:
    model, described = read_checkpoint(checkpoint)
    model.reach.weight.data[:] = float("nan")
    save_checkpoint(checkpoint, model, described)
    with pytest.raises(ParityError):
        pack(checkpoint, tmp_path / "made" / "bundle")
    assert list((tmp_path / "made").iterdir()) == []


def test_an_existing_directory_is_never_overwritten(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(FunnelcastError, match="exists already"):
        pack(checkpoint, tmp_path / "bundle")


def test_wrong_use_is_one_sentence_and_exit_code_2(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / WEIGHTS).unlink()
    for source, target, said in (
        (tmp_path / "none", tmp_path / "new", "no checkpoint in"),
        (checkpoint, tmp_path / "new", "does not hold the weights"),
        (checkpoint, checkpoint, "exists already"),
    ):
        monkeypatch.setattr("sys.argv", ["export", str(source), str(target)])
        assert main() == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.startswith("funnelcast: ")
        assert told.count("\n") == 1

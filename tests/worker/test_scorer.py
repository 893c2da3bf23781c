"""A user's score is the same in any micro-batch; what the network cannot answer gets the base rate."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from model.contract.bundle import (
    MODEL,
    PROVENANCE,
    Bundle,
    load_bundle,
    pad,
)
from model.contract.errors import BundleError
from model.contract.graph import GROUP_TOKENS, OUTPUTS, softmax
from model.contract.rows import Inputs
from model.contract.sequence import default_rules
from tests.support.small_bundle import BASE_RATES, Array, make_inputs, write_bundle
from worker.app import make_service
from worker.health import Health
from worker.metrics import Metrics
from worker.pieces import Scores
from worker.scorer import CPU, CUDA, NO_GPU, Scorer, merge, open_session
from worker.settings import load_settings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle)


def take(inputs: Inputs, user: int) -> Inputs:
    """Return one user of several."""
    starts = np.concatenate(([0], np.cumsum(inputs.lengths)))
    rows, mine = slice(int(starts[user]), int(starts[user + 1])), inputs.owner == user
    return Inputs(
        lengths=inputs.lengths[user : user + 1],
        type=inputs.type[rows],
        item=inputs.item[rows],
        category=inputs.category[rows],
        features=inputs.features[rows],
        owner=np.zeros(int(mine.sum()), "i4"),
        position=inputs.position[mine],
    )


def same(one: Scores, other: Scores) -> bool:
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_a_gpu_that_is_not_there_is_told_once_and_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    settings, metrics = load_settings(state_dir=tmp_path, store="memory"), [Metrics(), Metrics()]
    make_service(settings, default_rules(), bundle, metrics[0], Health(), burst=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])  # as onnxruntime-gpu says
    with pytest.warns(UserWarning, match=CUDA):  # of onnxruntime's, which falls back
        make_service(settings, default_rules(), bundle, metrics[1], Health(), burst=False)
    assert [one.registry.get_sample_value("funnelcast_gpu_missing") for one in metrics] == [0, 1]
    assert [record.levelname for record in caplog.records if record.getMessage() == NO_GPU] == ["WARNING"]


def test_scores_are_calibrated_probabilities_of_the_wanted_rows(bundle: Bundle, scorer: Scorer) -> None:
    inputs = make_inputs([3, 40, 128, 1, 33])
    (scores,) = scorer.score([inputs])
    assert scores.reach.shape == (len(inputs.owner), 2, 6)
    assert scores.reach.dtype == scores.next_type.dtype == np.float32
    assert not scores.degraded.any()
    np.testing.assert_allclose(scores.next_type.sum(axis=1), 1, rtol=1e-6)
    session = open_session(bundle.model_path, 1)
    for row, (user, position) in enumerate(zip(inputs.owner.tolist(), inputs.position.tolist(), strict=True)):
        feed = pad(inputs, [user], 128, bundle.contract.vocabulary)
        reach, next_type = session.run(OUTPUTS, feed)
        np.testing.assert_allclose(scores.reach[row], bundle.calibration.apply(reach[0, position]), atol=1e-6)
        np.testing.assert_allclose(scores.next_type[row], softmax(next_type[0, position]), atol=1e-6)


def check_micro_batches(scorer: Scorer, inputs: Inputs) -> None:
    """Prove that each user's scores are bitwise the same alone, among all, and in random companies."""
    alone = [scorer.score([take(inputs, user)])[0] for user in range(len(inputs.lengths))]
    (together,) = scorer.score([inputs])
    for user, mine in enumerate(alone):
        rows = inputs.owner == user
        assert same(Scores(*(column[rows] for column in together)), mine)
    rng = np.random.default_rng(1)
    for _ in range(5):
        company = rng.permutation(len(inputs.lengths))[: rng.integers(2, len(inputs.lengths))].tolist()
        requests = [take(inputs, user) for user in company]
        found = scorer.score(requests)
        assert all(same(one, alone[user]) for one, user in zip(found, company, strict=True))


def test_a_users_score_is_bitwise_the_same_alone_or_in_any_micro_batch(scorer: Scorer) -> None:
    lengths = np.random.default_rng(3).integers(1, 129, 60).tolist()
    check_micro_batches(scorer, make_inputs(lengths))


def test_the_shipped_bundle_scores_a_user_the_same_in_any_micro_batch() -> None:
    folder = Path(os.environ.get("FUNNELCAST_BUNDLE") or Path(__file__).parents[2] / "model" / "bundles" / "taobao")
    if not (folder / PROVENANCE).exists():
        pytest.skip(f"no bundle at {folder.name}: train and export one first")
    lengths = [1, 2, 31, 32, 33, 60, 64, 65, 100, 128, 129, 250, 512, 513, 1000, *range(3, 20)]
    check_micro_batches(Scorer(load_bundle(folder)), make_inputs(lengths))


def test_threads_of_the_network_sleep_between_runs(bundle: Bundle) -> None:
    session = open_session(bundle.model_path, threads=2)
    assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_requests_are_answered_in_their_own_order(scorer: Scorer) -> None:
    requests = [make_inputs([4, 50], seed=1), make_inputs([120], seed=2), make_inputs([60, 2, 9], seed=3)]
    whole = scorer.score(requests)
    assert [len(scores.degraded) for scores in whole] == [len(request.owner) for request in requests]
    assert all(same(scorer.score([request])[0], scores) for request, scores in zip(requests, whole, strict=True))


def test_requests_without_rows_get_no_answers(scorer: Scorer) -> None:
    empty = make_inputs([])
    found = scorer.score([empty, make_inputs([4]), empty])
    assert [len(scores.degraded) for scores in found] == [0, 2, 0]
    assert len(scorer.score([empty])[0].degraded) == 0


def test_merging_keeps_every_users_rows() -> None:
    one, other = make_inputs([3, 7], seed=1), make_inputs([5], seed=2)
    merged = merge([one, other])
    assert merged.lengths.tolist() == [3, 7, 5]
    assert merged.owner.tolist() == [*one.owner.tolist(), *(other.owner + 2).tolist()]
    assert merged.type.tolist() == [*one.type.tolist(), *other.type.tolist()]
    assert merge([one]) is one


class SpoiledSession:
    """Runs a session, and fails or spoils the runs that the test names."""

    def __init__(self, bundle: Bundle) -> None:
        self.session = open_session(bundle.model_path, 1)
        self.shapes: list[tuple[int, int]] = []
        self.most_users = 1 << 30
        self.poisoned: int | None = None  # the number of rows of the user that no run survives
        self.put: float | None = None  # goes into the poisoned user's outputs instead

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array]) -> list[Array]:
        lengths = input_feed["lengths"]
        self.shapes.append(input_feed["type"].shape)
        poisoned = lengths == self.poisoned
        if len(lengths) > self.most_users or (self.put is None and poisoned.any()):
            raise RuntimeError("out of memory")
        outputs = [np.array(output) for output in self.session.run(output_names, input_feed)]
        if self.put is not None:
            outputs[0][poisoned, :, 1, 2] = self.put
        return outputs


@pytest.fixture
def spoiled(bundle: Bundle) -> tuple[Scorer, SpoiledSession, list[int]]:
    session, failures = SpoiledSession(bundle), [0]

    def count() -> None:
        failures[0] += 1

    scorer = Scorer(bundle, on_failure=count, session=session)
    session.shapes.clear()
    return scorer, session, failures


def test_a_run_holds_no_more_rows_than_its_bound(spoiled: tuple[Scorer, SpoiledSession, list[int]]) -> None:
    scorer, session, _ = spoiled
    scorer.score([make_inputs([20] * 300 + [100] * 70)])
    assert session.shapes == [(256, 32), (44, 32), (64, 128), (6, 128)]
    assert max(users * length for users, length in session.shapes) <= GROUP_TOKENS


def test_a_failing_group_is_split_and_everybody_scored(
    scorer: Scorer, spoiled: tuple[Scorer, SpoiledSession, list[int]]
) -> None:
    inputs = make_inputs([*range(1, 20), *range(65, 80)])
    fragile, session, failures = spoiled
    session.most_users = 3
    (found,) = fragile.score([inputs])
    assert same(found, scorer.score([inputs])[0])
    assert failures[0] > 2


def test_a_user_whom_no_run_survives_gets_the_base_rate_and_the_others_their_scores(
    scorer: Scorer, spoiled: tuple[Scorer, SpoiledSession, list[int]]
) -> None:
    inputs = make_inputs([*range(1, 20), *range(65, 80)])
    fragile, session, failures = spoiled
    session.poisoned = 7
    (found,) = fragile.score([inputs])
    check_only_degraded(found, scorer.score([inputs])[0], inputs.owner == 6)
    assert failures[0] == 6  # groups of 19, 10, 5, 3 and 2 users, and the poisoned one alone


@pytest.mark.parametrize("put", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_never_emitted(
    scorer: Scorer, spoiled: tuple[Scorer, SpoiledSession, list[int]], put: float
) -> None:
    inputs = make_inputs([*range(1, 20), *range(65, 80)])
    fragile, session, failures = spoiled
    session.poisoned, session.put = 7, put
    (found,) = fragile.score([inputs])
    check_only_degraded(found, scorer.score([inputs])[0], inputs.owner == 6)
    assert failures[0] == 0


def check_only_degraded(found: Scores, clean: Scores, degraded: Array) -> None:
    assert found.degraded.tolist() == degraded.tolist()
    assert degraded.any()
    assert (found.reach[degraded] == np.array(BASE_RATES, "f4")).all()
    assert not found.next_type[degraded].any()
    assert same(Scores(*(c[~degraded] for c in found)), Scores(*(c[~degraded] for c in clean)))
    assert np.isfinite(found.reach).all()


def test_a_bundle_that_misses_its_golden_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"answers its golden inputs .* off on this machine, at most 1e-05 is allowed"
    ):
        Scorer(write_bundle(tmp_path, spoil=1e-3))


def test_a_bundle_whose_golden_answers_are_no_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="off on this machine"):
        Scorer(write_bundle(tmp_path, spoil=float("nan")))


def test_a_graph_that_cannot_be_loaded_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no graph")
    broken = Bundle(tmp_path, bundle.contract, bundle.calibration, bundle.provenance)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        Scorer(broken)


def test_softmax_takes_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], "f4")), [[0.5, 0.5], [0.0, 1.0]])

"""Laws of evaluation: nobody is tested on what was trained on, figures follow their definitions, work is kept."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from model.contract.errors import FunnelcastError
from model.contract.rows import Array
from model.evaluation import command, runs
from model.evaluation.figures import Answers, Positions, area, compared, draw_users, figures_of, precision_area, rank
from model.evaluation.splits import before, check, time_split, user_folds
from model.examples import CENSORED, Examples
from model.fit import Settings
from model.reformer import ReformerConfig
from tests.support.logs import write

torch.set_num_threads(1)

START, DAY = 1_511_600_000, 86_400


def log_lines(users: int = 60, each: int = 20, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    kinds = ("pv", "pv", "cart", "fav", "buy")
    rows = [(draw.integers(users), draw.integers(9), draw.integers(4), draw.choice(kinds)) for _ in range(users * each)]
    return [",".join(map(str, (*row, START + draw.integers(5 * DAY)))) for row in rows]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("log"), "\n".join(log_lines()) + "\n")


def evaluate(log: Path, out: Path, *options: str) -> dict:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(log), "--format", "taobao", "--out", str(out), "--no-progress", "--folds", "2", "--resamples", "20"]
    assert command.run(parser.parse_args([*words, *options])) == 0
    return dict(json.loads((out / "metrics.json").read_text()))


def examples(users: int = 40, rows: int = 30) -> Examples:
    draw = np.random.default_rng(0)
    total = users * rows
    return Examples(
        users=tuple(f"u{index}" for index in range(users)),
        start=np.arange(0, total + 1, rows),
        ts=np.tile(np.arange(rows), users) * 1000,
        type=draw.integers(2, 19, total).astype(np.uint8),
        item=draw.integers(2, 9, total),
        category=draw.integers(2, 9, total),
        features=draw.integers(0, 9, (total, 60)).astype(np.uint8),
        reach=draw.integers(-1, 2, (total, 1, 1)).astype(np.int8) * np.ones((1, 2, 6), np.int8),
    )


def test_each_user_is_tested_once_and_never_in_its_own_training() -> None:
    data = examples()
    splits = user_folds(data, 4, seed=1)
    assert sorted(user for split in splits for user in split.test) == list(range(40))
    for split in splits:
        parts = [set(split.train), set(split.validation), set(split.test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert set.union(*parts) == set(range(40))


def test_other_users_do_not_move_a_user_to_another_fold() -> None:
    data, fewer = examples(40), examples(25)
    for split, smaller in zip(user_folds(data, 3, 0), user_folds(fewer, 3, 0), strict=True):
        assert [user for user in split.test if user < 25] == smaller.test


def test_the_past_knows_no_row_and_no_label_of_the_future() -> None:
    data = examples()
    moment, horizon = 15_000, 4_000
    past = before(data, moment, horizon)
    assert past.ts.max() < moment
    assert np.diff(past.start).tolist() == [15] * 40
    known = past.reach[:, 0, 0] != CENSORED
    assert (past.ts[known] + horizon <= moment).all()
    kept = data.ts < moment
    assert np.array_equal(past.features, data.features[kept])


def test_the_time_split_asks_only_about_what_comes_after_the_past() -> None:
    data = examples()
    split = time_split(data, 4_000, seed=0)
    asked = split.whole.ts[split.whole.reach[:, 0, 0] != CENSORED]
    assert split.past.ts.max() < asked.min()
    assert not set(split.train) & set(split.validation)


def test_a_split_in_which_nobody_has_a_label_is_refused() -> None:
    data = examples(6)
    nothing = data._replace(reach=np.full_like(data.reach, CENSORED))
    with pytest.raises(FunnelcastError, match="expected some; use a longer log"):
        check(user_folds(nothing, 2, 0)[0])


def test_areas_are_those_of_scikit_learn_weighted_and_with_ties() -> None:
    draw = np.random.default_rng(0)
    p, y = draw.integers(0, 9, 500) / 10, draw.integers(0, 2, 500)
    for weight in (np.ones(500), draw.integers(0, 4, 500).astype(float)):
        assert area(rank(p, y), weight) == pytest.approx(roc_auc_score(y, p, sample_weight=weight))
        assert precision_area(rank(p, y), weight) == pytest.approx(average_precision_score(y, p, sample_weight=weight))


def positions(count: int = 2000, users: int = 50) -> tuple[Positions, Array]:
    draw = np.random.default_rng(1)
    truth = draw.random((count, 2, 6))
    user = np.sort(draw.integers(0, users, count)).astype(np.int32)
    outcomes = (draw.random(truth.shape) < truth).astype(np.int8)
    ones = np.ones(count, np.int32)
    return Positions(outcomes, user, np.zeros(count, bool), ones, ones, np.zeros(count, bool)), truth.astype(np.float32)


def test_intervals_hold_the_figure_and_a_better_contender_leads_by_more_than_noise() -> None:
    asked, truth = positions()
    draws = draw_users(asked.user, 50, 60, seed=0)
    assert (draws.sum(1) == 50).all()
    noise = np.random.default_rng(2).random(truth.shape).astype(np.float32)
    good, bad = (figures_of(asked, Answers(p, p), draws) for p in (truth, noise))
    cell = good["category"]["intent"]
    low, high = cell["interval"]["auc"]
    assert low < cell["auc"] < high
    assert cell["ece"] < 0.05 < bad["category"]["intent"]["ece"]
    assert cell["precision_at"]["0.1"] > 0.85
    assert cell["lift_at"]["0.1"] == pytest.approx(cell["precision_at"]["0.1"] / cell["rate"])
    lead = compared(good, bad)["category"]["intent"]["auc"]
    assert lead["interval"][0] > 0.1
    same = compared(good, good)["category"]["intent"]["auc"]
    assert same == {"difference": 0, "interval": [0, 0]}


def test_an_evaluation_writes_figures_and_a_report_that_needs_nothing_else(tmp_path: Path, log: Path) -> None:
    metrics = evaluate(log, tmp_path / "run", "--models", "markov,base_rate")
    for view in ("users", "time"):
        cell = metrics[view]["slices"]["all"]["markov"]["category"]["purchase"]
        assert {"auc", "pr_auc", "log_loss", "brier", "ece", "ece_before", "interval"} <= cell.keys()
        assert metrics[view]["paired"]["all"]["base_rate"]["user"]["intent"]["log_loss"]["interval"]
        assert "session_end" in metrics[view]["slices"]
        low, high = metrics[view]["slices"]["rows 11 to 50"]["markov"]["user"]["intent"]["interval"]["auc"]
        assert low < high
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 18
    assert 'src="' not in page
    assert "http" not in page
    assert metrics["data"]["fingerprint"] in page


def test_an_interrupted_evaluation_does_nothing_twice_and_ends_with_the_same_answers(tmp_path: Path) -> None:
    data = examples()
    splits = [*user_folds(data, 2, 0), time_split(data, 4_000, 0)]
    small = ReformerConfig(dim=8, depth=1, heads=1, item_hashes=16, category_hashes=16)
    plan = runs.Plan(("reformer", "markov"), Settings(small), 1, False)
    for name in ("whole", "parts"):
        runs.prepare(tmp_path / name, data, {"seed": 0})
    runs.run_all(tmp_path / "whole", splits, plan)
    runs.run_all(tmp_path / "parts", splits[:1], plan)
    torch.rand(3)  # whatever else was drawn in between
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.npz")}
    runs.prepare(tmp_path / "parts", data, {"seed": 0})
    runs.run_all(tmp_path / "parts", splits, plan)
    assert len(kept) == 2
    assert all(path.stat().st_mtime_ns == ns for path, ns in kept.items())
    for split in splits:
        for name in plan.models:
            one, other = (runs.load(tmp_path / run, split, name) for run in ("whole", "parts"))
            assert np.array_equal(one.answers.after, other.answers.after)
            assert one.facts["phases"] == other.facts["phases"]


def test_a_directory_of_another_evaluation_or_of_something_else_is_refused(tmp_path: Path) -> None:
    data = examples()
    runs.prepare(tmp_path / "run", data, {"seed": 0})
    runs.prepare(tmp_path / "run", data, {"seed": 0})
    with pytest.raises(FunnelcastError, match="other seed; give those again, or another --out"):
        runs.prepare(tmp_path / "run", data, {"seed": 1})
    with pytest.raises(FunnelcastError, match="other examples"):
        runs.prepare(tmp_path / "run", examples(41), {"seed": 0})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(FunnelcastError, match="not empty and no run of this kind"):
        runs.prepare(tmp_path / "mine", data, {})
    with pytest.raises(FunnelcastError, match="cannot write to"):
        runs.prepare(tmp_path / "mine" / "notes" / "run", data, {})
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(FunnelcastError, match="is damaged"):
        runs.prepare(tmp_path / "run", data, {"seed": 0})


@pytest.mark.parametrize("wrong", [("--models", "crystal_ball"), ("--folds", "1"), ("--epochs", "0")])
def test_wrong_arguments_are_told_before_the_log_is_read(tmp_path: Path, wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        evaluate(tmp_path / "no log", tmp_path / "run", *wrong)
    assert not (tmp_path / "run").exists()

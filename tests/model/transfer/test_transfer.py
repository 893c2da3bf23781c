"""Laws of transfer: names keep their meaning, frozen parts stay, budgets never see a test user, the start is kept."""

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from model import train
from model.calibrate import sigmoid
from model.checkpoint import Checkpoint, read_checkpoint
from model.contract.bundle import Calibration, Contract
from model.contract.errors import FunnelcastError
from model.contract.events import TYPE_CODE, TYPES
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.evaluation.figures import Answers
from model.evaluation.runs import Done
from model.examples import Examples
from model.fit import Settings, score
from model.reformer import ClickModel, ReformerConfig, weights
from model.transfer import command, remap
from model.transfer.budgets import budgets_of
from model.transfer.experiment import (
    BOOSTING,
    RECALIBRATED,
    REWEIGHTED,
    SCRATCH,
    ZERO_SHOT,
    Setting,
    decide,
    run_one,
    tuning_of,
)
from model.transfer.figures import FIGURES, _top, summary
from model.transfer.strategies import STRATEGIES, FineTuner, joined, parts_of, recalibrated, source_weights

torch.set_num_threads(1)

TINY = ReformerConfig(dim=8, depth=2, heads=2, hash_buckets=2, window=4, item_hashes=64, category_hashes=32)
START, DAY = 1_511_600_000, 86_400


def checkpoint(config: ReformerConfig, types: tuple[str, ...] = TYPES) -> Checkpoint:
    vocabulary = Vocabulary(item_hashes=config.item_hashes, category_hashes=config.category_hashes)
    contract = Contract(funnel=load_funnel(), window=4, vocabulary=vocabulary, types=types, base_rates=[[0.5] * 6] * 2)
    calibration = Calibration([[1.0] * 6] * 2, [[0.0] * 6] * 2)
    return Checkpoint(name="s", model=config, contract=contract, calibration=calibration)


def fresh(seed: int = 0) -> ClickModel:
    torch.manual_seed(seed)
    return ClickModel(TINY)


def examples(users: int = 30, rows: int = 20, seed: int = 0, high: int = 9) -> Examples:
    draw = np.random.default_rng(seed)
    total = users * rows
    return Examples(
        users=tuple(f"{seed}u{index}" for index in range(users)),
        start=np.arange(0, total + 1, rows),
        ts=np.tile(np.arange(rows), users) * 1000,
        type=draw.integers(2, 19, total).astype(np.uint8),
        item=draw.integers(2, 60, total),
        category=draw.integers(2, 30, total),
        features=draw.integers(0, high, (total, 60)).astype(np.uint8),
        reach=draw.integers(0, 2, (total, 1, 1)).astype(np.int8) * np.ones((1, 2, 6), np.int8),
    )


def test_only_types_that_a_gradient_moved_count_as_trained() -> None:
    model = fresh()
    with torch.no_grad():
        model.embed.types.weight *= 0.8  # weight decay
        model.embed.types.weight[TYPE_CODE["order"]] += torch.randn(8)
    assert remap.trained_types(model, checkpoint(TINY)).nonzero().flatten().tolist() == [TYPE_CODE["order"]]


def test_rows_of_types_move_by_name_and_an_unseen_type_begins_as_its_class() -> None:
    rows = torch.randn(len(TYPES), 3)
    shuffled = tuple(reversed(TYPES))
    seen = torch.ones(len(TYPES), dtype=torch.bool)
    moved = remap.by_name(rows, shuffled, seen)
    assert torch.equal(moved, rows.flip(0))
    for name in ("cart_view", "checkout_step", "wishlist_add"):
        seen[TYPE_CODE[name]] = False
    found = remap.by_name(rows, TYPES, seen)
    assert torch.equal(found[TYPE_CODE["cart_view"]], rows[TYPE_CODE["checkout_start"]])
    known = [code for code in range(len(TYPES)) if seen[code]]
    torch.testing.assert_close(found[TYPE_CODE["wishlist_add"]], rows[known].mean(0))
    assert torch.equal(found[TYPE_CODE["order"]], rows[TYPE_CODE["order"]])


def test_a_name_keeps_its_row_in_a_table_of_another_size() -> None:
    model, names = fresh(), np.array([5, 70, 900], np.uint32)
    wide = Vocabulary(item_hashes=4096, category_hashes=TINY.category_hashes)
    moved = remap.remap(model, checkpoint(TINY), wide, remap.Hashes(names, names))
    old = Vocabulary(item_hashes=TINY.item_hashes).item_index(names)
    torch.testing.assert_close(moved.embed.items.weight[wide.item_index(names)], model.embed.items.weight[old])
    assert torch.equal(moved.embed.categories.weight, model.embed.categories.weight)
    assert moved.config.item_hashes == 4096


def test_each_strategy_moves_the_parts_that_it_names_and_no_others() -> None:
    data, everyone = examples(), list(range(20))
    moved = {}
    for name, factors in STRATEGIES.items():
        trainer = FineTuner(Settings(TINY, warm_up=1), factors)
        trainer.start_from(fresh(), data, [20, 21])
        before = [[p.detach().clone() for p in part] for part in parts_of(trainer.model)]
        trainer.run_epoch(data, everyone, [20, 21], False)
        pairs = zip(before, parts_of(trainer.model), strict=True)
        moved[name] = [any(not torch.equal(a, b) for a, b in zip(old, new, strict=True)) for old, new in pairs]
    assert moved == {
        "head_only": [False, False, False, True],
        "frozen_trunk": [True, False, False, True],
        "gradual": [False, False, False, True],
        "discriminative": [True] * 4,
        "full": [True] * 4,
    }
    assert STRATEGIES["gradual"](4, 1) == [0, 0, 1, 1]


def test_where_no_epoch_is_better_the_start_is_what_remains() -> None:
    data, start = examples(), fresh()
    trainer = FineTuner(Settings(TINY, learning_rate=10.0, warm_up=1, average=0.0), STRATEGIES["full"])
    trainer.start_from(start, data, [20, 21])
    trainer.run_epoch(data, list(range(20)), [20, 21], False)
    assert trainer.best_epoch == 0
    kept, given = weights(trainer.best_model()), weights(start)
    assert all(torch.equal(kept[name], given[name]) for name in given)


def test_a_larger_budget_holds_the_smaller_and_none_holds_a_test_user() -> None:
    data = examples(200)
    budgets, test = budgets_of(data, [0.2, 0.05, 1.0], seed=0)
    sets = [set(budget.train) | set(budget.validation) for budget in budgets]
    assert [float(budget.name) for budget in budgets] == [0.05, 0.2, 1.0]
    assert sets[0] < sets[1] < sets[2]
    assert not sets[2] & set(test)
    assert sets[2] | set(test) == set(range(200))
    assert not any(set(budget.train) & set(budget.validation) for budget in budgets)


def test_a_source_user_who_looks_like_the_target_weighs_more() -> None:
    target, unlike, alike = examples(30, high=20), examples(20, seed=1, high=4), examples(20, seed=2, high=20)
    source = joined(unlike, alike)
    weight, auc = source_weights(source, target, list(range(30)), 0)
    assert weight.mean() == pytest.approx(1)
    assert weight[20:].min() > weight[:20].max()
    assert auc > 0.6


def test_no_source_rows_of_a_test_user_are_trained_on() -> None:
    target, source = examples(40), examples(30)  # the same names in both
    budgets, test = budgets_of(target, [1.0], 0)
    setting = Setting(fresh(), target, test, source, Settings(TINY), 5e-4, 1, False)
    held = budgets[0].folds[0]
    tuning = tuning_of(setting, budgets[0].without(0), held, REWEIGHTED, False)
    names = {tuning.examples.users[user] for user in tuning.users}
    assert len(tuning.users) > len(budgets[0].without(0))
    assert not names & {target.users[user] for user in [*test, *held]}


def learnable(users: int = 60) -> Examples:
    """Rows of which the first feature says what is reached."""
    found = examples(users)
    reached = (found.features[:, 0] > 4).astype(np.int8)[:, None, None] * np.ones((1, 2, 6), np.int8)
    return found._replace(reach=reached)


def test_each_fold_of_a_budget_is_asked_once_and_by_none_that_learned_from_it() -> None:
    budgets, _ = budgets_of(examples(200), [0.05, 1.0], seed=0)
    for budget in budgets:
        assert sorted(user for part in budget.folds for user in part) == budget.users
        assert all(not set(part) & set(budget.without(number)) for number, part in enumerate(budget.folds))
        assert all(
            set(part) | set(budget.without(number)) == set(budget.users) for number, part in enumerate(budget.folds)
        )


def test_fine_tuning_goes_on_for_as_long_as_users_left_out_gain_by_it() -> None:
    target = learnable()
    budgets, test = budgets_of(target, [1.0], 0)
    setting = Setting(fresh(), target, test, None, Settings(TINY, average=0.5), 2e-2, 4, False)
    _, losses = decide(setting, budgets[0], "full")
    assert min(losses[1:]) < losses[0]
    told = run_one(setting, budgets[0], "full").facts
    assert told["epochs"] == int(np.argmin(losses))
    useless = setting._replace(learning_rate=10.0)
    done, start = run_one(useless, budgets[0], "full"), run_one(useless, budgets[0], RECALIBRATED)
    assert done.facts["epochs"] == 0
    assert np.array_equal(done.answers.after, start.answers.after)
    assert len(decide(setting, budgets[0], ZERO_SHOT)[1]) == 1


def test_recalibration_meets_the_rates_of_the_target_and_ranks_nobody_otherwise() -> None:
    target, model = examples(400, high=20), fresh()
    users = list(range(400))
    with torch.no_grad():
        model.reach.bias.sub_(4.0)
    before, after = (score(one, target, users) for one in (model, recalibrated(model, target, users)))
    rates = sigmoid(after.logits).mean(0)
    assert rates == pytest.approx(after.outcomes.mean(0), abs=0.01)
    moved = after.logits - before.logits
    assert moved == pytest.approx(np.broadcast_to(moved[0], moved.shape), abs=1e-4)
    assert moved.min() > 3


def test_precision_at_the_top_follows_its_definition() -> None:
    y = np.repeat([1.0, 0.0], [30, 970])
    assert _top(y, np.ones(1000)) == pytest.approx(30 / 50)
    assert _top(y, np.repeat([2.0, 1.0], [30, 970])) == 1.0


def test_each_draw_is_answered_by_its_own_pick_and_leads_are_means_over_draws() -> None:
    def measured(value: float) -> dict[str, np.ndarray]:
        return {name: np.full((3, 2, 6), value) for name in FIGURES}

    def done(validation: float) -> Done:
        facts = {"validation": validation, "cpu_seconds": 1.0, "epochs": 1, "users": {}}
        return Done(Answers(np.zeros(0), np.zeros(0)), facts)

    names = [ZERO_SHOT, "full", SCRATCH, BOOSTING]
    parts = [dict(zip(names, map(measured, row), strict=True)) for row in ((0.6, 0.7, 0.5, 0.5), (0.7, 0.6, 0.5, 0.4))]
    fits = [dict(zip(names, map(done, row), strict=True)) for row in ((0.4, 0.3, 0.1, 0.1), (0.4, 0.5, 0.1, 0.1))]
    told = summary(parts, fits, names)
    assert told["picks"] == ["full", ZERO_SHOT]
    assert told["contenders"]["picked"]["mean"]["auc"]["value"] == pytest.approx(0.7)
    leads = {name: cells["auc"]["value"] for name, cells in told["paired"].items()}
    expected = {"picked over from_scratch": 0.2, "picked over boosting": 0.25, "picked over zero_shot": 0.05}
    assert leads == pytest.approx(expected)


def write_log(path: Path, users: int, seed: int) -> Path:
    draw, lines = np.random.default_rng(seed), []
    for user in range(users):
        at = START + int(draw.integers(DAY))
        for _ in range(12):
            at += int(draw.choice([60, 900, DAY // 3]))
            lines.append(
                f"u{seed}{user},{draw.integers(1, 50)},{draw.integers(1, 5)},{draw.choice(['pv', 'cart', 'buy'])},{at}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


def run(module: object, *words: str) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    assert module.run(parser.parse_args([*words, "--no-progress"])) == 0  # type: ignore[attr-defined]


def test_a_transfer_is_reported_by_budget_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_log(tmp_path / "source.csv", 40, 1)
    target = write_log(tmp_path / "target.csv", 60, 2)
    run(train, str(source), "--out", str(tmp_path / "run"), "--epochs", "1")
    words = [str(tmp_path / "run"), str(target), "--out", str(tmp_path / "out"), "--shares", "30,100", "--epochs", "1"]
    words += ["--resamples", "20", "--source-log", str(source)]
    run(command, *words)
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (tmp_path / "out" / "transfer.png").read_bytes().startswith(b"\x89PNG")
    for figures in told["budgets"].values():
        names = {"zero_shot", "recalibrated", *STRATEGIES, "reweighted_source", "from_scratch", "boosting"}
        assert set(figures["contenders"]) == names | {"picked"}
        assert set(figures["picks"]) <= names - {"from_scratch", "boosting"}
        for cell in figures["contenders"].values():
            low, high = cell["mean"]["auc"]["interval"]
            assert 0 <= low <= high <= 1
            assert cell["cost"]["cpu_seconds"] >= 0
        assert "interval" in figures["paired"]["picked over boosting"]["precision"]
    zero = [figures["contenders"]["zero_shot"]["mean"]["auc"]["value"] for figures in told["budgets"].values()]
    assert zero[0] == zero[1]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.npz")}
    (tmp_path / "out" / "metrics.json").unlink()
    run(command, *words)
    assert all(path.stat().st_mtime_ns == ns for path, ns in kept.items())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == told
    with pytest.raises(FunnelcastError, match="other seed; give those again"):
        run(command, *words, "--seed", "1")
    _, described = read_checkpoint(tmp_path / "run")
    assert msgspec.to_builtins(described)["name"] == told["source"]["name"]
    assert "boosting" in capsys.readouterr().out


def test_a_target_of_a_few_users_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FunnelcastError, match="expected at least 12 with rows"):
        budgets_of(examples(6), [1.0], 0)

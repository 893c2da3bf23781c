"""Laws of training: one seed, one set of weights; a resumed run is the uninterrupted one; wrong use is told."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from model import train
from model.batches import batches, collate, segments
from model.checkpoint import read_checkpoint
from model.contract.bundle import SHIPPED
from model.contract.errors import FunnelcastError
from model.contract.stages import STAGES
from model.examples import Examples
from model.fit import losses_of
from model.rates import odds_of
from model.recipe import RAMPS
from model.reformer import WEIGHTS, Logits, ReformerConfig

torch.set_num_threads(1)  # small tensors: threads would only wait for each other
threadpool_limits(1)

DAY = 86_400
START = 1_511_600_000  # within the days of the public log whose format is used


def write_log(path: Path, users: int = 40, seed: int = 0) -> Path:
    """Write a log in which who puts something into the cart buys it within the hour, and nobody else buys."""
    draw = np.random.default_rng(seed)
    lines = []
    for user in range(users):
        at, buyer = START + int(draw.integers(DAY)), draw.random() < 0.5
        for _ in range(int(draw.integers(8, 20))):
            item, category = int(draw.integers(1, 30)), int(draw.integers(1, 4))
            kinds = ("pv", "cart", "buy") if buyer and draw.random() < 0.4 else ("pv", "pv")
            for kind in kinds:
                lines.append(f"{user},{item},{category},{kind},{at}")
                at += int(draw.integers(30, 600))
            at += int(draw.integers(600, DAY // 3))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "log.csv")


TAUGHT = ("--taught", "--pretrain", "1")


def run(log: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    words = [str(log), "--format", "taobao", "--out", str(out), "--no-progress"]
    words += [*([] if "--from" in options else ["--no-taught"]), *options]
    assert train.run(parser.parse_args(words)) == 0
    weights: dict[str, torch.Tensor] = torch.load(out / WEIGHTS, weights_only=True)
    return weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, log: Path) -> None:
    first = run(log, tmp_path / "a", "--epochs", "2", "--seed", "5")
    assert same(first, run(log, tmp_path / "b", "--epochs", "2", "--seed", "5"))
    assert not same(first, run(log, tmp_path / "c", "--epochs", "2", "--seed", "6"))
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, log: Path) -> None:
    whole = run(log, tmp_path / "whole", "--epochs", "4")
    run(log, tmp_path / "parts", "--epochs", "2")
    torch.rand(3)  # whatever else was drawn in between
    assert same(whole, run(log, tmp_path / "parts", "--epochs", "4", "--resume"))
    curves = [json.loads((tmp_path / name / "metrics.json").read_text())["curve"] for name in ("whole", "parts")]
    assert curves[0] == curves[1]


def test_the_network_that_is_kept_was_taught_and_the_seed_decides_all(tmp_path: Path, log: Path) -> None:
    kept = run(log, tmp_path / "a", "--epochs", "2", *TAUGHT)
    assert same(kept, run(log, tmp_path / "b", "--epochs", "2", *TAUGHT))
    assert not same(kept, run(log, tmp_path / "c", "--epochs", "2", "--pretrain", "1"))
    phases = json.loads((tmp_path / "a" / "metrics.json").read_text())["phases"]
    assert {name: [len(curve) for curve in curves] for name, curves in phases.items()} == {
        "next event": [1],
        "reach": [2],
        "reach, as its teachers say": [2],
    }
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert read_checkpoint(tmp_path / "a")[1].training["settings"]["taught"] is True


def test_teacher_and_pupil_are_resumed_as_if_nothing_had_happened(tmp_path: Path, log: Path) -> None:
    whole = run(log, tmp_path / "whole", "--epochs", "3", *TAUGHT)
    run(log, tmp_path / "parts", "--epochs", "1", *TAUGHT)  # a teacher of one epoch, and a pupil of it
    assert same(whole, run(log, tmp_path / "parts", "--epochs", "3", "--resume", *TAUGHT))
    (tmp_path / "parts" / "state.pt").unlink()  # as if stopped before the pupil
    assert same(whole, run(log, tmp_path / "parts", "--epochs", "3", "--resume", *TAUGHT))


def test_who_goes_on_from_a_taught_network_keeps_its_ramps_but_not_its_little_dropout(
    tmp_path: Path, log: Path
) -> None:
    run(log, tmp_path / "a", "--epochs", "1", *TAUGHT)
    assert read_checkpoint(tmp_path / "a")[0].config.dropout == ReformerConfig().dropout
    run(log, tmp_path / "b", "--from", str(tmp_path / "a"), "--epochs", "1")
    assert read_checkpoint(tmp_path / "b")[1].model.ramps == RAMPS


def test_a_log_of_20_users_and_one_stage_that_nobody_reaches_can_be_taught(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.csv", users=20)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if ",buy," not in line) + "\n")
    run(path, tmp_path / "run", "--epochs", "2", "--taught")
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["all"]["category"]
    assert figures["purchase"]["rate"] == 0
    assert all(np.isfinite(figures[stage]["log_loss"]) for stage in STAGES)


def test_pre_training_teaches_the_next_event(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "run", "--epochs", "1", "--pretrain", "6")
    (losses,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["phases"]["next event"]
    assert len(losses) == 6
    assert losses[-1]["validation"] < 0.9 * losses[0]["validation"]


def test_balanced_reached_positions_weigh_as_much_as_the_others(tmp_path: Path, log: Path) -> None:
    draw = np.random.default_rng(0)
    reach = (draw.random((40, 2, 6)) < 0.25).astype(np.int8)
    nothing = np.zeros(40, np.int64)
    data = Examples(("u",), np.array([0, 40]), nothing, nothing, nothing, nothing, np.zeros((40, 60), np.uint8), reach)
    odds = torch.from_numpy(odds_of(data, [0])).float()
    batch = collate(data, batches(segments(data, [0]), 100)[0])
    even = Logits(torch.zeros(1, 40, 2, 6), torch.zeros(1, 40, 20))  # says half of everything: log 2 each
    balanced = losses_of(even, batch, odds)[0]
    assert float(balanced) == pytest.approx(np.log(2) * np.mean(2 * (1 - reach.mean(0))), rel=1e-5)
    assert float(losses_of(even, batch)[0]) == pytest.approx(np.log(2), rel=1e-5)
    plain = run(log, tmp_path / "a", "--epochs", "1")
    assert not same(plain, run(log, tmp_path / "b", "--epochs", "1", "--balance", "0.5"))


def test_what_was_learned_beats_the_base_rate_on_users_not_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_log(tmp_path / "log.csv", users=120), tmp_path / "run", "--epochs", "25")
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    purchase = figures["test"]["all"]["category"]["purchase"]
    assert purchase["log_loss"] < 0.9 * purchase["base_log_loss"]
    assert purchase["auc"] > 0.7
    assert set(figures["test"]) == {"all", "session_end", "positions"}
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in STAGES)


def test_the_config_says_what_the_weights_are_for(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "run", "--epochs", "1", "--horizon-hours", "12", "--name", "shop")
    model, told = read_checkpoint(tmp_path / "run")
    assert told.name == "shop"
    assert told.model == model.config
    assert told.contract.horizon_ms == 12 * 3_600_000
    assert told.contract.window == model.config.window
    assert np.shape(told.contract.base_rates) == np.shape(told.calibration.scale) == (2, 6)
    assert len(told.data["fingerprint"]) == 64
    assert sum(told.data["split"].values()) == told.data["users"] == 40
    assert told.training["settings"]["seed"] == 0


def test_another_network_is_trained_and_read_back_by_its_name(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "run", "--epochs", "1", "--model", "lstm")
    model, told = read_checkpoint(tmp_path / "run")
    assert told.model.network == model.config.network == "lstm"
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"network": "lstm"', '"network": "abacus"'))
    with pytest.raises(FunnelcastError, match="network 'abacus' is none of reformer, lstm"):
        read_checkpoint(tmp_path / "run")


def test_no_user_is_in_two_parts_and_other_users_do_not_move_one() -> None:
    users = tuple(f"user-{index}" for index in range(400))
    parts = train.split(users, seed=1)
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == list(range(400))
    assert all(30 <= len(parts[name]) <= 90 for name in ("validation", "test"))
    assert train.split(users[:100], seed=1)["test"] == [index for index in parts["test"] if index < 100]
    assert train.split(users, seed=2) != parts


def test_a_used_directory_is_refused_unless_resumed(tmp_path: Path, log: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FunnelcastError, match="is not empty"):
        run(log, tmp_path)
    with pytest.raises(FunnelcastError, match="nothing to resume"):
        run(log, tmp_path, "--resume")
    for damaged in (b"", b"not a state"):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(FunnelcastError, match="is damaged"):
            run(log, tmp_path, "--resume")


@pytest.mark.parametrize(
    "wrong",
    [("--epochs", "0"), ("--seed", "-1"), ("--tier", "huge"), ("--horizon-hours", "x"), ("--horizon-hours", "0")],
)
def test_wrong_arguments_are_told_before_the_log_is_read(tmp_path: Path, wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "no log", tmp_path / "run", *wrong)
    assert stopped.value.code == 2
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_only_with_its_own_log_and_settings(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "run", "--epochs", "1")
    with pytest.raises(FunnelcastError, match="other settings or another log"):
        run(log, tmp_path / "run", "--resume", "--seed", "9")
    with pytest.raises(FunnelcastError, match="other settings or another log"):
        run(write_log(tmp_path / "other.csv", seed=4), tmp_path / "run", "--resume")


@pytest.mark.parametrize(
    ("users", "options", "said"),
    [
        (5, [], "has 5 users, expected at least 20"),
        (30, ["--horizon-hours", "9999"], "expected some; use a longer log"),
    ],
)
def test_a_log_too_small_to_learn_from_is_refused(tmp_path: Path, users: int, options: list[str], said: str) -> None:
    with pytest.raises(FunnelcastError, match=said):
        run(write_log(tmp_path / "log.csv", users), tmp_path / "run", *options)


def test_unwritable_output_is_refused(tmp_path: Path, log: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FunnelcastError, match="cannot write to"):
        run(log, tmp_path / "file" / "run")


def test_training_goes_on_from_a_checkpoint_with_its_seed_and_remembers_where_it_came_from(
    tmp_path: Path, log: Path
) -> None:
    first = run(log, tmp_path / "a", "--epochs", "2", "--seed", "5", "--horizon-hours", "12")
    later = ("--from", str(tmp_path / "a"), "--since", "2017-11-26T00:00")
    second = run(log, tmp_path / "b", *later, "--epochs", "2")
    assert not same(first, second)
    _, told = read_checkpoint(tmp_path / "b")
    assert told.training["settings"]["seed"] == 5
    assert told.training["settings"]["since_ms"] == 1_511_654_400_000
    assert told.training["from"]["name"] == "a"
    assert told.contract.horizon_ms == 12 * 3_600_000
    assert "start" in json.loads((tmp_path / "b" / "metrics.json").read_text())
    run(log, tmp_path / "parts", *later, "--epochs", "1")
    assert same(second, run(log, tmp_path / "parts", *later, "--epochs", "2", "--resume"))
    with pytest.raises(FunnelcastError, match="other settings or another log"):
        run(log, tmp_path / "parts", *later[:2], "--since", "2017-11-27", "--resume")


def test_from_time_on_rows_before_are_history_only(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "a", "--epochs", "1")
    with pytest.raises(FunnelcastError, match="expected some; use a longer log"):
        run(log, tmp_path / "b", "--from", str(tmp_path / "a"), "--since", "2030-01-01")


def test_what_the_checkpoint_decides_cannot_be_asked_for(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "a", "--epochs", "1")
    with pytest.raises(FunnelcastError, match="found --horizon-hours with --from"):
        run(log, tmp_path / "b", "--from", str(tmp_path / "a"), "--horizon-hours", "3")
    assert not (tmp_path / "b").exists()


def test_training_goes_on_from_the_weights_inside_a_bundle(tmp_path: Path, log: Path) -> None:
    run(log, tmp_path / "a", "--from", str(SHIPPED), "--epochs", "1")
    _, told = read_checkpoint(tmp_path / "a")
    assert told.training["from"]["name"] == "taobao-small"

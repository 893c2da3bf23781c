"""Laws of tuning: never worse than the default, the time is kept, nothing is done twice, and what is found is used."""

import argparse
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from model import train
from model.checkpoint import read_checkpoint
from model.contract.errors import FunnelcastError
from model.evaluation import command as evaluation
from model.parts import split
from model.tabular import Trees
from model.tuning import command
from model.tuning.search import done_of, relative_loss
from model.tuning.tuned import read_tuned

torch.set_num_threads(1)

START, DAY = 1_511_600_000, 86_400


def write_log(path: Path, users: int = 60) -> Path:
    draw, lines = np.random.default_rng(0), []
    for user in range(users):
        at = START + int(draw.integers(DAY))
        for _ in range(12):
            at += int(draw.choice([60, 900, DAY // 3]))
            lines.append(f"u{user},{draw.integers(50)},{draw.integers(5)},{draw.choice(['pv', 'cart', 'buy'])},{at}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run(module: object, *words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    assert module.run(parser.parse_args([*map(str, words), "--no-progress"])) == 0  # type: ignore[attr-defined]


def study(folder: Path, what: str) -> optuna.Study:
    return optuna.load_study(study_name=what, storage=f"sqlite:///{folder / 'study.db'}")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "log.csv")


@pytest.fixture(scope="module")
def tuned(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    run(command, log, "--out", folder, "--minutes", "0.05", "--epochs", "1")
    return folder


def test_the_first_trial_is_the_default_and_what_is_found_is_never_worse(tuned: Path) -> None:
    assert (tuned / "history.png").read_bytes().startswith(b"\x89PNG")
    best = json.loads((tuned / "best.json").read_text())
    for what, default in (("network", 2e-3), ("boosting", Trees().learning_rate)):
        done = done_of(study(tuned, what))
        assert done[0].params["learning_rate"] == default
        assert study(tuned, what).best_value <= (done[0].value or 0)
        assert best[what] == study(tuned, what).best_params


def test_what_is_spent_is_not_spent_again_and_an_interrupted_search_goes_on(tuned: Path, log: Path) -> None:
    before = {what: len(study(tuned, what).trials) for what in ("network", "boosting")}
    study(tuned, "boosting").ask()  # as one that was interrupted leaves it
    run(command, log, "--out", tuned, "--minutes", "0.0001", "--epochs", "1")
    trials = study(tuned, "boosting").trials
    assert len(study(tuned, "network").trials) == before["network"]
    assert len(trials) == before["boosting"] + 1
    assert trials[-1].state == optuna.trial.TrialState.FAIL
    with pytest.raises(FunnelcastError, match="other seed; give those again"):
        run(command, log, "--out", tuned, "--minutes", "1", "--epochs", "1", "--seed", "1")


def test_no_user_whom_training_tests_on_is_looked_at(tmp_path: Path, log: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(log), "--out", str(tmp_path / "run"), "--minutes", "1", "--seed", "2", "--no-progress"]
    task = command.read_task(parser.parse_args(words))
    tested = set(split(task.splits[0].whole.users, 2)["test"])
    assert tested
    assert not any(tested & set(part) for s in task.splits for part in (s.train, s.validation, s.test))


def test_the_value_of_a_trial_is_one_for_the_base_rate(tmp_path: Path, log: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(log), "--out", str(tmp_path / "run"), "--minutes", "1", "--no-progress"]
    task = command.read_task(parser.parse_args(words))
    one = task.splits[0]._replace(test=task.splits[0].train)
    from model.tabular import known_rows, logit
    from model.tuning.search import rates_of

    rates = logit(rates_of(one.past, one.train))
    logits = np.tile(rates, (len(known_rows(one.whole, one.test)), 1, 1))
    assert relative_loss(logits, one) == pytest.approx(1, abs=1e-3)
    assert relative_loss(logits + 1, one) > 1


def test_training_and_evaluation_take_what_was_found(tmp_path: Path, log: Path, tuned: Path) -> None:
    found = read_tuned(tuned)
    assert found.network is not None
    run(train, log, "--out", tmp_path / "run", "--tuned", tuned, "--epochs", "1")
    model, told = read_checkpoint(tmp_path / "run")
    assert told.training["settings"]["learning_rate"] == found.network["learning_rate"]
    assert model.config.dropout == found.network["dropout"]
    words = ["--folds", "2", "--only-folds", "1", "--models", "boosting,base_rate", "--resamples", "20"]
    run(evaluation, log, "--out", tmp_path / "evaluated", "--tuned", tuned, *words)
    told_settings = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())["settings"]
    assert told_settings["tuned"]["boosting"] == json.loads((tuned / "best.json").read_text())["boosting"]
    with pytest.raises(FunnelcastError, match=r"no best.json in .*; give the --out of a funnelcast tune"):
        run(train, log, "--out", tmp_path / "other", "--tuned", tmp_path)


def test_no_time_is_refused(tmp_path: Path, log: Path) -> None:
    with pytest.raises(FunnelcastError, match="expected more than 0"):
        run(command, log, "--out", tmp_path / "run", "--minutes", "0")

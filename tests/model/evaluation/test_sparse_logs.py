"""Laws of logs that lack something: stages nobody reaches, categories, events other than orders."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import train
from model.contract.bundle import SCOPES
from model.contract.stages import STAGES
from model.evaluation import command
from model.measures import told
from model.offline import command as offline
from tests.support.logs import write

torch.set_num_threads(1)

INVOICES = ("--map", "user_id=customer,event=invoice,timestamp=day,item_id=article", "--events", "C*=refund,*=order")
QUICK = ("--no-progress", "--horizon-hours", "72.5")


@pytest.fixture(scope="module")
def invoices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write lines of invoices; a number that begins with C takes an earlier one back."""
    draw, lines = np.random.default_rng(0), ["invoice,article,day,customer"]
    for number in range(240):
        customer, day = draw.integers(40), draw.integers(1, 28)
        kind = "C" if draw.random() < 0.1 else ""
        lines += [f"{kind}{number},a{draw.integers(9)},2011-03-{day:02} 12:0{line},{customer}" for line in range(3)]
    return write(tmp_path_factory.mktemp("invoices"), "\n".join(lines) + "\n")


def run(module: Any, log: Path, *options: str) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args([str(log), *options])) == 0


@pytest.fixture(scope="module")
def evaluated(invoices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "run"
    models = ("--models", "reformer,boosting,logistic,markov,base_rate", "--epochs", "1", "--folds", "2")
    run(command, invoices, *INVOICES, *QUICK, *models, "--resamples", "20", "--no-time", "--out", str(out))
    return out


def test_without_categories_both_scopes_ask_the_same(evaluated: Path) -> None:
    cells = json.loads((evaluated / "metrics.json").read_text())["users"]["slices"]["all"]["markov"]
    assert 0 < cells["category"]["purchase"]["rate"] < 1
    assert cells["category"] == cells["user"]


def test_where_all_events_are_orders_every_stage_down_to_purchase_is_the_same(evaluated: Path) -> None:
    slices = json.loads((evaluated / "metrics.json").read_text())["users"]["slices"]
    for model in ("markov", "boosting"):
        aucs = {slices["all"][model]["user"][stage]["auc"] for stage in STAGES[:5]}
        assert len(aucs) == 1


def test_a_log_of_purchases_only_trains_and_is_scored(invoices: Path, tmp_path: Path) -> None:
    run(train, invoices, *INVOICES, *QUICK, "--epochs", "1", "--out", str(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < metrics["test"]["all"]["user"]["purchase"]["rate"] < 1
    run(offline, invoices, *INVOICES, "--no-progress", "--processes", "1", "--out", str(tmp_path / "scores.csv"))
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert sum(",event," in line for line in lines) == 720


def test_a_stage_that_nobody_reaches_has_no_auc_and_does_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    rows = [f"u{draw.integers(40)},product_view,{1_511_600_000 + draw.integers(4 * 86_400)}" for _ in range(600)]
    log = write(tmp_path, "\n".join(["user_id,event,timestamp", *rows]) + "\n")
    models = ("--models", "boosting,logistic,markov,reformer", "--epochs", "1", "--folds", "2", "--resamples", "20")
    run(command, log, "--no-progress", *models, "--out", str(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for cells in metrics["users"]["slices"]["all"].values():
        for scope in SCOPES:
            cell = cells[scope]["purchase"]
            assert (cell["auc"], cell["interval"]["auc"], cell["users_reaching"]) == (None, [None, None], 0)
            assert cell["ece"] < 0.1
    printed, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    assert "n/a" in printed
    assert not re.search(r"\bnan\b", printed + page)


def test_a_figure_that_is_not_defined_is_told_so() -> None:
    assert (told(0.5), told(float("nan")), told(float("inf"), ".2f")) == ("0.500", "n/a", "n/a")

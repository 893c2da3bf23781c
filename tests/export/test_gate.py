"""Laws of the gate: a model that is worse beyond noise is not packed, and the refusal has the figures."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export import __main__ as export
from model.checkpoint import read_checkpoint, save_checkpoint
from model.contract.bundle import SHIPPED
from model.contract.errors import FunnelcastError
from model.datasets import read_log
from model.gate import judge
from tests.support.clicks import EXCERPT
from tests.support.logs import write

torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The shipped checkpoint, free to be spoilt."""
    return Path(shutil.copytree(SHIPPED / "checkpoint", tmp_path / "checkpoint"))


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([*map(str, words), "--no-progress"]))


def test_a_model_is_no_worse_than_itself(checkpoint: Path) -> None:
    verdict = judge(checkpoint, SHIPPED, read_log(EXCERPT), False)
    assert verdict.worse == []
    for cell in verdict.figures["mean"].values():
        assert cell["difference"] == pytest.approx(0, abs=1e-5)
        np.testing.assert_allclose(cell["interval"], 0, atol=1e-5)
    assert verdict.figures["users"] >= 5


def test_a_worse_model_is_refused_with_the_figures_and_nothing_is_written(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, described = read_checkpoint(checkpoint)
    model.reach.weight.data.neg_()
    save_checkpoint(checkpoint, model, described)
    with pytest.raises(FunnelcastError, match=r"is worse than .* beyond noise: mean AUC 0\.\d+ against 0\.\d+, .* to "):
        run(checkpoint, tmp_path / "bundle", "--serving", SHIPPED, "--on", EXCERPT)
    assert not (tmp_path / "bundle").exists()
    assert "users kept aside" in capsys.readouterr().out


def test_a_difference_within_noise_is_let_pass(checkpoint: Path) -> None:
    model, described = read_checkpoint(checkpoint)
    model.reach.weight.data += 1e-3 * torch.randn(model.reach.weight.shape, generator=torch.Generator().manual_seed(0))
    save_checkpoint(checkpoint, model, described)
    verdict = judge(checkpoint, SHIPPED, read_log(EXCERPT), False)
    assert verdict.worse == []
    assert verdict.figures["mean"]["log-loss"]["difference"] != 0


def test_models_that_were_asked_other_questions_are_not_compared(tmp_path: Path, checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"horizon_ms": 86400000', '"horizon_ms": 3600000'))
    with pytest.raises(FunnelcastError, match="another horizon_ms than the serving bundle"):
        run(checkpoint, tmp_path / "bundle", "--serving", SHIPPED, "--on", EXCERPT)
    with pytest.raises(FunnelcastError, match="found one of --serving and --on"):
        run(checkpoint, tmp_path / "bundle", "--serving", SHIPPED)


def test_a_log_without_users_kept_aside_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    log = write(tmp_path, "user_id,event,timestamp\nu1,click,1511600000000\n")
    with pytest.raises(FunnelcastError, match="users whom the checkpoint kept aside, expected some"):
        judge(checkpoint, SHIPPED, read_log(log), False)

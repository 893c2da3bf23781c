"""Laws of devices: several processes train one model, half precision trains nearly the same one, one CPU the same."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import train
from model.contract.errors import FunnelcastError
from model.devices import CPU, Device
from model.reformer import WEIGHTS
from model.train import STATE
from tests.support.logs import write

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "rank_trainer.py"
START, DAY = 1_511_600_000, 86_400
GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a log in which some users buy and the others look."""
    draw, lines = np.random.default_rng(3), []
    for user in range(60):
        for _ in range(int(draw.integers(10, 30))):
            kind = draw.choice(("pv", "cart", "buy")) if user % 2 else "pv"
            lines.append(f"{user},{draw.integers(30)},{draw.integers(4)},{kind},{START + draw.integers(4 * DAY)}")
    return write(tmp_path_factory.mktemp("log"), "\n".join(lines) + "\n")


def words(log: Path, out: Path, *options: str) -> list[str]:
    taught = [] if "--taught" in options else ["--no-taught"]
    return [str(log), "--format", "taobao", "--no-progress", "--out", str(out), *taught, *options]


def run(log: Path, out: Path, *options: str) -> list[dict[str, float]]:
    """Train in this process; return the curve."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert train.run(parser.parse_args(words(log, out, *options))) == 0
    return curve(out)


def curve(out: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((out / "metrics.json").read_text())["curve"]
    return found


def run_two(log: Path, out: Path, *options: str) -> tuple[list[str], str]:
    """Train in two processes; return the digest of each one's weights, and what they printed."""
    out.parent.mkdir(exist_ok=True, parents=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = words(log, out, "--device", "cpu", *options)
    ran = subprocess.run(
        [*torchrun, str(SCRIPT), str(out.parent), *asked], capture_output=True, text=True, cwd=ROOT, timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [(out.parent / f"rank{rank}").read_text() for rank in range(2)], ran.stdout


def test_two_processes_train_one_model_write_it_once_and_resume_exactly(tmp_path: Path, log: Path) -> None:
    whole, said = run_two(log, tmp_path / "a" / "run", "--epochs", "2")
    assert whole[0] == whole[1]
    assert said.count("epoch   2") == said.count("checkpoint ") == 1
    assert {path.name for path in (tmp_path / "a" / "run").iterdir()} == {
        "config.json", "curves.png", "metrics.json", STATE, WEIGHTS,
    }  # fmt: skip
    losses = [point["validation"] for point in curve(tmp_path / "a" / "run")]
    assert losses[1] < losses[0]
    (tmp_path / "b" / "run").mkdir(parents=True)
    (tmp_path / "a" / STATE).rename(tmp_path / "b" / "run" / STATE)  # as if it had been killed after an epoch
    assert run_two(log, tmp_path / "b" / "run", "--epochs", "2", "--resume")[0] == whole
    for file in (WEIGHTS, "metrics.json"):
        assert (tmp_path / "a" / "run" / file).read_bytes() == (tmp_path / "b" / "run" / file).read_bytes()
    with pytest.raises(FunnelcastError, match="other settings or another log"):
        run(log, tmp_path / "b" / "run", "--device", "cpu", "--resume")


def test_two_processes_teach_one_model(tmp_path: Path, log: Path) -> None:
    digests, said = run_two(log, tmp_path / "run", "--epochs", "1", "--taught")
    assert digests[0] == digests[1]
    assert said.count("teacher  epoch   1") == said.count("checkpoint ") == 1


def test_every_process_has_as_many_batches_and_none_is_left_out() -> None:
    for count in (1, 2, 5, 6):
        batches = list(range(count))
        shares = [Device(CPU.at, rank=rank, processes=3).share(batches) for rank in range(3)]
        assert len({len(share) for share in shares}) == 1
        assert {batch for share in shares for batch in share} == set(batches)
    assert CPU.share(batches) == batches


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_less_than_full_precision_learns_nearly_the_same(tmp_path: Path, log: Path, precision: str) -> None:
    exact = run(log, tmp_path / "exact", "--device", "cpu", "--epochs", "3")
    found = run(log, tmp_path / precision, "--device", "cpu", "--epochs", "3", "--precision", precision)
    again = run(log, tmp_path / "again", "--device", "cpu", "--epochs", "3", "--precision", precision)
    assert found == again != exact
    assert found[2]["validation"] < found[0]["validation"]
    assert found[2]["validation"] == pytest.approx(exact[2]["validation"], rel=0.02)


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, log: Path) -> None:
    with pytest.raises(FunnelcastError, match="found no GPU that torch can use"):
        run(log, tmp_path / "run", "--device", "cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not GPU, reason="no GPU is here")
def test_a_gpu_learns_nearly_what_the_cpu_learns(tmp_path: Path, log: Path) -> None:
    exact = run(log, tmp_path / "cpu", "--device", "cpu", "--epochs", "3")
    found = run(log, tmp_path / "gpu", "--device", "cuda", "--epochs", "3")
    assert found[2]["validation"] < found[0]["validation"]
    assert found[2]["validation"] == pytest.approx(exact[2]["validation"], rel=0.1)

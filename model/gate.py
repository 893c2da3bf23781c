"""The gate: a new checkpoint and the bundle that serves in, a verdict out: is the new one worse, beyond noise?

Both answer the same rows of the same log, of users whom the checkpoint kept aside. The same bootstrap replicates of
these users measure both, so the differences are paired. What two runtimes may differ by is no difference.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.answering import Answerer, GraphAnswerer, TorchAnswerer, reach_logits
from model.checkpoint import Checkpoint, read_checkpoint
from model.contract.bundle import SCOPES
from model.contract.errors import FunnelcastError
from model.contract.graph import TOLERANCE
from model.contract.rows import Array, Rules
from model.contract.stages import STAGES
from model.datasets import Log, read_columns
from model.evaluation.figures import draw_users, interval
from model.explain.population import Sample, figures_by_replicate, sample_of_users
from model.histories import replay
from model.labels import reach_labels
from model.parts import split

REPLICATES = 300


class Verdict(NamedTuple):
    """How the new model compares with the serving one."""

    figures: dict[str, Any]
    worse: list[str]  # what is worse beyond noise, in words

    def lines(self) -> list[str]:
        """Say it."""
        told = self.figures
        lines = [f"gate     {told['users']} users kept aside, {told['positions']:,} positions, new against serving"]
        for name, cell in told["mean"].items():
            low, high = cell["interval"]
            lines.append(
                f"gate     mean {name} {cell['new']:.4f} against {cell['serving']:.4f}:"
                f" {cell['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
            )
        return lines


def judge(checkpoint: Path, serving: Path, log: Log, progress: bool | None = None) -> Verdict:
    """Compare a checkpoint with a serving bundle on a log. Raises FunnelcastError where they cannot be compared."""
    new, old = TorchAnswerer(checkpoint), GraphAnswerer(serving)
    _, described = read_checkpoint(checkpoint)
    check_comparable(new, old)
    columns, contract = read_columns(log), new.contract
    histories = replay(columns, Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules()), progress)
    settings = described.training.get("settings", {})
    users = split(tuple(histories.users), settings.get("seed", 0))["test"]
    labels = reach_labels(histories, contract.horizon_ms)
    fresh = histories.ts >= settings.get("since_ms", 0)
    sample = sample_of_users(histories, labels._replace(censored=labels.censored | ~fresh), users)
    if sample is None:
        raise FunnelcastError(
            f"{log.path} has {len(users)} users whom the checkpoint kept aside, expected some with a row whose horizon"
            " ends inside the log; judge on a longer log"
        )
    return compare(sample, new, old, described)


def check_comparable(new: Answerer, old: Answerer) -> None:
    """Refuse two models that were asked different questions."""
    for name in ("horizon_ms", "gap_ms", "late_ms", "funnel"):
        mine, theirs = getattr(new.contract, name), getattr(old.contract, name)
        if mine != theirs:
            raise FunnelcastError(
                f"the checkpoint was trained for another {name} than the serving bundle, expected the same to compare"
                " them; train with that of the bundle, or export without --serving"
            )


def compare(sample: Sample, new: Answerer, old: Answerer, described: Checkpoint) -> Verdict:
    """Measure both on a sample."""
    draws = draw_users(sample.user, int(sample.user.max()) + 1, REPLICATES, 0)
    mine, theirs = (
        figures_by_replicate(model.calibration.apply(reach_logits(model, sample.inputs)[sample.known]), sample, draws)
        for model in (new, old)
    )
    names = ("AUC", "log-loss")
    mean = {name: _cell(_mean(a), _mean(b)) for name, a, b in zip(names, mine, theirs, strict=True)}
    stages = {
        scope: {
            str(stage): {n: _cell(p[:, a, s], q[:, a, s]) for n, p, q in zip(names, mine, theirs, strict=True)}
            for s, stage in enumerate(STAGES)
        }
        for a, scope in enumerate(SCOPES)
    }
    worse = []
    for name, sign in (("AUC", -1), ("log-loss", 1)):
        cell = mean[name]
        if min(sign * bound for bound in cell["interval"]) > TOLERANCE:
            worse.append(
                f"mean {name} {cell['new']:.4f} against {cell['serving']:.4f}, a difference of"
                f" {cell['difference']:+.4f} ({cell['interval'][0]:+.4f} to {cell['interval'][1]:+.4f})"
            )
    figures = {
        "new": described.name,
        "serving": old.name,
        "users": len(np.unique(sample.user)),
        "positions": len(sample.known),
        "mean": mean,
        **stages,
    }
    return Verdict(figures, worse)


def _mean(table: Array) -> Array:
    """Average (1 + R, 2, S) over scopes and the stages from interest to loyalty."""
    there = np.isfinite(table[0, :, 1:])
    return np.asarray(np.nanmean(table[:, :, 1:][:, there], axis=1))


def _cell(mine: Array, theirs: Array) -> dict[str, Any]:
    gap = mine - theirs
    return {
        "new": float(mine[0]),
        "serving": float(theirs[0]),
        "difference": float(gap[0]),
        "interval": interval(gap[1:]),
    }

"""How good probabilities are: ROC AUC, log-loss against the base rate, calibration error.

In: logits or probabilities (P, 2, S) and outcomes (P, 2, S) of the positions that are not censored. Out: plain numbers.
"""

from typing import Any

import numpy as np

from model.contract.bundle import SCOPES
from model.contract.rows import Array
from model.contract.stages import STAGES

SMALLEST = 1e-6  # probabilities are kept this far from 0 and 1 in the log-loss
BINS = 15

Curve = list[dict[str, float]]  # losses on training and validation users, by epoch
Phases = dict[str, list[Curve]]  # learning curves by phase, one or several networks in each


def told(figure: float, form: str = ".3f") -> str:
    """Write a figure; n/a where there is none, as the AUC of a stage that nobody reaches."""
    return format(figure, form) if np.isfinite(figure) else "n/a"


def auc(scores: Array, outcomes: Array) -> float:
    """Return the ROC AUC by ranks (ties count half); NaN where one outcome is missing."""
    positives = float(outcomes.sum())
    negatives = len(outcomes) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[outcomes > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(probabilities: Array, outcomes: Array, weights: Array | None = None) -> Array:
    """Return the mean log-loss over the first axis, optionally weighted (P,); outcomes may be probabilities too."""
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.average(-(outcomes * np.log(p) + (1 - outcomes) * np.log1p(-p)), axis=0, weights=weights))


def calibration_error(probabilities: Array, outcomes: Array) -> float:
    """Return the expected calibration error over bins of equal width."""
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, outcomes - probabilities, BINS)
    return float(np.abs(gap).sum() / max(len(outcomes), 1))


def measure(probabilities: Array, outcomes: Array, base_rates: Array) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by scope and stage, the figures of (P, 2, S) probabilities beside those of the base rate."""
    base = np.broadcast_to(base_rates, probabilities.shape)
    ours, theirs = log_loss(probabilities, outcomes), log_loss(base, outcomes)  # (2, S)
    return {
        scope: {
            str(stage): {
                "auc": auc(probabilities[:, a, s], outcomes[:, a, s]),
                "log_loss": float(ours[a, s]),
                "base_log_loss": float(theirs[a, s]),
                "calibration_error": calibration_error(probabilities[:, a, s], outcomes[:, a, s]),
                "rate": float(outcomes[:, a, s].mean()),
            }
            for s, stage in enumerate(STAGES)
        }
        for a, scope in enumerate(SCOPES)
    }


def table(figures: dict[str, Any], users: int) -> str:
    """Lay out AUC and log-loss by stage and scope."""
    lines = [f"{users} users never seen in training", f"{'':15}" + "".join(f"{scope:>32}" for scope in SCOPES)]
    lines.append(f"{'stage':15}" + f"{'AUC':>10}{'log-loss':>11}{'base rate':>11}" * len(SCOPES))
    for stage in STAGES:
        cells = (figures[scope][stage] for scope in SCOPES)
        row = "".join(f"{told(cell['auc']):>10}{cell['log_loss']:11.4f}{cell['base_log_loss']:11.4f}" for cell in cells)
        lines.append(f"{stage:15}{row}")
    return "\n".join(lines)

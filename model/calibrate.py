"""Calibration: logits and outcomes of users not trained on in, a table per scope and stage out.

Each table is Platt's or isotonic, whichever predicts better in cross-validation by user; session ends weigh as much as
all other positions together, because that is when campaigns fire.
"""

from collections.abc import Callable

import numpy as np

from model.contract.bundle import SCOPES, Calibration, Kind, Knots
from model.contract.rows import Array
from model.contract.stages import STAGES
from model.measures import log_loss

PRIOR = 1.0  # weight, in positions, of the belief that logits need no calibration
FOLDS = 5
WON = 4  # folds in which isotonic must be the better one: it costs some ranking, so a hair's breadth is not enough
BEYOND = 2.0  # logits
MOST_KNOTS = 32
SESSION_END_SHARE = 0.3  # of the weight; they are about a seventh of the positions

Fitted = Callable[[Array], Array]  # logits -> probabilities


def fit_calibration(logits: Array, outcomes: Array, user: Array, session_end: Array) -> Calibration:
    """Fit and choose a table per scope and stage on positions (P, 2, S) of users (P,)."""
    weight = weights_of(session_end)
    fold = np.unique(user, return_inverse=True)[1] % FOLDS
    tables = [
        [_table(logits[:, a, s].astype(np.float64), outcomes[:, a, s], weight, fold) for s in range(len(STAGES))]
        for a in range(len(SCOPES))
    ]
    kinds = [[kind for kind, _, _ in row] for row in tables]
    return Calibration(
        scale=[[float(line[0]) for _, line, _ in row] for row in tables],
        shift=[[float(line[1]) for _, line, _ in row] for row in tables],
        kind=kinds,
        knots=[[knots if kind == "isotonic" else None for kind, _, knots in row] for row in tables],
    )


def weights_of(session_end: Array) -> Array:
    """Weigh positions (P,) so that session ends have their share; the mean weight is 1."""
    ends = float(session_end.mean()) if len(session_end) else 0.0
    if ends in (0.0, 1.0):
        return np.ones(len(session_end))
    share = max(SESSION_END_SHARE, ends)
    return np.where(session_end, share / ends, (1 - share) / (1 - ends))


def _table(logits: Array, outcomes: Array, weight: Array, fold: Array) -> tuple[Kind, Array, Knots]:
    """Return the better kind, Platt's scale and shift, and the isotonic knots."""
    gains = [_gain(logits, outcomes, weight, fold == held) for held in range(FOLDS)]
    better = sum(gains) > 0 and sum(gain > 0 for gain in gains) >= WON
    line = platt(logits, outcomes, weight)
    return "isotonic" if better else "platt", line, extended(isotonic(logits, outcomes, weight), line)


def _gain(logits: Array, outcomes: Array, weight: Array, test: Array) -> float:
    """Return by how much isotonic beats Platt on some positions, both fitted on the others; 0 if there are none."""
    fit = ~test
    if not fit.any() or not test.any():
        return 0.0
    part = logits[fit], outcomes[fit], weight[fit]
    line = platt(*part)
    knots = extended(isotonic(*part), line)
    guesses = sigmoid(line[0] * logits[test] + line[1]), np.interp(logits[test], knots.x, knots.p)
    losses = [float(log_loss(guess, outcomes[test], weight[test])) for guess in guesses]
    return (losses[0] - losses[1]) * float(weight[test].sum())


def extended(knots: Knots, line: Array) -> Knots:
    """Go on beyond the outermost knots towards Platt's line, lest what is ranked there becomes a tie."""
    first, last = knots.x[0] - BEYOND, knots.x[-1] + BEYOND
    low, high = sigmoid(line[0] * np.array([first, last]) + line[1])
    p = [min(float(low), knots.p[0]), *knots.p, max(float(high), knots.p[-1])]
    return Knots([first, *knots.x, last], p)


def platt(logits: Array, outcomes: Array, weight: Array) -> Array:
    """Fit scale and shift by Newton's method; a prior keeps them near 1 and 0 where there is little to fit."""
    columns = np.stack([logits, np.ones_like(logits)], 1).astype(np.float64)  # (P, 2)
    unchanged = np.array([1.0, 0.0])
    fitted = unchanged
    for _ in range(30):
        p = sigmoid(columns @ fitted)
        slope = columns.T @ (weight * (p - outcomes)) + PRIOR * (fitted - unchanged)
        curvature = (columns * (weight * p * (1 - p))[:, None]).T @ columns + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        fitted = fitted - step
        if np.abs(step).max() < 1e-9:
            break
    return fitted


def isotonic(logits: Array, outcomes: Array, weight: Array) -> Knots:
    """Fit a rising line: means of equally heavy groups of logits, pooled where they fall (adjacent violators).

    Each group is drawn towards the overall rate by one position, so that no probability is 0 or 1.
    """
    order = np.argsort(logits, kind="stable")
    x, y, w = logits[order].astype(np.float64), outcomes[order].astype(np.float64), weight[order]
    place = np.minimum((np.cumsum(w) - w / 2) * MOST_KNOTS / w.sum(), MOST_KNOTS - 1).astype(int)
    place = np.unique(np.maximum.accumulate(place[np.searchsorted(x, x)]), return_inverse=True)[1]  # ties stay together
    total = np.bincount(place, w)
    rate = float(np.average(y, weights=w))
    center, mean = np.bincount(place, w * x) / total, (np.bincount(place, w * y) + rate) / (total + 1)
    pooled: list[list[float]] = []  # center, mean, weight of each knot
    for knot in zip(center.tolist(), mean.tolist(), total.tolist(), strict=True):
        pooled.append(list(knot))
        while len(pooled) > 1 and pooled[-2][1] >= pooled[-1][1]:
            (x1, p1, w1), (x2, p2, w2) = pooled.pop(-2), pooled.pop()
            both = w1 + w2
            pooled.append([(x1 * w1 + x2 * w2) / both, (p1 * w1 + p2 * w2) / both, both])
    return Knots([knot[0] for knot in pooled], [min(1.0, knot[1]) for knot in pooled])


def sigmoid(x: Array) -> Array:
    """Turn logits into probabilities without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))

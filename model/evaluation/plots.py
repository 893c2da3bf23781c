"""Plots of the report: figures and probabilities in, PNG bytes out."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.contract.rows import Array
from model.contract.stages import STAGES
from model.evaluation.figures import Answers, Positions, rank
from model.measures import Phases

SHOWN = STAGES[1:]  # interest to loyalty
BINS = 10
POINTS = 300  # of a curve
ACROSS = 4  # learning curves in a line
COLOURS = ("#0b6e99", "#d9730d", "#6b8e23", "#a83279", "#888888", "#3b3b98", "#b8860b", "#2f4f4f", "#8b0000")


def roc(positions: Positions, answers: Mapping[str, Answers], scope: int) -> bytes:
    """Draw the ROC curve of every contender, a panel per stage."""
    return _panels(positions, answers, scope, _roc, "share of misses shown", "share of hits found")


def precision_recall(positions: Positions, answers: Mapping[str, Answers], scope: int) -> bytes:
    """Draw precision over recall."""
    return _panels(positions, answers, scope, _precision_recall, "share of hits found", "precision")


def lift(positions: Positions, answers: Mapping[str, Answers], scope: int) -> bytes:
    """Draw the lift over the share of positions taken, the likeliest first."""
    return _panels(positions, answers, scope, _lift, "share of positions taken", "lift")


def reliability(positions: Positions, answers: Answers, scope: int) -> bytes:
    """Draw observed over predicted rates: before and after calibration, and after it at session ends."""
    figure, axes = _grid()
    ended = positions.session_end
    everywhere = np.ones(len(ended), np.bool_)
    lines = (
        ("before", answers.before, everywhere),
        ("after", answers.after, everywhere),
        ("after, session ends", answers.after, ended),
    )
    for panel, stage in zip(axes, range(1, len(STAGES)), strict=True):
        panel.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
        for colour, (label, p, mask) in zip(COLOURS, lines, strict=False):
            if mask.any():
                x, y = _bins(p[mask, scope, stage], positions.outcomes[mask, scope, stage])
                panel.plot(x, y, marker="o", markersize=3, linewidth=1, color=colour, label=label)
        panel.set_title(STAGES[stage], fontsize=9)
    return _png(figure, axes, "predicted", "observed")


def learning(phases: Phases) -> bytes:
    """Draw training and validation losses by epoch: a panel per phase, a line per network."""
    lines = -(-len(phases) // ACROSS)
    figure = Figure(figsize=(4 * min(ACROSS, max(len(phases), 2)), 3 * lines))
    axes = list(figure.subplots(lines, min(ACROSS, len(phases)), squeeze=False).flat)
    for panel in axes[len(phases) :]:
        panel.set_visible(False)
    for panel, (name, curves) in zip(axes, phases.items(), strict=False):
        for number, curve in enumerate(curves):
            epochs = range(1, len(curve) + 1)
            for colour, kind in zip(COLOURS, ("train", "validation"), strict=False):
                label = kind if number == 0 else None
                panel.plot(epochs, [point[kind] for point in curve], color=colour, linewidth=1, alpha=0.7, label=label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_title(name, fontsize=9)
    return _png(figure, axes, "epoch", "loss")


def funnel(positions: Positions) -> bytes:
    """Draw how often each stage is reached, at all positions and at session ends."""
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots(1, 2)
    for scope, (panel, title) in enumerate(zip(axes, ("in the category", "anywhere"), strict=True)):
        parts = [("all positions", np.ones(len(positions.user), np.bool_)), ("session ends", positions.session_end)]
        for number, (label, mask) in enumerate((label, mask) for label, mask in parts if mask.any()):
            rates = positions.outcomes[mask, scope].mean(0)
            panel.barh(np.arange(len(STAGES)) + 0.4 * number, rates, 0.38, color=COLOURS[number], label=label)
        panel.set_yticks(np.arange(len(STAGES)) + 0.2, STAGES, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(title, fontsize=9)
    return _png(figure, axes, "share reached within the horizon", "")


def _panels(
    positions: Positions, answers: Mapping[str, Answers], scope: int, curve: Any, across: str, up: str
) -> bytes:
    figure, axes = _grid()
    for panel, stage in zip(axes, range(1, len(STAGES)), strict=True):
        y = positions.outcomes[:, scope, stage]
        for number, (name, said) in enumerate(answers.items()):
            if 0 < y.sum() < len(y):
                x, z = curve(said.after[:, scope, stage], y)
                thin = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
                panel.plot(x[thin], z[thin], color=COLOURS[number % len(COLOURS)], linewidth=1, label=name)
        panel.set_title(STAGES[stage], fontsize=9)
    return _png(figure, axes, across, up)


def _counts(p: Array, y: Array) -> tuple[Array, Array]:
    """Return hits and positions at each distinct probability, the highest first, cumulated."""
    ranked = rank(p.astype(np.float64), y.astype(np.float64))
    hits = np.cumsum(np.bincount(ranked.place, ranked.outcomes, ranked.distinct))
    return hits, np.cumsum(np.bincount(ranked.place, minlength=ranked.distinct))


def _roc(p: Array, y: Array) -> tuple[Array, Array]:
    hits, shown = _counts(p, y)
    return np.append(0, (shown - hits) / (len(y) - hits[-1])), np.append(0, hits / hits[-1])


def _precision_recall(p: Array, y: Array) -> tuple[Array, Array]:
    hits, shown = _counts(p, y)
    return hits / hits[-1], hits / shown


def _lift(p: Array, y: Array) -> tuple[Array, Array]:
    hits, shown = _counts(p, y)
    far = shown >= len(y) / 200  # the first few positions tell nothing
    return shown[far] / len(y), (hits / shown)[far] / y.mean()


def _bins(p: Array, y: Array) -> tuple[Array, Array]:
    """Return mean prediction and observed rate of groups of equal size."""
    groups = np.array_split(np.argsort(p, kind="stable"), BINS)
    pairs = [(p[group].mean(), y[group].mean()) for group in groups if len(group)]
    return np.array(pairs).T[0], np.array(pairs).T[1]


def _grid() -> tuple[Figure, Any]:
    figure = Figure(figsize=(3 * len(SHOWN), 3))
    return figure, figure.subplots(1, len(SHOWN))


def _png(figure: Figure, axes: Any, across: str, up: str) -> bytes:
    for panel in axes:
        panel.set_xlabel(across, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(up, fontsize=8)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=7, frameon=False)
    wide, high = figure.get_size_inches()
    figure.subplots_adjust(left=0.9 / wide, right=0.99, top=1 - 0.3 / high, bottom=0.54 / high, wspace=0.25, hspace=0.4)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=90)
    return target.getvalue()

"""Figures of a transfer: answers of every contender and budget in, what metrics.json says and the picture draws out."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from model.contract.bundle import SCOPES
from model.contract.rows import Array
from model.contract.stages import STAGES
from model.evaluation.figures import Answers, Positions, area, interval, rank
from model.evaluation.runs import Done
from model.measures import log_loss
from model.transfer.experiment import BOOSTING, SCRATCH, ZERO_SHOT, transferred

TOP = 0.05  # of the positions, for precision
COLOURS = (
    "#888888",
    "#0b6e99",
    "#3b3b98",
    "#2f9e8f",
    "#6b8e23",
    "#a83279",
    "#b8860b",
    "#d9730d",
    "#222222",
    "#c23b22",
    "#7f6a55",
)
FIGURES = ("auc", "precision", "log_loss")  # of the first two more is better, of the third less
PICKED, RIVALS = "picked", (SCRATCH, BOOSTING, ZERO_SHOT)
Replicated = dict[str, Array]  # figure -> (1 + R, 2, S): itself, then its replicates


def replicated(positions: Positions, answers: Answers, draws: Array) -> Replicated:
    """Measure what a contender says, all positions and by bootstrap replicates of the users."""
    weights = [np.ones(len(positions.user)), *(draw[positions.user] for draw in draws)]
    found = {name: np.full((len(weights), len(SCOPES), len(STAGES)), np.nan) for name in FIGURES}
    for a in range(len(SCOPES)):
        for s in range(len(STAGES)):
            p, y = answers.after[:, a, s].astype(np.float64), positions.outcomes[:, a, s].astype(np.float64)
            ranked, order, losses = rank(p, y), np.argsort(-p, kind="stable"), log_loss(p[None], y[None])
            found["auc"][:, a, s] = [area(ranked, weight) for weight in weights]
            found["precision"][:, a, s] = [_top(y[order], weight[order]) for weight in weights]
            found["log_loss"][:, a, s] = [np.average(losses, weights=weight) for weight in weights]
    return found


def averaged(parts: Sequence[Replicated]) -> Replicated:
    """Return the mean of what was measured on several draws of users, replicate by replicate."""
    return {name: np.mean([part[name] for part in parts], axis=0) for name in FIGURES}


def _top(y: Array, weight: Array) -> float:
    """Return the precision among the first positions that make up TOP of the weight."""
    summed = np.cumsum(weight)
    end = int(np.searchsorted(summed, TOP * summed[-1])) + 1
    return float((y[:end] * weight[:end]).sum() / summed[end - 1])


def summary(
    parts: Sequence[Mapping[str, Replicated]], done: Sequence[Mapping[str, Done]], names: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of one budget, means over draws: each contender, what the users pick, paired leads."""
    picks = [min(transferred(list(names)), key=lambda name: one[name].facts["validation"]) for one in done]
    found = {name: averaged([part[name] for part in parts]) for name in names}
    found[PICKED] = averaged([part[name] for part, name in zip(parts, picks, strict=True)])
    facts = {name: [one[name].facts for one in done] for name in names}
    facts[PICKED] = [one[name].facts for one, name in zip(done, picks, strict=True)]
    return {
        "users": done[0][names[0]].facts["users"],
        "picks": picks,
        "contenders": {name: _contender(found[name], facts[name]) for name in (PICKED, *names)},
        "paired": {f"{PICKED} over {name}": _paired(found[PICKED], found[name]) for name in RIVALS},
    }


def _mean(table: Array) -> Array:
    """Average (1 + R, 2, S) over scopes and the stages from interest to loyalty; those without both outcomes apart."""
    there = np.isfinite(table[0, :, 1:])  # (2, S - 1)
    return np.asarray(np.nanmean(table[:, :, 1:][:, there], axis=1)) if there.any() else np.full(len(table), np.nan)


def _cell(values: Array) -> dict[str, Any]:
    return {"value": float(values[0]), "interval": interval(values[1:])}


def _contender(found: Replicated, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {"mean": {name: _cell(_mean(found[name])) for name in FIGURES}}
    for a, scope in enumerate(SCOPES):
        told[scope] = {
            str(stage): {name: _cell(found[name][:, a, s]) for name in FIGURES} for s, stage in enumerate(STAGES)
        }
    told["cost"] = {name: float(np.mean([fact[name] for fact in facts])) for name in ("cpu_seconds", "epochs")}
    return told | {"validation_loss": float(np.mean([fact["validation"] for fact in facts]))}


def _paired(mine: Replicated, theirs: Replicated) -> dict[str, Any]:
    return {name: _cell(_mean(mine[name]) - _mean(theirs[name])) for name in FIGURES}


def table(budgets: Mapping[str, Any]) -> str:
    """Lay out the mean AUC of each contender by budget, and the paired leads in AUC and log-loss."""
    first = next(iter(budgets.values()))
    lines = [f"{'mean AUC':28}" + "".join(f"{float(share):>22.0%}" for share in budgets)]
    for name in first["contenders"]:
        cells = [figures["contenders"][name]["mean"]["auc"] for figures in budgets.values()]
        lines.append(f"{name:28}" + "".join(_told(cell, "") for cell in cells))
    for figure in ("auc", "log_loss"):
        lines.append(f"lead in {figure}")
        for name in first["paired"]:
            cells = [figures["paired"][name][figure] for figures in budgets.values()]
            lines.append(f"{name:28}" + "".join(_told(cell, "+") for cell in cells))
    return "\n".join(lines)


def _told(cell: Mapping[str, Any], sign: str) -> str:
    low, high = cell["interval"]
    return f"{cell['value']:{sign}.3f} ({low:{sign}.3f} {high:{sign}.3f})".rjust(22)


def picture(told: Mapping[str, Any]) -> bytes:
    """Draw AUC and precision by budget with intervals, and what each contender cost."""
    budgets = told["budgets"]
    names = list(next(iter(budgets.values()))["contenders"])
    figure = Figure(figsize=(15, 5))
    axes = figure.subplots(1, 3)
    place = np.arange(len(budgets))
    titles = ("mean ROC AUC over stages and scopes", f"mean precision among the likeliest {TOP:.0%}")
    for panel, name, title in zip(axes, FIGURES, titles, strict=False):
        for number, contender in enumerate(names):
            cells = [figures["contenders"][contender]["mean"][name] for figures in budgets.values()]
            value = np.array([cell["value"] for cell in cells])
            bounds = np.array([cell["interval"] for cell in cells]).T
            at = place + 0.07 * (number - len(names) / 2)
            panel.errorbar(at, value, np.abs(bounds - value), marker="o", ms=4, lw=1, elinewidth=0.8,
                           color=COLOURS[number % len(COLOURS)], label=contender)  # fmt: skip
        panel.set_title(title, fontsize=9)
    for number, contender in enumerate(names):
        cost = [figures["contenders"][contender]["cost"]["cpu_seconds"] for figures in budgets.values()]
        axes[2].plot(place, np.maximum(cost, 0.1), marker="o", ms=4, lw=1, color=COLOURS[number % len(COLOURS)])
    axes[2].set_yscale("log")
    axes[2].set_title("cost of a fit, processor seconds", fontsize=9)
    for panel in axes:
        users = [figures["users"]["budget"] for figures in budgets.values()]
        panel.set_xticks(place, [f"{float(s):.0%}\n{n} users" for s, n in zip(budgets, users, strict=True)], fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    marks, labels = axes[0].get_legend_handles_labels()
    figure.legend(marks, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    head = f"{told['source']['name']} to {told['target']['name']}; bars: 95 % of the user-bootstrap replicates"
    figure.suptitle(head, fontsize=10, x=0.01, ha="left")
    figure.subplots_adjust(left=0.04, right=0.99, top=0.87, bottom=0.17, wspace=0.14)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=100)
    return target.getvalue()

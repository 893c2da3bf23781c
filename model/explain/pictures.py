"""Pictures of explanations: what the JSON files say in, PNG bytes out."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from model.contract.bundle import SCOPES
from model.contract.stages import STAGES

SHOWN = [str(stage) for stage in STAGES[1:]]  # interest to loyalty
TITLES = {"category": "in the category of the event", "user": "anywhere"}
MOST_EVENTS, SMALLEST_SHOWN = 25, 5e-4  # events of a picture, and the probability that is shown as 0.1 points
MOST_ROWS, MOST_FEATURES = 60, 20
COLOURS = ("#0b6e99", "#d9730d", "#6b8e23", "#a83279", "#3b3b98")


def user_picture(told: Mapping[str, Any]) -> bytes:
    """Draw the effect of the events that mattered most, in their order, and below it what the row attends to."""
    events = sorted(told["events"], key=lambda event: -_size(event))[:MOST_EVENTS]
    events = [event for event in events if _size(event) >= SMALLEST_SHOWN] or events[:1]
    events.sort(key=lambda event: event["timestamp"])
    high = 0.27 * max(len(events), 1) + 0.6
    low = 0.0 if told["attention"] is None else 0.22 * np.size(told["attention"]["hash_bucket"]) + 1.2
    figure = Figure(figsize=(13, high + low + 1.2))
    grid = figure.add_gridspec(1 if not low else 2, 2, height_ratios=[high] if not low else [high, low])
    worst = max([abs(v) for e in events for scope in SCOPES for v in _values(e["effect"], scope)], default=0) or 1e-6
    for place, scope in enumerate(SCOPES):
        _effects(figure.add_subplot(grid[0, place]), told, events, scope, worst, place == 0)
    if low:
        _attention(figure.add_subplot(grid[1, :]), told["attention"])
    figure.suptitle(_headline(told), fontsize=10, x=0.01, ha="left")
    figure.subplots_adjust(left=0.21, right=0.985, top=1 - 0.75 / figure.get_figheight(), bottom=0.06, wspace=0.06)
    return _png(figure)


def _headline(told: Mapping[str, Any]) -> str:
    asked = told["asked"]
    where = f"{asked['kind']} at {asked['utc']} UTC, after {asked['event']} in category {asked['category']}"
    return f"user {told['user_id']}: {where} — percentage points by which each past event moved the answer"


def _size(event: Mapping[str, Any]) -> float:
    return max(abs(value) for scope in SCOPES for value in _values(event["effect"], scope))


def _values(table: Mapping[str, Any], scope: str) -> list[float]:
    return [table[scope][stage] for stage in SHOWN]


def _effects(panel: Any, told: Mapping[str, Any], events: list[Any], scope: str, worst: float, named: bool) -> None:
    table = np.array([_values(event["effect"], scope) for event in events]).reshape(len(events), len(SHOWN))
    if len(table):
        panel.imshow(table, cmap="RdBu_r", vmin=-worst, vmax=worst, aspect="auto")
    else:
        panel.set_xlim(-0.5, len(SHOWN) - 0.5)
        panel.text(1.5, 0.5, "no event before it")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if abs(value) > 0.6 * worst else "black"
        panel.text(column, row, f"{100 * value:+.1f}", ha="center", va="center", fontsize=7, color=ink)
    chances = told["probabilities"][scope]
    panel.set_xticks(range(len(SHOWN)), [f"{stage}\n{chances[stage]:.0%}" for stage in SHOWN], fontsize=8)
    panel.xaxis.tick_top()
    labels = [f"{e['utc'][5:16]}  {e['event']}  cat. {e['category']}" for e in events]
    panel.set_yticks(range(len(events)), labels if named else [], fontsize=7)
    panel.set_xlabel(TITLES[scope], fontsize=9)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def _attention(panel: Any, attention: Mapping[str, Any]) -> None:
    weight = np.array(attention["weight"])  # (layers, H, L)
    layers, heads, length = weight.shape
    shown = min(MOST_ROWS, length)
    panel.imshow(weight.reshape(-1, length)[:, -shown:], cmap="Greens", vmin=0, aspect="auto")
    labels = []
    for layer in range(layers):
        for head in range(heads):
            mine, sizes = attention["hash_bucket"][layer][head], attention["rows_by_hash_bucket"][layer][head]
            held = ", ".join(f"{b} ({sizes[r][b]} of {length} rows)" for r, b in enumerate(mine))
            labels.append(f"layer {layer + 1} head {head + 1}: hash bucket {held}")
    panel.set_yticks(range(len(labels)), labels, fontsize=7)
    names = [name.replace("_", " ") for name in attention["rows"][-shown:]]
    panel.set_xticks(range(shown), names, fontsize=6, rotation=90)
    panel.set_title(f"attention of the row asked about to the latest {shown} rows of its hash bucket", fontsize=9)
    panel.tick_params(length=0)


def population_picture(told: Mapping[str, Any]) -> bytes:
    """Draw the most costly features and the effect of each type of event."""
    features = list(told["features"].items())[:MOST_FEATURES]
    types = list(told["types"].items())
    figure = Figure(figsize=(13, 0.9 + 0.3 * max(len(features), len(types) * 2)))
    left, right = figure.subplots(1, 2)
    _bars(left, features, "auc_drop", "fall of the ROC AUC without it (mean over stages and scopes)")
    width = 0.8 / len(SHOWN)
    for number, stage in enumerate(SHOWN):
        cells = [cell["category"][stage] for _, cell in types]
        value = np.array([100 * cell["change"] for cell in cells])
        bounds = 100 * np.array([cell["change_interval"] for cell in cells]).reshape(len(types), 2)
        at = np.arange(len(types)) + width * (number - 2)
        error = np.abs(bounds.T - value)
        right.barh(at, value, width, xerr=error, color=COLOURS[number], label=stage, error_kw={"lw": 0.8})
    right.set_yticks(range(len(types)), [f"{name}\n{cell['questions']} answers" for name, cell in types], fontsize=8)
    right.set_xlabel("percentage points by which past events of the type move the answer (in the category)", fontsize=8)
    right.legend(fontsize=7, frameon=False)
    right.axvline(0, color="#999999", lw=0.8)
    for panel in (left, right):
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    head = f"{told['users']} users, {told['positions']:,} positions; bars: 95 % of the user-bootstrap replicates"
    figure.suptitle(f"What {told['model']} goes by — {head}", fontsize=10, x=0.01, ha="left")
    figure.subplots_adjust(left=0.16, right=0.985, top=1 - 0.5 / figure.get_figheight(), bottom=0.1, wspace=0.28)
    return _png(figure)


def features_picture(features: Mapping[str, Any]) -> bytes:
    """Draw the most costly features alone."""
    shown = list(features.items())[:MOST_FEATURES]
    figure = Figure(figsize=(8, 1.0 + 0.26 * len(shown)))
    panel = figure.subplots()
    _bars(panel, shown, "auc_drop", "fall of the ROC AUC without it (mean over stages and scopes)")
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    figure.subplots_adjust(left=0.3, right=0.98, top=0.98, bottom=0.6 / figure.get_figheight())
    return _png(figure)


def _bars(panel: Any, rows: list[Any], name: str, label: str) -> None:
    value = np.array([cell["mean"][name] for _, cell in rows])
    bounds = np.array([cell["mean"][f"{name}_interval"] for _, cell in rows]).reshape(len(rows), 2)
    panel.barh(range(len(rows)), value, xerr=np.abs(bounds.T - value), color=COLOURS[0], error_kw={"lw": 0.8})
    panel.set_yticks(range(len(rows)), [feature for feature, _ in rows], fontsize=8)
    panel.set_xlabel(label, fontsize=8)


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()

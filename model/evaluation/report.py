"""The report: figures and answers in, one HTML file out that needs no other file and no network."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from model.checkpoint import write_whole
from model.contract.bundle import SCOPES
from model.contract.stages import STAGES
from model.evaluation import plots
from model.evaluation.figures import ROWS, Answers, Positions
from model.explain.pictures import features_picture
from model.measures import Phases, told

Views = Mapping[str, tuple[Positions, Mapping[str, Answers]]]

TITLES = {
    "users": "Users never seen in training (cross-validation by user)",
    "time": "The future (fitted on the past)",
}
PARTS = {"all": "all positions", "session_end": "session ends"}
COLUMNS = ("pr_auc", "log_loss", "brier", "ece", "ece_before")
NAMES = ("PR AUC", "log-loss", "Brier", "calibration error", "before calibration", "P@5 %", "lift@5 %")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; font-size: 13px; }
td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
small { color: #777; } .good { color: #176d2b; font-weight: 600; } .bad { color: #a11; font-weight: 600; }
img { max-width: 100%; } h2 { margin-top: 2.4rem; border-top: 2px solid #ddd; padding-top: 1rem; }
"""


def write_report(path: Path, metrics: Mapping[str, Any], views: Views) -> None:
    """Write the report of metrics.json's content and the answers behind it."""
    models = metrics["settings"]["models"]
    body = [*_head(metrics), *_card(metrics)]
    for name, (positions, answers) in views.items():
        body.append(f"<h2>{escape(TITLES[name])}</h2>")
        body += _view(metrics[name], models, positions, answers)
    text = f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{STYLE}</style>"
    write_whole(path, (text + "\n".join(body) + "</html>\n").encode())


def _head(metrics: Mapping[str, Any]) -> Iterator[str]:
    data, main = metrics["data"], metrics["settings"]["models"][0]
    yield f"<h1>Evaluation of {escape(main)} on {escape(data['name'])}</h1>"
    yield (
        f"<p>{data['events']:,} events of {data['users']:,} users; {data['rows']:,} rows with session ends, of which"
        f" {data['censored_rows']:,} are left out because their horizon leaves the log.</p>"
    )


def _card(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Say what was asked, how, and of which data."""
    settings, data = metrics["settings"], metrics["data"]
    yield f"""<h2>Model card</h2><p>Asked at every event and at every session end: will the user reach this stage or a
        deeper one within {settings["horizon_hours"]:g} hours, in the category of the event, and anywhere? Answers are
        calibrated on users that are neither trained nor tested on, each scope and stage by itself. Intervals hold 95 %
        of bootstrap replicates of the users; differences are paired. Figures of cross-validation pool the folds, so a
        contender that tells nobody apart comes out slightly below .5.</p>"""
    facts = {**settings, "models": ", ".join(settings["models"]), "fingerprint of the data": data["fingerprint"]}
    yield _table(("", "value"), [(key, str(value)) for key, value in facts.items()])


def _view(
    figures: Mapping[str, Any], models: list[str], positions: Positions, answers: Mapping[str, Answers]
) -> list[str]:
    parts = [part for part in PARTS if part in figures["slices"]]
    body = [_image(plots.funnel(positions), "how often each stage is reached")]
    for scope, name in enumerate(SCOPES):
        title = "In the category of the event" if name == "category" else "Anywhere"
        body.append(f"<h3>{title}</h3>")
        for part in parts:
            body.append(f"<h4>At {PARTS[part]}</h4>")
            body += [_stage(figures, part, name, stage, models) for stage in STAGES[1:]]
        body.append(_image(plots.roc(positions, answers, scope), "ROC curves"))
        body.append(_image(plots.precision_recall(positions, answers, scope), "precision over recall"))
        body.append(_image(plots.reliability(positions, answers[models[0]], scope), f"reliability of {models[0]}"))
        body.append(_image(plots.lift(positions, answers, scope), "lift"))
    body.append("<h3>Slices</h3>")
    body += [_slices(figures["slices"], name, models[0]) for name in SCOPES]
    body.append("<h3>AUC by the rows of the user so far</h3>")
    body += [_lengths(figures["slices"], models, scope, stage) for scope in SCOPES for stage in STAGES[1:]]
    if phases := _phases(figures["fits"]):
        body.append(_image(plots.learning(phases), "learning curves, one line per network"))
    for name, found in figures["fits"].items():
        for features in (fit["features"] for fit in found if fit["features"]):
            body.append(f"<h3>What {escape(name)} looks at</h3>")
            label = "what is lost when a feature is permuted among the rows of users not seen; 95 % of the replicates"
            body.append(_image(features_picture(features), label))
    return [*body, _costs(figures["fits"])]


def _stage(figures: Mapping[str, Any], part: str, scope: str, stage: str, models: list[str]) -> str:
    """Lay out one stage: every contender, and the first one's paired lead in AUC."""
    rows = []
    for model in models:
        cell = figures["slices"][part][model][scope][stage]
        shown = [_with_interval(cell, column) for column in COLUMNS]
        shown += [f"{cell['precision_at']['0.05']:.3f}", told(cell["lift_at"]["0.05"], ".2f")]
        lead = figures["paired"].get(part, {}).get(model)
        ahead = _lead(lead[scope][stage]["auc"]) if lead else ""
        rows.append((escape(model), _with_interval(cell, "auc"), ahead, *shown))
    first = figures["slices"][part][models[0]][scope][stage]
    reached = f"{escape(stage)} <small>{first['rate']:.1%}, {first['users_reaching']:,} users</small>"
    header = (reached, "ROC AUC", f"lead of {escape(models[0])}", *NAMES)
    return _table(header, rows)


def _with_interval(cell: Mapping[str, Any], column: str) -> str:
    bounds = cell["interval"].get(column, [math.nan])
    tail = f" <small>{bounds[0]:.3f} to {bounds[1]:.3f}</small>" if math.isfinite(bounds[0]) else ""
    return f"{told(cell[column])}{tail}"


def _lead(gap: Mapping[str, Any]) -> str:
    low, high = gap["interval"]
    if not math.isfinite(low):
        return "n/a"
    mark = "good" if low > 0 else "bad" if high < 0 else ""
    return f"<span class='{mark}'>{gap['difference']:+.3f}</span> <small>{low:+.3f} to {high:+.3f}</small>"


def _slices(slices: Mapping[str, Any], scope: str, main: str) -> str:
    rows = []
    for name, cells in slices.items():
        stages = [cells[main][scope][stage] for stage in STAGES[1:]]
        shown = [f"{told(cell['auc'])} <small>({cell['ece']:.3f})</small>" for cell in stages]
        rows.append((escape(name), f"{stages[0]['positions']:,}", *shown))
    return _table((f"{escape(main)}, {scope}: AUC (calibration error)", "positions", *STAGES[1:]), rows)


def _lengths(slices: Mapping[str, Any], models: list[str], scope: str, stage: str) -> str:
    """Lay out the AUC of every contender by length of the history that it goes by."""
    names = [name for name in slices if name.startswith(ROWS)]
    rows = [
        (escape(model), *(_with_interval(slices[name][model][scope][stage], "auc") for name in names))
        for model in models
    ]
    return _table((f"{escape(stage)}, {scope}", *names), rows)


def _phases(fits: Mapping[str, list[Mapping[str, Any]]]) -> Phases:
    """Return the learning curves of all fits together, by network and phase."""
    found: Phases = {}
    for name, facts in fits.items():
        for phase, curves in (item for fit in facts for item in fit["phases"].items()):
            found.setdefault(f"{name}: {phase}", []).extend(curves)
    return found


def _costs(fits: Mapping[str, list[Mapping[str, Any]]]) -> str:
    rows = []
    for name, found in fits.items():
        epochs = [
            sum(len(one) for curves in fit["phases"].values() for one in curves) for fit in found if fit["phases"]
        ]
        seconds = sum(fit["cpu_seconds"] for fit in found)
        rows.append((escape(name), str(len(found)), f"{seconds:,.0f}", ", ".join(map(str, epochs))))
    return "<h3>Cost</h3>" + _table(("contender", "fits", "processor seconds", "epochs"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _image(png: bytes, label: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<p><small>{escape(label)}</small><br><img alt='{escape(label)}' src='data:image/png;base64,{data}'></p>"

"""`funnelcast evaluate LOG --out DIR`: how good the network and its rivals are on users they have never seen.

Cross-validation with folds of users, and a fit on the past asked about the future. The run directory holds a file per
fit (an interrupted evaluation goes on where it stopped), metrics.json and report.html.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from model.baselines import CONTENDERS
from model.checkpoint import write_whole
from model.contract.bundle import SCOPES
from model.contract.rows import HOUR_MS
from model.contract.stages import STAGES, load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import add_log_arguments
from model.evaluation.figures import (
    ROWS,
    Answers,
    Positions,
    compared,
    draw_users,
    figures_of,
    pick,
    positions_of,
    slices,
)
from model.evaluation.report import PARTS, write_report
from model.evaluation.runs import Done, Plan, load, prepare, rows_of, run_all
from model.evaluation.splits import TIME, Split, check, time_split, user_folds
from model.fit import Settings
from model.measures import told
from model.options import at_least, hours
from model.prepared.source import examples_from
from model.recipe import DEFAULTS, RECIPE
from model.reformer import TIERS
from model.tuning.tuned import read_tuned, tuned_settings

METRICS, REPORT = "metrics.json", "report.html"
DEFAULT_MODELS = "reformer,boosting,logistic,markov,base_rate"
FEWEST_POSITIONS = 200  # of a slice


class Compared(NamedTuple):
    """One view of the evaluation: all folds together, or the time split."""

    name: str
    positions: Positions
    answers: dict[str, Answers]  # by contender
    facts: dict[str, list[dict[str, Any]]]  # by contender, of each fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the log and the comparison."""
    add_log_arguments(parser, why="the event log, or DIR of funnelcast prepare")
    add = parser.add_argument_group("the evaluation").add_argument
    add(
        "--out", type=Path, required=True, metavar="DIR", help="run directory; given again, it goes on where it stopped"
    )
    add("--folds", type=at_least(2), default=5, metavar="N", help="folds of users (default: 5)")
    add("--only-folds", type=at_least(1), metavar="N", help="do the first N folds only, and no time split")
    add("--no-time", action="store_true", help="leave out the fit on the past")
    add(
        "--models",
        type=_models,
        default=DEFAULT_MODELS,
        metavar="A,B",
        help=f"the first is compared with the others (default: {DEFAULT_MODELS}); of {', '.join(CONTENDERS)}",
    )
    add("--tier", choices=sorted(TIERS), default="small", help="size of the networks (default: small)")
    add(
        "--tuned", type=Path, metavar="DIR", help="settings of networks and of boosting from a finished funnelcast tune"
    )
    add("--epochs", type=at_least(1), default=60, help="at most so many (default: 60)")
    add("--resamples", type=at_least(20), default=200, metavar="N", help="bootstrap replicates (default: 200)")
    add("--pretrain", type=at_least(0), default=DEFAULTS["pretrain"], metavar="N", help="as of training (default: 0)")
    taught = "of the Reformer, as of training (default: yes)"
    add("--taught", action=argparse.BooleanOptionalAction, default=DEFAULTS["taught"], help=taught)
    add("--balance", type=float, default=DEFAULTS["balance"], metavar="X", help="as of training (default: 0)")
    add("--seed", type=at_least(0), default=0, help="of folds, fits and replicates (default: 0)")
    add("--funnel", type=Path, help="which events reach which stage (default: the funnel that ships)")
    add("--horizon-hours", type=hours, default=24, help="reached if within so many hours (default: 24)")


def _models(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise argparse.ArgumentTypeError(f"unknown model {unknown[0]!r}, expected some of {', '.join(CONTENDERS)}")
    return names


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; metrics.json and report.html are there when this returns."""
    folder, horizon_ms = arguments.out, round(arguments.horizon_hours * HOUR_MS)
    tuned = read_tuned(arguments.tuned)
    config = msgspec.structs.replace(TIERS[arguments.tier], seed=arguments.seed)
    recipe = {name: getattr(arguments, name) for name in RECIPE}
    fits = tuned_settings(tuned, Settings(config, arguments.seed, **recipe))
    vocabulary = Vocabulary(item_hashes=config.item_hashes, category_hashes=config.category_hashes)
    examples, data = examples_from(arguments, load_funnel(arguments.funnel), horizon_ms, vocabulary)
    names = ("folds", "tier", "epochs", "seed", "horizon_hours")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names} | recipe
    if arguments.tuned:
        settings["tuned"] = msgspec.to_builtins(tuned)
    splits = user_folds(examples, arguments.folds, arguments.seed)[: arguments.only_folds]
    if not (arguments.no_time or arguments.only_folds):
        splits.append(time_split(examples, horizon_ms, arguments.seed))
    for split in splits:
        check(split)
    prepare(folder, examples, settings)
    plan = Plan(arguments.models, fits, arguments.epochs, arguments.progress)
    run_all(folder, splits, plan)
    views = [view(folder, name, part, plan) for name, part in _views(splits)]
    metrics: dict[str, Any] = {"data": data, "settings": settings | {"models": plan.models}}
    metrics |= {one.name: measure(one, plan, arguments.resamples, len(examples.users)) for one in views}
    write_report(folder / REPORT, metrics, {one.name: (one.positions, one.answers) for one in views})
    write_whole(folder / METRICS, msgspec.json.format(msgspec.json.encode(metrics), indent=1) + b"\n")
    print(table(metrics[views[0].name], plan.models))
    print(f"report  {folder / REPORT}  (figures in {METRICS})")
    return 0


def _views(splits: list[Split]) -> list[tuple[str, list[Split]]]:
    folds, past = [s for s in splits if s.name != TIME], [s for s in splits if s.name == TIME]
    return [("users", folds), *([(TIME, past)] if past else [])]


def view(folder: Path, name: str, splits: list[Split], plan: Plan) -> Compared:
    """Put the answers of several splits one after another."""
    parts = [positions_of(split.whole, rows_of(split)) for split in splits]
    positions = Positions(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    done: dict[str, list[Done]] = {model: [load(folder, split, model) for split in splits] for model in plan.models}
    answers = {
        model: Answers(*(np.concatenate(column) for column in zip(*(one.answers for one in found), strict=True)))
        for model, found in done.items()
    }
    return Compared(name, positions, answers, {model: [one.facts for one in found] for model, found in done.items()})


def measure(one: Compared, plan: Plan, resamples: int, users: int) -> dict[str, Any]:
    """Return figures, slices and paired comparisons of one view."""
    draws = draw_users(one.positions.user, users, resamples, plan.settings.seed)
    result: dict[str, Any] = {"fits": one.facts, "slices": {}, "paired": {}}
    main, *others = plan.models
    for name, mask in slices(one.positions):
        if mask.sum() < FEWEST_POSITIONS and name != "all":
            continue
        chosen = draws if name in PARTS or name.startswith(ROWS) else draws[:0]
        cells = {model: figures_of(*pick(one.positions, one.answers[model], mask), chosen) for model in plan.models}
        if name in PARTS:
            result["paired"][name] = {model: compared(cells[main], cells[model]) for model in others}
        for figures in cells.values():
            for cell in (cell for stages in figures.values() for cell in stages.values()):
                del cell["replicates"]
        result["slices"][name] = cells
    return result


def table(figures: dict[str, Any], models: tuple[str, ...]) -> str:
    """Lay out AUC and calibration error at all positions and at session ends."""
    lines = []
    for part in PARTS:
        for scope in SCOPES if part in figures["slices"] else ():
            lines.append(f"{part}, {scope}: AUC (calibration error)")
            lines.append(f"{'':17}" + "".join(f"{stage:>16}" for stage in STAGES))
            for model in models:
                cells = figures["slices"][part][model][scope].values()
                lines.append(f"{model:17}" + "".join(f"{told(cell['auc']):>9} ({cell['ece']:.3f})" for cell in cells))
    return "\n".join(lines)

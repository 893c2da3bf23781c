"""`funnelcast tune LOG --out DIR --minutes M`: settings of the network and of boosting, each searched for as long.

DIR holds the studies (study.db, to go on from), best.json for `train --tuned` and `evaluate --tuned`, and history.png.
The users whom `funnelcast train` tests on under the same seed are left out, so its figures stay honest.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import msgspec
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import TrialState
from tqdm import tqdm

from model.checkpoint import write_whole
from model.contract.errors import FunnelcastError
from model.contract.rows import HOUR_MS
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import add_log_arguments
from model.evaluation.runs import prepare
from model.evaluation.splits import check, user_folds
from model.fit import Settings
from model.options import at_least, hours
from model.parts import split as parts_of
from model.prepared.source import examples_from
from model.reformer import TIERS
from model.tuning.search import BOOSTING, NETWORK, Task, default_of, done_of, open_study, search, spent_seconds
from model.tuning.tuned import BEST

STUDY, PICTURE = "study.db", "history.png"
FOLDS, USED = 3, 2  # folds of users, and how many of them a trial is judged on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the log and the budget."""
    add_log_arguments(parser, why="the event log, or DIR of funnelcast prepare")
    add = parser.add_argument_group("the search").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="run directory; given again, it goes on")
    minutes = "of the search, all calls together, half of it for each of network and boosting"
    add("--minutes", type=float, required=True, metavar="M", help=minutes)
    add("--only", choices=(NETWORK, BOOSTING), help="search for one of them only, with all of the time")
    add("--tier", choices=sorted(TIERS), default="small", help="size of the network (default: small)")
    add("--epochs", type=at_least(1), default=25, help="of each fit, at most (default: 25)")
    add("--seed", type=at_least(0), default=0, help="of folds, fits and trials (default: 0)")
    add("--funnel", type=Path, help="which events reach which stage (default: the funnel that ships)")
    add("--horizon-hours", type=hours, default=24, help="reached if within so many hours (default: 24)")


def run(arguments: argparse.Namespace) -> int:
    """Search; best.json and history.png are there when this returns."""
    if not arguments.minutes > 0:
        raise FunnelcastError(f"--minutes is {arguments.minutes:g}, expected more than 0; give the search some time")
    folder, task = arguments.out, read_task(arguments)
    kinds = [arguments.only] if arguments.only else [NETWORK, BOOSTING]
    seconds = 60 * arguments.minutes / len(kinds)
    studies = {}
    for what in kinds:
        storage = f"sqlite:///{(folder / STUDY).absolute()}"
        studies[what] = study = open_study(storage, what, task)
        hide = None if arguments.progress is None else not arguments.progress
        with tqdm(desc=what, unit=" trials", initial=len(done_of(study)), disable=hide) as bar:

            def tell(study: optuna.Study = study, bar: Any = bar) -> None:
                bar.update()
                bar.set_postfix(best=f"{study.best_value:.4f}")

            search(study, what, task, seconds - spent_seconds(study), tell)
        print(line(what, study))
    save(folder, studies)
    return 0


def read_task(arguments: argparse.Namespace) -> Task:
    """Replay and label the log, leave out the users who are tested on later, and divide the others."""
    config = msgspec.structs.replace(TIERS[arguments.tier], seed=arguments.seed)
    vocabulary = Vocabulary(item_hashes=config.item_hashes, category_hashes=config.category_hashes)
    horizon_ms = round(arguments.horizon_hours * HOUR_MS)
    examples, _ = examples_from(arguments, load_funnel(arguments.funnel), horizon_ms, vocabulary)
    names = ("tier", "epochs", "seed", "horizon_hours")
    prepare(arguments.out, examples, {name: getattr(arguments, name) for name in names})
    tested = set(parts_of(examples.users, arguments.seed)["test"])
    splits = []
    for split in user_folds(examples, FOLDS, arguments.seed)[:USED]:
        train, validation, test = (
            [user for user in users if user not in tested] for users in (split.train, split.validation, split.test)
        )
        splits.append(split._replace(train=train, validation=validation, test=test))
        check(splits[-1])
    return Task(splits, Settings(config, arguments.seed), arguments.epochs, arguments.progress)


def line(what: str, study: optuna.Study) -> str:
    """Sum up a search."""
    done, default = done_of(study), default_of(study)
    assert default is not None
    return (
        f"{what:9} {len(study.trials)} trials ({len(done)} to their end) in {spent_seconds(study) / 60:.1f} minutes:"
        f" log-loss {study.best_value:.4f} of the base rate's, {default.value:.4f} with the defaults"
    )


def save(folder: Path, studies: dict[str, optuna.Study]) -> None:
    """Write best.json, keeping what an earlier search of the other kind found, and the picture."""
    path = folder / BEST
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    found |= {what: study.best_params for what, study in studies.items()}
    write_whole(path, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    write_whole(folder / PICTURE, picture(studies))
    print(f"best settings  {path}  (history: {PICTURE})")


def picture(studies: dict[str, optuna.Study]) -> bytes:
    """Draw the value of every trial over its number, and the best so far."""
    figure = Figure(figsize=(6.5 * len(studies), 3.6))
    axes = figure.subplots(1, len(studies), squeeze=False)[0]
    for panel, (what, study) in zip(axes, studies.items(), strict=True):
        done = done_of(study)
        numbers, values = [trial.number for trial in done], [float(trial.value or 0) for trial in done]
        best = [min(values[: index + 1]) for index in range(len(values))]
        panel.plot(numbers, values, "o", ms=4, color="#0b6e99", label="trial")
        panel.step(numbers, best, where="post", color="#d9730d", label="best so far")
        default = default_of(study)
        panel.axhline(float(default.value or 0) if default else 0.0, color="#bbbbbb", lw=1, label="default")
        given_up = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.COMPLETE]
        panel.plot(given_up, [max(values)] * len(given_up), "x", ms=5, color="#888888", label="given up early")
        panel.set_title(f"{what}: {len(study.trials)} trials", fontsize=9)
        panel.set_xlabel("trial", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    axes[0].set_ylabel("log-loss as a share of the base rate's", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=100)
    return target.getvalue()

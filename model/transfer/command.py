"""`funnelcast transfer SOURCE_CHECKPOINT TARGET_LOG --out DIR`: what a model of another shop is worth here.

Zero-shot, recalibrated, heads alone, frozen trunk, gradual unfreezing, discriminative learning rates, full fine-tuning
and, with a source log, training on both with the source's users re-weighted; against the same network from scratch and
boosting, with 1 to 100 % of the target's users. DIR holds a file per fit, to go on from, metrics.json, transfer.png.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from tqdm import tqdm

from model.checkpoint import Checkpoint, read_checkpoint, write_whole
from model.contract.vocabulary import Vocabulary
from model.datasets import LogOptions, add_log_arguments, log_from_args, read_columns, read_log
from model.datasets.arguments import where_from
from model.evaluation.figures import draw_users, positions_of
from model.evaluation.runs import prepare, read, save
from model.examples import Examples, examples_of, read_examples
from model.fit import Settings
from model.options import at_least
from model.reformer import WEIGHTS, ClickModel
from model.tabular import known_rows
from model.transfer.budgets import Budget, budgets_of
from model.transfer.experiment import Setting, contenders_of, run_one
from model.transfer.figures import picture, replicated, summary, table
from model.transfer.remap import Hashes, remap

METRICS, PICTURE = "metrics.json", "transfer.png"
MINUTE_MS = 60_000


class Draw(NamedTuple):
    """One division of the target's users."""

    seed: int
    setting: Setting
    budgets: list[Budget]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare source, target and the experiment."""
    parser.add_argument("source", type=Path, metavar="SOURCE_CHECKPOINT", help="directory written by funnelcast train")
    add_log_arguments(parser, why="the target log")
    add = parser.add_argument_group("the transfer").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="run directory; given again, it goes on")
    add("--shares", type=_shares, default="1,5,20,100", metavar="P,P", help="of users, in %% (default: 1,5,20,100)")
    add("--source-log", type=Path, metavar="LOG", help="what the checkpoint was trained on, to re-weight its users")
    add("--source-where", action="append", default=[], metavar="FIELD=VALUE,...", help="only these rows of it")
    minutes = "a stage is reached if within so many minutes (default: as the checkpoint was trained)"
    add("--horizon-minutes", type=at_least(1), metavar="M", help=minutes)
    add("--item-hashes", type=at_least(8), metavar="N", help="embedding rows of items (default: the checkpoint's)")
    add("--category-hashes", type=at_least(8), metavar="N", help="likewise of categories")
    add("--epochs", type=at_least(1), default=60, help="of each fit, at most (default: 60)")
    add("--learning-rate", type=float, default=2e-4, help="of what was trained before (default: 0.0002)")
    add("--draws", type=at_least(1), default=1, metavar="N", help="of test users and budgets, averaged (default: 1)")
    add("--resamples", type=at_least(20), default=100, metavar="N", help="bootstrap replicates (default: 100)")
    add("--seed", type=at_least(0), default=0, help="of users, fits and replicates (default: 0)")


def _shares(text: str) -> list[float]:
    shares = [float(part) / 100 for part in text.split(",")]
    if not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text} holds a share that is not above 0 and at most 100")
    return shares


def run(arguments: argparse.Namespace) -> int:
    """Transfer; metrics.json and transfer.png are there when this returns."""
    model, checkpoint = read_checkpoint(arguments.source)
    draws, facts = read_draws(model, checkpoint, arguments)
    names, folder = contenders_of(draws[0].setting), arguments.out
    hide = None if arguments.progress is None else not arguments.progress
    tasks = [(draw, budget, name) for draw in draws for budget in draw.budgets for name in names]
    with tqdm(tasks, desc="transfer", unit="fit", disable=hide) as bar:
        for draw, budget, name in bar:
            bar.set_postfix_str(f"{float(budget.name):.0%} {name}")
            if not (path := file_of(folder, draw, budget, name)).exists():
                save(path, run_one(draw.setting, budget, name))
    shares = [budget.name for budget in draws[0].budgets]
    told = facts | {"budgets": {share: measure(draws, number, arguments) for number, share in enumerate(shares)}}
    write_whole(folder / METRICS, msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    write_whole(folder / PICTURE, picture(told))
    print(table(told["budgets"]))
    print(f"picture  {folder / PICTURE}  (figures in {METRICS})")
    return 0


def read_draws(
    model: ClickModel, checkpoint: Checkpoint, arguments: argparse.Namespace
) -> tuple[list[Draw], dict[str, Any]]:
    """Read target and source, remap the model, divide the users as often as asked."""
    contract, config = checkpoint.contract, checkpoint.model
    horizon_ms = arguments.horizon_minutes * MINUTE_MS if arguments.horizon_minutes else contract.horizon_ms
    vocabulary = Vocabulary(
        item_hashes=arguments.item_hashes or config.item_hashes,
        category_hashes=arguments.category_hashes or config.category_hashes,
    )
    log = log_from_args(arguments)
    columns = read_columns(log)
    target, data = examples_of(columns, log.path.name, contract.funnel, horizon_ms, vocabulary, arguments.progress)
    print("\n".join([log.summary(), *log.problems.lines()]))
    source, source_data = _source(arguments, checkpoint, horizon_ms, vocabulary)
    names = ("epochs", "learning_rate", "seed")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    settings |= {"horizon_ms": horizon_ms, "source": checkpoint.name, "source_data": source_data}
    settings["source_weights"] = hashlib.sha256((arguments.source / WEIGHTS).read_bytes()).hexdigest()
    moved = remap(model, checkpoint, vocabulary, Hashes(np.unique(columns.item), np.unique(columns.category)))
    draws = []
    for seed in range(arguments.seed, arguments.seed + arguments.draws):
        budgets, test = budgets_of(target, arguments.shares, seed)
        fits = Settings(msgspec.structs.replace(moved.config, seed=arguments.seed), seed)
        rate, epochs = arguments.learning_rate, arguments.epochs
        draws.append(Draw(seed, Setting(moved, target, test, source, fits, rate, epochs, arguments.progress), budgets))
    prepare(arguments.out, target, settings)
    told = {"source": {**checkpoint.data, "name": checkpoint.name}, "target": data, "settings": settings}
    told["settings"]["draws"] = arguments.draws
    if source:
        told["settings"]["users_in_both_logs"] = len(set(source.users) & set(target.users))
    return draws, told


def _source(
    arguments: argparse.Namespace, checkpoint: Checkpoint, horizon_ms: int, vocabulary: Vocabulary
) -> tuple[Examples | None, str]:
    if arguments.source_log is None:
        return None, ""
    options = LogOptions(progress=arguments.progress, where=where_from(arguments.source_where))
    log = read_log(arguments.source_log, options=options)
    examples, data = read_examples(log, checkpoint.contract.funnel, horizon_ms, vocabulary, arguments.progress)
    print("\n".join([log.summary(), *log.problems.lines()]))
    return examples, str(data["fingerprint"])


def file_of(folder: Path, draw: Draw, budget: Budget, name: str) -> Path:
    """Return where a fit is kept."""
    return folder / f"{draw.seed}-{budget.name}-{name}.npz"


def measure(draws: list[Draw], number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one budget; a bootstrap replicate has the same users in every draw."""
    target, names = draws[0].setting.target, contenders_of(draws[0].setting)
    everyone = known_rows(target, list(range(len(target.users))))
    times = draw_users(target.user_of(everyone), len(target.users), arguments.resamples, arguments.seed)
    done, found = [], []
    for draw in draws:
        positions = positions_of(target, known_rows(target, draw.setting.test))
        one = {name: read(file_of(arguments.out, draw, draw.budgets[number], name)) for name in names}
        done.append(one)
        found.append({name: replicated(positions, one[name].answers, times) for name in names})
    return summary(found, done, names)

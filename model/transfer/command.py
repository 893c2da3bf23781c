"""`funnelcast transfer SOURCE_CHECKPOINT TARGET_LOG --out DIR`: what a model of another shop is worth here.

Zero-shot, heads alone, frozen trunk, gradual unfreezing, discriminative learning rates, full fine-tuning and, with a
source log, training on both with the source's users re-weighted; against the same network from scratch and boosting,
with 1 to 100 % of the target's users. DIR holds a file per fit, to go on from, metrics.json, transfer.png.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

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
from model.transfer.experiment import Budget, Setting, budgets_of, contenders_of, run_one
from model.transfer.figures import picture, replicated, summary, table
from model.transfer.remap import Hashes, remap

METRICS, PICTURE = "metrics.json", "transfer.png"
MINUTE_MS = 60_000


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
    add("--epochs", type=at_least(1), default=20, help="of each fit, at most (default: 20)")
    add("--learning-rate", type=float, default=5e-4, help="of what was trained before (default: 0.0005)")
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
    setting, budgets, facts = read_setting(model, checkpoint, arguments)
    names, folder = contenders_of(setting), arguments.out
    hide = None if arguments.progress is None else not arguments.progress
    tasks = [(budget, name) for budget in budgets for name in names]
    with tqdm(tasks, desc="transfer", unit="fit", disable=hide) as bar:
        for budget, name in bar:
            bar.set_postfix_str(f"{float(budget.name):.0%} {name}")
            if not (path := file_of(folder, budget, name)).exists():
                save(path, run_one(setting, budget, name))
    told = facts | {"budgets": {budget.name: measure(setting, budget, names, arguments) for budget in budgets}}
    write_whole(folder / METRICS, msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    write_whole(folder / PICTURE, picture(told))
    print(table(told["budgets"]))
    print(f"picture  {folder / PICTURE}  (figures in {METRICS})")
    return 0


def read_setting(
    model: ClickModel, checkpoint: Checkpoint, arguments: argparse.Namespace
) -> tuple[Setting, list[Budget], dict[str, Any]]:
    """Read target and source, remap the model, divide the users."""
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
    budgets, test = budgets_of(target, arguments.shares, arguments.seed)
    names = ("epochs", "learning_rate", "seed")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    settings |= {"horizon_ms": horizon_ms, "source": checkpoint.name, "source_data": source_data}
    settings["source_weights"] = hashlib.sha256((arguments.source / WEIGHTS).read_bytes()).hexdigest()
    prepare(arguments.out, target, settings)
    moved = remap(model, checkpoint, vocabulary, Hashes(np.unique(columns.item), np.unique(columns.category)))
    fits = Settings(msgspec.structs.replace(moved.config, seed=arguments.seed), arguments.seed)
    setting = Setting(moved, target, test, source, fits, arguments.learning_rate, arguments.epochs, arguments.progress)
    if source:
        settings["users_in_both_logs"] = len(set(source.users) & set(target.users))
    told: dict[str, Any] = {
        "source": {**checkpoint.data, "name": checkpoint.name},
        "target": data,
        "settings": settings,
    }
    return setting, budgets, told


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


def file_of(folder: Path, budget: Budget, name: str) -> Path:
    """Return where a fit is kept."""
    return folder / f"{budget.name}-{name}.npz"


def measure(setting: Setting, budget: Budget, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one budget."""
    rows = known_rows(setting.target, setting.test)
    positions = positions_of(setting.target, rows)
    draws = draw_users(positions.user, len(setting.target.users), arguments.resamples, arguments.seed)
    done = {name: read(file_of(arguments.out, budget, name)) for name in names}
    found = {name: replicated(positions, one.answers, draws) for name, one in done.items()}
    return summary(found, done, names)

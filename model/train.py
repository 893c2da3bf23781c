"""`funnelcast train LOG --out DIR`: an event log in, a checkpoint out, with figures on users it has not seen.

The log is replayed by the contract's fold, labelled, and split by user: train, validation (early stopping, calibration)
and test (the report). The run directory holds weights.pt, config.json, metrics.json, curves.png and states to resume.
"""

import argparse
import hashlib
import platform
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from model.calibrate import fit_calibration
from model.checkpoint import Checkpoint, read_checkpoint, save_checkpoint, write_whole
from model.contract.bundle import Calibration, Contract
from model.contract.errors import FunnelcastError
from model.contract.rows import HOUR_MS, Array
from model.contract.stages import Funnel, load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import add_log_arguments
from model.devices import CPU, Device, add_device_arguments, joined
from model.evaluation.plots import learning
from model.examples import CENSORED, Examples, at_most
from model.fit import Scored, Settings, Trainer, score
from model.measures import measure, table
from model.networks import NETWORKS
from model.options import at_least, hours, moment
from model.parts import SHARES, split
from model.prepared.source import examples_from
from model.rates import base_rates, known_outcomes
from model.recipe import DEFAULTS, RECIPE, Trained, follow
from model.reformer import TIERS, WEIGHTS, ClickModel
from model.tuning.tuned import read_tuned, tuned_settings

METRICS, CURVES, STATE = "metrics.json", "curves.png", "state.pt"
HELD_ROWS = 2_000_000  # of the users kept aside, about so many are scored: the rest of a long log would tell no more
FEWEST_USERS = 20
CONTINUED_RATE = 5e-4  # learning rate of weights that have learned before
INSIDE_BUNDLE = "checkpoint"  # where a bundle may carry the weights that it was made of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_log_arguments(parser, why="the event log, or DIR of funnelcast prepare")
    add = parser.add_argument_group("the run").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="run directory: checkpoint, figures, resumable state")
    add("--model", choices=("reformer", *NETWORKS), help="the network (default: reformer)")
    add("--tier", choices=sorted(TIERS), help="size of the network (default: small)")
    add("--from", dest="start", type=Path, metavar="DIR", help="go on from the weights of a checkpoint or its bundle")
    add(
        "--since",
        type=moment,
        metavar="TIME",
        help="learn from events after it only, as 2017-12-01 or 2017-12-01T12:00",
    )
    add("--tuned", type=Path, metavar="DIR", help="settings from a finished funnelcast tune")
    add(
        "--epochs",
        type=at_least(1),
        default=60,
        help="at most so many; training stops earlier by itself (default: 60)",
    )
    add("--pretrain", type=at_least(0), metavar="N", help="epochs of next event alone, first (default: 0)")
    taught = "another network and boosting learn from what happened, and teach the one that is kept (default: yes)"
    add("--taught", action=argparse.BooleanOptionalAction, help=taught)
    balance = "reached stages weigh their odds to this power: 0 as they are, 1 as much as the others (default: 0)"
    add("--balance", type=float, metavar="X", help=balance)
    add("--seed", type=at_least(0), help="the same log and seed give the same weights (default: 0, or that of --from)")
    add("--resume", action="store_true", help="go on from the last finished epoch of DIR")
    add("--name", default="", help="name of the model in every record (default: that of DIR)")
    add("--funnel", type=Path, help="which events reach which stage (default: the funnel that ships)")
    add("--horizon-hours", type=hours, help="a stage is reached if within so many hours (default: 24)")
    add_device_arguments(parser)


class Start(NamedTuple):
    """What training goes on from."""

    model: ClickModel
    checkpoint: Checkpoint
    sha256: str  # of the weights


class Task(NamedTuple):
    """What is trained on what, for which contract."""

    settings: Settings
    examples: Examples
    parts: dict[str, list[int]]  # users of train, validation and test
    contract: Contract
    data: dict[str, Any]  # what provenance says about the log


def run(arguments: argparse.Namespace) -> int:
    """Train, calibrate, report; the run directory is complete when this returns."""
    with joined(arguments.device, arguments.precision) as device:
        arguments.progress = arguments.progress if device.leads else False
        start = read_start(arguments)
        prepare(arguments.out, arguments.resume)
        task = read_task(arguments, start)
        trained = fit(task, arguments, start, device)
    if device.leads:
        finish(task, trained, arguments, start)
    return 0


def finish(task: Task, trained: Trained, arguments: argparse.Namespace, start: Start | None) -> None:
    """Calibrate and measure the best model, and write what is left to write."""
    folder: Path = arguments.out
    trainer, phases = trained.trainer, trained.phases()
    model = trainer.best_model()
    calibration, metrics = judge(model, task)
    if start:
        told, rates = score(start.model, task.examples, task.parts["test"]), np.array(task.contract.base_rates)
        metrics["start"] = figures_of(told, start.checkpoint.calibration, rates)
    metrics |= {"best_epoch": trainer.best_epoch, "curve": trainer.curve, "phases": phases}
    config = msgspec.structs.replace(model.config, dropout=task.settings.model.dropout)  # to go on from: no pupil's
    checkpoint = Checkpoint(
        name=arguments.name or folder.absolute().name,
        model=config,
        contract=task.contract,
        calibration=calibration,
        training=describe(task, trainer, start),
        data=task.data,
        metrics=metrics["test"],
    )
    save_checkpoint(folder, model, checkpoint)
    write_whole(folder / METRICS, msgspec.json.format(msgspec.json.encode(metrics), indent=2) + b"\n")
    write_whole(folder / CURVES, learning(phases))
    print(table(metrics["test"]["all"], len(task.parts["test"])))
    print(f"checkpoint  {folder}  (best epoch {trainer.best_epoch} of {trainer.epoch}; figures in {METRICS})")


def read_task(arguments: argparse.Namespace, start: Start | None) -> Task:
    """Replay and label the log, and set users aside."""
    settings, funnel, horizon_ms = what_to_train(arguments, start)
    vocabulary = Vocabulary(item_hashes=settings.model.item_hashes, category_hashes=settings.model.category_hashes)
    examples, data = examples_from(arguments, funnel, horizon_ms, vocabulary)
    if settings.since_ms:
        examples.reach[examples.ts < settings.since_ms] = CENSORED
    parts = split(examples.users, settings.seed)
    parts |= {name: at_most(HELD_ROWS, examples, parts[name]) for name in SHARES}
    check_enough(examples, parts)
    contract = Contract(
        funnel=funnel,
        horizon_ms=horizon_ms,
        vocabulary=vocabulary,
        window=settings.model.window,
        base_rates=base_rates(examples, parts["train"]).tolist(),
    )
    return Task(
        settings, examples, parts, contract, data | {"split": {name: len(part) for name, part in parts.items()}}
    )


def what_to_train(arguments: argparse.Namespace, start: Start | None) -> tuple[Settings, Funnel, int]:
    """Return settings, funnel and horizon: those of the options, or those that the start was trained with."""
    since_ms = arguments.since or 0
    if start is None:
        seed = arguments.seed or 0
        config = TIERS[arguments.tier or "small"]
        config = msgspec.structs.replace(config, seed=seed, network=arguments.model or "reformer")
        horizon_ms = round((arguments.horizon_hours or 24) * HOUR_MS)
        recipe = {name: getattr(arguments, name) for name in RECIPE if getattr(arguments, name) is not None}
        fresh = Settings(config, seed, since_ms=since_ms, **(DEFAULTS | recipe))
        settings = tuned_settings(read_tuned(arguments.tuned), fresh)
        return settings, load_funnel(arguments.funnel), horizon_ms
    checkpoint = start.checkpoint
    seed = checkpoint.training.get("settings", {}).get("seed", 0) if arguments.seed is None else arguments.seed
    settings = Settings(checkpoint.model, seed, learning_rate=CONTINUED_RATE, since_ms=since_ms)
    return settings, checkpoint.contract.funnel, checkpoint.contract.horizon_ms


def read_start(arguments: argparse.Namespace) -> Start | None:
    """Read the checkpoint to go on from; what it decides cannot be asked for otherwise."""
    if arguments.start is None:
        return None
    fixed = ("model", "tier", "funnel", "horizon_hours", "tuned", *RECIPE)
    if given := [name for name in fixed if getattr(arguments, name) is not None]:
        option = given[0].replace("_", "-")
        raise FunnelcastError(f"found --{option} with --from, whose checkpoint decides it; leave out one of the two")
    folder = arguments.start / INSIDE_BUNDLE if (arguments.start / INSIDE_BUNDLE).is_dir() else arguments.start
    return Start(*read_checkpoint(folder), hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())


def prepare(folder: Path, resume: bool) -> None:
    """Make the run directory; refuse one that holds something, unless it is to be resumed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    except OSError as error:
        raise FunnelcastError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
    if used and not resume:
        raise FunnelcastError(f"{folder} is not empty; give a new --out, or --resume to go on from its last epoch")


def check_enough(examples: Examples, parts: dict[str, list[int]]) -> None:
    """Refuse a log too small to hold users aside, or so short that every position is censored."""
    if len(examples.users) < FEWEST_USERS or not all(parts.values()):
        raise FunnelcastError(
            f"the log has {len(examples.users)} users, expected at least {FEWEST_USERS} so that some are held aside;"
            " use a larger log"
        )
    for name, users in parts.items():
        if not any(len(reach) for reach in known_outcomes(examples, users)):
            raise FunnelcastError(
                f"no {name} user has a row whose horizon ends inside the log, expected some; use a longer log"
                " or fewer --horizon-hours"
            )


def fit(task: Task, arguments: argparse.Namespace, start: Start | None, device: Device = CPU) -> Trained:
    """Train until the validation loss stops improving or the epochs are done; save the state after each."""
    folder: Path = arguments.out
    identity = identify(task) + (start.sha256 if start else "") + device.identity
    users, validation = task.parts["train"], task.parts["validation"]
    begun = False

    def run(trainer: Trainer, name: str) -> None:
        nonlocal begun
        path = folder / (f"state-{name}.pt" if name else STATE)
        if start:
            trainer.start_from(start.model, task.examples, validation)
            print(f"start      {'':13}  validation {trainer.start:.4f}")
        if arguments.resume and (path.exists() or not begun):
            trainer.load(path, identity)
        begun = True
        while not trainer.finished and trainer.epoch < arguments.epochs:
            trainer.run_epoch(task.examples, users, validation, arguments.progress)
            if device.leads:
                trainer.save(path, identity)
            if device.leads and name:
                (folder / STATE).unlink(missing_ok=True)  # its pupil learned from what it said before
            print(line(trainer, name), flush=True)

    return follow(task.settings, task.examples, (users, validation), run, device)


def line(trainer: Trainer, name: str = "") -> str:
    """Sum up the latest epoch."""
    if not trainer.curve:
        losses, what = trainer.rehearsed[-1], f"pre-training {len(trainer.rehearsed):3d}"
    else:
        losses, what = trainer.curve[-1], f"epoch {trainer.epoch:3d}"
    name = f"{name}  " if name else ""
    best = " (best)" if trainer.curve and trainer.best_epoch == trainer.epoch else ""
    return f"{name}{what}  train {losses['train']:.4f}  validation {losses['validation']:.4f}{best}"


def identify(task: Task) -> str:
    """Return a digest of everything that a resumed run must share with the one it continues."""
    digest = hashlib.sha256(msgspec.json.encode(task.settings))
    for array in task.examples[1:]:
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.hexdigest()


def judge(model: ClickModel, task: Task) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate on the validation users; measure on both parts, at all positions and at session ends."""
    scored = {name: score(model, task.examples, task.parts[name]) for name in ("validation", "test")}
    held = scored["validation"]
    user = task.examples.user_of(held.row)
    calibration = fit_calibration(held.logits, held.outcomes, user, held.session_end)
    rates = np.array(task.contract.base_rates)
    return calibration, {name: figures_of(part, calibration, rates) for name, part in scored.items()}


def figures_of(scored: Scored, calibration: Calibration, rates: Array) -> dict[str, Any]:
    """Return the figures at all positions and, where there are any, at session ends."""
    probabilities, ended = calibration.apply(scored.logits), scored.session_end
    figures = {"all": measure(probabilities, scored.outcomes, rates), "positions": len(ended)}
    if ended.any():
        figures["session_end"] = measure(probabilities[ended], scored.outcomes[ended], rates)
    return figures


def describe(task: Task, trainer: Trainer, start: Start | None) -> dict[str, Any]:
    """Return what config.json and the bundle's provenance say about the training."""
    continued = {"from": {"name": start.checkpoint.name, "weights": start.sha256}} if start else {}
    return continued | {
        "settings": msgspec.to_builtins(task.settings),
        "epochs": trainer.epoch,
        "best_epoch": trainer.best_epoch,
        "threads": torch.get_num_threads(),
        "device": {
            "kind": trainer.device.at.type,
            "precision": str(trainer.device.precision).removeprefix("torch."),
            "processes": trainer.device.processes,
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }

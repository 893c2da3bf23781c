"""Runs: every contender fitted, calibrated and asked on every split, each kept in a file: nothing is done twice.

A run directory belongs to one log and one set of settings; another one is refused.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from tqdm import tqdm

from model.baselines import Contender, contender
from model.calibrate import fit_calibration, sigmoid
from model.checkpoint import write_whole
from model.contract.bundle import Calibration
from model.contract.errors import FunnelcastError
from model.contract.events import SESSION_END
from model.contract.rows import Array
from model.evaluation.figures import Answers
from model.evaluation.splits import Split, only
from model.examples import Examples
from model.explain.population import Sample, importance_of_features
from model.explain.population import Settings as Looking
from model.fit import Settings
from model.tabular import known_rows

IDENTITY = "run.json"
LOOKED_AT, LOOKED_USERS, LOOKED_RESAMPLES = "fold0", 50, 50  # where, on how many, and bootstrap replicates


class Plan(NamedTuple):
    """What to compare, and how."""

    models: tuple[str, ...]
    settings: Settings  # of the networks, and the seed of all
    epochs: int
    progress: bool | None


class Done(NamedTuple):
    """A contender on a split."""

    answers: Answers
    facts: dict[str, Any]  # learning curves, seconds, calibration


def prepare(folder: Path, examples: Examples, settings: dict[str, Any]) -> None:
    """Make the run directory, or check that it is of the same log and settings, to go on from it."""
    digest = hashlib.sha256()
    for array in examples[1:]:
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    mine = settings | {"examples": digest.hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / IDENTITY).exists():
            if any(folder.iterdir()):
                raise FunnelcastError(f"{folder} is not empty and no run of this kind; give a new --out")
            write_whole(folder / IDENTITY, msgspec.json.encode(mine))
        theirs = msgspec.json.decode((folder / IDENTITY).read_bytes())
    except OSError as error:
        raise FunnelcastError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
    except msgspec.DecodeError as error:
        raise FunnelcastError(f"{folder / IDENTITY} is damaged ({error}); give a new --out") from None
    if differs := [name for name in mine if theirs.get(name) != mine[name]]:
        raise FunnelcastError(
            f"{folder} is of a run with other {', '.join(differs)}; give those again, or another --out"
        )


def run_all(folder: Path, splits: Sequence[Split], plan: Plan) -> None:
    """Do what is not done yet."""
    tasks = [(split, name) for split in splits for name in plan.models if not file_of(folder, split, name).exists()]
    hide = None if plan.progress is None else not plan.progress
    with tqdm(tasks, desc="evaluate", unit="fit", disable=hide) as bar:
        for split, name in bar:
            bar.set_postfix_str(f"{split.name} {name}")
            save(file_of(folder, split, name), run_one(split, name, plan))


def run_one(split: Split, name: str, plan: Plan) -> Done:
    """Fit and calibrate a contender on the past, then ask it about the test; look into the first one's first fit."""
    started, model = time.process_time(), contender(name, plan.settings, plan.epochs)
    model.fit(split.past, split.train, split.validation, plan.progress)
    held = known_rows(split.past, split.validation)
    calibration = fit_calibration(
        model.logits(split.past, split.validation),
        split.past.reach[held],
        split.past.user_of(held),
        np.equal(split.past.type[held], SESSION_END),
    )
    logits = model.logits(split.whole, split.test)  # (P, 2, S)
    answers = Answers(sigmoid(logits).astype(np.float32), calibration.apply(logits).astype(np.float32))
    seconds = time.process_time() - started
    looked = look(split, model, calibration, plan) if (split.name, name) == (LOOKED_AT, plan.models[0]) else {}
    facts = {
        "phases": model.phases,
        "cpu_seconds": seconds,
        "features": looked,
        "calibration": msgspec.to_builtins(calibration),
        "users": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
    }
    return Done(answers, facts)


def look(split: Split, model: Contender, calibration: Calibration, plan: Plan) -> dict[str, Any]:
    """Return what each feature is worth to a contender, on some of the users whom it was not fitted on."""
    users = [user for user in split.test if split.whole.rows_of(user)][:LOOKED_USERS]
    part = only(split.whole, users)
    everyone = list(range(len(users)))
    known = known_rows(part, everyone)
    sample = Sample(part, known, part.user_of(known), part.reach[known])
    settings = Looking(len(users), LOOKED_RESAMPLES, plan.settings.seed, plan.progress)
    return importance_of_features(sample, lambda changed: calibration.apply(model.logits(changed, everyone)), settings)


def file_of(folder: Path, split: Split, name: str) -> Path:
    return folder / f"{split.name}-{name}.npz"


def save(path: Path, done: Done) -> None:
    """Write a file that is whole or not there."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, facts=msgspec.json.encode(done.facts), **done.answers._asdict())
    os.replace(temporary, path)


def load(folder: Path, split: Split, name: str) -> Done:
    """Read what a contender said on a split."""
    return read(file_of(folder, split, name))


def read(path: Path) -> Done:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        facts: dict[str, Any] = msgspec.json.decode(arrays["facts"].item())
        return Done(Answers(*(arrays[field] for field in Answers._fields)), facts)


def rows_of(split: Split) -> Array:
    """Return the rows of the whole examples that a split asks about, (P,)."""
    return known_rows(split.whole, split.test)

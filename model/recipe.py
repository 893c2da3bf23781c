"""The recipe: networks of several seeds are trained one after another, and teach one network what they say on average.

The pupil costs a worker what one of them costs. It begins as the best of its teachers, and sees what they say about the
training users in the place of what happened: censored positions have an answer too.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from model.calibrate import sigmoid
from model.devices import CPU, Device
from model.examples import CENSORED, Examples
from model.fit import Curve, Settings, Trainer, score
from model.reformer import ClickModel

RECIPE = ("pretrain", "seeds", "balance")  # settings that have an option of their name
SEED_STEP = 7919  # between the seeds of the teachers
PRETRAIN, SEEDS = 0, 1  # what `train` and `evaluate` do unless told otherwise

Phases = dict[str, list[Curve]]  # learning curves by phase, one or several networks in each
Run = Callable[[Trainer, str], None]  # train to the end; the second is a name, empty for the network that is kept


class Trained(NamedTuple):
    """The network that is kept, and those that taught it."""

    trainer: Trainer
    teachers: list[Trainer]

    def phases(self) -> Phases:
        """Return the learning curves."""
        learners = self.teachers or [self.trainer]
        told = {"next event": [one.rehearsed for one in learners], "reach": [one.curve for one in learners]}
        if self.teachers:
            told["reach, taught by their average"] = [self.trainer.curve]
        return {name: curves for name, curves in told.items() if any(curves)}


def follow(
    settings: Settings, examples: Examples, parts: tuple[list[int], list[int]], run: Run, device: Device = CPU
) -> Trained:
    """Train as the settings say, each network by `run`, on users to learn from and users to stop by."""
    users, validation = parts
    if settings.seeds == 1:
        trainer = Trainer(settings, device)
        run(trainer, "")
        return Trained(trainer, [])
    teachers = []
    for number in range(settings.seeds):
        teachers.append(Trainer(msgspec.structs.replace(settings, seed=settings.seed + SEED_STEP * number), device))
        run(teachers[-1], f"seed-{number}")
    best = min(teachers, key=lambda one: one.best_loss)
    pupil = Trainer(msgspec.structs.replace(settings, pretrain=0, balance=0.0), device)
    pupil.lessons = lessons_of([one.best_model() for one in teachers], examples, users)
    pupil.start_from(best.best_model(), examples, validation)
    run(pupil, "")
    return Trained(pupil, teachers)


def lessons_of(teachers: list[ClickModel], examples: Examples, users: list[int]) -> Examples:
    """Return the examples with what the teachers say on average, in logits, of every row of some users."""
    asked = examples._replace(reach=np.zeros_like(examples.reach))  # no row is censored
    scored = [score(model, asked, users) for model in teachers]
    reach = np.full(examples.reach.shape, CENSORED, np.float32)  # (N, 2, S)
    reach[scored[0].row] = sigmoid(np.mean([one.logits for one in scored], axis=0))
    return examples._replace(reach=reach)

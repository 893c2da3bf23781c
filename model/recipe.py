"""The recipe: a network that learned from outcomes and gradient boosting teach the network that is kept.

What they say on average is better than either, and costs a worker two models, and tallies of each user's whole past
that only the trees are given. Their pupil sees the rows, and says what can be told from them at the cost of one
network. It begins as the first one, sees the features more finely, since answers without chance in them cannot be
learned by heart, and learns what its teachers say about every row, censored ones included.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from model.batches import batches, segments
from model.calibrate import sigmoid
from model.contract.rows import Array
from model.devices import CPU, Device
from model.examples import CENSORED, Examples, at_most
from model.fit import Settings, Trainer, score
from model.measures import Phases
from model.reformer import ClickModel
from model.tabular import Tabular, boosting, bytes_and_type
from model.tallies import tallies

RECIPE = ("pretrain", "taught", "balance")  # settings that have an option of their name
DEFAULTS = {"pretrain": 0, "taught": True, "balance": 0.0}  # what `train` and `evaluate` do unless told otherwise

# The network's share of the average by stage, in the category and anywhere; the rest is boosting's.
NETWORK_SHARE = np.array([[0.15, 0.15, 0.35, 0.35, 0.35, 0.35], [0.7] * 6])
TREE_ROWS = 500_000  # boosting learns from about so many
RAMPS, DROPOUT, LEARNING_RATE, BATCH_ROWS = 12, 0.05, 3e-3, 1024  # of the pupil
LESSON_STEPS, LEAST_EPOCHS, MOST_EPOCHS = 550, 4, 60  # how long it learns
USERS_ASKED = 512  # at once

Run = Callable[[Trainer, str], None]  # train to the end; the second is a name, empty for the network that is kept


class Trained(NamedTuple):
    """The network that is kept, and the one that taught it, if one did."""

    trainer: Trainer
    teacher: Trainer | None = None

    def phases(self) -> Phases:
        """Return the learning curves; those of a pupil are cross-entropies with what its teachers say."""
        first = self.teacher or self.trainer
        told = {"next event": [first.rehearsed], "reach": [first.curve]}
        if self.teacher:
            told["reach, as its teachers say"] = [self.trainer.curve]
        return {name: curves for name, curves in told.items() if any(curves)}


def follow(
    settings: Settings, examples: Examples, parts: tuple[list[int], list[int]], run: Run, device: Device = CPU
) -> Trained:
    """Train as the settings say, each network by `run`, on users to learn from and users to stop by."""
    users, validation = parts
    first = Trainer(settings, device)
    run(first, "teacher" if settings.taught else "")
    if not settings.taught:
        return Trained(first)
    trees = Tabular(lambda: boosting(settings.seed, settings.trees), seen_by_trees, stops_early=True)
    trees.fit(examples, at_most(TREE_ROWS, examples, users), validation, None)
    pupil = Trainer(settings_of_pupil(settings, examples, users), device)
    pupil.lessons = lessons_of(first.best_model(), trees, examples, [*users, *validation])
    pupil.begin(examples, users)
    pupil.start_from(first.best_model(), pupil.lessons, validation)
    run(pupil, "")
    return Trained(pupil, first)


def seen_by_trees(examples: Examples, rows: Array) -> Array:
    """Return the columns that a worker has too, and after them those that it has not."""
    return np.hstack([bytes_and_type(examples, rows), tallies(examples, rows)])


def settings_of_pupil(settings: Settings, examples: Examples, users: list[int]) -> Settings:
    """Return the settings of a pupil: long enough on a short log, and with a rate that falls to nothing."""
    model = msgspec.structs.replace(settings.model, ramps=RAMPS, dropout=DROPOUT)
    rows = min(BATCH_ROWS, settings.batch_rows)
    epochs = math.ceil(LESSON_STEPS / len(batches(segments(examples, users), rows)))
    return msgspec.structs.replace(
        settings,
        model=model,
        pretrain=0,
        balance=0.0,
        learning_rate=LEARNING_RATE,
        batch_rows=rows,
        fall=min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS),
    )


def lessons_of(network: ClickModel, trees: Tabular, examples: Examples, users: list[int]) -> Examples:
    """Return the examples with the mean of two teachers' logits, as probabilities, in every row of some users."""
    asked = examples._replace(reach=np.zeros_like(examples.reach))  # no row is censored
    reach = np.full(examples.reach.shape, CENSORED, np.float16)  # (N, 2, S)
    for begin in range(0, len(users), USERS_ASKED):
        some = users[begin : begin + USERS_ASKED]
        said = score(network, asked, some)
        logits = NETWORK_SHARE * said.logits + (1 - NETWORK_SHARE) * trees.logits(asked, some)  # (P, 2, S)
        reach[said.row] = sigmoid(logits)
    return examples._replace(reach=reach)

"""Contenders: everything that evaluation compares, each fitted on the same users and asked for the same positions.

In: labelled examples. Out: reach logits (P, 2, S) of every position of some users that is not censored, in row order.
"""

from typing import Protocol

import msgspec
import numpy as np

from model.contract.events import N_TYPES
from model.contract.rows import Array
from model.examples import Examples
from model.fit import Settings, Trainer, score
from model.measures import Phases
from model.networks import NETWORKS
from model.recipe import follow
from model.tabular import (
    Tabular,
    boosting,
    bytes_and_type,
    counts,
    known_rows,
    logistic,
    logit,
)

TAUGHT = "taught_"  # before the name of a network that follows our recipe
PRIOR_POSITIONS = 20.0  # weight of the overall rate in a cell of the Markov table


class Contender(Protocol):
    """Something that can be fitted and then asked for logits."""

    phases: Phases  # losses by epoch, where there are epochs

    def fit(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None: ...

    def logits(self, examples: Examples, users: list[int]) -> Array: ...


class BaseRate:
    """Says of every position how often it comes to that."""

    def __init__(self) -> None:
        self.phases: Phases = {}

    def fit(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None:
        self.rates = examples.reach[known_rows(examples, train)].mean(0)  # (2, S)

    def logits(self, examples: Examples, users: list[int]) -> Array:
        return np.tile(logit(self.rates), (len(known_rows(examples, users)), 1, 1))


class Markov(BaseRate):
    """A table of rates by the types of the latest two rows."""

    def fit(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None:
        super().fit(examples, train, validation, progress)
        rows = known_rows(examples, train)
        state, reach = self._state(examples, rows), examples.reach[rows]  # (P,), (P, 2, S)
        count = np.bincount(state, minlength=N_TYPES**2)[:, None, None]
        hits = np.zeros((N_TYPES**2, *self.rates.shape))
        np.add.at(hits, state, reach)
        self.table = (hits + PRIOR_POSITIONS * self.rates) / (count + PRIOR_POSITIONS)  # (states, 2, S)

    def logits(self, examples: Examples, users: list[int]) -> Array:
        return logit(self.table[self._state(examples, known_rows(examples, users))])

    def _state(self, examples: Examples, rows: Array) -> Array:
        is_first = np.isin(rows, examples.start)
        before = np.where(is_first, 0, examples.type[np.maximum(rows - 1, 0)].astype(np.int64))
        return np.asarray(before * N_TYPES + examples.type[rows])


class Network:
    """A neural network: ours, or another between the same embedding and heads."""

    def __init__(self, settings: Settings, epochs: int) -> None:
        self._settings, self._epochs = settings, epochs
        self.phases: Phases = {}

    def fit(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None:
        def run(trainer: Trainer, name: str) -> None:
            while not trainer.finished and trainer.epoch < self._epochs:
                trainer.run_epoch(examples, train, validation, progress)

        trained = follow(self._settings, examples, (train, validation), run)
        self.phases, self._model = trained.phases(), trained.trainer.best_model()

    def logits(self, examples: Examples, users: list[int]) -> Array:
        return score(self._model, examples, users).logits


def contender(name: str, settings: Settings, epochs: int) -> Contender:
    """Make one of CONTENDERS; `settings` and `epochs` are for networks, but for seed and trees.

    Ours and those whose name says so are taught, the others learn from outcomes alone; only ours may be pre-trained.
    """
    if name == "base_rate":
        return BaseRate()
    if name == "markov":
        return Markov()
    if name == "logistic":
        return Tabular(lambda: logistic(settings.seed), counts, stops_early=False)
    if name == "boosting":
        return Tabular(lambda: boosting(settings.seed, settings.trees), bytes_and_type, stops_early=True)
    if name != "reformer":
        network = name.removeprefix(TAUGHT)
        model = msgspec.structs.replace(settings.model, network=network)
        settings = msgspec.structs.replace(settings, model=model, pretrain=0, taught=name != network)
    return Network(settings, epochs)


CONTENDERS = (
    "reformer",
    *NETWORKS,
    *(TAUGHT + name for name in NETWORKS),
    "boosting",
    "logistic",
    "markov",
    "base_rate",
)

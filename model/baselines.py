"""Contenders: everything that evaluation compares, each fitted on the same users and asked for the same positions.

In: labelled examples. Out: reach logits (P, 2, S) of every position of some users that is not censored, in row order.
"""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from model.contract.bundle import SCOPES
from model.contract.events import N_TYPES
from model.contract.rows import Array
from model.contract.stages import STAGES
from model.examples import CENSORED, Examples
from model.fit import Settings, Trainer, score
from model.networks import NETWORKS
from model.recipe import Phases, follow

SMALLEST = 1e-4  # probabilities of counts are kept this far from 0 and 1
PRIOR_POSITIONS = 20.0  # weight of the overall rate in a cell of the Markov table


class Contender(Protocol):
    """Something that can be fitted and then asked for logits."""

    phases: Phases  # losses by epoch, where there are epochs

    def fit(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None: ...

    def logits(self, examples: Examples, users: list[int]) -> Array: ...


def known_rows(examples: Examples, users: list[int]) -> Array:
    """Return the rows (P,) of some users that are not censored, ascending."""
    parts = [np.arange(examples.start[user], examples.start[user + 1]) for user in sorted(users)]
    rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return np.asarray(rows[examples.reach[rows, 0, 0] != CENSORED])


def weight_of(examples: Examples, rows: Array) -> Array:
    """Weigh rows (P,) by 1 / sqrt(rows of the user), as the network's training does."""
    return np.asarray(1 / np.sqrt(np.diff(examples.start)[examples.user_of(rows)]))


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


class Tabular:
    """A classifier of scikit-learn for each scope and stage, on the running features of the row."""

    def __init__(self, make: Callable[[], Any], columns: Callable[[Examples, Array], Array], stops_early: bool) -> None:
        self.phases: Phases = {}
        self._make, self._columns, self._stops_early = make, columns, stops_early
        self._models: list[list[Any]] = []

    def fit(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None:
        rows, held = known_rows(examples, train), known_rows(examples, validation)
        x, weight = self._columns(examples, rows), weight_of(examples, rows)
        weight = weight / weight.mean()
        xv, reach, reached_later = self._columns(examples, held), examples.reach[rows], examples.reach[held]
        self._models = []
        for a in range(len(SCOPES)):
            self._models.append([])
            for s in range(len(STAGES)):
                y, extra = reach[:, a, s], {}
                if self._stops_early:
                    extra = {
                        "X_val": xv,
                        "y_val": reached_later[:, a, s],
                        "sample_weight_val": weight_of(examples, held),
                    }
                both = 0 < y.sum() < len(y) and 0 < reached_later[:, a, s].sum() < len(held)
                constant = float(logit(y.mean()))
                self._models[a].append(self._make().fit(x, y, sample_weight=weight, **extra) if both else constant)

    def logits(self, examples: Examples, users: list[int]) -> Array:
        x = self._columns(examples, known_rows(examples, users))
        found = np.empty((len(x), len(SCOPES), len(STAGES)))
        for a, models in enumerate(self._models):
            for s, model in enumerate(models):
                found[:, a, s] = model if isinstance(model, float) else model.decision_function(x)
        return found


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


def counts(examples: Examples, rows: Array) -> Array:
    """Return columns for a linear model: logarithm and presence of each feature, and the type."""
    features = examples.features[rows]
    types = np.eye(N_TYPES, dtype=np.float32)[examples.type[rows]]
    return np.hstack([np.log1p(features.astype(np.float32)) / 5, features > 0, types], dtype=np.float32)


def bytes_and_type(examples: Examples, rows: Array) -> Array:
    """Return the features as the reducer codes them, which trees can take as they are, and the type."""
    return np.column_stack([examples.features[rows], examples.type[rows]])


def logistic(seed: int) -> Any:
    return LogisticRegression(C=0.1, max_iter=300, random_state=seed)


class Trees(msgspec.Struct, frozen=True):
    """How gradient boosting grows its trees."""

    learning_rate: float = 0.05
    max_leaf_nodes: int = 15
    min_samples_leaf: int = 100
    l2_regularization: float = 5.0
    max_features: float = 0.3


DEFAULT_TREES = Trees()


def boosting(seed: int, trees: Trees) -> Any:
    return HistGradientBoostingClassifier(
        **msgspec.structs.asdict(trees), max_iter=400, early_stopping=True, n_iter_no_change=20, random_state=seed
    )


def contender(name: str, settings: Settings, epochs: int, trees: Trees = DEFAULT_TREES) -> Contender:
    """Make one of CONTENDERS; `settings` and `epochs` are for networks, but for the seed; `trees` for boosting.

    Only ours follows the whole recipe: the others are single networks without pre-training.
    """
    if name == "base_rate":
        return BaseRate()
    if name == "markov":
        return Markov()
    if name == "logistic":
        return Tabular(lambda: logistic(settings.seed), counts, stops_early=False)
    if name == "boosting":
        return Tabular(lambda: boosting(settings.seed, trees), bytes_and_type, stops_early=True)
    if name != "reformer":
        model = msgspec.structs.replace(settings.model, network=name)
        settings = msgspec.structs.replace(settings, model=model, pretrain=0, seeds=1)
    return Network(settings, epochs)


CONTENDERS = ("reformer", *NETWORKS, "boosting", "logistic", "markov", "base_rate")


def logit(probabilities: Array) -> Array:
    """Turn probabilities into logits, kept finite."""
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(p / (1 - p)))

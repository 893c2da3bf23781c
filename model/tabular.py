"""Tabular models: gradient boosting and logistic regression of scikit-learn on the running features of a row.

In: labelled examples. Out: reach logits (P, 2, S) of every position of some users that is not censored, in row order.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from model.contract.bundle import SCOPES
from model.contract.events import N_TYPES
from model.contract.rows import Array
from model.contract.stages import STAGES
from model.examples import CENSORED, Examples
from model.measures import Phases

SMALLEST = 1e-4  # probabilities of counts are kept this far from 0 and 1


def known_rows(examples: Examples, users: list[int]) -> Array:
    """Return the rows (P,) of some users that are not censored, ascending."""
    parts = [np.arange(examples.start[user], examples.start[user + 1]) for user in sorted(users)]
    rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return np.asarray(rows[examples.reach[rows, 0, 0] != CENSORED])


def weight_of(examples: Examples, rows: Array) -> Array:
    """Weigh rows (P,) by 1 / sqrt(rows of the user), as the network's training does."""
    return np.asarray(1 / np.sqrt(np.diff(examples.start)[examples.user_of(rows)]))


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
    """How gradient boosting grows its trees; the defaults are what `funnelcast tune` found on the Taobao log."""

    learning_rate: float = 0.0208
    max_leaf_nodes: int = 4
    min_samples_leaf: int = 21
    l2_regularization: float = 0.174
    max_features: float = 0.481


def boosting(seed: int, trees: Trees) -> Any:
    return HistGradientBoostingClassifier(
        **msgspec.structs.asdict(trees), max_iter=400, early_stopping=True, n_iter_no_change=20, random_state=seed
    )


def logit(probabilities: Array) -> Array:
    """Turn probabilities into logits, kept finite."""
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(p / (1 - p)))

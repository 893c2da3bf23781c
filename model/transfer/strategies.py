"""Strategies: how far the weights of the source may move on the target's users, and when.

A network is cut by depth: embeddings, layers, heads. Each strategy gives every part a factor on the learning rate,
which may change from epoch to epoch; a part with none is frozen and costs no gradient.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from model.calibrate import sigmoid
from model.contract.rows import Array
from model.examples import CENSORED, Examples
from model.fit import Settings, Trainer, score
from model.measures import auc
from model.reformer import ClickModel
from model.tabular import counts

DECAY = 0.4  # of the learning rate from each part to the one below, with discriminative learning rates
MOST_WEIGHT = 10.0  # of a source user whom the domain classifier takes for one of the target
ROWS_COMPARED = 20_000  # of each domain
MOST_SHIFT, HALVINGS = 30.0, 40  # of a logit by recalibration, and how finely it is found

Factors = Callable[[int, int], list[float]]  # parts from below, epoch from 0 -> factor of each part


def parts_of(model: ClickModel) -> list[list[nn.Parameter]]:
    """Return the parameters by depth: embeddings, then layers where the network has them, then heads."""
    layers = [list(block.parameters()) for block in model.reformer.layers.blocks] if model.attentions() else []
    trunk = layers or [list(model.reformer.parameters())]
    heads = [*model.norm.parameters(), *model.reach.parameters(), *model.next_type.parameters()]
    return [list(model.embed.parameters()), *trunk, heads]


def head_only(parts: int, epoch: int) -> list[float]:
    """Move the heads alone."""
    return [0.0] * (parts - 1) + [1.0]


def frozen_trunk(parts: int, epoch: int) -> list[float]:
    """Move embeddings and heads; what lies between stays."""
    return [1.0] + [0.0] * (parts - 2) + [1.0]


def gradual(parts: int, epoch: int) -> list[float]:
    """Free one part more in each epoch, from the heads down (Howard and Ruder 2018)."""
    return [1.0 if parts - 1 - part <= epoch else 0.0 for part in range(parts)]


def discriminative(parts: int, epoch: int) -> list[float]:
    """Move everything, the lower the slower (Howard and Ruder 2018)."""
    return [DECAY ** (parts - 1 - part) for part in range(parts)]


def full(parts: int, epoch: int) -> list[float]:
    """Move everything alike."""
    return [1.0] * parts


STRATEGIES: dict[str, Factors] = {
    "head_only": head_only,
    "frozen_trunk": frozen_trunk,
    "gradual": gradual,
    "discriminative": discriminative,
    "full": full,
}


class FineTuner(Trainer):
    """A trainer whose parts learn at rates of their own."""

    def __init__(self, settings: Settings, factors: Factors) -> None:
        super().__init__(settings)
        self._factors, self._parts = factors, parts_of(self.model)
        groups: list[dict[str, Any]] = [{"params": part, "scale": 1.0} for part in self._parts]
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, weight_decay=settings.weight_decay)

    def run_epoch(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None:
        """Set who learns how fast, then train one epoch."""
        factors = self._factors(len(self._parts), self.epoch)
        for part, group, factor in zip(self._parts, self.optimizer.param_groups, factors, strict=True):
            group["scale"] = factor
            for parameter in part:
                parameter.requires_grad_(factor > 0)
        super().run_epoch(examples, train, validation, progress)


def recalibrated(model: ClickModel, target: Examples, users: list[int]) -> ClickModel:
    """Shift the reach logits until the probabilities are on average as often right as some users of the target reach.

    The rates are drawn towards those that the model expects by a user's worth of positions. Nobody is ranked otherwise.
    """
    told = score(model, target, users)
    weight = told.weight[:, None, None] / told.weight.sum()
    expected = (weight * sigmoid(told.logits)).sum(0)  # (2, S)
    rate = ((weight * told.outcomes).sum(0) * len(users) + expected) / (len(users) + 1)
    low, high = np.full(rate.shape, -MOST_SHIFT), np.full(rate.shape, MOST_SHIFT)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = (weight * sigmoid(told.logits + middle)).sum(0) > rate
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.reach.bias.add_(torch.from_numpy((low + high) / 2).float().flatten())
    return moved


def source_weights(source: Examples, target: Examples, train: list[int], seed: int) -> tuple[Array, float]:
    """Weigh source users (U,) by how much their rows look like the target's (density ratio, instance-based transfer).

    A logistic regression on the running features tells the domains apart; a user's weight is the mean odds of the rows,
    scaled to mean 1. Also returned: the classifier's AUC on the rows that it was fitted on.
    """
    draw = np.random.default_rng(seed)
    theirs = np.concatenate([np.arange(target.start[user], target.start[user + 1]) for user in train])
    ours = np.arange(len(source.ts))
    picked = [
        rows if len(rows) <= ROWS_COMPARED else draw.choice(rows, ROWS_COMPARED, False) for rows in (ours, theirs)
    ]
    x = np.vstack([counts(source, picked[0]), counts(target, picked[1])])
    y = np.repeat([0, 1], [len(picked[0]), len(picked[1])])
    model = LogisticRegression(C=0.1, max_iter=300, class_weight="balanced").fit(x, y)
    odds = np.exp(np.clip(model.decision_function(counts(source, ours)), -5, 5))
    rows = np.diff(source.start)
    weight = np.add.reduceat(np.append(odds, 0.0), source.start[:-1]) * (rows > 0) / np.maximum(rows, 1)
    weight = np.minimum(weight / max(weight.mean(), 1e-9), MOST_WEIGHT)
    return weight / max(weight.mean(), 1e-9), auc(model.decision_function(x), y)


def joined(target: Examples, source: Examples) -> Examples:
    """Put the source's users after the target's."""
    columns = {
        name: np.concatenate([getattr(target, name), getattr(source, name)])
        for name in ("ts", "type", "item", "category", "features", "reach")
    }
    start = np.concatenate([target.start[:-1], source.start + len(target.ts)])
    return Examples(users=target.users + source.users, start=start, **columns)


def has_answers(examples: Examples, users: list[int]) -> bool:
    """Tell whether any row of some users has a horizon inside the log."""
    return any((examples.reach[examples.start[u] : examples.start[u + 1], 0, 0] != CENSORED).any() for u in users)

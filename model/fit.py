"""Fit a click model: batches in, the running average of the weights at its best epoch out.

First come epochs of next event alone, if asked for. Then the loss is reach (censored positions left out) plus next
event, each user weighted by 1 / sqrt(rows). Every epoch ends in a file from which training goes on exactly as if it had
not stopped: random numbers depend on seed and epoch alone.
"""

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model.batches import NOTHING_NEXT, Batch, batches, collate, segments
from model.calibrate import sigmoid
from model.contract.errors import FunnelcastError
from model.contract.rows import Array
from model.devices import CPU, Device
from model.examples import CENSORED, Examples, at_most
from model.measures import Curve, log_loss
from model.rates import base_rates, byte_rates, odds_of
from model.reformer import ClickModel, Logits, ReformerConfig, weights
from model.segments import Segment
from model.tabular import Trees

AVERAGED_ROWS = 1_000_000  # of the training users, about so many are looked at before the first step
SCORING_ROWS = 8192  # padded rows of one batch when no gradient is kept


class Settings(msgspec.Struct, frozen=True):
    """How to train; saved beside the weights, and compared on resuming."""

    model: ReformerConfig
    seed: int = 0
    next_event: float = 0.1  # weight of the next-event loss
    pretrain: int = 0  # epochs of next event alone, before reach is learned
    balance: float = 0.0  # reached positions of a stage weigh odds ** balance: 0 as they are, 1 as much as the others
    taught: bool = False  # by another network and by boosting, rather than by outcomes (model.recipe)
    trees: Trees = Trees()  # how boosting grows, where it teaches
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 50  # steps
    batch_rows: int = 2048
    average: float = 0.98  # share kept of the running average of the weights at each step
    patience: int = 5  # epochs without a better validation loss
    fall: int = 0  # epochs in which the learning rate falls to nothing (cosine); 0: it stays, and patience decides
    since_ms: int = 0  # rows before this moment are history: seen, but not learned from


class Scored(NamedTuple):
    """Positions that are not censored, of some users."""

    logits: Array  # (P, 2, S) float32
    outcomes: Array  # (P, 2, S) int8
    session_end: Array  # (P,) bool
    weight: Array  # (P,) float32
    row: Array  # (P,) int64 row of the examples


class Trainer:
    """A model in training: weights, their running average, optimizer, the best epoch so far and the curve."""

    def __init__(self, settings: Settings, device: Device = CPU) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device, self.scaler = settings, device, device.scaler()
        self.model = ClickModel(settings.model).to(device.at)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.user_weight: Array | None = None  # (U,) a factor on each user's weight in the loss
        self.start: float | None = None  # validation loss of the weights that training began with, where they are kept
        self.lessons: Examples | None = None  # what teachers say, to learn from in the place of what happened
        self.odds: Tensor | None = None  # (2, S) weight of a reached position, where it is not 1
        self.steps = 0
        self.best: dict[str, Tensor] = {}
        self.rehearsed: Curve = []  # of pre-training, next-event losses
        self.curve: Curve = []

    @property
    def epoch(self) -> int:
        """Epochs done, those of pre-training not counted."""
        return len(self.curve)

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, of the lowest validation loss; 0 where the start is not beaten."""
        return int(np.argmin(self._losses))

    @property
    def best_loss(self) -> float:
        """The lowest validation loss."""
        return min(self._losses)

    @property
    def _losses(self) -> list[float]:
        return [np.inf if self.start is None else self.start, *(point["validation"] for point in self.curve)]

    @property
    def finished(self) -> bool:
        """Is the learning rate spent, or, where it stays, has the validation loss stopped improving?"""
        if self.settings.fall:
            return self.epoch >= self.settings.fall
        return self.epoch > 0 and self.epoch - self.best_epoch >= self.settings.patience

    def start_from(self, model: ClickModel, examples: Examples, validation: list[int]) -> None:
        """Begin with the weights of a model, which are the best until an epoch beats them."""
        for mine in (self.model, self.average):
            mine.load_state_dict(weights(model), strict=False)
        self.best = {name: value.clone() for name, value in weights(self.average).items()}
        self.start = self.loss(examples, validation)

    def begin(self, examples: Examples, users: list[int]) -> None:
        """Let the weights begin where the training users are on average."""
        some = at_most(AVERAGED_ROWS, examples, users)
        rates = byte_rates(examples, some), base_rates(examples, some)
        for mine in (self.model, self.average):
            mine.begin(*(torch.from_numpy(rate).float().to(self.device.at) for rate in rates))

    @property
    def rehearsing(self) -> bool:
        """Is the next epoch one of pre-training?"""
        return len(self.rehearsed) < self.settings.pretrain and not self.curve

    def loss(self, examples: Examples, users: list[int]) -> float:
        """Return the weighted reach loss of the averaged weights on some users, all scopes and stages alike."""
        found = score(self.average, examples, users)
        return self.device.agreed(float(log_loss(sigmoid(found.logits), found.outcomes, found.weight).mean()))

    def run_epoch(self, examples: Examples, train: list[int], validation: list[int], progress: bool | None) -> None:
        """Train one epoch, look at the validation users, and remember the weights if they are the best so far."""
        seed = self.settings.seed * 1_000_003 + len(self.rehearsed) + self.epoch
        self.device.seed(seed)
        if self.steps == 0 and self.start is None:
            self.begin(examples, train)
        grouped = batches(segments(examples, train), self.settings.batch_rows, np.random.default_rng(seed))
        grouped = self.device.share(grouped)
        if self.settings.balance:
            odds = odds_of(examples, train) ** self.settings.balance
            self.odds = torch.from_numpy(odds).float().to(self.device.at)
        hide = None if progress is None else not progress
        losses = []
        with tqdm(grouped, desc=self.doing(), unit="batch", leave=False, disable=hide) as bar:
            for cut in bar:
                losses.append(self.step(self.batch(self.lessons or examples, cut)))
                bar.set_postfix(loss=f"{np.mean(losses):.4f}")
        point = {"train": self.device.mean(float(np.mean(losses)))}
        if self.rehearsing:
            self.rehearsed.append(point | {"validation": next_event_loss(self.average, examples, validation)})
            return
        self.curve.append(point | {"validation": self.loss(self.lessons or examples, validation)})
        if self.best_epoch == self.epoch:
            self.best = {name: value.clone() for name, value in weights(self.average).items()}

    def doing(self) -> str:
        """Name the epoch that comes next."""
        return f"pre-training {len(self.rehearsed) + 1}" if self.rehearsing else f"epoch {self.epoch + 1}"

    def batch(self, examples: Examples, cut: list[Segment]) -> Batch:
        """Pad segments, and weigh their users."""
        batch = collate(examples, cut, self.settings.since_ms)
        if self.user_weight is None:
            return batch
        factor = torch.from_numpy(self.user_weight[[part.user for part in cut]].astype(np.float32))
        return batch._replace(weight=batch.weight * factor[:, None])

    def step(self, batch: Batch) -> float:
        """Take one step down the loss of a batch and return it."""
        settings = self.settings
        self.model.train()
        rate = settings.learning_rate * min(1.0, (self.steps + 1) / settings.warm_up)
        if settings.fall:
            rate *= (1 + math.cos(math.pi * self.epoch / settings.fall)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("scale", 1.0) * rate
        batch = self.device.move(batch)
        with self.device.cast():
            reach, following = losses_of(self.model(batch.rows), batch, self.odds)
        loss = following if self.rehearsing else reach + settings.next_event * following
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        self.device.average_gradients(self.model)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        keep = min(settings.average, self.steps / (self.steps + 20))  # a young average forgets its random start
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        return float(loss.detach())

    def best_model(self) -> ClickModel:
        """Return the averaged model of the best epoch, ready to score."""
        self.average.load_state_dict(self.best, strict=False)
        return self.average.eval()

    def save(self, path: Path, identity: str) -> None:
        """Write all that the next epoch depends on, under a temporary name first."""
        state = {
            "identity": identity,
            "model": weights(self.model),
            "average": weights(self.average),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "start": self.start,
            "steps": self.steps,
            "rehearsed": self.rehearsed,
            "curve": self.curve,
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path, identity: str) -> None:
        """Go on from a saved state; FunnelcastError if there is none or it is of another run."""
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise FunnelcastError(f"nothing to resume: no {path}; leave out --resume to start anew") from None
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise FunnelcastError(f"{path} is damaged ({error}); start anew with another --out") from None
        if state["identity"] != identity:
            raise FunnelcastError(
                f"{path} is of a run with other settings or another log; give those again, or another --out"
            )
        self.model.load_state_dict(state["model"], strict=False)
        self.average.load_state_dict(state["average"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.start = state.get("start")
        self.best, self.steps, self.curve = state["best"], state["steps"], state["curve"]
        self.rehearsed = state["rehearsed"]


def losses_of(logits: Logits, batch: Batch, odds: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the weighted mean losses of reach and of the next event over the positions that have an answer."""
    known = batch.reach[..., 0, 0] != CENSORED  # (B, L)
    truth = batch.reach.clamp(min=0).float()
    apart = F.binary_cross_entropy_with_logits(logits.reach, truth, reduction="none", pos_weight=odds)
    reach = apart.mean((-1, -2))  # (B, L)
    follows = batch.next_type != NOTHING_NEXT  # (B, L)
    guessed = logits.next_type.transpose(1, 2)  # (B, T, L)
    following = F.cross_entropy(guessed, batch.next_type.clamp(min=0), reduction="none")  # (B, L)
    return _mean(reach, known * batch.weight), _mean(following, follows * batch.weight)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1e-9)


@torch.no_grad()
def next_event_loss(model: ClickModel, examples: Examples, users: list[int]) -> float:
    """Return the weighted next-event loss of a model on some users."""
    model.eval()
    device, asked, found = Device(next(model.parameters()).device), [], []
    for cut in batches(segments(examples, users), SCORING_ROWS):
        batch = device.move(collate(examples, cut))
        asked.append(float(((batch.next_type != NOTHING_NEXT) * batch.weight).sum()))
        found.append(float(losses_of(model(batch.rows), batch)[1]))
    return float(np.average(found, weights=asked))


@torch.no_grad()
def score(model: ClickModel, examples: Examples, users: list[int]) -> Scored:
    """Score every position of some users that is not censored; in the order of the examples' rows."""
    model.eval()
    parts = list(_scored(model, examples, users))
    scored = Scored(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(scored.row)
    return Scored(*(column[order] for column in scored))


def _scored(model: ClickModel, examples: Examples, users: list[int]) -> Iterator[tuple[Array, ...]]:
    device = Device(next(model.parameters()).device)
    for cut in batches(segments(examples, users), SCORING_ROWS):
        batch = collate(examples, cut)
        reach = model(device.move(batch).rows).reach.cpu()
        known = batch.reach[..., 0, 0] != CENSORED  # (B, L)
        ended = batch.rows.type == model.config.types - 1
        weight = batch.weight.expand(known.shape)
        first = torch.tensor([int(examples.start[part.user]) + part.begin for part in cut])
        row = first[:, None] + torch.arange(known.shape[1])  # (B, L)
        yield tuple(part[known].numpy() for part in (reach, batch.reach, ended, weight, row))

"""The experiment: how many of the target's users are needed, by each strategy, from scratch, and by boosting.

The users of a budget decide by cross-validation whether the source is recalibrated, how long a strategy fine-tunes, if
at all, and which one is picked: each fold is asked by networks that learned from the others; one learns from all.
"""

import time
from typing import Any, NamedTuple

import msgspec
import numpy as np

from model.baselines import contender
from model.calibrate import sigmoid
from model.contract.rows import Array
from model.evaluation.figures import Answers
from model.evaluation.runs import Done
from model.examples import Examples
from model.fit import Settings, score
from model.measures import log_loss
from model.recipe import DEFAULTS
from model.reformer import ClickModel
from model.tabular import known_rows, weight_of
from model.transfer.budgets import Budget
from model.transfer.strategies import STRATEGIES, FineTuner, full, has_answers, joined, recalibrated, source_weights

STEPS, FEWEST_ROWS = 10, 128  # of an epoch, and padded rows of a step, where users are few
PATIENCE = 3  # epochs of fine-tuning that are no better than the best
ZERO_SHOT, RECALIBRATED, REWEIGHTED = "zero_shot", "recalibrated", "reweighted_source"
SCRATCH, BOOSTING = "from_scratch", "boosting"


class Setting(NamedTuple):
    """What is transferred to what."""

    source: ClickModel  # remapped
    target: Examples
    test: list[int]
    source_examples: Examples | None  # where a source log was given
    settings: Settings  # of a network that learns from scratch
    learning_rate: float  # of one that does not
    epochs: int  # of each fit, at most
    progress: bool | None


class Tuning(NamedTuple):
    """A strategy at work."""

    tuner: FineTuner
    examples: Examples
    users: list[int]  # who are learned from
    held: list[int]  # who are asked after each epoch

    def epoch(self, progress: bool | None) -> float:
        """Train for an epoch and return the loss on those asked."""
        self.tuner.run_epoch(self.examples, self.users, self.held, progress)
        return float(self.tuner.curve[-1]["validation"])


def contenders_of(setting: Setting) -> list[str]:
    """Name everything that is compared."""
    extra = [REWEIGHTED] if setting.source_examples is not None else []
    return [ZERO_SHOT, RECALIBRATED, *STRATEGIES, *extra, SCRATCH, BOOSTING]


def transferred(names: list[str]) -> list[str]:
    """Return those among which the users of a budget pick."""
    return [name for name in names if name not in (SCRATCH, BOOSTING)]


def run_one(setting: Setting, budget: Budget, name: str) -> Done:
    """Fit one contender within a budget and ask it about the test users."""
    started = time.process_time()
    fit = fit_rival if name in (SCRATCH, BOOSTING) else fine_tune
    logits, facts = fit(setting, budget, name)
    facts |= {
        "cpu_seconds": time.process_time() - started,
        "users": {"budget": len(budget.users), "test": len(setting.test)},
    }
    p = sigmoid(logits).astype(np.float32)
    return Done(Answers(p, p), facts)


def fit_rival(setting: Setting, budget: Budget, name: str) -> tuple[Array, dict[str, Any]]:
    """Return what one that knows no source says of the test users, logits (P, 2, S); fitted as evaluation does it."""
    known = setting.settings.model.network if name == SCRATCH else BOOSTING
    model = msgspec.structs.replace(setting.settings.model, ramps=0)  # finer views are for the taught
    settings = msgspec.structs.replace(paced(setting.settings, setting.target, budget.train), model=model, **DEFAULTS)
    rival = contender(known, settings, setting.epochs)
    rival.fit(setting.target, budget.train, budget.validation, setting.progress)
    epochs = sum(len(curve) for curves in rival.phases.values() for curve in curves)
    rows = known_rows(setting.target, budget.validation)
    said = sigmoid(rival.logits(setting.target, budget.validation))
    loss = log_loss(said, setting.target.reach[rows], weight_of(setting.target, rows))
    return rival.logits(setting.target, setting.test), {"epochs": epochs, "validation": float(loss.mean())}


def fine_tune(setting: Setting, budget: Budget, name: str) -> tuple[Array, dict[str, Any]]:
    """Return what a strategy says of the test users, logits (P, 2, S), and what was decided."""
    shifted, losses = decide(setting, budget, name)
    epochs = int(np.argmin(losses))
    tuning = tuning_of(setting, budget.users, budget.users, name, shifted)
    for _ in range(epochs):
        tuning.epoch(setting.progress)
    logits = score(tuning.tuner.average, setting.target, setting.test).logits
    return logits, {"epochs": epochs, "validation": min(losses), "losses": losses, "recalibrated": shifted}


def decide(setting: Setting, budget: Budget, name: str) -> tuple[bool, list[float]]:
    """Decide whether to recalibrate, and return the losses on users left out, before the first epoch and after each.

    The folds take each epoch together, until for some time none was better than the best.
    """
    folds = [(budget.without(number), held) for number, held in enumerate(budget.folds)]
    folds = [parts for parts in folds if all(has_answers(setting.target, part) for part in parts)]
    weight = [weight_of(setting.target, known_rows(setting.target, held)).sum() for _, held in folds]
    starts = []
    for shifted in [False] if name == ZERO_SHOT else [False, True]:
        tunings = [tuning_of(setting, users, held, name, shifted) for users, held in folds]
        loss = float(np.average([tuning.tuner.best_loss for tuning in tunings], weights=weight))
        starts.append((loss, shifted, tunings))
    first, shifted, tunings = min(starts, key=lambda start: start[0])
    losses, most = [first], 0 if name in (ZERO_SHOT, RECALIBRATED) else setting.epochs
    while len(losses) <= most and len(losses) - 1 - np.argmin(losses) < PATIENCE:
        after = [tuning.epoch(setting.progress) for tuning in tunings]
        losses.append(float(np.average(after, weights=weight)))
    return shifted, losses


def paced(settings: Settings, target: Examples, train: list[int]) -> Settings:
    """Take some steps in every epoch and warm up within the first ones, however few users there are."""
    rows = sum(target.rows_of(user) for user in train)
    batch_rows = min(settings.batch_rows, max(FEWEST_ROWS, rows // STEPS))
    return msgspec.structs.replace(settings, batch_rows=batch_rows, warm_up=min(settings.warm_up, STEPS))


def tuning_of(setting: Setting, users: list[int], held: list[int], name: str, shifted: bool) -> Tuning:
    """Return a strategy that is to go on from the source, recalibrated or not, on some users of the target."""
    examples, learners, user_weight = setting.target, users, None
    if name == REWEIGHTED:
        assert setting.source_examples is not None
        weight, _ = source_weights(setting.source_examples, examples, users, setting.settings.seed)
        ours, asked = len(examples.users), {examples.users[user] for user in {*setting.test, *held} - {*users}}
        examples = joined(examples, setting.source_examples)
        theirs = range(ours, len(examples.users))
        learners = [*users, *(user for user in theirs if examples.users[user] not in asked)]
        share = len(users) / max(len(weight), 1)  # both domains weigh the same in the loss
        user_weight = np.concatenate([np.ones(ours), weight * share])
    settings = msgspec.structs.replace(paced(setting.settings, examples, learners), learning_rate=setting.learning_rate)
    tuner = FineTuner(settings, STRATEGIES.get(name, full))
    tuner.user_weight = user_weight
    start = recalibrated(setting.source, setting.target, users) if shifted else setting.source
    tuner.start_from(start, examples, held)
    return Tuning(tuner, examples, learners, held)

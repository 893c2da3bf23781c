"""The experiment: how many of the target's users are needed, by each strategy, from scratch, and by boosting.

Three in ten users of the target are asked at the end and never seen before. Of the others each budget takes a share,
smaller ones inside larger ones; one in four of a budget decides when to stop and which strategy is picked.
"""

import time
from typing import Any, NamedTuple

import msgspec
import numpy as np

from model.baselines import Contender, contender
from model.calibrate import sigmoid
from model.contract.errors import FunnelcastError
from model.contract.rows import Array
from model.evaluation.figures import Answers
from model.evaluation.runs import Done
from model.evaluation.splits import place
from model.examples import Examples
from model.fit import Settings, Trainer, score
from model.measures import log_loss
from model.reformer import ClickModel
from model.tabular import known_rows
from model.transfer.strategies import STRATEGIES, FineTuner, full, has_answers, joined, source_weights

TEST_SHARE, VALIDATION_SHARE = 0.3, 0.25
FEWEST_USERS = 4  # of a budget: two to train on, two to decide
STEPS, FEWEST_ROWS = 10, 128  # of an epoch, and padded rows of a step, where users are few
ZERO_SHOT, REWEIGHTED, SCRATCH, BOOSTING = "zero_shot", "reweighted_source", "from_scratch", "boosting"


class Budget(NamedTuple):
    """Some share of the target's users."""

    name: str
    train: list[int]
    validation: list[int]


class Setting(NamedTuple):
    """What is transferred to what."""

    source: ClickModel  # remapped
    target: Examples
    test: list[int]
    source_examples: Examples | None  # where a source log was given
    settings: Settings  # of a network that learns from scratch
    learning_rate: float  # of one that does not
    epochs: int
    progress: bool | None


def budgets_of(target: Examples, shares: list[float], seed: int) -> tuple[list[Budget], list[int]]:
    """Divide the target's users into budgets and test users, each by a hash of the name."""
    everyone = range(len(target.users))
    test = [user for user in everyone if place(target.users[user], seed, "test") < TEST_SHARE]
    pool = [user for user in everyone if place(target.users[user], seed, "test") >= TEST_SHARE]
    pool.sort(key=lambda user: place(target.users[user], seed, "budget"))
    if len(pool) < 2 * FEWEST_USERS or not has_answers(target, test):
        raise FunnelcastError(
            f"the target has {len(target.users)} users, expected at least {3 * FEWEST_USERS} with rows whose horizon"
            " ends inside the log; use a longer log or a shorter --horizon-minutes"
        )
    found = []
    for share in sorted(shares):
        users = pool[: max(FEWEST_USERS, round(share * len(pool)))]
        deciding = max(2, round(VALIDATION_SHARE * len(users)))
        ranked = sorted(users, key=lambda user: place(target.users[user], seed, "validation"))
        budget = Budget(f"{share:.4g}", sorted(ranked[deciding:]), sorted(ranked[:deciding]))
        for name, part in (("train", budget.train), ("validation", budget.validation)):
            if not has_answers(target, part):
                raise FunnelcastError(
                    f"with {share:.1%} of the target's users no {name} user has a row whose horizon ends inside the"
                    " log; give a larger share"
                )
        found.append(budget)
    return found, test


def contenders_of(setting: Setting) -> list[str]:
    """Name everything that is compared."""
    extra = [REWEIGHTED] if setting.source_examples is not None else []
    return [ZERO_SHOT, *STRATEGIES, *extra, SCRATCH, BOOSTING]


def transferred(names: list[str]) -> list[str]:
    """Return those among which the validation users pick."""
    return [name for name in names if name not in (SCRATCH, BOOSTING)]


def run_one(setting: Setting, budget: Budget, name: str) -> Done:
    """Fit one contender within a budget and ask it about the test users."""
    started = time.process_time()
    logits, facts = fit_one(setting, budget, name)
    facts |= {
        "cpu_seconds": time.process_time() - started,
        "users": {"train": len(budget.train), "validation": len(budget.validation), "test": len(setting.test)},
    }
    p = sigmoid(logits).astype(np.float32)
    return Done(Answers(p, p), facts)


def fit_one(setting: Setting, budget: Budget, name: str) -> tuple[Array, dict[str, Any]]:
    """Return the test users' logits (P, 2, S), and curve and validation loss."""
    if name in (SCRATCH, BOOSTING):
        known = setting.settings.model.network if name == SCRATCH else BOOSTING
        fresh = msgspec.structs.replace(setting.settings.model, ramps=0)  # finer views are for the taught
        fresh_settings = msgspec.structs.replace(setting.settings, model=fresh)
        rival = contender(known, paced(fresh_settings, setting.target, budget.train), setting.epochs)
        rival.fit(setting.target, budget.train, budget.validation, setting.progress)
        facts = {"curve": [], "validation": _loss(rival, setting.target, budget.validation)}
        return rival.logits(setting.target, setting.test), facts
    trainer = trainer_of(setting, budget, name)
    losses = [trainer.start, *(point["validation"] for point in trainer.curve)]
    facts = {"curve": trainer.curve, "validation": min(loss for loss in losses if loss is not None)}
    facts["best_epoch"] = trainer.best_epoch
    return score(trainer.best_model(), setting.target, setting.test).logits, facts


def paced(settings: Settings, target: Examples, train: list[int]) -> Settings:
    """Take some steps in every epoch and warm up within the first ones, however few users there are."""
    rows = sum(target.rows_of(user) for user in train)
    batch_rows = min(settings.batch_rows, max(FEWEST_ROWS, rows // STEPS))
    return msgspec.structs.replace(settings, batch_rows=batch_rows, warm_up=min(settings.warm_up, STEPS))


def trainer_of(setting: Setting, budget: Budget, name: str, tuner: type[FineTuner] = FineTuner) -> Trainer:
    """Return a trainer that has done what the strategy says."""
    examples, train, user_weight = setting.target, budget.train, None
    if name == REWEIGHTED:
        assert setting.source_examples is not None
        weight, _ = source_weights(setting.source_examples, examples, train, setting.settings.seed)
        ours, tested = len(examples.users), {examples.users[user] for user in setting.test}
        examples = joined(examples, setting.source_examples)
        theirs = range(ours, len(examples.users))
        train = [*train, *(user for user in theirs if examples.users[user] not in tested)]
        share = len(budget.train) / max(len(weight), 1)  # both domains weigh the same in the loss
        user_weight = np.concatenate([np.ones(ours), weight * share])
    settings = msgspec.structs.replace(paced(setting.settings, examples, train), learning_rate=setting.learning_rate)
    trainer = tuner(settings, STRATEGIES.get(name, full))
    trainer.user_weight = user_weight
    trainer.start_from(setting.source, examples, budget.validation)
    if name == ZERO_SHOT:
        return trainer
    while not trainer.finished and trainer.epoch < setting.epochs:
        trainer.run_epoch(examples, train, budget.validation, setting.progress)
    return trainer


def _loss(rival: Contender, examples: Examples, users: list[int]) -> float:
    rows = known_rows(examples, users)
    weight = 1 / np.sqrt(np.diff(examples.start)[examples.user_of(rows)])
    return float(log_loss(sigmoid(rival.logits(examples, users)), examples.reach[rows], weight).mean())

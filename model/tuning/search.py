"""The search: labelled examples in, a study of trials out, each judged on users that its fit did not see.

A trial fits on two folds of users. Its value is the log-loss as a share of the base rate's, averaged over folds, scopes
and stages, so that rare stages count as much as common ones. The first trial is the default.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from model.baselines import Contender
from model.calibrate import sigmoid
from model.contract.rows import Array
from model.evaluation.splits import Split
from model.examples import Examples
from model.fit import Settings, Trainer, score
from model.measures import log_loss
from model.tabular import Tabular, Trees, boosting, bytes_and_type, known_rows, weight_of
from model.tuning.tuned import with_values

NETWORK, BOOSTING, DEFAULT = "network", "boosting", "default"
STARTUP_TRIALS = 5  # before the sampler and the pruner trust what they have seen


class Task(NamedTuple):
    """What is tuned on what."""

    splits: list[Split]
    settings: Settings
    epochs: int
    progress: bool | None


def network_space(trial: Trial) -> dict[str, Any]:
    """Draw the settings of a network; its sizes, which a worker pays for at every event, stay those of its tier."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 5e-4, 5e-3, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
        "next_event": trial.suggest_float("next_event", 0.0, 0.5),
        "dropout": trial.suggest_float("dropout", 0.1, 0.5),
        "anonymity": trial.suggest_categorical("anonymity", [0.0, 0.5, 1.0]),
    }


def boosting_space(trial: Trial) -> dict[str, Any]:
    """Draw how boosting grows its trees."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 4, 63, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 20, 400, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 0.1, 50.0, log=True),
        "max_features": trial.suggest_float("max_features", 0.1, 1.0),
    }


def defaults(what: str, settings: Settings) -> dict[str, Any]:
    """Return the values that the first trial takes."""
    if what == BOOSTING:
        return msgspec.structs.asdict(Trees())
    names = ("learning_rate", "weight_decay", "next_event")
    model = {"dropout": settings.model.dropout, "anonymity": settings.model.anonymity}
    return {name: getattr(settings, name) for name in names} | model


def open_study(storage: str, what: str, task: Task) -> optuna.Study:
    """Open or make a study; a trial that an interruption left open has failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=2)
    study = optuna.create_study(storage=storage, study_name=what, load_if_exists=True, pruner=pruner)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    if default_of(study) is None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(defaults(what, task.settings), user_attrs={DEFAULT: True})
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS, seed=task.settings.seed * 1_000_003 + len(study.trials)
    )
    study.sampler = sampler
    return study


def done_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have a value."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def default_of(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial of the default values, once it is done."""
    return next((trial for trial in done_of(study) if DEFAULT in trial.user_attrs), None)


def spent_seconds(study: optuna.Study) -> float:
    """Return how long the finished trials took."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.duration.total_seconds() for trial in trials if trial.duration is not None)


def search(study: optuna.Study, what: str, task: Task, seconds: float, tell: Callable[[], None]) -> None:
    """Try until the time is spent; the trial that it ends in is given up, unless it is the default."""
    deadline = time.monotonic() + seconds

    def objective(trial: Trial) -> float:
        must_end = np.inf if DEFAULT in trial.user_attrs else deadline
        if what == BOOSTING:
            return _boosting(Trees(**boosting_space(trial)), task, trial, must_end)
        return _network(with_values(task.settings, network_space(trial)), task, trial, must_end)

    while default_of(study) is None or time.monotonic() < deadline:
        study.optimize(objective, n_trials=1)
        tell()


def _network(settings: Settings, task: Task, trial: Trial, deadline: float) -> float:
    values = []
    for split in task.splits:
        trainer = Trainer(settings)
        while not trainer.finished and trainer.epoch < task.epochs:
            trainer.run_epoch(split.past, split.train, split.validation, task.progress)
            if split is task.splits[0]:
                trial.report(min(point["validation"] for point in trainer.curve), trainer.epoch)
                if DEFAULT not in trial.user_attrs and trial.should_prune():
                    raise optuna.TrialPruned
            if time.monotonic() > deadline:
                raise optuna.TrialPruned
        values.append(relative_loss(score(trainer.best_model(), split.whole, split.test).logits, split))
    return float(np.mean(values))


def _boosting(trees: Trees, task: Task, trial: Trial, deadline: float) -> float:
    values, seed = [], task.settings.seed
    for split in task.splits:
        if time.monotonic() > deadline:
            raise optuna.TrialPruned
        rival: Contender = Tabular(lambda: boosting(seed, trees), bytes_and_type, stops_early=True)
        rival.fit(split.past, split.train, split.validation, task.progress)
        values.append(relative_loss(rival.logits(split.whole, split.test), split))
    return float(np.mean(values))


def relative_loss(logits: Array, split: Split) -> float:
    """Return the log-loss on a split's test users as a share of the base rate's, averaged over scopes and stages."""
    rows = known_rows(split.whole, split.test)
    outcomes, weight = split.whole.reach[rows], weight_of(split.whole, rows)
    rates = np.broadcast_to(rates_of(split.past, split.train), outcomes.shape)
    mine, base = (log_loss(p, outcomes, weight) for p in (sigmoid(logits), rates))  # (2, S)
    return float(np.mean(mine / np.maximum(base, 1e-9)))


def rates_of(examples: Examples, users: list[int]) -> Array:
    """Return how often each stage is reached, weighted as in training, (2, S)."""
    rows = known_rows(examples, users)
    return np.asarray(np.average(examples.reach[rows], axis=0, weights=weight_of(examples, rows)))

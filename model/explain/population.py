"""What the model goes by in general: the cost of taking a feature, or all past events of a type, away from it.

A feature is permuted among all rows of the sampled users, which keeps its distribution; a type of event is left out of
the past and the past folded again. Intervals come from bootstrap replicates of the users.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from model.answering import Answerer, reach_logits
from model.contract.bundle import SCOPES
from model.contract.errors import FunnelcastError
from model.contract.events import TYPES
from model.contract.features import FEATURES
from model.contract.rows import Array, Rules
from model.contract.stages import STAGES
from model.datasets import LogColumns
from model.evaluation.figures import area, draw_users, interval, rank
from model.explain.retell import Question, Story, past_of, retell
from model.histories import Histories
from model.labels import Labels
from model.measures import log_loss
from model.offline.answers import inputs_of
from model.segments import Segment, segments_of

NAMES = ("item", "category")  # shuffled as the features are
QUESTIONS = 5  # of each user, for types of events

Ask = Callable[[Any], Array]  # inputs, perhaps changed -> calibrated probabilities (P, 2, S) of the sample's known rows


class Sample(NamedTuple):
    """The rows of the sampled users whose outcome is known."""

    inputs: Any  # Inputs, or Examples of an evaluation
    known: Array  # (P,) rows of the inputs
    user: Array  # (P,) i8
    outcomes: Array  # (P, 2, S)


class Settings(NamedTuple):
    """How much, and how."""

    users: int
    resamples: int
    seed: int
    progress: bool | None


def sample_of(histories: Histories, labels: Labels, settings: Settings) -> Sample:
    """Draw users and take all their rows."""
    count = min(settings.users, len(histories.users))
    chosen = np.random.default_rng(settings.seed).choice(len(histories.users), count, replace=False)
    sample = sample_of_users(histories, labels, np.sort(chosen).tolist())
    if sample is None:
        raise FunnelcastError("no row of the sampled users has a horizon inside the log; use a longer log")
    return sample


def sample_of_users(histories: Histories, labels: Labels, users: list[int]) -> Sample | None:
    """Take all rows of some users; None where no outcome is known."""
    parts: list[Segment] = []
    known, owner, outcomes, at = [], [], [], 0
    for user in users:
        first = int(histories.offsets[user])
        for part in segments_of(user, int(histories.offsets[user + 1]) - first):
            rows = np.arange(part.scored, part.end)
            rows = rows[~labels.censored[first + rows]]
            known.append(at + rows - part.begin)
            owner.append(np.full(len(rows), user))
            outcomes.append(labels.reach[first + rows])
            parts.append(part)
            at += part.end - part.begin
    if not sum(map(len, known)):
        return None
    return Sample(inputs_of(histories, parts), *map(np.concatenate, (known, owner, outcomes)))


def asked(sample: Sample, answerer: Answerer) -> Ask:
    """Return how to ask a bundle or a checkpoint about the rows of a sample."""
    return lambda inputs: answerer.calibration.apply(reach_logits(answerer, inputs)[sample.known])


def importance_of_features(sample: Sample, ask: Ask, settings: Settings) -> dict[str, Any]:
    """Return, by feature, how much the figures suffer when it is permuted, the most costly first."""
    draws = draw_users(sample.user, int(sample.user.max()) + 1, settings.resamples, settings.seed)
    before = figures_by_replicate(ask(sample.inputs), sample, draws)
    varied = [x for x in range(len(FEATURES)) if np.ptp(sample.inputs.features[:, x])]
    names = [FEATURES[x] for x in varied] + [name for name in NAMES if np.ptp(getattr(sample.inputs, name))]
    hide = None if settings.progress is None else not settings.progress
    found = {}
    for name in tqdm(names, desc="features", disable=hide):
        order = np.random.default_rng([settings.seed, len(name), *name.encode()]).permutation(len(sample.inputs.type))
        after = figures_by_replicate(ask(_without(sample.inputs, name, order)), sample, draws)
        found[name] = _cost(before, after)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["mean"]["auc_drop"]))


def _without(inputs: Any, name: str, order: Array) -> Any:
    if name in NAMES:
        return inputs._replace(**{name: getattr(inputs, name)[order]})
    features = inputs.features.copy()
    x = FEATURES.index(name)
    features[:, x] = features[order, x]
    return inputs._replace(features=features)


def figures_by_replicate(p: Array, sample: Sample, draws: Array) -> tuple[Array, Array]:
    """Return AUC and log-loss (1 + R, 2, S): the figure itself, then its replicates."""
    users, even = draws.shape[1], np.ones(draws.shape[1])
    weights = [draw[sample.user] for draw in (even, *draws)]
    shape = (len(weights), len(SCOPES), len(STAGES))
    areas = np.empty(shape)
    for a in range(len(SCOPES)):
        for s in range(len(STAGES)):
            ranked = rank(p[:, a, s], sample.outcomes[:, a, s].astype(np.float64))
            areas[:, a, s] = [area(ranked, weight) for weight in weights]
    losses = log_loss(p[None], sample.outcomes[None])  # (P, 2, S)
    summed = np.stack([np.bincount(sample.user, column, users) for column in losses.reshape(len(p), -1).T], 1)
    times = np.vstack([even, draws])  # (1 + R, U)
    total = times @ np.bincount(sample.user, minlength=users)
    return areas, ((times @ summed) / total[:, None]).reshape(shape)


def _cost(before: tuple[Array, Array], after: tuple[Array, Array]) -> dict[str, Any]:
    """Word drops of AUC and rises of log-loss by scope and stage, and their mean over both."""
    drop, rise = before[0] - after[0], after[1] - before[1]  # (1 + R, 2, S)
    both = (("auc_drop", drop), ("log_loss_rise", rise))

    def cell(pairs: list[tuple[str, Array]]) -> dict[str, Any]:
        values = {name: float(column[0]) for name, column in pairs}
        return values | {f"{name}_interval": interval(column[1:]) for name, column in pairs}

    told: dict[str, Any] = {"mean": cell([(name, np.nanmean(table[:, :, 1:], axis=(1, 2))) for name, table in both])}
    for a, scope in enumerate(SCOPES):
        told[scope] = {str(stage): cell([(n, t[:, a, s]) for n, t in both]) for s, stage in enumerate(STAGES)}
    return told


def importance_of_types(
    columns: LogColumns, sample: Sample, answerer: Answerer, rules: Rules, recorded: Array, settings: Settings
) -> dict[str, Any]:
    """Return, by type of event, how the answers change when all past events of it are left out."""
    questions, users = _questions(columns, np.unique(sample.user), settings.seed)
    nothing = np.zeros(0, np.int64)
    whole = retell(columns, [Story(question, nothing) for question in questions], rules, recorded)
    p = answerer.calibration.apply(reach_logits(answerer, whole.inputs)[whole.asked])  # (Q, 2, S)
    hide = None if settings.progress is None else not settings.progress
    found = {}
    for code in tqdm(np.unique(columns.type).tolist(), desc="types of events", disable=hide):
        stories, asked = [], []
        for number, question in enumerate(questions):
            left_out = question.past[:-1][columns.type[question.past[:-1]] == code]
            if len(left_out):
                stories.append(Story(question._replace(begin=int(whole.begin[number])), left_out))
                asked.append(number)
        if stories:
            told = retell(columns, stories, rules, recorded)
            without = answerer.calibration.apply(reach_logits(answerer, told.inputs)[told.asked])
            found[TYPES[code]] = _change(p[asked] - without, users[asked], settings)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["mean"]["size"]))


def _questions(columns: LogColumns, users: Array, seed: int) -> tuple[list[Question], Array]:
    """Draw a few events of each user to ask about."""
    draw, questions, owner = np.random.default_rng(seed), [], []
    for user in users.tolist():
        past = past_of(columns, user)
        if columns.id[past].any():  # an event whose message id came before has no row
            past = past[np.sort(np.unique(columns.id[past] + (columns.id[past] == 0) * past, return_index=True)[1])]
        for end in np.sort(draw.choice(len(past), min(QUESTIONS, len(past)), replace=False)).tolist():
            questions.append(Question(past[: end + 1], False))
            owner.append(user)
    return questions, np.array(owner)


def _change(effect: Array, user: Array, settings: Settings) -> dict[str, Any]:
    """Word mean effects (Q, 2, S) on the probabilities, and their mean size, with intervals."""
    draws = draw_users(user, int(user.max()) + 1, settings.resamples, settings.seed)
    times = np.vstack([np.ones(len(user)), draws[:, user]])  # (1 + R, Q)
    total = times.sum(1)[:, None]
    shape = (len(times), *effect.shape[1:])
    mean = ((times @ effect.reshape(len(user), -1)) / total).reshape(shape)
    size = ((times @ np.abs(effect).reshape(len(user), -1)) / total).reshape(shape)

    def cell(pairs: list[tuple[str, Array]]) -> dict[str, Any]:
        return {n: float(v[0]) for n, v in pairs} | {f"{n}_interval": interval(v[1:]) for n, v in pairs}

    told: dict[str, Any] = {"questions": len(user), "users": len(np.unique(user))}
    told["mean"] = cell([("size", size[:, :, 1:].mean((1, 2)))])
    for a, scope in enumerate(SCOPES):
        cells = {str(g): cell([("change", mean[:, a, s]), ("size", size[:, a, s])]) for s, g in enumerate(STAGES)}
        told[scope] = cells
    return told

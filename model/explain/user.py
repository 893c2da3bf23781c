"""One user explained: how much each past event moved the answer, by leaving it out of the past and asking again."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.answering import Answerer, TorchAnswerer, reach_logits
from model.contract.bundle import SCOPES, pad
from model.contract.errors import FunnelcastError
from model.contract.events import TYPES
from model.contract.rows import Array, Inputs, Rules
from model.contract.stages import STAGES
from model.datasets import LogColumns
from model.explain.retell import Question, Story, past_of, retell

METHOD = (
    "each event is left out of the user's past, the rest goes through the fold again, and the same row is asked again;"
    " effect = probability with the event minus probability without it"
)


class Explained(NamedTuple):
    """The answer to one question, and what moved it."""

    question: Question
    events: Array  # (K,) i8 events left out one at a time, as indices of the log
    probability: Array  # (2, S)
    effect: Array  # (K, 2, S)
    inputs: Inputs  # of the whole past: one sequence


def question_of(columns: LogColumns, user: str, row: int | None, ended: bool | None, rules: Rules) -> Question:
    """Find the event asked about: that of a line of the log, the user's last by default, and its session end."""
    if user not in columns.users:
        some = ", ".join(columns.users[:3])
        raise FunnelcastError(f"the log has no user {user!r}, expected one such as {some}; correct --user")
    code, until = columns.users.index(user), None
    if row is not None:
        found = np.flatnonzero((columns.row == row) & (columns.user == code))
        if not len(found):
            raise FunnelcastError(f"line {row} of the log is no event of user {user!r}; correct --row or --user")
        until = int(found[0])
    past = past_of(columns, code, until)
    if ended is None:
        silent = int(columns.ts.max()) - int(columns.ts[past[-1]]) >= rules.gap_ms + rules.late_ms
        ended = row is None and silent
    return Question(past, ended)


def explain_user(
    columns: LogColumns, question: Question, answerer: Answerer, rules: Rules, recorded: Array, most: int
) -> Explained:
    """Leave out each of the latest `most` events before the one asked about, and ask again."""
    whole = retell(columns, [Story(question, np.zeros(0, np.int64))], rules, recorded)
    question = question._replace(begin=int(whole.begin[0]))
    left_out = question.past[:-1][-most:] if most else question.past[:0]
    stories = [Story(question, left_out[k : k + 1]) for k in range(len(left_out))]
    p = answerer.calibration.apply(reach_logits(answerer, whole.inputs)[-1])  # (2, S)
    if not stories:
        return Explained(question, left_out, p, np.zeros((0, *p.shape)), whole.inputs)
    told = retell(columns, stories, rules, recorded)
    without = answerer.calibration.apply(reach_logits(answerer, told.inputs)[told.asked])  # (K, 2, S)
    return Explained(question, left_out, p, p - without, whole.inputs)


def attention_of(answerer: Answerer, explained: Explained, checkpoint: Path | None) -> dict[str, Any] | None:
    """Return what the row asked about attends to, None where there is no checkpoint with hash buckets."""
    if not isinstance(answerer, TorchAnswerer):
        if checkpoint is None:
            return None
        answerer = TorchAnswerer(checkpoint)
    if not answerer.model.attentions():
        return None
    import torch

    from model.explain.attend import attended
    from model.reformer import Rows

    length = int(explained.inputs.lengths[0])
    feed = pad(explained.inputs, [0], length, answerer.contract.vocabulary)
    found = attended(answerer.model, Rows(*(torch.from_numpy(feed[name]) for name in Rows._fields)))
    return {
        "rows_seen": length,
        "weight": found.weight.round(4).tolist(),
        "hash_bucket": found.hash_bucket.tolist(),
        "rows_by_hash_bucket": found.sizes.tolist(),
    }


def as_dict(columns: LogColumns, user: str, explained: Explained, attention: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the JSON file says."""
    asked = int(explained.question.past[-1])
    kind = "session_end" if explained.question.ended else "event"
    rows = [TYPES[code] for code in explained.inputs.type.tolist()] if attention else None
    return {
        "user_id": user,
        "method": METHOD,
        "asked": {"kind": kind, **event_of(columns, asked)},
        "probabilities": _by_stage(explained.probability),
        "events": [
            {**event_of(columns, int(event)), "effect": _by_stage(effect)}
            for event, effect in zip(explained.events, explained.effect, strict=True)
        ],
        "attention": attention and attention | {"rows": rows},
    }


def event_of(columns: LogColumns, event: int) -> dict[str, Any]:
    """Describe an event of the log."""
    category = columns.categories.get(int(columns.category[event]))
    ts = int(columns.ts[event])
    return {
        "row": int(columns.row[event]),
        "timestamp": ts,
        "utc": datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "event": TYPES[columns.type[event]],
        "category": category,
    }


def _by_stage(table: Array) -> dict[str, dict[str, float]]:
    return {
        scope: {str(stage): round(float(table[a, s]), 6) for s, stage in enumerate(STAGES)}
        for a, scope in enumerate(SCOPES)
    }

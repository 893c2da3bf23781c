"""Retell: one question a line in, one explanation a line out; a process of its own, of the lowest priority.

    python -m worker.retell BUNDLE

A question is a user's rows up to an answer. Each of the latest events before it is left out in turn, the rest goes
through the fold again, and the whole-sequence graph is asked again, as `funnelcast explain` does offline.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from model.contract.arena import NOT_DUE
from model.contract.bundle import load_bundle
from model.contract.events import SESSION_END, TYPES
from model.contract.features import PRICE
from model.contract.rows import Array, Events, Inputs, Rows, Rules
from model.contract.sequence import Sequences
from model.contract.stages import STAGES
from worker.scorer import Scorer, open_session

LATEST = 50  # events that are left out in turn, at most
LOWEST_PRIORITY, KILLED_FIRST = 19, "1000"  # of the scheduler, and for the kernel when memory is short
DIGITS = 6  # decimals of a probability
COLUMNS = {"ts": "<i8", "type": "u1", "item": "<u4", "category": "<u4", "price": "u1"}
USER = b"u"


class Question(msgspec.Struct, frozen=True):
    """Which answer is to be explained: the last of a user's rows, which are all that there were up to it."""

    id: str  # of the answer
    user_id: str
    names: dict[int, str]  # of categories, as far as they are known
    ts: bytes
    type: bytes
    item: bytes
    category: bytes
    price: bytes


class Effect(msgspec.Struct, frozen=True):
    """A past event, and the probabilities with it minus those without it."""

    event_time: int
    event_type: str
    category: str | None
    category_effect: dict[str, float]
    user_effect: dict[str, float]


class Explanation(msgspec.Struct, frozen=True):
    """The value of an explanation record: what each of the latest events before an answer did to it."""

    id: str
    user_id: str
    event_time: int
    event_type: str
    category: str | None
    category_probabilities: dict[str, float]
    user_probabilities: dict[str, float]
    events: list[Effect]
    past_events: int
    model: dict[str, str]


def question(answer_id: str, user: bytes, rows: Rows, names: Mapping[int, bytes]) -> Question:
    """Ask about the last row, with the names of the categories that an explanation may show."""
    columns = {**rows._asdict(), "price": rows.features[:, PRICE]}
    data = {name: columns[name].astype(kind).tobytes() for name, kind in COLUMNS.items()}
    shown = set(rows.category[-2 * LATEST :].tolist()) & names.keys()  # session ends lie between the events
    return Question(answer_id, user.decode(), {code: names[code].decode() for code in shown}, **data)


def explain(asked: Question, scorer: Scorer, rules: Rules) -> Explanation:
    """Score the past as it was, and without each of its latest events. Raises RuntimeError where the network fails."""
    ts, kind, item, category, price = (
        np.frombuffer(getattr(asked, name), dtype) for name, dtype in COLUMNS.items()
    )  # (N,)
    own = np.flatnonzero(kind != SESSION_END)  # (E,) the fold ends the sessions again
    count = len(own)
    zeros = np.zeros(count, "u8")  # one user, no message ids: the duplicates are gone
    events = Events(zeros.astype("i4"), ts[own], kind[own], item[own], category[own], price[own], zeros)
    left_out = np.arange(max(0, count - 1 - LATEST), count - 1)  # (K,)
    pasts = [events, *(Events(*(np.delete(column, k) for column in events)) for k in left_out)]
    scores = scorer.score([retold(past, bool(kind[-1] == SESSION_END), rules) for past in pasts])
    if any(score.degraded.any() for score in scores):
        raise RuntimeError("the network has no answer")
    reach = np.concatenate([score.reach for score in scores]).astype(np.float64)  # (1 + K, 2, S)

    def effect(k: int, change: Array) -> Effect:
        name = asked.names.get(int(events.category[k]))
        return Effect(int(events.ts[k]), TYPES[events.type[k]], name, _by_stage(change[0]), _by_stage(change[1]))

    bundle = scorer.bundle
    return Explanation(
        asked.id,
        asked.user_id,
        int(ts[-1]),
        TYPES[kind[-1]],
        asked.names.get(int(category[-1])),
        _by_stage(reach[0, 0]),
        _by_stage(reach[0, 1]),
        [effect(k, change) for k, change in zip(left_out.tolist(), reach[0] - reach[1:], strict=True)],
        count - 1,
        {"name": bundle.name, "version": bundle.version, "sha256": bundle.model_sha256},
    )


def retold(events: Events, ended: bool, rules: Rules) -> Inputs:
    """Fold one user's events, and end the session after them if that is asked about; the last row wants the answer."""
    sequences = Sequences(rules, 1)
    sequences.slots_of([USER])
    for _ in sequences.fold(events):
        pass
    for _ in sequences.close_due(NOT_DUE - 1) if ended else ():
        pass
    rows = sequences.rows(USER)
    count = len(rows.row)
    network = (rows.type, rows.item, rows.category, rows.features)
    return Inputs(np.array([count], "i4"), *network, np.zeros(1, "i4"), np.array([count - 1], "i4"))


def _by_stage(values: Array) -> dict[str, float]:
    return {stage.value: round(value, DIGITS) for stage, value in zip(STAGES, values.tolist(), strict=True)}


def main() -> None:
    """Answer until the worker closes the pipe; whatever fails ends this process, and the worker begins another."""
    os.nice(LOWEST_PRIORITY)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(KILLED_FIRST)
    bundle = load_bundle(sys.argv[1])
    contract = bundle.contract
    rules = Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules())
    scorer = Scorer(bundle, session=open_session(bundle.model_path, 1, on_cpu=True))
    for line in sys.stdin.buffer:
        told = explain(msgspec.json.decode(line, type=Question), scorer, rules)
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

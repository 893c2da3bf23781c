"""Retell a user's past without some of its events: counterfactual event lists in, network inputs out.

The events that are left go through the contract's fold again, so counts, times since, session ends and stages are those
of a user to whom the missing events never happened. Nothing is put into the network that serving could not have seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.contract.errors import FunnelcastError
from model.contract.events import SESSION_END
from model.contract.rows import LMAX, Array, Inputs, Rules, base
from model.datasets import LogColumns
from model.histories import Histories, replay_groups

FEWEST_ROWS = LMAX // 2  # left of a long history's window, below which it begins where serving would begin it


class Question(NamedTuple):
    """A row that is asked about: that of an event, or the session end after it."""

    past: Array  # (E,) i8 events of the user up to the one asked about, as indices of the log, in event-time order
    ended: bool
    begin: int | None = None  # first row that the answer sees; None: where serving begins


class Story(NamedTuple):
    """The past of a question without some of its events."""

    question: Question
    without: Array  # indices of the log; never the event asked about


class Told(NamedTuple):
    """Stories as the network sees them."""

    inputs: Inputs  # the last row of each sequence is the one asked about
    begin: Array  # (V,) i8 number of the first row that is seen

    @property
    def asked(self) -> Array:
        """Where the rows asked about lie among all rows, (V,)."""
        return np.asarray(np.cumsum(self.inputs.lengths) - 1)


def past_of(columns: LogColumns, user: int, until: int | None = None) -> Array:
    """Return the events of a user in event-time order, up to the event `until`."""
    events = np.flatnonzero(columns.user == user)
    events = events[np.argsort(columns.ts[events], kind="stable")]
    return events if until is None else events[: int(np.flatnonzero(events == until)[0]) + 1]


def retell(columns: LogColumns, stories: Sequence[Story], rules: Rules, recorded: Array) -> Told:
    """Replay every story."""
    pasts = [story.question.past[~np.isin(story.question.past, story.without)] for story in stories]
    ends = np.cumsum([len(past) for past in pasts])
    events = np.concatenate(pasts)
    fields = {name: getattr(columns, name)[events] for name in ("ts", "type", "item", "category", "price", "id", "row")}
    told = LogColumns(
        user=np.repeat(np.arange(len(pasts), dtype=np.int32), np.diff(ends, prepend=0)),
        users=[str(number) for number in range(len(pasts))],
        categories={},
        **fields,
    )
    parts: list[tuple[Array, ...]] = []
    begins = []
    for histories in replay_groups(told, rules, progress=False, recorded=recorded):
        for user in range(len(histories.users)):
            number = len(parts)
            rows = _seen(histories, user, stories[number].question, int(ends[number]) - 1)
            parts.append(tuple(getattr(histories, name)[rows] for name in ("type", "item", "category", "features")))
            begins.append(rows.start - int(histories.offsets[user]))
    kind, item, category, features = (np.concatenate(column) for column in zip(*parts, strict=True))
    lengths = np.array([len(part[0]) for part in parts], np.int32)
    numbers = np.arange(len(parts), dtype=np.int32)
    return Told(Inputs(lengths, kind, item, category, features, owner=numbers, position=lengths - 1), np.array(begins))


def _seen(histories: Histories, user: int, question: Question, asked: int) -> slice:
    """Return the rows that the answer sees, the one asked about last."""
    first, end = int(histories.offsets[user]), int(histories.offsets[user + 1])
    places = np.flatnonzero(histories.source[first:end] == asked)
    if not len(places):
        raise FunnelcastError(
            "the event asked about has no row, because an earlier one has its message id; ask about another --row"
        )
    row = int(places[0]) + question.ended
    if question.ended and (first + row >= end or histories.type[first + row] != SESSION_END):
        raise FunnelcastError("no session ends after the event asked about; leave out --session-end")
    begin = base(row)
    if question.begin is not None and row + 1 - question.begin >= FEWEST_ROWS:
        begin = question.begin
    return slice(first + begin, first + row + 1)

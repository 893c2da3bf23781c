"""Replay a log through the contract's fold: the rows, features and stages of every user, as flat columns.

In: `LogColumns` of a loader. Out: `Histories`, users one after another, rows in the order of their sequence. Nothing is
sorted or sliced into sequences here: the fold does it, as in the worker. The log is given to it in event-time order, so
no event is late and no row is revised after it was written. It is done for a group of users at a time, which bounds the
memory of the fold and changes nothing: in event-time order no user's rows depend on another's.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from model.contract.arena import Arena
from model.contract.events import SESSION_END
from model.contract.features import WIDTH
from model.contract.head import page_of
from model.contract.jit import jit
from model.contract.rows import DAY_MS, PAGE, Array
from model.contract.sequence import DUPLICATE, REVISED, Block, Events, Rules, Sequences, default_rules
from model.datasets import LogColumns

GROUP_EVENTS = 1 << 16  # of the users folded together: their rows stay within the processor's cache
CHUNK_EVENTS = 1 << 13
ROW_COLUMNS = ("ts", "type", "stage", "user_stage", "item", "category", "features", "source")
SILENCE_MS = 7 * DAY_MS  # a log without any event for longer was not recorded then


class Histories(NamedTuple):
    """The rows of U users, N in all; those of user u are offsets[u] to offsets[u + 1] - 1."""

    users: list[str]
    offsets: Array  # (U + 1,) int64
    ts: Array  # (N,) int64 milliseconds
    type: Array  # (N,) uint8
    stage: Array  # (N,) uint8 stage of the row itself, NO_STAGE if none
    user_stage: Array  # (N,) uint8 deepest stage of the 24 h up to the row
    item: Array  # (N,) uint32 hash
    category: Array  # (N,) uint32 hash
    features: Array  # (N, WIDTH) uint8
    source: Array  # (N,) int64 index of the event in the log's columns, -1 for a session_end
    recorded: Array  # (S, 2) int64 first and last event time of each stretch of the log without a long silence
    duplicates: int  # events that the fold dropped for their message id

    @property
    def session_end(self) -> Array:
        """Tell which rows end a session, (N,) bool."""
        return np.equal(self.type, SESSION_END)


class Written(NamedTuple):
    """What is kept of the rows of a block; `source` counts within the chunk at first, then within the log."""

    slot: Array
    source: Array
    ts: Array
    type: Array
    stage: Array
    user_stage: Array
    item: Array
    category: Array
    features: Array


class Replay(Sequences):
    """Sequences that hand out the rows of a block."""

    def written(self, block: Block, source: Array) -> Written:
        """Copy the rows of the latest block as they stand in the arena."""
        assert not np.any(block.kind == REVISED), "in event-time order no row is revised"
        item, features = np.empty(len(block.slot), np.uint32), np.empty((len(block.slot), WIDTH), np.uint8)
        _copy_rows(self._arena, block.slot, block.row, item, features)
        at = np.where(block.source < 0, -1, source[block.source])
        return Written(
            block.slot, at, block.ts, block.type, block.stage, block.user_stage, item, block.category, features
        )


@jit
def _copy_rows(arena: Arena, slots: Array, rows: Array, item: Array, features: Array) -> None:
    """Copy items and features of (slot, row) pairs."""
    for i in range(len(slots)):
        page, j = page_of(arena, slots[i], rows[i]), rows[i] % PAGE
        item[i] = page.item[j]
        for x in range(WIDTH):
            features[i, x] = page.features[j, x]


def replay(columns: LogColumns, rules: Rules | None = None, progress: bool | None = None) -> Histories:
    """Replay a whole log.

    Args:
        rules: session gap, lateness and funnel; the default ones if None.
        progress: whether to draw a progress bar; None draws it on a terminal.
    """
    return _joined(list(replay_groups(columns, rules, progress)))


def replay_groups(
    columns: LogColumns,
    rules: Rules | None = None,
    progress: bool | None = None,
    group_events: int = GROUP_EVENTS,
    recorded: Array | None = None,
) -> Iterator[Histories]:
    """Replay a log group by group of its users, in the order of their first events: a large log in bounded memory.

    `recorded` (S, 2) are the recorded stretches of the whole log, where the columns are those of some of its users.
    """
    rules = rules or default_rules()
    events = np.bincount(columns.user, minlength=len(columns.users))  # (U,)
    group = (np.cumsum(events) - events) // group_events  # (U,)
    firsts = np.flatnonzero(np.diff(group, prepend=-1)).tolist()  # the first user of each group
    order = np.lexsort((columns.ts, group[columns.user]))  # (N,) event-time order within the group
    ends = np.cumsum(events)
    recorded = recorded_stretches([columns.ts]) if recorded is None else recorded
    hide = None if progress is None else not progress  # None: tqdm looks for a terminal
    with tqdm(total=len(order), unit=" events", unit_scale=True, desc="replay", disable=hide) as bar:
        for first, last in zip(firsts, [*firsts[1:], len(columns.users)], strict=True):
            chosen = order[ends[first] - events[first] : ends[last - 1]]
            yield _replay_group(columns, range(first, last), chosen, rules, recorded)
            bar.update(len(chosen))


def _replay_group(columns: LogColumns, users: range, chosen: Array, rules: Rules, recorded: Array) -> Histories:
    """Replay the chosen events, which are all of these users', in event-time order."""
    names = columns.users[users.start : users.stop]
    sequences = Replay(rules, len(names), len(chosen) // PAGE + 2 * len(names))
    slots = sequences.slots_of([name.encode() for name in names])
    blocks, duplicates = [], 0
    for begin in range(0, len(chosen), CHUNK_EVENTS):
        at = chosen[begin : begin + CHUNK_EVENTS]
        fields = (columns.ts, columns.type, columns.item, columns.category, columns.price, columns.id)
        chunk = Events(slots[columns.user[at] - users.start], *(column[at] for column in fields))
        blocks += [sequences.written(block, at) for block in sequences.fold(chunk)]
        duplicates += int(np.count_nonzero(sequences.verdicts == DUPLICATE))
    blocks += [sequences.written(block, chosen) for block in sequences.close_due(int(recorded[-1, 1]))]
    rows = Written._make(np.concatenate(parts) for parts in zip(*blocks, strict=True))
    order = np.argsort(rows.slot, kind="stable")  # slots count as the users do, and rows come in their order
    counts = np.bincount(rows.slot, minlength=len(names))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    sorted_rows = {name: getattr(rows, name)[order] for name in ROW_COLUMNS}
    return Histories(names, offsets, **sorted_rows, recorded=recorded, duplicates=duplicates)


def _joined(groups: list[Histories]) -> Histories:
    """Put groups of users one after another."""
    starts = np.cumsum([0, *(len(group.ts) for group in groups)])
    offsets = [group.offsets[:-1] + start for group, start in zip(groups, starts, strict=False)]
    rows = {name: np.concatenate([getattr(group, name) for group in groups]) for name in ROW_COLUMNS}
    return Histories(
        users=[user for group in groups for user in group.users],
        offsets=np.concatenate([*offsets, starts[-1:]]),
        recorded=groups[0].recorded,
        duplicates=sum(group.duplicates for group in groups),
        **rows,
    )


def recorded_stretches(parts: Iterable[Array]) -> Array:
    """Return first and last time (S, 2) of each stretch without a long silence; `parts` are all times, in any order.

    In memory are one part and the first and last time of every day: a silence of a week lies between two days.
    """
    found = []
    for part in parts:
        ts = np.sort(part)
        firsts = np.flatnonzero(np.diff(ts // DAY_MS, prepend=-1))
        found += [ts[firsts], ts[np.append(firsts[1:], len(ts)) - 1]]
    ts = np.sort(np.concatenate(found))
    breaks = np.flatnonzero(np.diff(ts) > SILENCE_MS)
    return np.stack([ts[np.append(0, breaks + 1)], ts[np.append(breaks, len(ts) - 1)]], axis=1)  # (S, 2)

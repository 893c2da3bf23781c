"""Journeys: a bundle and habits in, virtual users' events out, each event's type drawn from the network's own forecast.

Many users advance together: one event each goes through the contract's fold, its row through the step graph, and what
the next-event head says decides the next type or the end of the session. Random numbers belong to a user, so journeys
do not depend on how many advance together. Memory is that of the users under way.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnxruntime

from model.contract.arena import NOT_DUE
from model.contract.bundle import Bundle
from model.contract.errors import FunnelcastError
from model.contract.events import SESSION_END, TYPE_CODE, TYPES
from model.contract.pool import Pool
from model.contract.rows import DAY_MS, HOUR_MS, Array, Events, Rules
from model.contract.vocabulary import name_hash
from model.histories import Replay, Written
from model.virtual.habits import (
    HOURS,
    NEAR_HOURS,
    NEW_CATEGORY,
    SAME_CATEGORY,
    SAME_ITEM,
    SEEN_CATEGORY,
    SEEN_ITEM,
    Habits,
)
from model.virtual.tables import Tables, cumulated

TOGETHER = 256  # users under way
TRIES = 20  # at a category that the user has not seen yet
UNPOPULAR = 1 << 20  # items of a category beyond those that the habits count
AHEAD = 8  # times as many users may have finished while an earlier one is still under way
MOST_EVENTS = 2000  # of one user
PAUSE_MS = 1_200_000  # beyond the session gap, on average, where the next session was planned too early


class Journey(NamedTuple):
    """All events of one virtual user, in event-time order."""

    number: int
    type: list[int]
    ts: list[int]
    item: list[str]
    category: list[str]


class Crowd(Replay):
    """Sequences of users whose clocks have nothing to do with each other."""

    def add_events(self, events: Events) -> Written:
        """Fold one event per user; nobody's time ends the session of another."""
        order = np.argsort(events.ts, kind="stable")
        self.streams[:] = 0
        at = np.arange(len(order))
        return _one([self.written(b, at) for b in self.fold(Events(*(column[order] for column in events)))])

    def end_sessions(self, slots: Array) -> Written:
        """End the sessions of some users, now."""
        due = self._arena.due
        others = np.ones(len(due), np.bool_)
        others[slots] = False
        kept = due[others].copy()
        due[others] = NOT_DUE
        nothing = np.zeros(1, np.int64)
        found = _one([self.written(block, nothing) for block in self.close_due(NOT_DUE - 1)])
        due[others] = kept
        return found

    def forget(self, slot: int) -> None:
        """Make room for another user; the session must have ended."""
        assert self._arena.due[slot] == NOT_DUE
        self._arena.counts[1], self._arena.heads["dirty"] = 0, 0  # nothing here is ever written to a table
        self._remove(slot)


def _one(parts: list[Written]) -> Written:
    return Written._make(np.concatenate(column) for column in zip(*parts, strict=True))


class Walker:
    """One virtual user under way: plans, memory and random numbers."""

    def __init__(self, number: int, seed: int, habits: Habits, tables: Tables) -> None:
        self.draw = np.random.default_rng([seed, number])
        self.tables = tables
        self.journey = Journey(number, [], [], [], [])
        self.manner = habits.manners[self._pick(list(range(len(habits.manners))), tables.manners)]
        self.starts = self._plan(habits)
        self.place = 0
        self.items: dict[str, str] = {}  # seen, the latest last, with their category
        self.categories: dict[str, None] = {}
        self.next = self._pick(tables.first_types, tables.first_chances), self.starts[0]

    def _pick(self, values: list[int], cumulated: Array) -> int:
        return values[min(int(np.searchsorted(cumulated, self.draw.random(), "right")), len(values) - 1)]

    def _plan(self, habits: Habits) -> list[int]:
        """Draw when the sessions begin."""
        t, draw = self.tables, self.draw
        sessions, on_days, _ = habits.visits[self._pick(list(range(len(habits.visits))), t.visits)]
        days = draw.choice(habits.days, min(on_days, habits.days), replace=False, p=t.days)
        day = np.concatenate([days, draw.choice(days, max(0, sessions - len(days)))])[:sessions]
        own = self._pick(list(range(HOURS)), t.hours)
        hour = np.searchsorted(t.hours, draw.random(sessions), "right")
        near = draw.random(sessions) < habits.own_hours
        hour = np.where(near, own + draw.integers(-NEAR_HOURS, NEAR_HOURS + 1, sessions), hour) % HOURS
        start = t.start_ms + day * DAY_MS + hour * HOUR_MS + draw.integers(0, HOUR_MS, sessions)
        return [int(at) for at in np.sort(start)]

    def turn(self) -> tuple[int, int, str, str]:
        """Make the event that is next: type, time, item, category."""
        kind, ts = self.next
        before = self.journey.type[-1] if self.journey.type else None
        item, category = self._object(self.tables.turn(before, kind))
        self.items.pop(item, None)
        self.items[item] = category
        self.categories.pop(category, None)
        self.categories[category] = None
        self.journey.type.append(kind)
        self.journey.ts.append(ts)
        self.journey.item.append(item)
        self.journey.category.append(category)
        return kind, ts, item, category

    def _object(self, chances: Array) -> tuple[str, str]:
        turn = self._pick(list(range(NEW_CATEGORY + 1)), cumulated(chances * self.manner.turns))
        if turn == SAME_ITEM and self.items:
            return next(reversed(self.items.items()))
        if turn == SEEN_ITEM and len(self.items) > 1:
            item = self._back(list(self.items), 0)
            return item, self.items[item]
        if turn == SAME_CATEGORY and self.categories:
            return self._new_item(next(reversed(self.categories)))
        if turn == SEEN_CATEGORY and len(self.categories) > 1:
            return self._new_item(self._back(list(self.categories), 1))
        return self._new_item(self._new_category())

    def _back(self, names: list[str], table: int) -> str:
        """Draw one of the things seen before the latest one."""
        rank = self._pick(list(range(len(self.tables.ranks[table]))), self.tables.ranks[table])
        return names[max(0, len(names) - 2 - rank)]

    def _new_category(self) -> str:
        t, name = self.tables, ""
        for _ in range(TRIES):
            place = int(np.searchsorted(t.category_chances, self.draw.random(), "right"))
            name = t.category_names[min(place, len(t.category_names) - 1)]
            if name not in self.categories:
                return name
        return name

    def _new_item(self, category: str) -> tuple[str, str]:
        item = f"{category}-{self.draw.integers(self.tables.items.get(category, 1))}"
        while item in self.items:
            item = f"{category}-{self.draw.integers(UNPOPULAR)}"
        return item, category

    def goes_on(self, chances: Array) -> bool:
        """Draw the next type from the network's forecast (T,); False where the session ends."""
        kind = int(np.searchsorted(np.cumsum(chances), self.draw.random(), "right"))
        kind = min(kind, SESSION_END)
        if kind == SESSION_END or len(self.journey.ts) >= MOST_EVENTS:
            return False
        gap = self.tables.gap(self.journey.type[-1], kind, self.draw.random()) * self.manner.pace
        self.next = kind, self.journey.ts[-1] + int(min(gap, self.tables.gap_ms))
        return True

    def returns(self, gap_ms: int) -> bool:
        """Go on to the next planned session; False where there is none."""
        self.place += 1
        if self.place >= len(self.starts) or len(self.journey.ts) >= MOST_EVENTS:
            return False
        earliest = self.journey.ts[-1] + gap_ms + 1000 + int(self.draw.exponential(PAUSE_MS))
        self.next = self.next[0], max(self.starts[self.place], earliest)
        return True

    def comes_back_with(self, chances: Array) -> None:
        """Draw the first type of a session from the network's forecast (T,) after the silence."""
        chances = chances.copy()
        chances[SESSION_END] = 0
        summed = np.cumsum(chances)
        kind = int(np.searchsorted(summed, self.draw.random() * summed[-1], "right"))
        self.next = min(kind, SESSION_END - 1), self.next[1]


class Generator:
    """A bundle's step graph, and the users who walk through it."""

    def __init__(self, bundle: Bundle, habits: Habits, seed: int, start_ms: int | None = None) -> None:
        contract = bundle.contract
        if contract.state is None:
            raise FunnelcastError(f"the bundle {bundle.path} has no step graph; export a network of the kind reformer")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(bundle.step_path, options, providers=["CPUExecutionProvider"])
        self._contract, self._habits, self._seed = contract, habits, seed
        self._tables = Tables(habits, start_ms, contract.gap_ms)
        allowed = np.zeros(len(TYPES))
        allowed[[*(TYPE_CODE[name] for name in habits.types), SESSION_END]] = 1
        self._allowed = allowed

    def walk(self, first: int = 0, together: int = TOGETHER) -> Iterator[Journey]:
        """Yield the journeys of users first, first + 1, ... in this order, without end."""
        contract = self._contract
        rules = Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules())
        crowd = Crowd(rules, together, 8 * together)
        assert contract.state is not None
        pool = Pool(contract.state, together)
        walkers: dict[int, Walker] = {}  # by slot
        done: dict[int, Journey] = {}
        number = awaited = first
        while True:
            while len(walkers) < together and number < awaited + AHEAD * together:
                slot = int(crowd.slots_of([b"%d" % number])[0])
                pool.reset(np.array([slot]))
                walkers[slot] = Walker(number, self._seed, self._habits, self._tables)
                number += 1
            for slot in self._advance(crowd, pool, walkers):
                journey = walkers.pop(slot).journey
                done[journey.number] = journey
                crowd.forget(slot)
            while awaited in done:
                yield done.pop(awaited)
                awaited += 1

    def _advance(self, crowd: Crowd, pool: Pool, walkers: dict[int, Walker]) -> list[int]:
        """Let every user do one event; return the slots of those who have finished."""
        slots = np.array(list(walkers), np.int32)
        kinds, times, items, categories = zip(*(walkers[slot].turn() for slot in slots.tolist()), strict=True)
        count = len(slots)
        events = Events(
            slots,
            np.array(times, np.int64),
            np.array(kinds, np.uint8),
            np.array([name_hash(item) for item in items], np.uint32),
            np.array([name_hash(category or None) for category in categories], np.uint32),
            np.zeros(count, np.uint8),
            np.zeros(count, np.uint64),
        )
        rows = crowd.add_events(events)
        chances = self._forecast(rows, pool)
        ending = [s for s, p in zip(rows.slot.tolist(), chances, strict=True) if not walkers[s].goes_on(p)]
        if not ending:
            return []
        ended = crowd.end_sessions(np.array(ending, np.int32))
        after = self._forecast(ended, pool)
        finished = []
        for slot, p in zip(ended.slot.tolist(), after, strict=True):
            if walkers[slot].returns(self._contract.gap_ms):
                walkers[slot].comes_back_with(p)
            else:
                finished.append(slot)
        return finished

    def _forecast(self, rows: Written, pool: Pool) -> Array:
        """Return the chances (B, T) of the next type after each row, and write the rows into the pool."""
        vocabulary = self._contract.vocabulary
        feed = {
            "type": rows.type.astype(np.int64),
            "item": vocabulary.item_index(rows.item),
            "category": vocabulary.category_index(rows.category),
            "features": rows.features,
            "slot": rows.slot.astype(np.int64),
            "pool": pool.blocks,
            "counts": pool.counts,
        }
        logits, key, value, ring = self._session.run(("next_type", "key", "value", "ring"), feed)
        pool.write(ring, key, value)
        powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True)) * self._allowed
        return np.asarray(powers / powers.sum(-1, keepdims=True))

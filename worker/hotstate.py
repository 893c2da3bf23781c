"""Hot state: a block of rows in, pieces for the network out: steps for users whose state is in the pool, else rebuilds.

This is the directory of the pool, as of the blocks submitted so far; the scorer's thread follows in the same order. It
is a cache: whatever it forgets is rebuilt from the rows of the sequence, and the scores are the same. Shortly before
a user's base moves, the state from the next base on is built in a second slot: no answer waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from model.contract.rows import LMAX, RING, Wanted, bases
from model.contract.sequence import Block, Sequences
from worker.metrics import Metrics
from worker.pieces import NOT_KEPT, Piece, Places, Scores

Array: TypeAlias = npt.NDArray[Any]

FEW_ROWS = 16  # new rows of a user that cost less than a rebuild
REBUILD_ROWS = 2048  # rows of a piece that rebuilds, so that others wait for 10 to 20 ms at most
AHEAD_ROWS = 8  # a user's next state is built when its base moves within so many rows; few hold a second slot meanwhile
IDLE_PLANS = 1 << 16  # half an hour at full load: whoever was in none of them gives way to a next state
NOW, NEXT = 0, 1  # the state that is used, and the one from the next base on


class HotState:
    """The directory of the pool, shared by the partitions of the worker; lives on the event loop."""

    def __init__(self, slots: int, slot_bytes: int, metrics: Metrics) -> None:
        self._slot_bytes, self._metrics = slot_bytes, metrics
        self.ticket = np.zeros(slots, np.int64)  # whose stay it is, 0 if unused
        self.rows = np.zeros(slots, np.int64)  # rows that the state holds when all that is planned has run
        self.used = np.zeros(slots, np.int64)  # when it was planned last, 0 if unused
        self.pending = np.zeros(slots, np.int32)  # pieces that must run before one that goes at once
        self._tickets = self._clock = 0

    def now(self) -> int:
        """Count the plans."""
        self._clock += 1
        return self._clock

    def take(self, count: int, idle: int = 0) -> tuple[Array, Array]:
        """Give unused slots, then those used least recently, to new stays; fewer if too many are used.

        Whoever is in this plan, or was in one of the last `idle`, keeps the slot.
        """
        free = (self.ticket == 0) | (self.used < self._clock - idle)
        able = np.flatnonzero(free & (self.pending == 0)) if count else self.used[:0]
        if count < len(able):
            able = able[np.argpartition(self.used[able], count - 1)[:count]]
        self._metrics.hot_state_evictions.inc(int((self.ticket[able] != 0).sum()))
        tickets = np.arange(self._tickets + 1, self._tickets + 1 + len(able))
        self._tickets += len(able)
        self.ticket[able], self.used[able] = tickets, self._clock
        return able, tickets

    def drop(self, slots: Array) -> None:
        """Forget the users of some slots; what they still have in flight runs to its end."""
        self.ticket[slots] = self.used[slots] = 0

    def wipe(self) -> None:
        """Forget all users."""
        self.drop(np.arange(len(self.ticket)))

    def ran(self, places: Places, owner: Array, waited: bool, scores: Scores | None) -> None:
        """Learn that a piece has run, or failed: users without a score lose their state."""
        kept = places.slot != NOT_KEPT
        if waited:
            self.pending[places.slot[kept]] -= 1
        failed = kept.copy()
        if scores is not None:
            failed[:] = False
            failed[owner[scores.degraded]] = True
            failed &= kept
        slots = places.slot[failed]
        self.drop(slots[self.ticket[slots] == places.ticket[failed]])

    def count(self, hits: int, misses: int) -> None:
        """Count the users of a plan, and the memory in use."""
        self._metrics.hot_state_hits.inc(hits)
        self._metrics.hot_state_misses.inc(misses)
        self._metrics.hot_state_bytes.set(int((self.ticket != 0).sum()) * self._slot_bytes)


@dataclass(frozen=True, slots=True)
class Asked:
    """A block's users, and where their state is."""

    wanted: Wanted
    places: Places
    steps: npt.NDArray[np.bool_]  # (U,)
    at_once: npt.NDArray[np.bool_]  # (U,)


class UserStates:
    """The hot state of some partitions' users."""

    def __init__(self, hot: HotState) -> None:
        self._hot = hot
        self._slot = np.zeros((2, 0), np.int64)  # NOW and NEXT, by the user's slot among the sequences
        self._ticket = np.zeros((2, 0), np.int64)

    def plan(self, sequences: Sequences, block: Block) -> list[Piece]:
        """Divide the newest block into pieces, to be submitted before the next plan."""
        asked = self._asked(sequences.wanted(block))
        return [*self._pieces(sequences, asked), *self._pieces_ahead(sequences, asked)]

    def drop(self, users: Array) -> None:
        """Forget some users, by their slots among the sequences."""
        self._grow(int(users.max(initial=-1)) + 1)
        self._hot.drop(self._slot[:, users][self._stays(users)])

    def close(self) -> None:
        """Forget all users."""
        self.drop(np.arange(self._slot.shape[1]))

    def _grow(self, users: int) -> None:
        held = self._slot.shape[1]
        if users > held:
            more = np.zeros((2, max(users, 2 * held) - held), np.int64)
            self._slot, self._ticket = np.hstack([self._slot, more]), np.hstack([self._ticket, more])

    def _stays(self, users: Array) -> npt.NDArray[np.bool_]:
        """Tell which states (2, U) of some users are still theirs."""
        ticket = self._ticket[:, users]
        return np.asarray((ticket != 0) & (self._hot.ticket[self._slot[:, users]] == ticket))

    def _asked(self, wanted: Wanted) -> Asked:
        """Find or assign the users' slots; afterwards the directory is as if the block had run."""
        hot, users, now = self._hot, wanted.slot, self._hot.now()
        self._grow(int(users.max(initial=-1)) + 1)
        stays, slots = self._stays(users), self._slot[:, users]
        since = hot.rows[slots[NOW]]
        # The state goes on if the first new row is its next one (a late insert comes before it) and the base stays.
        goes_on = stays[NOW] & (since == first_rows(wanted))
        same = goes_on & (bases(since - 1) == wanted.begin)
        moved = goes_on & ~same & stays[NEXT] & (next_base(since) == wanted.begin)
        hot.drop(slots[NOW][stays[NOW] & ~same])
        hot.drop(slots[NEXT][stays[NEXT] & ~same & ~moved])
        mine = users[moved]
        self._slot[NOW, mine], self._ticket[NOW, mine] = self._slot[NEXT, mine], self._ticket[NEXT, mine]
        self._ticket[NEXT, mine] = 0
        hit = same | moved
        slot, ticket = np.where(hit, self._slot[NOW, users], NOT_KEPT), self._ticket[NOW, users]
        hot.used[slot[hit]] = now
        miss = np.flatnonzero(~hit)
        taken, tickets = hot.take(len(miss))
        given = miss[: len(taken)]
        slot[given], ticket[given] = taken, tickets
        self._slot[NOW, users[given]], self._ticket[NOW, users[given]] = taken, tickets
        kept = slot != NOT_KEPT
        begin = np.where(hit, hot.rows[slot], wanted.begin)
        # A new row costs in a burst what two cost in a rebuild, which reads the rows that the state holds again.
        steps = kept & (wanted.end - begin <= FEW_ROWS + begin - wanted.begin)
        begin = np.where(steps, begin, wanted.begin)
        at_once = steps & (hot.pending[slot] == 0)
        hot.rows[slot[kept]] = wanted.end[kept]
        hot.pending[slot[kept & ~at_once]] += 1
        hot.count(len(users) - len(miss), len(miss))
        return Asked(wanted._replace(begin=begin), Places(slot, ticket, wanted.end), steps, at_once)

    def _pieces(self, sequences: Sequences, asked: Asked) -> Iterator[Piece]:
        """One piece that goes at once, rebuilds of a bounded number of rows each, one that follows earlier rebuilds."""
        if asked.at_once.all():
            done = partial(self._hot.ran, asked.places, asked.wanted.owner, False)
            rows = np.arange(len(asked.wanted.row))
            yield Piece(sequences.gather(asked.wanted), rows, asked.places, steps=True, at_once=True, done=done)
            return
        lengths = asked.wanted.end - asked.wanted.begin
        rebuilt = np.flatnonzero(~asked.steps)
        rebuilt = rebuilt[np.argsort(lengths[rebuilt], kind="stable")]
        number = np.zeros(len(lengths), np.int64)  # of the user's piece
        number[rebuilt] = 1 + np.cumsum(lengths[rebuilt]) // REBUILD_ROWS
        number[asked.steps & ~asked.at_once] = number.max(initial=0) + 1
        of_row = number[asked.wanted.owner]
        by_piece = np.argsort(of_row, kind="stable")
        for piece in np.unique(number).tolist():
            users = np.flatnonzero(number == piece)
            low, high = np.searchsorted(of_row[by_piece], [piece, piece + 1])
            yield self._piece(sequences, asked, users, by_piece[low:high])

    def _piece(self, sequences: Sequences, asked: Asked, users: Array, rows: Array) -> Piece:
        """Ask for some users (ascending) and their rows; all step or none does, and all go at once or none."""
        wanted, places = asked.wanted, Places(*(column[users] for column in asked.places))
        owner = np.searchsorted(users, wanted.owner[rows])
        part = Wanted(wanted.slot[users], wanted.begin[users], wanted.end[users], owner, wanted.row[rows])
        steps, at_once = bool(asked.steps[users[0]]), bool(asked.at_once[users[0]])
        done = partial(self._hot.ran, places, owner, not at_once)
        return Piece(sequences.gather(part), rows, places, steps, at_once, done)

    def _pieces_ahead(self, sequences: Sequences, asked: Asked) -> Iterator[Piece]:
        """Build the next states of users whose base moves soon: a piece each, so that others wait little.

        Nobody who may come again soon gives way: to rebuild that user would cost more than is won.
        """
        users, end = asked.wanted.slot, asked.wanted.end
        begin = next_base(end)
        is_near = (begin + LMAX - end < AHEAD_ROWS) & (asked.places.slot != NOT_KEPT) & ~self._stays(users)[NEXT]
        near = np.flatnonzero(is_near)
        slots, tickets = self._hot.take(len(near), IDLE_PLANS)
        near = near[: len(slots)]
        self._slot[NEXT, users[near]], self._ticket[NEXT, users[near]] = slots, tickets
        self._hot.rows[slots] = end[near]
        self._hot.pending[slots] += 1
        owner = np.zeros(1, np.int64)
        for number, user in enumerate(near):
            at, of = [user], [number]
            wanted = Wanted(users[at], begin[at], end[at], owner, end[at] - 1)
            places = Places(slots[of], tickets[of], end[at])
            done = partial(self._hot.ran, places, owner, True)
            yield Piece(sequences.gather(wanted), owner, places, steps=False, at_once=False, done=done, ahead=True)


def next_base(rows: Array) -> Array:
    """Return the base that follows for users of so many rows."""
    return np.asarray(np.maximum(RING, -(-rows // LMAX) * LMAX) - LMAX)


def first_rows(wanted: Wanted) -> Array:
    """Return the lowest wanted row of each user (U,)."""
    first = wanted.end.copy()
    np.minimum.at(first, wanted.owner, wanted.row)
    return first

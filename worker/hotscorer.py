"""Hot scorer: pieces of some blocks in, their scores out, from the pool of hot state; called from one thread, in order.

Rows that step go in waves of at most one row per slot. Each slot knows whose state it holds and how many rows: a piece
that finds another state than it was planned for, after a failure, gets the base rate, never a wrong score.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from model.contract.events import N_TYPES
from model.contract.graph import OUTPUTS, Session, compare_golden
from model.contract.pool import Pool, State
from model.contract.rows import Inputs
from model.contract.stages import STAGES
from model.contract.vocabulary import Vocabulary
from worker.pieces import NOT_KEPT, Piece, Places, Scores
from worker.scorer import Answers, Scorer, merge, open_session

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]

STEP_OUTPUTS = (*OUTPUTS, "key", "value", "ring")
NOBODY = 0  # ticket of a slot that holds no usable state


class Rows(NamedTuple):
    """Rows to be fed one by one, user after user."""

    feed: dict[str, Array]  # graph inputs: type, item, category (N,) i8, features (N, WIDTH) u1, slot (N,) i8
    ticket: Array  # (N,) i8
    number: Array  # (N,) i8 rows that the state must hold before this one


class Logits(NamedTuple):
    """What the network says of each row; not a number where it said nothing."""

    reach: Array  # (N, 2, 6) f4
    next_type: Array  # (N, 20) f4


class HotScorer:
    """Scores pieces in the order in which they were planned; owns what the pool holds."""

    def __init__(self, scorer: Scorer, session: Session, pool: Pool) -> None:
        self._scorer, self._session, self._pool = scorer, session, pool
        self._bound = {"pool": pool.blocks, "counts": pool.counts}  # onnxruntime reads them in place, without a copy
        self._ticket = np.zeros(pool.slots, np.int64)  # whose state a slot holds
        self._rows = np.zeros(pool.slots, np.int64)  # and how many rows it has seen
        self._verify()

    def run(self, pieces: Sequence[Piece]) -> list[Scores]:
        """Score all wanted rows of the pieces."""
        scores: list[Scores] = []
        for steps, group in groupby(pieces, lambda piece: piece.steps):
            alike = list(group)
            places = Places(
                *(np.concatenate(column) for column in zip(*(piece.places for piece in alike), strict=True))
            )
            answer = self._step if steps else self._rebuild
            scores += answer([piece.inputs for piece in alike], places)
        return scores

    def _rebuild(self, requests: Sequence[Inputs], places: Places) -> list[Scores]:
        """Score whole sequences and install their final states."""

        def keep(users: Array, rings: Array, counts: Array) -> None:
            kept = (places.slot[users] != NOT_KEPT) & np.isfinite(rings).all(axis=(1, 2, 3, 4))
            self._pool.load(places.slot[users[kept]], rings[kept], counts[kept])
            self._hold(places.slot[users[kept]], places.ticket[users[kept]], places.end[users[kept]])

        return self._scorer.score(requests, keep if (places.slot != NOT_KEPT).any() else None)

    def _step(self, requests: Sequence[Inputs], places: Places) -> list[Scores]:
        """Feed the rows of all requests in waves."""
        whole = merge(requests)
        logits = self._feed(rows_of(whole, places, self._scorer.bundle.contract.vocabulary))
        at = (np.cumsum(whole.lengths) - whole.lengths)[whole.owner] + whole.position  # (A,)
        answers = Answers(len(at), self._scorer.base_rates)
        answers.fill(np.arange(len(at)), logits.reach[at], logits.next_type[at], self._scorer.bundle.calibration)
        return answers.split([len(request.owner) for request in requests])

    def _feed(self, rows: Rows) -> Logits:
        order, ends = waves(rows.feed["slot"])
        feed = {name: column[order] for name, column in rows.feed.items()}
        rows, count = Rows(feed, rows.ticket[order], rows.number[order]), len(order)
        logits = Logits(np.full((count, 2, len(STAGES)), np.nan, "f4"), np.full((count, N_TYPES), np.nan, "f4"))
        for first, end in zip([0, *ends], ends, strict=False):
            self._wave(rows, slice(first, end), logits)
        back = np.empty_like(order)
        back[order] = np.arange(count)
        return Logits(logits.reach[back], logits.next_type[back])

    def _wave(self, rows: Rows, wave: slice, logits: Logits) -> None:
        slots, tickets, numbers = rows.feed["slot"][wave], rows.ticket[wave], rows.number[wave]
        begin = numbers == 0
        if begin.any():
            self._pool.reset(slots[begin])
            self._hold(slots[begin], tickets[begin], 0)
        ready = (self._ticket[slots] == tickets) & (self._rows[slots] == numbers)
        if ready.all():
            self._run(rows, wave, logits)
            return
        log.error("%d rows have no answer: their users' hot state was lost by a failure", (~ready).sum())
        if ready.any():
            self._run(rows, wave.start + np.flatnonzero(ready), logits)

    def _hold(self, slots: Array, tickets: Array | int, count: Array | int) -> None:
        self._ticket[slots], self._rows[slots] = tickets, count

    def _run(self, rows: Rows, wave: slice | Array, logits: Logits) -> None:
        """Run a wave; when that fails its halves, down to single rows, whose users then have no state."""
        waiting = [wave]
        while waiting:
            group = waiting.pop()
            feed = {name: column[group] for name, column in rows.feed.items()}
            try:
                outputs = self._session.run(STEP_OUTPUTS, feed | self._bound)
            except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class
                count = len(feed["slot"])
                log.error("inference failed for %d rows from hot state: %r", count, error)
                self._scorer.on_failure()
                if count > 1:
                    waiting += np.array_split(np.arange(len(rows.number))[group], 2)
                else:
                    self._hold(feed["slot"], NOBODY, 0)
            else:
                logits.reach[group], logits.next_type[group] = outputs[:2]
                self._write(feed["slot"], *outputs[2:])

    def _write(self, slots: Array, key: Array, value: Array, ring: Array) -> None:
        """Append rows to the state; nothing that is not finite may get into the pool."""
        if not np.isfinite(key.sum() + value.sum()):
            finite = np.isfinite(key).all(axis=(1, 2, 3)) & np.isfinite(value).all(axis=(1, 2, 3))
            self._hold(slots[~finite], NOBODY, 0)
            slots, key, value, ring = slots[finite], key[finite], value[finite], ring[finite]
        self._pool.write(ring, key, value)
        self._rows[slots] += 1

    def _verify(self) -> None:
        """Feed the golden sequences row by row: the step graph must answer them as the whole-sequence graph does."""
        golden = self._scorer.bundle.golden()
        real = np.arange(golden["type"].shape[1]) < golden["lengths"][:, None]  # (B, L)
        user, number = np.nonzero(real)
        feed = {name: golden[name][real] for name in ("type", "item", "category", "features")}
        rows = Rows({**feed, "slot": user % self._pool.slots}, user + 1, number)
        logits = self._feed(rows)
        self._hold(np.arange(self._pool.slots), NOBODY, 0)
        compare_golden(self._scorer.bundle, golden, real, *logits)


def hot_scorer(scorer: Scorer, state: State, slots: int, threads: int) -> HotScorer:
    """Load the step graph of a scorer's bundle over a pool of some slots."""
    pool = Pool(state, slots)
    return HotScorer(scorer, open_session(scorer.bundle.step_path, threads, on_cpu=True), pool)


def rows_of(whole: Inputs, places: Places, vocabulary: Vocabulary) -> Rows:
    """Lay out the rows of some users for the step graph."""
    user = np.repeat(np.arange(len(whole.lengths)), whole.lengths)  # (N,)
    last = np.cumsum(whole.lengths)[user]
    feed = {
        "type": whole.type.astype(np.int64),
        "item": vocabulary.item_index(whole.item),
        "category": vocabulary.category_index(whole.category),
        "features": whole.features,
        "slot": places.slot[user],
    }
    return Rows(feed, places.ticket[user], places.end[user] - (last - np.arange(len(user))))


def waves(slots: Array) -> tuple[Array, list[int]]:
    """Order rows in waves, each slot at most once in a wave, its rows in their order; return where the waves end."""
    order = np.argsort(slots, kind="stable")
    by_slot = slots[order]
    rank = np.empty(len(slots), np.int64)
    rank[order] = np.arange(len(slots)) - np.searchsorted(by_slot, by_slot)
    return np.argsort(rank, kind="stable"), np.cumsum(np.bincount(rank)).tolist()

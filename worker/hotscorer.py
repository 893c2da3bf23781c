"""Hot scorer: pieces of some blocks in, their scores out, from the pool of hot state; called from one thread, in order.

The step graph takes a row of each user while many have one more, the burst graph up to W of each that are left; its
bits are those of steps, which take over where it fails. Several threads share the slots of a run. Each slot knows whose
state it holds and how many rows: a piece that finds another state than it was planned for, after a failure, gets the
base rate, never a wrong score.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from model.contract.events import N_TYPES
from model.contract.graph import OUTPUTS, Session, compare_golden
from model.contract.pool import Pool, State, previous_of
from model.contract.rows import Inputs
from model.contract.stages import STAGES
from model.contract.vocabulary import Vocabulary
from worker.pieces import NOT_KEPT, Piece, Places, Scores
from worker.scorer import Answers, Scorer, merge, open_session

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]

STEP_OUTPUTS = (*OUTPUTS, "key", "value", "ring")
WIDE, FEWEST = 32, 3  # so many users cost a row less by steps; a burst of fewer rows of each costs more
SHARE_ROWS = 32  # fewer rows are not worth a thread's waking
SHARES = 2  # of a run for each thread: one that gets no CPU for a while holds up the others for a part of its work only
NOBODY = 0  # ticket of a slot that holds no usable state


class Rows(NamedTuple):
    """Rows to be fed one by one, user after user."""

    feed: dict[str, Array]  # graph inputs: type, item, category (N,) i8, features (N, WIDTH) u1, slot (N,) i8
    ticket: Array  # (N,) i8
    number: Array  # (N,) i8 rows that the state must hold before this one


class Run(NamedTuple):
    """Rows that one run of a graph can take, slot after slot."""

    rows: Array  # (N,) places, ascending in each slot
    turn: Array  # (N,) how many rows of its slot in this run come before each


class Logits(NamedTuple):
    """What the network says of each row; not a number where it said nothing."""

    reach: Array  # (N, 2, 6) f4
    next_type: Array  # (N, 20) f4


class HotScorer:
    """Scores pieces in the order in which they were planned; owns what the pool holds."""

    def __init__(self, scorer: Scorer, step: Session, burst: Session, pool: Pool, threads: int = 1) -> None:
        self._scorer, self._session, self._burst_session, self._pool = scorer, step, burst, pool
        self._threads = threads
        self._helpers = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="scorer-helper")
        self._bound = {"pool": pool.blocks, "counts": pool.counts}  # onnxruntime reads them in place, without a copy
        self._ticket = np.zeros(pool.slots, np.int64)  # whose state a slot holds
        self.rows = np.zeros(pool.slots, np.int64)  # and how many rows it has seen
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
            self.hold(places.slot[users[kept]], places.ticket[users[kept]], places.end[users[kept]])

        return self._scorer.score(requests, keep if (places.slot != NOT_KEPT).any() else None)

    def _step(self, requests: Sequence[Inputs], places: Places) -> list[Scores]:
        """Feed the rows of all requests."""
        whole = merge(requests)
        logits = self.feed(rows_of(whole, places, self._scorer.bundle.contract.vocabulary))
        at = (np.cumsum(whole.lengths) - whole.lengths)[whole.owner] + whole.position  # (A,)
        answers = Answers(len(at), self._scorer.base_rates)
        answers.fill(np.arange(len(at)), logits.reach[at], logits.next_type[at], self._scorer.bundle.calibration)
        return answers.split([len(request.owner) for request in requests])

    def feed(self, rows: Rows, bursts: bool = True) -> Logits:
        """Feed rows to their users' states, all by steps if not in bursts too."""
        count = len(rows.number)
        logits = Logits(np.full((count, 2, len(STAGES)), np.nan, "f4"), np.full((count, N_TYPES), np.nan, "f4"))
        for run in runs_of(rows.feed["slot"], rows.ticket, self._pool.state.window if bursts else 1):
            shares = shares_of(run, SHARES * self._threads if self._threads > 1 else 1)
            left = iter(shares)  # whoever is ready takes the next one
            helpers = min(self._threads, len(shares)) - 1
            helped = [self._helpers.submit(self._take_shares, rows, left, logits) for _ in range(helpers)]
            self._take_shares(rows, left, logits)
            for help in helped:
                if not help.cancel():
                    help.result()
        return logits

    def _take_shares(self, rows: Rows, shares: Iterator[Run], logits: Logits) -> None:
        for share in shares:
            self._share(rows, share, logits)

    def _share(self, rows: Rows, run: Run, logits: Logits) -> None:
        """Feed the rows of some slots, which no other thread touches meanwhile."""
        if not (run.turn.any() and self._burst(rows, run, logits)):
            for turn in range(run.turn.max() + 1):
                self._wave(rows, run.rows[run.turn == turn], logits)

    def _burst(self, rows: Rows, run: Run, logits: Logits) -> bool:
        """Run several rows of each slot; tell whether that went well, else nothing is changed."""
        first = run.turn == 0
        if not self._ready(rows, run.rows[first]).all():
            return False
        feed = {name: column[run.rows] for name, column in rows.feed.items()}
        try:
            outputs = self._burst_session.run(STEP_OUTPUTS, feed | self._bound | {"previous": previous_of(run.turn)})
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class
            log.warning("inference failed for %d rows of bursts, step by step now: %r", len(run.rows), error)
            return False
        reach, next_type, key, value, ring = outputs
        if not np.isfinite(key.sum() + value.sum()):
            return False
        logits.reach[run.rows], logits.next_type[run.rows] = reach, next_type
        self._pool.write(ring, key, value)
        self.rows[feed["slot"]] = rows.number[run.rows] + 1  # of a slot that comes again the last one stays
        return True

    def _ready(self, rows: Rows, first: Array) -> npt.NDArray[np.bool_]:
        """Tell which rows (N,) come next in the state of their slot; empty the slots of those that begin one."""
        slots, tickets, numbers = rows.feed["slot"][first], rows.ticket[first], rows.number[first]
        begin = numbers == 0
        if begin.any():
            self._pool.reset(slots[begin])
            self.hold(slots[begin], tickets[begin], 0)
        return np.asarray((self._ticket[slots] == tickets) & (self.rows[slots] == numbers))

    def _wave(self, rows: Rows, wave: Array, logits: Logits) -> None:
        ready = self._ready(rows, wave)
        if not ready.all():
            log.error("%d rows have no answer: their users' hot state was lost by a failure", (~ready).sum())
        if ready.any():
            self._run(rows, wave[ready], logits)

    def hold(self, slots: Array, tickets: Array | int, count: Array | int) -> None:
        """Note whose states slots hold now, and of how many rows."""
        self._ticket[slots], self.rows[slots] = tickets, count

    def _run(self, rows: Rows, wave: Array, logits: Logits) -> None:
        """Step with a row of each slot; if that fails with halves, down to single rows, whose users then have none."""
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
                    waiting += np.array_split(group, 2)
                else:
                    self.hold(feed["slot"], NOBODY, 0)
            else:
                logits.reach[group], logits.next_type[group] = outputs[:2]
                self._write(feed["slot"], *outputs[2:])

    def _write(self, slots: Array, key: Array, value: Array, ring: Array) -> None:
        """Append rows to the state; nothing that is not finite may get into the pool."""
        if not np.isfinite(key.sum() + value.sum()):
            finite = np.isfinite(key).all(axis=(1, 2, 3)) & np.isfinite(value).all(axis=(1, 2, 3))
            self.hold(slots[~finite], NOBODY, 0)
            slots, key, value, ring = slots[finite], key[finite], value[finite], ring[finite]
        self._pool.write(ring, key, value)
        self.rows[slots] += 1

    def _verify(self) -> None:
        """Feed the golden sequences by steps, then in bursts: both must answer as the whole-sequence graph does."""
        golden = self._scorer.bundle.golden()
        real = np.arange(golden["type"].shape[1]) < golden["lengths"][:, None]  # (B, L)
        user, number = np.nonzero(real)
        feed = {name: golden[name][real] for name in ("type", "item", "category", "features")}
        rows = Rows({**feed, "slot": user % self._pool.slots}, user + 1, number)
        for bursts in (False, True):
            logits = self.feed(rows, bursts)
            self.hold(np.arange(self._pool.slots), NOBODY, 0)
            compare_golden(self._scorer.bundle, golden, real, *logits)


def hot_scorer(scorer: Scorer, state: State, slots: int, threads: int) -> HotScorer:
    """Load the step graphs of a scorer's bundle over a pool of some slots."""
    graphs = (scorer.bundle.step_path, scorer.bundle.burst_path)
    step, burst = (open_session(graph, 1, on_cpu=True) for graph in graphs)  # two halves are faster than two threads
    return HotScorer(scorer, step, burst, Pool(state, slots), threads)


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


def runs_of(slots: Array, tickets: Array, most: int) -> Iterator[Run]:
    """Divide rows into runs: a row of each slot while these are many, then bursts of at most `most` rows of each.

    The rows of a slot stay in their order, and those of two stays in it never meet in a run.
    """
    order = np.argsort(slots, kind="stable")
    slot, ticket, at = slots[order], tickets[order], np.arange(len(order))
    first = at == np.searchsorted(slot, slot)
    begins = first | (np.diff(ticket, prepend=0) != 0)
    rank = at - np.maximum.accumulate(np.where(begins, at, 0))  # (N,) rows of the stay before it
    stay = np.cumsum(begins) - np.maximum.accumulate(np.where(first, np.cumsum(begins), 0))  # (N,) of those in the slot
    for number in range(stay.max(initial=-1) + 1):
        widths = np.bincount(rank[stay == number])  # never more than before
        wide = int((widths >= WIDE).sum())
        if len(widths) - wide < FEWEST:
            wide = len(widths)
        for begin, end in pairwise([*range(wide), *range(wide, len(widths), most), len(widths)]):
            mine = np.flatnonzero((stay == number) & (begin <= rank) & (rank < end))
            yield Run(order[mine], rank[mine] - begin)


def shares_of(run: Run, most: int) -> list[Run]:
    """Divide a run between slots into at most so many shares of about equally many rows."""
    count = max(1, min(most, len(run.rows) // SHARE_ROWS))
    begins = np.flatnonzero(run.turn == 0)
    at = np.searchsorted(begins, len(run.rows) * np.arange(1, count) // count)
    cuts = np.unique(begins[at[at < len(begins)]])
    return [Run(*share) for share in zip(np.split(run.rows, cuts), np.split(run.turn, cuts), strict=True)]

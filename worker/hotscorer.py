"""Hot scorer: pieces of some blocks in, their scores out, from the pool of hot state; called from one thread, in order.

Rows that step go in waves of at most one row per slot. Each slot knows whose state it holds and how many rows: a piece
that finds another state than it was planned for, after a failure, gets the base rate, never a wrong score.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.contract.events import N_TYPES
from model.contract.pool import Pool, State
from model.contract.rows import Inputs
from model.contract.stages import STAGES
from model.contract.vocabulary import Vocabulary
from worker.pieces import NOT_KEPT, Piece, Places, Scores
from worker.scorer import OUTPUTS, Answers, Scorer, merge, open_session

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


class StepSession(Protocol):
    """What the hot scorer needs of the step graph."""

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Array]) -> Sequence[Array]: ...


class PoolSession:
    """The step graph over a pool that it reads in place."""

    def __init__(self, session: onnxruntime.InferenceSession, pool: Pool) -> None:
        self._session, self._binding = session, session.io_binding()
        self._pool = onnxruntime.OrtValue.ortvalue_from_numpy(pool.blocks)  # no copy: it sees what the host writes
        self._counts = onnxruntime.OrtValue.ortvalue_from_numpy(pool.counts)

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Array]) -> Sequence[Array]:
        """Run one wave."""
        binding = self._binding
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        binding.bind_ortvalue_input("pool", self._pool)
        binding.bind_ortvalue_input("counts", self._counts)
        for name, column in input_feed.items():
            binding.bind_cpu_input(name, column)
        for name in output_names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return [output.numpy() for output in binding.get_outputs()]


class HotScorer:
    """Scores pieces in the order in which they were planned; owns what the pool holds."""

    def __init__(self, scorer: Scorer, session: StepSession, pool: Pool) -> None:
        self._scorer, self._session, self._pool = scorer, session, pool
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
        count = len(rows.number)
        logits = Logits(np.full((count, 2, len(STAGES)), np.nan, "f4"), np.full((count, N_TYPES), np.nan, "f4"))
        for wave in waves(rows.feed["slot"]):
            self._open(rows, wave[rows.number[wave] == 0])
            slots = rows.feed["slot"][wave]
            ready = (self._ticket[slots] == rows.ticket[wave]) & (self._rows[slots] == rows.number[wave])
            if not ready.all():
                log.error("%d rows have no answer: their users' hot state was lost by a failure", (~ready).sum())
            self._run(rows, wave[ready], logits)
        return logits

    def _open(self, rows: Rows, begin: Array) -> None:
        """Begin the stays of users whose first row comes."""
        slots = rows.feed["slot"][begin]
        self._pool.reset(slots)
        self._hold(slots, rows.ticket[begin], 0)

    def _hold(self, slots: Array, tickets: Array | int, count: Array | int) -> None:
        self._ticket[slots], self._rows[slots] = tickets, count

    def _run(self, rows: Rows, wave: Array, logits: Logits) -> None:
        """Run a wave; when that fails its halves, down to single rows, whose users then have no state."""
        waiting = [wave] if len(wave) else []
        while waiting:
            group = waiting.pop()
            try:
                outputs = self._session.run(STEP_OUTPUTS, {name: column[group] for name, column in rows.feed.items()})
            except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common class
                log.error("inference failed for %d rows from hot state: %r", len(group), error)
                self._scorer.on_failure()
                if len(group) > 1:
                    waiting += np.array_split(group, 2)
                else:
                    self._hold(rows.feed["slot"][group], NOBODY, 0)
            else:
                self._write(rows, group, logits, outputs)

    def _write(self, rows: Rows, group: Array, logits: Logits, outputs: Sequence[Array]) -> None:
        """Note the logits and append the rows to the state; nothing that is not finite may get into the pool."""
        reach, next_type, key, value, ring = outputs
        logits.reach[group], logits.next_type[group] = reach, next_type
        slots = rows.feed["slot"][group]
        finite = np.isfinite(key).all(axis=(1, 2, 3)) & np.isfinite(value).all(axis=(1, 2, 3))
        if not finite.all():
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
        self._scorer.compare(golden, real, *logits)


def hot_scorer(scorer: Scorer, state: State, slots: int, threads: int) -> HotScorer:
    """Load the step graph of a scorer's bundle over a pool of some slots."""
    pool = Pool(state, slots)
    return HotScorer(scorer, PoolSession(open_session(scorer.bundle.step_path, threads), pool), pool)


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


def waves(slots: Array) -> Iterator[Array]:
    """Yield the rows in waves: each slot at most once in a wave, its rows in their order."""
    order = np.argsort(slots, kind="stable")
    by_slot = slots[order]
    first = np.searchsorted(by_slot, by_slot)
    rank = np.empty(len(slots), np.int64)
    rank[order] = np.arange(len(slots)) - first
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank))
    yield from np.split(order, ends[:-1]) if len(order) else []

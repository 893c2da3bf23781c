"""The worker's path from decoded clicks to scores and table bytes, without Kafka: its rooms, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from model.contract.bundle import SHIPPED, load_bundle
from model.contract.events import ClickEvent
from model.contract.sequence import Block, Sequences, default_rules
from tests.bench.traffic import CATEGORIES, ITEMS, KIND_SHARES, KINDS
from worker.hotscorer import hot_scorer
from worker.hotstate import HotState, UserStates
from worker.metrics import Metrics
from worker.pieces import join
from worker.scorer import Scorer

STEP_MS, START_MS = 60_000, 1_700_000_000_000
KIND_NAMES = [kind.decode() for kind in KINDS]


class Spent(NamedTuple):
    """CPU seconds of one chunk, and what it was."""

    table: float  # columns, fold, table bytes
    network: float  # plan, graph, pool, calibration
    bytes: int  # of the table's keys and values
    rebuilt: bool  # whether rows were read again, because of a new base or a new user


class HotPath:
    """Users of one partition whose hot state is in a pool of the shipped bundle's, some slots large."""

    def __init__(self, slots: int) -> None:
        bundle = load_bundle(SHIPPED)
        self.state = bundle.contract.state
        assert self.state is not None
        self._network = hot_scorer(Scorer(bundle), self.state, slots, threads=1)
        self._states = UserStates(HotState(slots, self.state.bytes, Metrics()))
        self.sequences = Sequences(default_rules())

    def fold(self, events: list[ClickEvent]) -> Iterator[Block]:
        keys = [event.user_id.encode() for event in events]
        for key in self.sequences.unknown(keys):
            self.sequences.load(key, lambda _: None)
        yield from self.sequences.fold(self.sequences.columns(events, keys))

    def remember(self, events: list[ClickEvent]) -> None:
        """Take a chunk without asking for scores."""
        for _ in self.fold(events):
            pass
        self.sequences.pack()

    def take(self, events: list[ClickEvent]) -> Spent:
        """Take a chunk and score it."""
        started, network, rebuilt = time.process_time(), 0.0, False
        for block in self.fold(events):
            since = time.process_time()
            pieces = self._states.plan(self.sequences, block)
            scores = self._network.run(pieces)
            for piece, score in zip(pieces, scores, strict=True):
                piece.done(score)
            awaited = [number for number, piece in enumerate(pieces) if not piece.ahead]
            join([pieces[number] for number in awaited], [scores[number] for number in awaited])
            rebuilt |= any(len(piece.inputs.type) > len(piece.rows) for piece in pieces)
            network += time.process_time() - since
        size = sum(len(key) + len(value) for key, value in self.sequences.pack()[0].items())
        return Spent(time.process_time() - started - network, network, size, rebuilt)


def rounds(users: int, first: int, count: int, name: str = "u") -> Iterator[list[ClickEvent]]:
    """Yield chunks of one click per user, a minute apart, from the users' click number `first` on (seeded)."""
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        kind = rng.choice(len(KINDS), users, p=KIND_SHARES).tolist()
        item, category = rng.integers(0, ITEMS, users).tolist(), rng.integers(0, CATEGORIES, users).tolist()
        yield [
            ClickEvent(f"{name}{u}", KIND_NAMES[k], START_MS + number * STEP_MS, f"i{i}", f"c{c}", 9.5)
            for u, (k, i, c) in enumerate(zip(kind, item, category, strict=True))
        ]

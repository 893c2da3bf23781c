"""Folds logs of several partitions, scores their blocks from hot state as a worker does, and remembers what was said.

The network runs when the story says so: the blocks in flight, and the order in which kinds of pieces go, are random.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.contract.events import ClickEvent
from model.contract.rows import Inputs
from model.contract.sequence import Block, Sequences, default_rules
from worker.batcher import Batcher, Scoring
from worker.hotstate import HotState, UserStates
from worker.lanes import Limits
from worker.metrics import Metrics
from worker.pieces import Scores

LEISURE_SECONDS = 1e6  # a latency target that changes nothing


class RandomExecutor(Executor):
    """Lets the event loop turn a random number of times before a run ends."""

    def __init__(self, seed: int, most_turns: int) -> None:
        self._rng, self._most_turns = random.Random(seed), most_turns
        self.runs = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.runs += 1
        loop = asyncio.get_running_loop()

        def turn(left: int) -> None:
            if left:
                loop.call_soon(turn, left - 1)
            else:
                try:
                    future.set_result(fn(*args))
                except RuntimeError as error:
                    future.set_exception(error)

        turn(self._rng.randrange(self._most_turns + 1))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


@dataclass
class Said:
    """A block, what the whole sequences of its users were, and its scores."""

    inputs: Inputs
    scores: asyncio.Future[Scores]


@dataclass
class Partition:
    """One partition's users."""

    states: UserStates
    sequences: Sequences = field(default_factory=lambda: Sequences(default_rules()))
    table: dict[bytes, bytes] = field(default_factory=dict)

    def load(self, keys: list[bytes]) -> None:
        for key in self.sequences.unknown(keys):
            self.sequences.load(key, self.table.get)

    def commit(self) -> None:
        self.table |= self.sequences.pack()[0]


class HotRun:
    """A worker's network, its hot state and some partitions."""

    def __init__(self, scorer: Scoring, slots: int, partitions: int = 2, seed: int = 0, most_turns: int = 40) -> None:
        self.metrics = Metrics()
        self.hot = HotState(slots, 1, self.metrics)
        self.executor = RandomExecutor(seed, most_turns)
        self.batcher = Batcher(scorer, Limits(16, 0.0, 100_000, LEISURE_SECONDS), self.metrics, self.executor)
        self.partitions = [Partition(UserStates(self.hot)) for _ in range(partitions)]
        self.said: list[Said] = []

    def fold(self, number: int, events: list[ClickEvent]) -> None:
        """Take a chunk of a partition."""
        partition = self.partitions[number]
        keys = [event.user_id.encode() for event in events]
        partition.load(keys)
        for block in partition.sequences.fold(partition.sequences.columns(events, keys)):
            self.ask(partition, block)

    def close_due(self, number: int, stream_ms: int) -> None:
        """Close the sessions that are due."""
        for block in self.partitions[number].sequences.close_due(stream_ms):
            self.ask(self.partitions[number], block)

    def ask(self, partition: Partition, block: Block) -> None:
        inputs = partition.sequences.inputs(block)
        self.said.append(Said(inputs, self.batcher.submit(partition.states.plan(partition.sequences, block))))

    def drop_users(self, number: int, keep: int) -> None:
        """Forget users without an open session."""
        partition = self.partitions[number]
        partition.commit()
        partition.states.drop(partition.sequences.drop_closed(keep))

    def revoke(self, number: int) -> None:
        """Lose a partition and get it back."""
        partition = self.partitions[number]
        partition.commit()
        partition.states.close()
        fresh = Partition(UserStates(self.hot), table=partition.table)
        fresh.sequences.load_stream(fresh.table[b"t"])
        self.partitions[number] = fresh

    async def breathe(self, turns: int) -> None:
        """Wait as a worker does for its next round."""
        if turns:
            self.batcher.spare()
        for _ in range(turns):
            await asyncio.sleep(0)

    async def end(self) -> list[Scores]:
        """Return all scores."""
        scores = [await said.scores for said in self.said]
        await self.batcher.close()
        return scores

    def value(self, name: str) -> float:
        return float(self.metrics.registry.get_sample_value(f"funnelcast_hot_state_{name}") or 0)


def distances(scores: Scores, expected: Scores) -> float:
    """How far two sets of answers are apart."""
    assert np.array_equal(scores.degraded, expected.degraded)
    both = zip(scores[:2], expected[:2], strict=True)
    return max(float(np.abs(mine - theirs).max(initial=0)) for mine, theirs in both)

"""A batcher whose network and thread are driven by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.contract.features import WIDTH
from model.contract.rows import Inputs
from tests.support.hand_loop import HandExecutor, settle
from worker.batcher import Batcher
from worker.lanes import Limits
from worker.metrics import Metrics
from worker.pieces import Piece, Scores, whole

WAIT_SECONDS = 5.0
LEISURE_SECONDS = 1e6  # a latency target that changes nothing
WAITING_USERS = 1000


class FakeScorer:
    """Answers each row with the first type of its request; remembers the micro-batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.broken = False

    def run(self, pieces: Sequence[Piece]) -> list[Scores]:
        requests = [piece.inputs for piece in pieces]
        self.batches.append([int(request.type[0]) for request in requests])
        if self.broken:
            raise RuntimeError("broken network")
        return [
            Scores(np.full((1, 2, 6), request.type[0], "f4"), np.zeros((1, 20), "f4"), np.zeros(1, bool))
            for request in requests
        ]


def request(name: int, users: int = 1) -> Inputs:
    return Inputs(
        lengths=np.ones(users, "i4"),
        type=np.full(users, name, "u1"),
        item=np.zeros(users, "u4"),
        category=np.zeros(users, "u4"),
        features=np.zeros((users, WIDTH), "u1"),
        owner=np.zeros(1, "i4"),
        position=np.zeros(1, "i4"),
    )


class Bench:
    """A batcher with hand-driven parts."""

    def __init__(self, batch_size: int = 4, wait_seconds: float = WAIT_SECONDS, limits: Limits | None = None) -> None:
        self.scorer, self.executor, self.metrics = FakeScorer(), HandExecutor(), Metrics()
        limits = limits or Limits(batch_size, wait_seconds, WAITING_USERS, LEISURE_SECONDS)
        self.batcher = Batcher(self.scorer, limits, self.metrics, self.executor)

    async def ask(self, name: int, users: int = 1) -> asyncio.Task[Scores]:
        task = asyncio.ensure_future(self.batcher.score(request(name, users)))
        await settle()
        return task

    async def finish(self) -> None:
        self.executor.finish()
        await settle()

    def value(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(name)
        assert value is not None
        return value


def rebuild(name: int, rows: int = 1) -> Piece:
    """A piece that does not go at once."""
    return replace(whole(request(name, users=rows)), at_once=False)


def ask(bench: Bench, *pieces: Piece) -> list[asyncio.Future[Scores]]:
    return [bench.batcher.submit([piece]) for piece in pieces]

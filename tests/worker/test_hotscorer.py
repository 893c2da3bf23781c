"""What one run of a step graph may take, and who takes it."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from model.contract.pool import Pool
from tests.support.fake_network import STATE, BurstGraph, StepGraph, WholeGraph, fake_bundle
from worker.hotscorer import SHARE_ROWS, SHARES, HotScorer, Rows, runs_of, shares_of
from worker.scorer import Scorer


@pytest.mark.parametrize("seed", range(20))
def test_no_run_takes_the_rows_of_a_user_out_of_order_or_those_of_two_users_of_a_slot(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots = (rng.integers(1, 300) * rng.random(rng.integers(1, 1500)) ** 2).astype(int)
    tickets, most = np.zeros(len(slots), int), int(rng.integers(1, 17))
    for slot in rng.integers(0, 9, 4):  # some change hands
        tickets[(slots == slot) & (np.arange(len(slots)) >= rng.integers(len(slots)))] = slot + 1
    taken = list(runs_of(slots, tickets, most))
    for run in taken:
        assert run.turn.max() < most
        for slot in np.unique(slots[run.rows]):
            mine = np.flatnonzero(slots[run.rows] == slot)
            assert (np.diff(mine) == 1).all() and run.turn[mine].tolist() == [*range(len(mine))]
            assert len(np.unique(tickets[run.rows[mine]])) == 1
    order = np.concatenate([run.rows for run in taken])
    assert np.array_equal(np.sort(order), np.arange(len(slots)))
    assert all((np.diff(order[slots[order] == slot]) > 0).all() for slot in np.unique(slots))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_threads_share_a_run_but_never_a_slot(threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots = (300 * rng.random(1000) ** 3).astype(int)
    for run in runs_of(slots, np.zeros(len(slots), int), 16):
        shares = shares_of(run, threads)
        assert 1 <= len(shares) <= threads
        assert len(shares) == 1 or len(run.rows) >= SHARE_ROWS * len(shares)
        assert np.array_equal(np.concatenate([share.rows for share in shares]), run.rows)
        assert np.array_equal(np.concatenate([share.turn for share in shares]), run.turn)
        assert all(share.turn[0] == 0 for share in shares)
        if not run.turn.any():  # a row of each slot: they are divided evenly
            sizes = [len(share.rows) for share in shares]
            assert max(sizes) - min(sizes) <= 1
            assert len(shares) == max(1, min(threads, len(run.rows) // SHARE_ROWS))


class Absent(Executor):
    """A thread that never gets the CPU."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def test_a_thread_that_gets_no_cpu_leaves_its_part_of_a_run_to_the_other() -> None:
    users = 2 * SHARES * SHARE_ROWS
    step = StepGraph(Pool(STATE, users))
    scorer = HotScorer(Scorer(fake_bundle(), session=WholeGraph()), step, BurstGraph(step), step.pool, threads=2)
    scorer._helpers = Absent()  # type: ignore[assignment]
    rows, step.waves = np.arange(users), []
    feed = {name: np.ones(users, np.int64) for name in ("type", "item", "category")}
    feed |= {"features": np.zeros((users, 60), np.uint8), "slot": rows}
    logits = scorer.feed(Rows(feed, rows + 1, np.zeros(users, np.int64)))
    assert np.isfinite(logits.reach).all() and (scorer.rows == 1).all()
    assert len(step.waves) == 2 * SHARES

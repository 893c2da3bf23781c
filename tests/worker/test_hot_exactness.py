"""The bundle's step graph in the worker: from hot state the same scores as from whole sequences, within 1e-5."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import numpy as np
import pytest

from model.contract.bundle import SHIPPED, Bundle, load_bundle
from model.contract.events import ClickEvent
from model.contract.rows import LMAX
from tests.support.clicks import real_clicks
from tests.support.hot_runs import HotRun, distances
from worker.hotscorer import hot_scorer
from worker.pieces import Scores
from worker.scorer import Scorer

TOLERANCE = 1e-5
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    loaded = load_bundle(Path(os.environ.get("FUNNELCAST_BUNDLE") or SHIPPED))
    if loaded.contract.state is None:
        pytest.skip(f"{loaded.path} has no step graph")
    return loaded


def hot_run(bundle: Bundle, slots: int, seed: int, threads: int = 2) -> HotRun:
    assert bundle.contract.state is not None
    scorer = hot_scorer(Scorer(bundle), bundle.contract.state, slots, threads)
    return HotRun(scorer, slots, partitions=1, seed=seed)


def busy_log(events: int, seed: int) -> list[ClickEvent]:
    """Five users, one of them with half of the clicks; a tenth of the events is late."""
    rng, log = random.Random(seed), []
    for n in range(events):
        user = f"user {0 if rng.random() < 0.5 else rng.randrange(1, 5)}"
        kind = rng.choice(("product_view", "product_view", "click", "wishlist_add", "cart_add", "order"))
        second = 20 * n - (rng.randrange(50) if rng.random() < 0.1 else 0)
        log.append(ClickEvent(user, kind, START_MS + 1000 * second, f"i{rng.randrange(500)}", f"c{rng.randrange(20)}"))
    return log


async def play(
    run: HotRun, log: list[ClickEvent], sizes: tuple[int, ...], seed: int, wipes: float = 0.02, begin: int = 0
) -> list[Scores]:
    """Fold a log in chunks of random sizes, its beginning one by one, wiping the hot state now and then."""
    rng = random.Random(seed)
    for event in log[:begin]:
        run.fold(0, [event])
    log = log[begin:]
    while log:
        size = rng.choice(sizes)
        run.fold(0, log[:size])
        log = log[size:]
        await run.breathe(rng.randrange(60))
        if rng.random() < wipes:
            run.hot.wipe()
        if rng.random() < wipes:
            run.drop_users(0, keep=rng.randrange(5))
    return await run.end()


@pytest.mark.parametrize(("slots", "seed"), [(1, 0), (3, 1), (8, 2)])
def test_scores_from_hot_state_equal_those_of_whole_sequences(bundle: Bundle, slots: int, seed: int) -> None:
    run = hot_run(bundle, slots, seed)
    scores = asyncio.run(play(run, busy_log(2600, seed), (3, 20, 150), seed))
    reference = Scorer(bundle)
    apart = [distances(mine, reference.score([said.inputs])[0]) for said, mine in zip(run.said, scores, strict=True)]
    run.partitions[0].load([b"user 0"])
    assert run.partitions[0].sequences.rows(b"user 0").row[-1] > 2 * LMAX  # it was rebased
    assert max(apart) <= TOLERANCE
    assert run.value("hits_total") > 0


def test_real_clicks_are_scored_as_from_whole_sequences(bundle: Bundle) -> None:
    run = hot_run(bundle, 20, 3)
    scores = asyncio.run(play(run, real_clicks(40)[:3000], (10, 300), 3))
    reference = Scorer(bundle)
    apart = [distances(mine, reference.score([said.inputs])[0]) for said, mine in zip(run.said, scores, strict=True)]
    assert max(apart) <= TOLERANCE


def test_rows_that_step_are_scored_bitwise_the_same_in_any_micro_batch(bundle: Bundle) -> None:
    log = sorted(busy_log(600, 4), key=lambda event: event.timestamp)
    reach = []
    for size in (1, 7, 32):
        run = hot_run(bundle, 8, size)
        scores = asyncio.run(play(run, log, (size,), size, wipes=0, begin=200))  # nobody begins with many rows
        assert run.value("rebuild_seconds_count") == 0
        reach.append(np.concatenate([block.reach for block in scores]))
    assert np.array_equal(reach[0], reach[1])
    assert np.array_equal(reach[0], reach[2])


def test_rows_are_scored_bitwise_the_same_however_many_threads_share_a_run(bundle: Bundle) -> None:
    log = real_clicks(300)[:3000]
    reach = []
    for threads in (1, 2, 5):
        run = hot_run(bundle, 400, 6, threads)
        scores = asyncio.run(play(run, log, (700,), 6, wipes=0))
        reach.append(np.concatenate([block.reach for block in scores]))
    assert np.array_equal(reach[0], reach[1])
    assert np.array_equal(reach[0], reach[2])

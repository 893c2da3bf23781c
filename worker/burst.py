"""Burst: the worker that answers what is there and stops, for jobs that run now and then."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

from worker.emitter import Emitter
from worker.transport import TP

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
IDLE_POLLS = 3  # fetched records reach the writers a moment after the position moved: idle has to last


def add_burst(app: Any, emitter: Emitter) -> None:
    """Stop the app when everything that was there is answered."""

    @app.task
    async def drain() -> None:
        await _drained(app, emitter)
        log.info("burst: everything that was there is answered, stopping")
        signal.raise_signal(signal.SIGTERM)


async def _drained(app: Any, emitter: Emitter) -> None:
    """Wait until every assigned partition is answered up to the end it had when it was recovered."""
    ends: dict[TP, int] = {}
    generation, idle = -1, 0
    while idle < IDLE_POLLS:
        await asyncio.sleep(POLL_SECONDS)
        if not emitter.serving or app.rebalancing:
            idle = 0
            continue
        if generation != app.consumer_generation_id:
            generation = app.consumer_generation_id
            ends = dict(await app.consumer.highwaters(*emitter.writers))
        positions = [await app.consumer.position(tp) for tp in ends]
        reached = all((position or 0) >= end for position, end in zip(positions, ends.values(), strict=True))
        idle = idle + 1 if reached and emitter.is_idle() else 0

"""Emitter: assignments come and go, chunks are handed to the one under way; an error of it ends the process.

Whatever could skip an event is such an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from worker.assignment import Assignment
from worker.metrics import Metrics
from worker.transactions import ExpelledError
from worker.transport import TP, Membership
from worker.writer import PartitionWriter

log = logging.getLogger(__name__)

EXIT_FATAL = 70  # EX_SOFTWARE: the supervisor restarts the worker
EXIT_GRACE_SECONDS = 5.0  # Faust's own shutdown after a crash was seen to hang
STOP_SECONDS = 3.0  # for a producer to close its connections
EXPELLED_SECONDS = 60.0  # within which an expelled member has joined again


class Emitter:
    """The assignment under way: opened on assignment, closed on revocation (transport.Owner)."""

    def __init__(self, app: Any, make: Callable[[Iterable[TP], Membership], Assignment], metrics: Metrics) -> None:
        self._app, self._make, self._metrics = app, make, metrics
        self._assignment: Assignment | None = None
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None

    def gauge(self, ends: Callable[[TP], int | None], positions: Callable[[TP], int | None]) -> None:
        """Measure what does not change with a transaction; end and next offset of a partition, where they are known."""
        if self._assignment is not None:
            self._assignment.gauge(ends, positions)

    @property
    def writers(self) -> Mapping[TP, PartitionWriter]:
        """The writers of the assigned partitions."""
        return {} if self._assignment is None else self._assignment.writers

    async def open(self, partitions: Iterable[TP], membership: Membership) -> None:
        """Take over partitions: fence and abort what earlier owners left open."""
        await self.close()
        assignment = self._make(partitions, membership)
        await assignment.transactions.start()
        self._assignment = assignment
        self._metrics.assignments.inc()
        for tp in assignment.writers:
            self._metrics.expect_partition(tp.partition)

    async def close(self) -> None:
        """Let go of all partitions; an open transaction is aborted by the next owner."""
        assignment, task, self._assignment, self._task = self._assignment, self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if assignment is None:
            return
        await asyncio.gather(asyncio.wait_for(assignment.transactions.stop(), STOP_SECONDS), return_exceptions=True)
        for tp in assignment.writers:
            self._metrics.forget_partition(tp.partition)
        assignment.partitions.close()

    async def submit(self, event: Any) -> None:
        """Queue one chunk for its partition; a chunk of an older assignment is left to the new owner."""
        message = event.message
        if message.tp not in self.writers or message.generation_id != self._app.consumer_generation_id:
            event.ack()
            return
        assert self._assignment is not None
        await self._assignment.put(event)

    def start(self) -> None:
        """Start serving, once the table is recovered."""
        if self._assignment is not None and self._task is None:
            self._task = asyncio.ensure_future(self._run(self._assignment))

    @property
    def serving(self) -> bool:
        """Whether the partitions are taken over and recovered."""
        return self._task is not None and self._assignment is not None and not self._assignment.ended

    def is_idle(self) -> bool:
        """Tell whether no chunk waits or is at work."""
        return not any(writer.busy or writer.waiting for writer in self.writers.values())

    async def _run(self, assignment: Assignment) -> None:
        try:
            await assignment.run()
        except asyncio.CancelledError:
            raise
        except ExpelledError as error:
            log.warning("nothing more is served until the partitions are assigned anew: %s", error)
            await asyncio.sleep(EXPELLED_SECONDS)
            await self.fatal(error)
        except Exception as error:  # noqa: BLE001  (fenced, timed out or broken: nothing was stored, the process ends)
            await self.fatal(error)

    async def fatal(self, error: BaseException) -> None:
        """End the process with an error. Never initialise transactions again: that would fence the real owner."""
        if self.error is not None:
            return
        self.error = error
        log.critical("worker ends, its open transactions are aborted by the next owner: %r", error, exc_info=error)
        timer = threading.Timer(EXIT_GRACE_SECONDS, os._exit, (EXIT_FATAL,))
        timer.daemon = True
        timer.start()
        await self._app.crash(error)

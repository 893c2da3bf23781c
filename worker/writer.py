"""Writer: one source partition's queue, and what is stored and counted of it once a transaction is committed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from worker.lag import Lag
from worker.metrics import Metrics
from worker.outbox import Delivery
from worker.progress import Progress
from worker.sequences import SequenceTable, Updates
from worker.transport import TP
from worker.waiting import Chunk, Waiting

MANY_UPDATES = 1024  # of the table, that are worth a write: 3 ms


class PartitionWriter:
    """Serves the chunks of one source partition, in order."""

    def __init__(self, tp: TP, progress: Progress, delivery: Delivery, table: SequenceTable, metrics: Metrics) -> None:
        self.tp = tp
        self._progress, self._table, self._metrics = progress, table, metrics
        self.waiting = Waiting(delivery.transaction_chunks, delivery.max_chunk)
        self._next_offset: int | None = None  # after what is committed
        self._lag = Lag()
        self._taken: deque[Chunk] = deque()  # by transactions that are not committed
        self._taken_at = 0.0  # when the first of them was

    @property
    def busy(self) -> bool:
        """Whether a transaction that holds chunks of it is open."""
        return bool(self._taken)

    @property
    def read_to(self) -> int | None:
        """The source offset after all that was taken, None before the first record."""
        return self._progress.next_offset

    def open(self) -> None:
        """Begin where the recovered table ends."""
        self._next_offset = self._progress.next_offset

    def take(self) -> Chunk:
        """Take the chunk that waits longest into a transaction."""
        chunk = self.waiting.take()
        if not self._taken:
            self._taken_at = time.monotonic()
        self._taken.append(chunk)
        self._check_start(chunk.start)
        if self._next_offset is None:
            self._next_offset = chunk.records[0].offset
        return chunk

    def _check_start(self, start: int | None) -> None:
        """Refuse a chunk that does not begin where the table ends: whatever lies between would be lost for ever."""
        end = self._progress.next_offset
        if start != end:
            self._table.forget_offset(self.tp.partition)
            raise RuntimeError(
                f"{self.tp}: the source is read on from offset {start}, but the table ends at {end}; if the group's "
                "offset was set by hand, set it back, or begin anew with another application name"
            )

    def committed(self, chunks: Sequence[Chunk], changes: Updates, last: int | None) -> None:
        """Take up what a committed transaction changed, up to changelog offset `last`, and free Faust's waiters."""
        self._store(changes, last)
        for chunk in chunks:
            self._taken.popleft()
            self._next_offset = chunk.end
            chunk.ack()
        self._taken_at = time.monotonic()
        size = sum(len(key) + len(value or b"") for key, value in changes.items())
        self._metrics.committed(size, len(self.waiting), self.tp.partition)

    def _store(self, changes: Updates, last: int | None) -> None:
        self._table.write(self.tp.partition, changes, last)

    def flush(self, most_updates: int = MANY_UPDATES) -> bool:
        """Write what was stored to disk, if it is more than that; tell whether it was."""
        return self._table.flush(self.tp.partition, most_updates)

    def close(self) -> None:
        """Write what was stored and free Faust's waiters: what is not committed is read again by the next owner."""
        self.flush(0)
        chunks = [*self._taken]
        while self.waiting:
            chunks.append(self.waiting.take())
        for chunk in chunks:
            chunk.ack()

    def gauge(self, users: int, end: int | None, position: int | None, wall: float) -> None:
        """Measure what does not change with a transaction.

        `end` is the source partition's end offset and `position` the next one to read, as far as they are known.
        """
        number, metrics = str(self.tp.partition), self._metrics
        metrics.table_users.labels(number).set(users)
        metrics.queue_depth.labels(number).set(len(self.waiting))
        metrics.transaction_age_seconds.labels(number).set(time.monotonic() - self._taken_at if self._taken else 0)
        if self._next_offset is None and not self._taken and not self.waiting:
            self._next_offset = 0 if end == 0 else position  # nothing was read since the assignment: the committed one
        if end is None or self._next_offset is None:
            return
        metrics.lag.labels(number).set(max(0, end - self._next_offset))
        oldest_ms = self._taken[0].records[0].timestamp if self._taken else None
        metrics.lag_seconds.labels(number).set(self._lag.seconds(self._next_offset, end, oldest_ms, wall))


def together(writers: Sequence[PartitionWriter], most_records: int) -> Iterator[list[PartitionWriter]]:
    """Group writers whose next chunks have at most so many records; a larger one stands alone."""
    group: list[PartitionWriter] = []
    size = 0
    for writer in writers:
        records = writer.waiting.next_records
        if group and size + records > most_records:
            yield group
            group, size = [], 0
        group.append(writer)
        size += records
    if group:
        yield group

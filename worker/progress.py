"""Progress: how far one source partition was read, and what time it is in its stream."""

from __future__ import annotations

from worker.decode import Record
from worker.sequences import MARK

LIVE_MS = 300_000  # a source whose newest event is this close to its arrival is live: its silence takes wall time


class Progress:
    """Where the table of a source partition ends: the next offset, and the arrival of the newest record."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.next_offset: int | None = None  # of the source; None before its first record
        self._arrival_ms = 0
        self._arrived_at = 0.0

    def load(self, mark: bytes, monotonic: float, wall_ms: int) -> None:
        """Take up what the table says."""
        self._arrival_ms, self.next_offset = MARK.unpack(mark)
        self._arrived_at = monotonic - max(0, wall_ms - self._arrival_ms) / 1000

    def read(self, record: Record, monotonic: float) -> None:
        """Go on to this record."""
        self._arrival_ms, self._arrived_at, self.next_offset = record.timestamp, monotonic, record.offset + 1

    @property
    def mark(self) -> bytes | None:
        """What the table is to say, None before the first record."""
        return None if self.next_offset is None else MARK.pack(self._arrival_ms, self.next_offset)

    def stream_now_ms(self, stream_ms: int, monotonic: float) -> int:
        """Return the stream time: the newest event time, moved on by the wall clock only while the source is live."""
        if self._arrival_ms - stream_ms >= LIVE_MS:
            return stream_ms
        return stream_ms + int((monotonic - self._arrived_at) * 1000)

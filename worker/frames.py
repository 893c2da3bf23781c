"""Frames: columns of answers in, Kafka record batches (message format 2) of stage probabilities out."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka.record.util import calc_crc32c

from worker.writing import BATCH_HEADER_BYTES, LENGTH_BYTES, PIECES, Bytes, Columns, Texts, write

HEADER = struct.Struct(">qiibIhiqqqhii")  # of a record batch
CRC_AT, CRC_FROM = 17, 21
CRC = struct.Struct(">I")
PRODUCER_AT, PRODUCER = 43, struct.Struct(">qhi")
MAGIC, TRANSACTIONAL = 2, 0x10
FIXED_BYTES = 1024  # numbers, dates and framing of one record, at most
ESCAPED = 6  # bytes that one byte of a name may become in JSON


class Frame:
    """A finished record batch, in the form in which aiokafka's sender takes its own BatchBuilder."""

    def __init__(self, data: bytearray, count: int, time_ms: int) -> None:
        HEADER.pack_into(
            data, 0, 0, len(data) - 12, -1, MAGIC, 0, TRANSACTIONAL, count - 1, time_ms, time_ms, -1, -1, 0, count
        )
        self._data, self._count = data, count

    def append(self, **_: Any) -> None:
        """Take nothing: the batch is full."""

    def close(self) -> None: ...

    def closed(self) -> bool:
        return True

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return len(self._data)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        PRODUCER.pack_into(self._data, PRODUCER_AT, producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytearray:
        CRC.pack_into(self._data, CRC_AT, calc_crc32c(memoryview(self._data)[CRC_FROM:]))
        return self._data


def frames(texts: Texts, columns: Columns, rows: range, time_ms: int, most_bytes: int) -> Iterator[Frame]:
    """Write some rows as record batches of at most `most_bytes`; a single record may be longer."""
    if not rows:
        return
    row = rows.start
    longest = FIXED_BYTES + len(texts.text) + 2 * (1 + ESCAPED) * _longest(columns.key_end, rows)
    longest += ESCAPED * _longest(columns.category_end, rows)
    value, body = np.empty(longest, np.uint8), np.empty(2 * longest, np.uint8)
    while row < rows.stop:
        out = np.empty(max(most_bytes, BATCH_HEADER_BYTES + LENGTH_BYTES + len(body)), np.uint8)
        end, until = write(texts, columns, row, rows.stop, most_bytes, value, body, out)
        yield Frame(bytearray(out[:end]), until - row, time_ms)
        row = until


def texts_of(pieces: Mapping[str, bytes], types: Sequence[bytes], stages: Sequence[bytes]) -> Texts:
    """Lay out the pieces by their names, then the types and stages."""
    texts = [*(pieces[name] for name in PIECES), *types, *stages]
    return Texts(joined(texts), ends(texts))


def joined(texts: Sequence[bytes]) -> Bytes:
    """Join byte strings into one array."""
    return np.frombuffer(b"".join(texts) or b"\0", np.uint8)


def ends(texts: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Return where each of the joined byte strings ends (N,)."""
    return np.fromiter(map(len, texts), np.int64, len(texts)).cumsum()


def _longest(end: npt.NDArray[np.int64], rows: range) -> int:
    first = end[0] if rows.start == 0 else end[rows.start] - end[rows.start - 1]
    rest = end[rows.start + 1 : rows.stop] - end[rows.start : rows.stop - 1]
    return int(max(first, rest.max(initial=0)))

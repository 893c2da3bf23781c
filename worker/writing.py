"""Writing: columns of answers in, the bytes of their Kafka records out: framing, JSON value, headers; compiled.

What the records say in plain Python: tests/support/plain_records.py, to which every byte is equal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.jit import jit

Bytes = npt.NDArray[np.uint8]

# Pieces of text that records are made of; the types and stages follow them.
PIECES = (
    "id_of_event", "id_of_end", "end", "user", "event_time", "arrival_time", "null", "event_type", "category",
    "no_category", "stage", "category_reach", "user_reach", "next", "length", "model", "false", "true",
    "raw_id_of_event", "raw_id_of_end", "header_id", "header_subject", "header_time", "constant_headers",
)  # fmt: skip
(
    ID_OF_EVENT, ID_OF_END, END, USER, EVENT_TIME, ARRIVAL_TIME, NULL, EVENT_TYPE, CATEGORY,
    NO_CATEGORY, STAGE, CATEGORY_REACH, USER_REACH, NEXT, LENGTH, MODEL, FALSE, TRUE,
    RAW_ID_OF_EVENT, RAW_ID_OF_END, HEADER_ID, HEADER_SUBJECT, HEADER_TIME, CONSTANT_HEADERS,
    TYPE,
) = range(len(PIECES) + 1)  # fmt: skip
N_TYPES, N_STAGES, FIRST_WIRE_TYPE, NEXT_EVENTS = 20, 6, 2, 3
STAGE_NAME = TYPE + N_TYPES

BATCH_HEADER_BYTES = 61  # left free for it before the first record
LENGTH_BYTES = 10  # of a record's length, at most


class Texts(NamedTuple):
    """Pieces of text, end to end, and where each ends."""

    text: Bytes
    end: npt.NDArray[np.int64]


class Columns(NamedTuple):
    """The answered rows (A,) as the compiled pass reads them; reach and next_type have no rows without a model."""

    keys: Bytes
    key_end: npt.NDArray[np.int64]  # (A,)
    categories: Bytes
    category_end: npt.NDArray[np.int64]  # (A,)
    no_category: npt.NDArray[np.bool_]  # (A,)
    offset: npt.NDArray[np.int64]  # (A,) -1 for a session end
    event_time: npt.NDArray[np.int64]  # (A,) ms
    arrival_time: npt.NDArray[np.int64]  # (A,) ms, -1 for none
    type: Bytes  # (A,)
    stage: Bytes  # (A,)
    length: npt.NDArray[np.int64]  # (A,)
    reach: npt.NDArray[np.float32]  # (A, 12) or (0, 12)
    next_type: npt.NDArray[np.float32]  # (A, 20) or (0, 20)
    degraded: npt.NDArray[np.bool_]  # (A,)


@jit
def write(
    texts: Texts, columns: Columns, row: int, end: int, most: int, value: Bytes, body: Bytes, out: Bytes
) -> tuple[int, int]:
    """Write records of rows row..end-1 behind the room for the batch's header; return its end and the row after it."""
    first, at = row, BATCH_HEADER_BYTES
    while row < end:
        size = _record(texts, columns, row, row - first, value, body)
        if row > first and at + size + LENGTH_BYTES > most:
            break
        at = _copy(body, 0, size, out, _varint(size, out, at))
        row += 1
    return at, row


@jit
def _record(texts: Texts, columns: Columns, row: int, delta: int, value: Bytes, out: Bytes) -> int:
    """Write one record behind its length; return the end."""
    size = _value(texts, columns, row, value)
    low, high = columns.key_end[row - 1] if row else 0, columns.key_end[row]
    out[0] = out[1] = 0  # attributes, difference of the timestamp
    at = _varint(high - low, out, _varint(delta, out, 2))
    at = _copy(columns.keys, low, high, out, at)
    at = _copy(value, 0, size, out, _varint(size, out, at))
    at = _identity(texts, columns, row, out, _piece(texts, HEADER_ID, out, at))
    at = _varint(high - low, out, _piece(texts, HEADER_SUBJECT, out, at))
    at = _copy(columns.keys, low, high, out, at)
    at = _rfc3339(columns.event_time[row], out, _piece(texts, HEADER_TIME, out, at))
    return _piece(texts, CONSTANT_HEADERS, out, at)


@jit
def _identity(texts: Texts, columns: Columns, row: int, out: Bytes, at: int) -> int:
    """Write the id as a header's value: its length, in two bytes if need be, then the bytes."""
    start = at + 2  # ids are shorter than 8192
    if columns.offset[row] >= 0:
        end = _number(columns.offset[row], out, _piece(texts, RAW_ID_OF_EVENT, out, start))
    else:
        low, high = columns.key_end[row - 1] if row else 0, columns.key_end[row]
        end = _copy(columns.keys, low, high, out, _piece(texts, RAW_ID_OF_END, out, start))
        end = _number(columns.event_time[row], out, _piece(texts, END, out, end))
    written = _varint(end - start, out, at)
    return end if written == start else _copy(out, start, end, out, written)


@jit
def _value(texts: Texts, columns: Columns, row: int, out: Bytes) -> int:
    """Write the JSON value of one record; return its size."""
    low, high = columns.key_end[row - 1] if row else 0, columns.key_end[row]
    if columns.offset[row] >= 0:
        at = _number(columns.offset[row], out, _piece(texts, ID_OF_EVENT, out, 0))
    else:
        at = _escaped(columns.keys, low, high, out, _piece(texts, ID_OF_END, out, 0))
        at = _number(columns.event_time[row], out, _piece(texts, END, out, at))
    at = _escaped(columns.keys, low, high, out, _piece(texts, USER, out, at))
    at = _number(columns.event_time[row], out, _piece(texts, EVENT_TIME, out, at))
    at = _piece(texts, ARRIVAL_TIME, out, at)
    arrival = columns.arrival_time[row]
    at = _number(arrival, out, at) if arrival >= 0 else _piece(texts, NULL, out, at)
    at = _piece(texts, TYPE + columns.type[row], out, _piece(texts, EVENT_TYPE, out, at))
    if columns.no_category[row]:
        at = _piece(texts, NO_CATEGORY, out, at)
    else:
        begin, end = columns.category_end[row - 1] if row else 0, columns.category_end[row]
        at = _escaped(columns.categories, begin, end, out, _piece(texts, CATEGORY, out, at))
        at = _piece(texts, STAGE, out, at)
    at = _piece(texts, STAGE_NAME + columns.stage[row], out, at)
    at = _reach(texts, columns, row, 0, out, _piece(texts, CATEGORY_REACH, out, at))
    at = _reach(texts, columns, row, N_STAGES, out, _piece(texts, USER_REACH, out, at))
    at = _next(texts, columns, row, out, _piece(texts, NEXT, out, at))
    at = _number(columns.length[row], out, _piece(texts, LENGTH, out, at))
    return _piece(texts, TRUE if columns.degraded[row] else FALSE, out, _piece(texts, MODEL, out, at))


@jit
def _reach(texts: Texts, columns: Columns, row: int, first: int, out: Bytes, at: int) -> int:
    """Write the probabilities of one scope, if there are any."""
    if len(columns.reach):
        for stage in range(N_STAGES):
            at = _quoted(texts, STAGE_NAME + stage, out, _comma(stage, out, at))
            at = _decimals(columns.reach[row, first + stage], out, at)
    return at


@jit
def _next(texts: Texts, columns: Columns, row: int, out: Bytes, at: int) -> int:
    """Write the likeliest next events, the first of equals first; none where nothing is likely."""
    if not len(columns.next_type):
        return at
    one = two = -1
    for rank in range(NEXT_EVENTS):
        best = -1
        for code in range(FIRST_WIRE_TYPE, N_TYPES):
            if (
                code != one
                and code != two
                and (best < 0 or columns.next_type[row, code] > columns.next_type[row, best])
            ):
                best = code
        if rank == 0 and columns.next_type[row, best] <= 0:
            return at
        at = _quoted(texts, TYPE + best, out, _comma(rank, out, at))
        at = _decimals(columns.next_type[row, best], out, at)
        one, two = best, one
    return at


@jit
def _comma(number: int, out: Bytes, at: int) -> int:
    if number:
        out[at] = 44
        return at + 1
    return at


@jit
def _quoted(texts: Texts, piece: int, out: Bytes, at: int) -> int:
    """Write a field's name with its quotes and colon."""
    out[at] = 34
    at = _piece(texts, piece, out, at + 1)
    out[at], out[at + 1] = 34, 58
    return at + 2


@jit
def _piece(texts: Texts, piece: int, out: Bytes, at: int) -> int:
    return _copy(texts.text, texts.end[piece - 1] if piece else 0, texts.end[piece], out, at)


# An index that may be negative is tested for it at every access, and a loop over it is not vectorised: 60 times slower.
# So whatever runs per byte has unsigned ones; unsigned numbers are also divided faster.


@jit
def _copy(data: Bytes, low: int, high: int, out: Bytes, at: int) -> int:
    source, target = np.uint64(low), np.uint64(at)
    for k in range(np.uint64(high - low)):
        out[target + k] = data[source + k]
    return at + high - low


@jit
def _escaped(data: Bytes, low: int, high: int, out: Bytes, at: int) -> int:
    """Write text as the inside of a JSON string (RFC 8259, section 7)."""
    end = at
    for k in range(np.uint64(low), np.uint64(high)):
        byte, place = data[k], np.uint64(end)
        if byte >= 32 and byte != 34 and byte != 92:
            out[place] = byte
            end += 1
            continue
        out[place] = 92
        short = 34 if byte == 34 else 92 if byte == 92 else 98 if byte == 8 else 116 if byte == 9 else 0
        short = 110 if byte == 10 else 102 if byte == 12 else 114 if byte == 13 else short
        if short:
            out[end + 1] = short
            end += 2
        else:
            out[end + 1], out[end + 2], out[end + 3], out[end + 4] = 117, 48, 48, 48 + (byte >> 4)
            low_digit = byte & 15
            out[end + 5] = 48 + low_digit if low_digit < 10 else 87 + low_digit
            end += 6
    return end


@jit
def _number(value: int, out: Bytes, at: int) -> int:
    """Write an integer that is not negative."""
    digits, power = 1, np.uint64(10)
    while digits < 19 and np.uint64(value) >= power:
        digits += 1
        power *= np.uint64(10)
    _padded(np.uint64(value), digits, out, at)
    return at + digits


@jit
def _decimals(probability: float, out: Bytes, at: int) -> int:
    """Write a probability with six digits, halves to even."""
    millionths = np.uint64(np.rint(np.float64(probability) * 1e6))
    _padded(millionths, 7, out, at + 1)
    out[np.uint64(at)], out[np.uint64(at + 1)] = out[np.uint64(at + 1)], 46
    return at + 8


@jit
def _varint(value: int, out: Bytes, at: int) -> int:
    """Write a signed varint that is not negative (zigzag, seven bits a byte, the lowest first)."""
    rest = np.uint64(value) << np.uint64(1)
    while rest > np.uint64(127):
        out[np.uint64(at)] = np.uint64(128) | (rest & np.uint64(127))
        rest >>= np.uint64(7)
        at += 1
    out[np.uint64(at)] = rest
    return at + 1


@jit
def _rfc3339(time_ms: int, out: Bytes, at: int) -> int:
    """Write a time in UTC with milliseconds, 24 bytes (days to a date: Hinnant, chrono-compatible algorithms)."""
    days, rest = np.uint32(time_ms // 86_400_000), np.uint32(time_ms % 86_400_000)
    shifted = days + 719_468
    era = shifted // 146_097
    day_of_era = shifted - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    _followed(year, 4, 45, out, at)
    _followed(month, 2, 45, out, at + 5)
    _followed(day_of_year - (153 * month_from_march + 2) // 5 + 1, 2, 84, out, at + 8)
    _followed(rest // 3_600_000, 2, 58, out, at + 11)
    _followed(rest // 60_000 % 60, 2, 58, out, at + 14)
    _followed(rest // 1000 % 60, 2, 46, out, at + 17)
    _followed(rest % 1000, 3, 90, out, at + 20)
    return at + 24


@jit
def _followed(value: Any, digits: int, then: int, out: Bytes, at: int) -> None:
    """Write a number with leading zeros, and the character that follows it."""
    _padded(np.uint64(value), digits, out, at)
    out[np.uint64(at + digits)] = then


@jit
def _padded(value: np.uint64, digits: int, out: Bytes, at: int) -> None:
    """Write a number with leading zeros."""
    place = np.uint64(at + digits)
    for _ in range(digits):
        rest = value // np.uint64(10)
        place -= np.uint64(1)
        out[place] = np.uint64(48) + value - np.uint64(10) * rest
        value = rest

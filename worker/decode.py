"""Decode: one Kafka record (our JSON, Segment or GA4) in, one `ClickEvent` or a `DecodeError` with its reason out.

A pure function of key, value, arrival time and bounds, so a reprocessed topic gives the same events and dead letters.
Our own well-formed JSON takes a compiled fast path; what that refuses is looked at field by field in `envelopes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import numpy as np

from model.contract.events import ClickEvent
from worker import envelopes
from worker.envelopes import MAX_TEXT, WIRE_EVENTS, DecodeError, Reason

__all__ = ["Bounds", "Chunk", "DecodeError", "Reason", "Record", "decode", "decode_chunk"]

MAX_USER_BYTES = 256
MAX_DEPTH = 64  # objects and arrays inside each other; the parser's own limit depends on the caller's stack
SHORT_BYTES = 512  # values up to here cannot nest deep enough to trouble the parser

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]


class Record(Protocol):
    """What decode needs of a Kafka record; aiokafka's ConsumerRecord fits as it is."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...


class Bounds(NamedTuple):
    """Limits on a record that depend on the installation."""

    max_value_bytes: int = 1 << 20
    max_clock_skew_ms: int = 300_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """A decoded chunk; events and dead letters keep the source order."""

    events: list[ClickEvent]
    index: list[int]  # position of each event's record in the chunk
    dead: list[tuple[int, DecodeError]]


class OwnEvent(ClickEvent, gc=False):
    """A click event as our own JSON carries it, in the form that needs no second look."""

    user_id: Text
    item_id: Text | None = None
    category: Text | None = None
    price: Annotated[float, msgspec.Meta(ge=0, le=envelopes.MAX_PRICE)] | None = None
    message_id: Text | None = None


_own = msgspec.json.Decoder(OwnEvent).decode
_any = msgspec.json.Decoder(float_hook=float).decode
_REFUSALS = (msgspec.MsgspecError, ValueError, RecursionError)  # all that msgspec raises on arbitrary bytes
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # an open one ends with the text: else quadratic


def decode_chunk(records: Sequence[Record], bounds: Bounds) -> Chunk:
    """Decode each record under its own guard: a broken one costs neither its neighbours nor the chunk."""
    events: list[ClickEvent] = []
    index: list[int] = []
    dead: list[tuple[int, DecodeError]] = []
    for position, record in enumerate(records):
        try:
            events.append(decode(record.key, record.value, record.timestamp, bounds))
            index.append(position)
        except DecodeError as error:
            dead.append((position, error))
    return Chunk(events, index, dead)


def decode(key: bytes | None, value: bytes | None, arrival_ms: int, bounds: Bounds) -> ClickEvent:
    """Return the click event of a record; raise DecodeError, and nothing else."""
    if key is None or value is None or len(value) > SHORT_BYTES or not value.isascii():
        key, value = _check_bytes(key, value, bounds.max_value_bytes)
    try:
        event: ClickEvent = _own(value)
        own = event.event in WIRE_EVENTS
    except _REFUSALS:
        own = False
    if not own:
        event = envelopes.read(_parse(value))
    if event.user_id.encode() != key or len(key) > MAX_USER_BYTES:
        raise _wrong_key(key, event)
    if event.timestamp > arrival_ms + bounds.max_clock_skew_ms:
        raise DecodeError(Reason.FUTURE, f"event time {event.timestamp} is too far after its arrival at {arrival_ms}")
    return event


def _check_bytes(key: bytes | None, value: bytes | None, max_value_bytes: int) -> tuple[bytes, bytes]:
    """Refuse what is wrong with the raw record, before any parsing."""
    if value is None:
        raise DecodeError(Reason.TOMBSTONE, "the record has no value")
    if key is None:
        raise DecodeError(Reason.NULL_KEY, "the record has no key, the user id is expected")
    if len(value) > max_value_bytes:
        raise DecodeError(Reason.TOO_LARGE, f"{len(value)} bytes, at most {max_value_bytes} are read")
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(Reason.INVALID_UTF8, f"{error.reason} at byte {error.start}") from None
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise DecodeError(Reason.INVALID_JSON, f"nested deeper than {MAX_DEPTH}")
    return key, value


def depth(value: bytes) -> int:
    """Return how deep objects and arrays nest, without parsing."""
    data = np.frombuffer(_STRINGS.sub(b"", value), "u1")
    step = np.isin(data, list(b"[{")).astype("i4") - np.isin(data, list(b"]}"))
    return int(step.cumsum().max(initial=0))


def _parse(value: bytes) -> dict[str, Any]:
    try:
        body = _any(value)
    except _REFUSALS as error:
        raise DecodeError(Reason.INVALID_JSON, str(error)) from None
    if not isinstance(body, dict):
        raise DecodeError(Reason.NOT_AN_OBJECT, f"an object is expected, found {type(body).__name__}")
    return body


def _wrong_key(key: bytes, event: ClickEvent) -> DecodeError:
    if len(key) > MAX_USER_BYTES:
        return DecodeError(Reason.TOO_LONG, f"the user id has {len(key)} bytes, at most {MAX_USER_BYTES} are kept")
    return DecodeError(Reason.KEY_MISMATCH, f"the record's key is not the user id of its {event.event} event")

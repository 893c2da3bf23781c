"""Decode raises nothing but its own error, names the reason, and a broken record costs its neighbours nothing."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.contract.events import MAX_TIMESTAMP_MS, WIRE_TYPES, ClickEvent
from worker.decode import MAX_DEPTH, Bounds, DecodeError, Reason, decode, decode_chunk, depth

ARRIVAL_MS = 1_511_544_070_500
BOUNDS = Bounds()
VALID: dict[str, Any] = {
    "user_id": "u1",
    "event": "product_view",
    "timestamp": 1_511_544_070_000,
    "item_id": "i1",
    "category": "c1",
    "price": 9.5,
    "message_id": "m1",
}
CLICK = ClickEvent("u1", "product_view", 1_511_544_070_000, "i1", "c1", 9.5, "m1")


class Raw(NamedTuple):
    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = ARRIVAL_MS


def own(**changes: Any) -> bytes:
    return json.dumps({**VALID, **changes}).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in VALID.items() if name != field}).encode()


def read(value: bytes | None, key: bytes | None = b"u1", arrival_ms: int = ARRIVAL_MS) -> dict[str, Any]:
    event = decode(key, value, arrival_ms, BOUNDS)
    return {field: getattr(event, field) for field in ClickEvent.__struct_fields__}


def reason_of(value: bytes | None, key: bytes | None = b"u1", bounds: Bounds = BOUNDS) -> Reason:
    with pytest.raises(DecodeError) as refused:
        decode(key, value, ARRIVAL_MS, bounds)
    assert refused.value.detail
    return refused.value.reason


def test_our_own_json_is_read_field_by_field() -> None:
    assert read(own()) == {field: getattr(CLICK, field) for field in ClickEvent.__struct_fields__}


@pytest.mark.parametrize("event", WIRE_TYPES)
def test_every_canonical_event_is_accepted(event: str) -> None:
    assert read(own(event=event))["event"] == event


BROKEN = [
    (None, b"u1", Reason.TOMBSTONE),
    (None, None, Reason.TOMBSTONE),
    (own(), None, Reason.NULL_KEY),
    (own(), b"", Reason.KEY_MISMATCH),
    (own(), b"u2", Reason.KEY_MISMATCH),
    (own(), b"\xff", Reason.KEY_MISMATCH),
    (own(user_id="u" * 257), b"u" * 257, Reason.TOO_LONG),
    (own(user_id="€" * 86), ("€" * 86).encode(), Reason.TOO_LONG),
    (own(item_id="i" * 257), b"u1", Reason.TOO_LONG),
    (own(category="c" * 257), b"u1", Reason.TOO_LONG),
    (own(message_id="m" * 257), b"u1", Reason.TOO_LONG),
    (own().replace(b"u1", b"u\xff1"), b"u\xff1", Reason.INVALID_UTF8),
    (own(note="@").replace(b"@", b"\xff"), b"u1", Reason.INVALID_UTF8),
    (b"", b"u1", Reason.INVALID_JSON),
    (b"{", b"u1", Reason.INVALID_JSON),
    (own()[:-1], b"u1", Reason.INVALID_JSON),
    (own() + own(), b"u1", Reason.INVALID_JSON),
    (b"\xef\xbb\xbf" + own(), b"u1", Reason.INVALID_JSON),
    (own(user_id="@").replace(b"@", b"\\ud800"), b"u1", Reason.INVALID_JSON),
    (own(price=float("nan")), b"u1", Reason.INVALID_JSON),
    (own(price=float("inf")), b"u1", Reason.INVALID_JSON),
    (own(note=float("nan")), b"u1", Reason.INVALID_JSON),
    (own(note="@").replace(b'"@"', b"[" * 100_000 + b"]" * 100_000), b"u1", Reason.INVALID_JSON),
    (b'{"a":' * 100_000, b"u1", Reason.INVALID_JSON),
    (b"[" * 500, b"u1", Reason.INVALID_JSON),
    (own(timestamp="@").replace(b'"@"', b"9" * 5000), b"u1", Reason.INVALID_JSON),
    (b"[]", b"u1", Reason.NOT_AN_OBJECT),
    (b"null", b"u1", Reason.NOT_AN_OBJECT),
    (b"NaN", b"u1", Reason.INVALID_JSON),
    (b'"text"', b"u1", Reason.NOT_AN_OBJECT),
    (own(event="teleport"), b"u1", Reason.UNKNOWN_EVENT),
    (own(event="session_end"), b"u1", Reason.UNKNOWN_EVENT),
    (own(event="pad"), b"u1", Reason.UNKNOWN_EVENT),
    (own(event="Product Viewed"), b"u1", Reason.UNKNOWN_EVENT),
    (without("user_id"), b"u1", Reason.MISSING_USER),
    (own(user_id=None), b"u1", Reason.MISSING_USER),
    (own(user_id=""), b"", Reason.MISSING_USER),
    (b"{}", b"u1", Reason.MISSING_USER),
    (without("event"), b"u1", Reason.MISSING_FIELD),
    (without("timestamp"), b"u1", Reason.MISSING_FIELD),
    (own(timestamp=None), b"u1", Reason.MISSING_FIELD),
    (own(user_id=["u1"]), b"u1", Reason.WRONG_TYPE),
    (own(user_id=1.5), b"1.5", Reason.WRONG_TYPE),
    (own(event=7), b"u1", Reason.WRONG_TYPE),
    (own(item_id=True), b"u1", Reason.WRONG_TYPE),
    (own(timestamp=True), b"u1", Reason.WRONG_TYPE),
    (own(timestamp=1.5), b"u1", Reason.WRONG_TYPE),
    (own(timestamp="yesterday"), b"u1", Reason.WRONG_TYPE),
    (own(timestamp="2017-11-24T17:21:10"), b"u1", Reason.WRONG_TYPE),
    (own(price="9.5"), b"u1", Reason.WRONG_TYPE),
    (own(price=False), b"u1", Reason.WRONG_TYPE),
    (own(timestamp=0), b"u1", Reason.OUT_OF_RANGE),
    (own(timestamp=-1), b"u1", Reason.OUT_OF_RANGE),
    (own(timestamp=MAX_TIMESTAMP_MS + 1), b"u1", Reason.OUT_OF_RANGE),
    (own(timestamp=1 << 63), b"u1", Reason.OUT_OF_RANGE),
    (own(timestamp="@").replace(b'"@"', b"9" * 400), b"u1", Reason.OUT_OF_RANGE),
    (own(timestamp="1969-12-31T23:59:59Z"), b"u1", Reason.OUT_OF_RANGE),
    (own(price=-0.01), b"u1", Reason.OUT_OF_RANGE),
    (own(price=1e13), b"u1", Reason.OUT_OF_RANGE),
    (own(price="@").replace(b'"@"', b"1e999"), b"u1", Reason.OUT_OF_RANGE),
    (own(timestamp=ARRIVAL_MS + 300_001), b"u1", Reason.FUTURE),
    (own(timestamp="2038-01-01T00:00:00Z"), b"u1", Reason.FUTURE),
]


@pytest.mark.parametrize(("value", "key", "reason"), BROKEN)
def test_each_fault_has_its_reason(value: bytes | None, key: bytes | None, reason: Reason) -> None:
    assert reason_of(value, key) == reason


def test_every_reason_is_proved_above() -> None:
    assert {reason for _, _, reason in BROKEN} | {Reason.TOO_LARGE} == set(Reason)


def test_a_value_of_five_megabytes_is_refused_unread_and_one_at_the_bound_is_read() -> None:
    assert reason_of(own(note="x" * 5_000_000)) == Reason.TOO_LARGE
    value = own(note="x" * 10_000)
    assert decode(b"u1", value, ARRIVAL_MS, Bounds(len(value))).user_id == "u1"
    assert reason_of(value, bounds=Bounds(len(value) - 1)) == Reason.TOO_LARGE


def test_an_event_may_lie_in_the_future_by_the_clock_skew() -> None:
    assert read(own(timestamp=ARRIVAL_MS + 300_000))["timestamp"] == ARRIVAL_MS + 300_000
    assert decode(b"u1", own(timestamp=ARRIVAL_MS), ARRIVAL_MS, Bounds(max_clock_skew_ms=0)).timestamp == ARRIVAL_MS


@pytest.mark.parametrize("text", ["2017-11-24T17:21:10Z", "2017-11-24T18:21:10+01:00", "2017-11-24T17:21:10.000999Z"])
def test_a_time_may_be_rfc_3339(text: str) -> None:
    assert read(own(timestamp=text))["timestamp"] == 1_511_544_070_000


def test_optional_fields_may_be_missing_null_or_empty() -> None:
    bare = {"user_id": "u1", "event": "page_view", "timestamp": 1}
    optional = ("item_id", "category", "message_id")
    for body in (bare, bare | dict.fromkeys(optional), bare | dict.fromkeys(optional, ""), bare | {"price": None}):
        event = read(json.dumps(body).encode())
        assert [event[field] for field in (*optional, "price")] == [None] * 4


def test_ids_may_be_integers() -> None:
    event = read(own(user_id=7, item_id=8, category=-9), key=b"7")
    assert (event["user_id"], event["item_id"], event["category"]) == ("7", "8", "-9")


def test_names_of_any_language_and_escapes_arrive_unchanged() -> None:
    user = 'ü"\\\n\u2028😀'
    assert read(own(user_id=user), key=user.encode())["user_id"] == user
    assert (
        read(json.dumps({**VALID, "user_id": user}, ensure_ascii=False).encode(), key=user.encode())["user_id"] == user
    )


def test_fields_that_we_do_not_know_are_ignored() -> None:
    assert read(own(context={"page": [1, 2, {"x": None}]}))["item_id"] == "i1"


def nested(levels: int) -> bytes:
    return own(note="@", text="x" * 600).replace(b'"@"', b"[" * levels + b"]" * levels)


def test_nesting_is_refused_at_one_depth_wherever_the_caller_stands() -> None:
    assert read(nested(MAX_DEPTH - 1))["item_id"] == "i1"
    assert reason_of(nested(MAX_DEPTH)) == Reason.INVALID_JSON

    def deeper(frames: int) -> dict[str, Any]:
        return deeper(frames - 1) if frames else read(nested(MAX_DEPTH - 1))

    assert deeper(sys.getrecursionlimit() - 400)["item_id"] == "i1"


def test_depth_counts_brackets_outside_strings_only() -> None:
    assert depth(b'{"a[[[\\"[[":[1,[2]],"b":[]}') == 3
    assert depth(b"") == 0


def test_an_endless_string_of_escapes_is_refused_in_linear_time() -> None:
    started = time.thread_time()
    assert reason_of(b"[" * 100 + b'"' + b'\\"' * 400_000) == Reason.INVALID_JSON
    assert reason_of(b"[{" * 400_000) == reason_of(b"[]" * 400_000) == Reason.INVALID_JSON
    assert time.thread_time() - started < 5


def test_brackets_in_a_long_text_do_not_count_as_nesting() -> None:
    assert read(own(note="[{" * 2000))["item_id"] == "i1"


def test_the_next_valid_events_of_the_chunk_are_served_in_order() -> None:
    faults = [Raw(key, value) for value, key, _ in BROKEN]
    records = [record for fault in faults for record in (fault, Raw(b"u1", own()))]
    chunk = decode_chunk(records, BOUNDS)
    assert chunk.index == list(range(1, len(records), 2))
    assert [at for at, _ in chunk.dead] == list(range(0, len(records), 2))
    assert [error.reason for _, error in chunk.dead] == [reason for _, _, reason in BROKEN]
    assert all(event.message_id == "m1" for event in chunk.events)


def test_two_halves_of_an_object_in_neighbouring_records_are_two_dead_letters() -> None:
    value = own()
    chunk = decode_chunk([Raw(b"u1", value[:40]), Raw(b"u1", value[40:])], BOUNDS)
    assert chunk.events == []
    assert len(chunk.dead) == 2


def outcome(key: bytes | None, value: bytes | None) -> object:
    try:
        event = decode(key, value, ARRIVAL_MS, BOUNDS)
    except DecodeError as error:
        error.detail.encode()
        return error.reason, error.detail
    assert event.user_id.encode() == key
    assert event.event in WIRE_TYPES
    assert 0 < event.timestamp <= MAX_TIMESTAMP_MS
    assert event.price is None or 0 <= event.price < 1e13
    assert all(text is None or 0 < len(text) <= 256 for text in (event.item_id, event.category, event.message_id))
    return event


@settings(max_examples=300, deadline=None)
@given(st.none() | st.binary(max_size=300), st.none() | st.binary(max_size=600))
@example(b"u1", b'{"user_id":"u1","event":"page_view","timestamp":' + b"9" * 400 + b"}")
def test_arbitrary_bytes_raise_nothing_else(key: bytes | None, value: bytes | None) -> None:
    assert outcome(key, value) == outcome(key, value)


SEGMENT_TRACK = {
    "type": "track",
    "event": "Product Viewed",
    "userId": "u1",
    "messageId": "m1",
    "originalTimestamp": "2017-11-24T17:21:10Z",
    "sentAt": "2017-11-24T17:21:11Z",
    "receivedAt": "2017-11-24T17:21:11.500Z",
    "properties": {"product_id": "i1", "category": "c1", "price": 9.5, "products": [{"sku": "i2"}]},
}
GA4_EVENT = {
    "event_name": "purchase",
    "user_pseudo_id": "u1",
    "event_timestamp": 1_511_544_070_000_000,
    "items": [{"item_id": "i1", "item_category": "c1", "price": 9.5}],
}
ENVELOPES = [json.dumps(body).encode() for body in (VALID, SEGMENT_TRACK, GA4_EVENT)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ENVELOPES), st.integers(0, 400), st.integers(0, 40), st.binary(max_size=12))
def test_mutated_bytes_of_valid_events_raise_nothing_else(value: bytes, at: int, cut: int, put: bytes) -> None:
    outcome(b"u1", value[:at] + put + value[at + cut :])


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(sorted(WIRE_TYPES))
)
JSON_VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([VALID, SEGMENT_TRACK, GA4_EVENT]), st.data())
def test_valid_events_with_any_field_replaced_raise_nothing_else(body: dict[str, Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted({*body, "products", "items", "user_id", "type", "timestamp"})))
    changed = json.dumps({**body, field: data.draw(JSON_VALUES)}).encode()
    chunk = decode_chunk([Raw(b"u1", changed), Raw(b"u1", own())], BOUNDS)
    assert chunk.index[-1] == 1
    outcome(b"u1", changed)

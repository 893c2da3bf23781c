"""Output records are valid JSON and CloudEvents whatever the names hold, and pure functions of what they answer."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.events import TYPE_CODE, TYPES
from model.contract.stages import STAGES, Stage
from tests.support.plain_records import plain_records, records_of
from worker.campaigns import Campaign
from worker.policy import Decision, Outcome
from worker.records import BATCH_BYTES, NO_MODEL, Answers, Encoder, Header, Model, Output, Source, lay_out

SOURCE = Source("funnelcast", "clickstream", 3)
MODEL = Model("taobao-small", "1", "ab12cd34" * 8)
ENCODER = Encoder(SOURCE, MODEL)
TIME_MS = 1_511_544_070_123


class Raw(NamedTuple):
    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int


def answers(rows: int = 1, **changes: Any) -> Answers:
    rng = np.random.default_rng(rows)
    next_type = rng.random((rows, len(TYPES))).astype("f4")
    base = Answers(
        keys=[b"u%d" % row for row in range(rows)],
        offset=np.arange(rows) + 100,
        event_time=np.arange(rows) + TIME_MS,
        arrival_time=np.arange(rows) + TIME_MS + 50,
        type=np.full(rows, TYPE_CODE["product_view"], "u1"),
        user_stage=np.ones(rows, "u1"),
        category=[b"c%d" % row for row in range(rows)],
        sequence_length=np.arange(rows) + 1,
        reach=rng.random((rows, 2, 6)).astype("f4"),
        next_type=next_type / next_type.sum(axis=1, keepdims=True),
        degraded=np.zeros(rows, bool),
    )
    return base._replace(**changes)


def written(encoder: Encoder, some: Answers) -> list[Output]:
    return records_of(encoder.stage_probabilities(lay_out(some), TIME_MS))


def value_of(output: Output) -> dict[str, Any]:
    assert output[1] is not None
    value: dict[str, Any] = json.loads(output[1])
    return value


def test_a_stage_probability_record_says_all_that_the_answer_holds() -> None:
    given_ = answers()
    assert given_.reach is not None
    assert given_.next_type is not None
    ((key, value, headers),) = written(ENCODER, given_)
    body = value_of((key, value, headers))
    assert key == b"u0"
    assert list(body) == [
        "id", "user_id", "event_time", "arrival_time", "event_type", "category", "stage", "category_probabilities",
        "user_probabilities", "next_event", "sequence_length", "model", "degraded",
    ]  # fmt: skip
    assert body["id"] == "ab12cd34-3-100"
    assert (body["event_time"], body["arrival_time"], body["sequence_length"]) == (TIME_MS, TIME_MS + 50, 1)
    assert (body["user_id"], body["category"], body["event_type"], body["stage"]) == (
        "u0",
        "c0",
        "product_view",
        "interest",
    )
    assert body["model"] == {"name": "taobao-small", "version": "1", "sha256": MODEL.sha256}
    assert body["degraded"] is False
    for scope, field in enumerate(("category_probabilities", "user_probabilities")):
        assert list(body[field]) == list(STAGES)
        assert list(body[field].values()) == [round(float(p), 6) for p in given_.reach[0, scope]]
    best = np.argsort(-given_.next_type[0, 2:], kind="stable")[:3] + 2
    assert body["next_event"] == {TYPES[code]: round(float(given_.next_type[0, code]), 6) for code in best}
    assert list(body["next_event"]) == [TYPES[code] for code in best]


def test_the_headers_are_a_cloud_event_in_binary_mode() -> None:
    (_, _, headers) = written(ENCODER, answers())[0]
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"ab12cd34-3-100",
        "ce_source": b"/funnelcast/funnelcast",
        "ce_type": b"funnelcast.stage-probability",
        "ce_subject": b"u0",
        "ce_time": b"2017-11-24T17:21:10.123Z",
        "ce_dataschema": b"urn:funnelcast:stage-probability:1",
        "content-type": b"application/json",
    }
    assert len(headers) == 8


def test_a_session_end_is_known_by_its_user_and_time() -> None:
    end = answers(offset=np.array([-1]), arrival_time=np.array([-1]), type=np.array([TYPE_CODE["session_end"]], "u1"))
    output = written(ENCODER, end)[0]
    assert value_of(output)["id"] == f"ab12cd34-u0-end-{TIME_MS}"
    assert dict(output[2])["ce_id"] == f"ab12cd34-u0-end-{TIME_MS}".encode()
    assert value_of(output)["arrival_time"] is None
    assert value_of(output)["event_type"] == "session_end"


def test_a_missing_category_is_null() -> None:
    assert value_of(written(ENCODER, answers(category=[None]))[0])["category"] is None


def test_without_a_model_there_are_no_probabilities() -> None:
    body = value_of(written(Encoder(SOURCE, NO_MODEL), answers(reach=None, next_type=None))[0])
    assert body["id"] == "none-3-100"
    assert body["category_probabilities"] == body["user_probabilities"] == body["next_event"] == {}
    assert body["model"] == {"name": "none", "version": "", "sha256": ""}


def test_a_degraded_answer_names_no_next_event() -> None:
    found = answers(2, degraded=np.array([True, False]))
    assert found.next_type is not None
    found.next_type[0] = 0
    first, second = map(value_of, written(ENCODER, found))
    assert (first["degraded"], first["next_event"]) == (True, {})
    assert (second["degraded"], len(second["next_event"])) == (False, 3)


def test_an_empty_block_gives_no_records() -> None:
    assert written(ENCODER, answers(0)) == []


@settings(max_examples=200, deadline=None)
@given(
    st.text(min_size=1, max_size=20), st.none() | st.text(min_size=1, max_size=20), st.booleans(), st.text(max_size=9)
)
def test_any_user_category_and_model_name_is_escaped(user: str, category: str | None, ends: bool, name: str) -> None:
    encoder = Encoder(SOURCE, Model(name, "100%d", ""))
    one = answers(
        keys=[user.encode()],
        category=[category and category.encode()],
        offset=np.array([-1 if ends else 7]),
    )
    output = written(encoder, one)[0]
    body = value_of(output)
    assert (body["user_id"], body["category"]) == (user, category)
    assert body["model"] == {"name": name, "version": "100%d", "sha256": ""}
    assert dict(output[2])["ce_id"].decode() == body["id"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=30), st.none() | st.text(max_size=30), st.integers(-1, 2**62),
            st.integers(0, 2**43 - 1), st.integers(-1, 2**43), st.integers(0, len(TYPES) - 1), st.integers(0, 5),
            st.lists(st.floats(0, 1, width=32), min_size=32, max_size=32), st.booleans(),
        ),
        max_size=9,
    ),
    st.booleans(),
    st.sampled_from([(), (("traceparent", b"00-1-2-01"),)]),
    st.text(max_size=9),
)  # fmt: skip
def test_every_byte_is_what_the_plain_description_says(
    rows: list[Any], scored: bool, context: tuple[Header, ...], name: str
) -> None:
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] or [[]] * 9
    numbers = np.array(columns[7], "f4").reshape(-1, 32)
    some = Answers(
        keys=[user.encode() for user in columns[0]],
        category=[None if category is None else category.encode() for category in columns[1]],
        offset=np.array(columns[2], "i8"),
        event_time=np.array(columns[3], "i8"),
        arrival_time=np.array(columns[4], "i8"),
        type=np.array(columns[5], "u1"),
        user_stage=np.array(columns[6], "u1"),
        sequence_length=np.arange(1, len(rows) + 1),
        reach=numbers[:, :12].reshape(-1, 2, 6) if scored else None,
        next_type=numbers[:, 12:] if scored else None,
        degraded=np.array(columns[8], bool),
    )
    model = MODEL._replace(name=name, sha256=MODEL.sha256 if scored else "")
    found = records_of(Encoder(SOURCE, model).stage_probabilities(lay_out(some), TIME_MS, context))
    assert found == plain_records(SOURCE, model, some, context)


def test_more_than_a_batch_holds_goes_into_several_and_a_giant_record_into_its_own() -> None:
    name = b"c" * 5_000
    many = answers(300, category=[name] * 300)
    batches = list(ENCODER.stage_probabilities(lay_out(many), TIME_MS))
    assert len(batches) > 2
    assert all(BATCH_BYTES - 7_000 < batch.size() <= BATCH_BYTES for batch in batches[:-1])
    assert records_of(batches) == plain_records(SOURCE, MODEL, many)
    giant = answers(3, category=[b"c", b"\x01" * BATCH_BYTES, b"c"])
    batches = list(ENCODER.stage_probabilities(lay_out(giant), TIME_MS))
    assert [batch.record_count() for batch in batches] == [1, 1, 1]
    assert records_of(batches) == plain_records(SOURCE, MODEL, giant)


def test_the_same_answers_give_the_same_records_however_they_are_cut() -> None:
    whole = answers(20)
    columns: list[Any] = list(whole)
    pieces = [Answers(*(column[first : first + 7] for column in columns)) for first in range(0, 20, 7)]
    outputs = [output for piece in pieces for output in written(ENCODER, piece)]
    assert outputs == written(ENCODER, whole)


def test_a_trigger_says_why_it_fired_and_when_it_expires() -> None:
    campaign = Campaign("rescue-cart", "below", Stage.PURCHASE, "category", 0.3, expires_hours=12)
    decision = Decision(campaign, Outcome.FIRE, 0.0812345678, "0123456789abcdef")
    output = ENCODER.trigger("zoë".encode(), decision, TIME_MS)
    assert output[0] == "zoë".encode()
    assert value_of(output) == {
        "id": "0123456789abcdef",
        "user_id": "zoë",
        "campaign": "rescue-cart",
        "rule": "below",
        "stage": "purchase",
        "scope": "category",
        "probability": 0.081235,
        "threshold": 0.3,
        "group": "treatment",
        "reason": "the probability of purchase in this category, 0.081235 is below 0.3: invest more in this stage",
        "event_time": TIME_MS,
        "expires_at": TIME_MS + 12 * 3_600_000,
        "model": {"name": "taobao-small", "version": "1", "sha256": MODEL.sha256},
    }
    headers = dict(output[2])
    assert (headers["ce_id"], headers["ce_type"]) == (b"0123456789abcdef", b"funnelcast.trigger")


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"u1"])
@pytest.mark.parametrize("value", [None, b"", b"\xff\x00{"])
def test_a_dead_letter_keeps_the_original_bytes_and_their_position(key: bytes | None, value: bytes | None) -> None:
    found_key, found_value, headers = ENCODER.dead_letter(Raw(key, value, 42, TIME_MS), "invalid_utf8", "at byte 0")
    assert (found_key, found_value) == (key, value)
    assert dict(headers) == {
        "reason": b"invalid_utf8",
        "detail": b"at byte 0",
        "source_topic": b"clickstream",
        "source_partition": b"3",
        "source_offset": b"42",
        "ce_specversion": b"1.0",
        "ce_id": b"dead-letter-clickstream-3-42",
        "ce_source": b"/funnelcast/funnelcast",
        "ce_type": b"funnelcast.dead-letter",
        "ce_time": b"2017-11-24T17:21:10.123Z",
        "content-type": b"application/octet-stream",
    }


def test_a_dead_letter_of_a_record_without_time_and_with_an_odd_detail_is_written() -> None:
    headers = dict(ENCODER.dead_letter(Raw(b"u", b"", 1, -1), "invalid_json", "\ud800" * 2000)[2])
    assert headers["ce_time"] == b"1970-01-01T00:00:00.000Z"
    assert len(headers["detail"]) == 500


def test_a_late_event_keeps_its_bytes_and_is_marked_late() -> None:
    key, value, headers = ENCODER.late(Raw(b"u1", b"{}", 42, TIME_MS))
    assert (key, value) == (b"u1", b"{}")
    assert dict(headers)["reason"] == b"late"
    assert dict(headers)["ce_id"] == b"late-clickstream-3-42"

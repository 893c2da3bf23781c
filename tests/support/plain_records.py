"""What the records of stage probabilities say, in plain Python: the specification of the compiled pass."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from aiokafka.record.memory_records import MemoryRecords

from model.contract.events import TYPES
from model.contract.stages import STAGES
from worker.frames import Frame
from worker.records import Answers, Header, Model, Output, Source

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
text = msgspec.json.Encoder().encode


def records_of(frames: Iterable[Frame]) -> list[Output]:
    """Read record batches back as (key, value, headers), with aiokafka's own parser; check sums included."""
    found: list[Output] = []
    for frame in frames:
        frame._set_producer_state(7, 1, 3)
        batches = MemoryRecords(bytes(frame._build()))
        batch = batches.next_batch()
        assert batch is not None
        assert batch.validate_crc()
        assert (batch.is_transactional, batch.producer_id, batch.producer_epoch, batch.base_sequence) == (True, 7, 1, 3)
        records = list(batch)
        assert [record.offset for record in records] == list(range(frame.record_count()))
        found += [(bytes(record.key), bytes(record.value), list(record.headers)) for record in records]
        assert not batches.has_next()
    return found


def plain_records(source: Source, model: Model, answers: Answers, context: Iterable[Header] = ()) -> list[Output]:
    """Return what must be written for the answers."""
    return [_record(source, model, answers, row, list(context)) for row in range(len(answers.keys))]


def _record(source: Source, model: Model, answers: Answers, row: int, context: list[Header]) -> Output:
    key, event_time = answers.keys[row], int(answers.event_time[row])
    prefix = (model.sha256[:8] or model.name).encode()
    if answers.offset[row] >= 0:
        identity = b"%b-%d-%d" % (prefix, source.partition, answers.offset[row])
    else:
        identity = b"%b-%b-end-%d" % (prefix, key, event_time)
    arrival, category = int(answers.arrival_time[row]), answers.category[row]
    fields = {
        "id": text(identity.decode()),
        "user_id": text(key.decode()),
        "event_time": b"%d" % event_time,
        "arrival_time": b"%d" % arrival if arrival >= 0 else b"null",
        "event_type": text(TYPES[answers.type[row]]),
        "category": b"null" if category is None else text(category.decode()),
        "stage": text(STAGES[answers.user_stage[row]]),
        "category_probabilities": _probabilities(answers, row, 0),
        "user_probabilities": _probabilities(answers, row, 1),
        "next_event": _next(answers, row),
        "sequence_length": b"%d" % answers.sequence_length[row],
        "model": text(model._asdict()),
        "degraded": b"true" if answers.degraded[row] else b"false",
    }
    time = (EPOCH + timedelta(milliseconds=event_time)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    headers = [
        ("ce_id", identity),
        ("ce_subject", key),
        ("ce_time", time.encode()),
        ("ce_type", b"funnelcast.stage-probability"),
        ("ce_dataschema", b"urn:funnelcast:stage-probability:1"),
        ("ce_specversion", b"1.0"),
        ("content-type", b"application/json"),
        ("ce_source", f"/funnelcast/{source.app_id}".encode()),
        *context,
    ]
    return key, _object(fields), headers


def _object(fields: dict[Any, bytes]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (text(name), value) for name, value in fields.items())


def _probabilities(answers: Answers, row: int, scope: int) -> bytes:
    reach = [] if answers.reach is None else answers.reach[row, scope].tolist()
    return _object({stage: b"%.6f" % round(p, 6) for stage, p in zip(STAGES, reach, strict=False)})


def _next(answers: Answers, row: int) -> bytes:
    if answers.next_type is None or answers.next_type[row, 2:].max() <= 0:
        return b"{}"
    best = np.argsort(-answers.next_type[row, 2:], kind="stable")[:3] + 2
    return _object({TYPES[code]: b"%.6f" % round(float(answers.next_type[row, code]), 6) for code in best})

"""Records: answers, decisions and refused records in, output records (key, JSON value, CloudEvents headers) out.

Pure: an id is a function of the source offset, or of the user and a time, so a reprocessed topic gives equal records.
Stage probabilities are the hot ones: they are written as whole record batches (worker.frames).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from model.contract.events import TYPES
from model.contract.rows import typed
from model.contract.stages import STAGES
from worker.campaigns import Campaign
from worker.decode import Record
from worker.frames import Frame, ends, frames, joined, texts_of
from worker.policy import Decision
from worker.writing import Columns, Texts

Header: TypeAlias = tuple[str, bytes]
Output: TypeAlias = tuple[bytes | None, bytes | None, list[Header]]  # key, value, headers of a record

DIGITS = 6  # decimals of a probability
BATCH_BYTES = 1 << 19  # a produce request of 0.5 MiB: larger ones hold up the offsets behind them

_escape = msgspec.json.Encoder().encode
_JSON = ("content-type", b"application/json")
_BYTES = ("content-type", b"application/octet-stream")
_VERSION = ("ce_specversion", b"1.0")
_NO_REACH = np.empty((0, 0), np.float32)
COLUMN_DTYPES = [np.dtype(kind) for kind in ("?", "i8", "i8", "i8", "u1", "u1", "i8", "f4", "f4", "?")]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Model(NamedTuple):
    """Which bundle answered."""

    name: str
    version: str
    sha256: str


NO_MODEL = Model("none", "", "")


class Source(NamedTuple):
    """Which worker group answers, and which partition it reads."""

    app_id: str
    topic: str
    partition: int


class Answers(NamedTuple):
    """Columns of the A rows of one block that are answered, in block order."""

    keys: list[bytes]  # user ids
    offset: npt.NDArray[np.int64]  # (A,) of the source record, -1 for a session end
    event_time: npt.NDArray[np.int64]  # (A,) ms
    arrival_time: npt.NDArray[np.int64]  # (A,) ms, Kafka timestamp of the source record, -1 where there is none
    type: npt.NDArray[np.uint8]  # (A,)
    user_stage: npt.NDArray[np.uint8]  # (A,)
    category: list[bytes | None]  # names
    sequence_length: npt.NDArray[np.integer]  # (A,)
    reach: npt.NDArray[np.float32] | None  # (A, 2, 6) probabilities; None without a model
    next_type: npt.NDArray[np.float32] | None  # (A, 20) probabilities
    degraded: npt.NDArray[np.bool_]  # (A,)


class Trigger(msgspec.Struct, frozen=True):
    """The value of a trigger record."""

    id: str
    user_id: str
    campaign: str
    rule: str
    stage: str
    scope: str
    probability: float
    threshold: float
    group: str
    reason: str
    event_time: int
    expires_at: int
    model: dict[str, str]


class Encoder:
    """Writes the records of one source partition."""

    def __init__(self, source: Source, model: Model) -> None:
        self._source, self._model = source, model._asdict()
        self._prefix = model.sha256[:8] or model.name
        self._origin = ("ce_source", f"/funnelcast/{source.app_id}".encode())
        self._position = f"{source.topic}-{source.partition}"
        self._texts = self._pieces([])

    @property
    def partition(self) -> int:
        """Return the source partition."""
        return self._source.partition

    def stage_probabilities(
        self, columns: Columns, time_ms: int, context: Sequence[Header] = (), rows: range | None = None
    ) -> Iterator[Frame]:
        """Encode one record per row (all, or these), with `context` behind its own headers, into batches of that time.

        The columns are answers as `lay_out` returns them.
        """
        texts = self._pieces(context) if context else self._texts
        return frames(texts, columns, range(len(columns.key_end)) if rows is None else rows, time_ms, BATCH_BYTES)

    def _pieces(self, context: Sequence[Header]) -> Texts:
        prefix, partition = self._prefix, self._source.partition
        inside = _escape(prefix)[1:-1]
        headers = [*_constants("stage-probability"), self._origin, *context]
        pieces = {
            "id_of_event": b'{"id":"%b-%d-' % (inside, partition),
            "id_of_end": b'{"id":"%b-' % inside,
            "end": b"-end-",
            "user": b'","user_id":"',
            "event_time": b'","event_time":',
            "arrival_time": b',"arrival_time":',
            "null": b"null",
            "event_type": b',"event_type":"',
            "category": b'","category":"',
            "no_category": b'","category":null,"stage":"',
            "stage": b'","stage":"',
            "category_reach": b'","category_probabilities":{',
            "user_reach": b'},"user_probabilities":{',
            "next": b'},"next_event":{',
            "length": b'},"sequence_length":',
            "model": b',"model":%b,"degraded":' % _escape(self._model),
            "false": b"false}",
            "true": b"true}",
            "raw_id_of_event": b"%b-%d-" % (prefix.encode(), partition),
            "raw_id_of_end": b"%b-" % prefix.encode(),
            "header_id": _varint(2 * (3 + len(headers))) + _framed(b"ce_id"),
            "header_subject": _framed(b"ce_subject"),
            "header_time": _framed(b"ce_time") + _varint(2 * 24),
            "constant_headers": b"".join(_framed(name.encode()) + _framed(value) for name, value in headers),
        }
        return texts_of(pieces, [name.encode() for name in TYPES], [stage.encode() for stage in STAGES])

    def trigger(self, user: bytes, decision: Decision, event_time: int) -> Output:
        """Encode a decision that fired."""
        campaign, name = decision.campaign, user.decode()
        value = Trigger(
            id=decision.trigger_id,
            user_id=name,
            campaign=campaign.name,
            rule=campaign.rule,
            stage=campaign.stage,
            scope=campaign.scope,
            probability=round(decision.probability, DIGITS),
            threshold=campaign.threshold,
            group="treatment",
            reason=_reason(campaign, decision.probability),
            event_time=event_time,
            expires_at=event_time + campaign.expires_ms,
            model=self._model,
        )
        identity = _identity(decision.trigger_id.encode(), user, rfc3339(event_time))
        return user, _escape(value), [*identity, *_constants("trigger"), self._origin]

    def dead_letter(self, record: Record, reason: str, detail: str) -> Output:
        """Encode a refused record: its bytes as they came, and where they came from."""
        return record.key, record.value, self._refusal(record, "dead-letter", reason, detail)

    def late(self, record: Record, detail: str = "older than the lateness bound") -> Output:
        """Encode an event that came too late for its user's sequence: its bytes as they came."""
        return record.key, record.value, self._refusal(record, "late", "late", detail)

    def answer_id(self, user: bytes, offset: int, event_time: int) -> bytes:
        """Return the id of an answer to a record's event, or, where the offset is -1, to a session end."""
        if offset < 0:
            return b"%b-%b-end-%d" % (self._prefix.encode(), user, event_time)
        return b"%b-%d-%d" % (self._prefix.encode(), self._source.partition, offset)

    def explanation_headers(self, answer_id: bytes, user: bytes, event_time: int) -> list[Header]:
        """Return the headers of the explanation of an answer."""
        identity = _identity(b"explanation-" + answer_id, user, rfc3339(event_time))
        return [*identity, *_constants("explanation"), self._origin]

    def _refusal(self, record: Record, kind: str, reason: str, detail: str) -> list[Header]:
        return [
            ("reason", reason.encode()),
            ("detail", detail[:500].encode("utf-8", "replace")),
            ("source_topic", self._source.topic.encode()),
            ("source_partition", b"%d" % self._source.partition),
            ("source_offset", b"%d" % record.offset),
            ("ce_id", f"{kind}-{self._position}-{record.offset}".encode()),
            ("ce_time", rfc3339(max(0, record.timestamp))),
            ("ce_type", b"funnelcast.%b" % kind.encode()),
            _VERSION,
            _BYTES,
            self._origin,
        ]


def _identity(identity: bytes, user: bytes, time: bytes) -> list[Header]:
    return [("ce_id", identity), ("ce_subject", user), ("ce_time", time)]


def _constants(kind: str) -> list[Header]:
    name = kind.encode()
    return [("ce_type", b"funnelcast." + name), ("ce_dataschema", b"urn:funnelcast:%b:1" % name), _VERSION, _JSON]


def _reason(campaign: Campaign, probability: float) -> str:
    where = "in this category" if campaign.scope == "category" else "anywhere"
    advice = "invest more in this stage" if campaign.rule == "below" else "move spending elsewhere"
    found = f"{probability:.{DIGITS}f} is {campaign.rule} {campaign.threshold:g}"
    return f"the probability of {campaign.stage} {where}, {found}: {advice}"


def warm() -> None:
    """Compile what writes stage probabilities, or load it from Numba's cache; the first time it takes seconds."""
    zero: Any = np.zeros(1, np.int64)
    one = Answers([b"u"], zero, zero, zero, zero, zero, [None], zero, None, None, zero)
    list(Encoder(Source("", "", 0), NO_MODEL).stage_probabilities(lay_out(one), 0))


def lay_out(answers: Answers) -> Columns:
    """Lay answers out as the one type that the compiled pass knows: of any other it would be compiled again."""
    categories = [name or b"" for name in answers.category]
    no_category = np.fromiter((name is None for name in answers.category), bool, len(categories))
    numbers = (answers.offset, answers.event_time, answers.arrival_time, answers.type, answers.user_stage)
    reach = _NO_REACH if answers.reach is None else answers.reach.reshape(-1, 2 * len(STAGES))
    next_type = _NO_REACH if answers.next_type is None else answers.next_type
    rest = (no_category, *numbers, answers.sequence_length, reach, next_type, answers.degraded)
    names = joined(answers.keys), ends(answers.keys), joined(categories), ends(categories)
    return Columns(*names, *map(typed, rest, COLUMN_DTYPES))


def rfc3339(time_ms: int) -> bytes:
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


def _framed(text: bytes) -> bytes:
    """Return a header's name or value behind its length, as a record holds it."""
    return _varint(2 * len(text)) + text


def _varint(zigzag: int) -> bytes:
    out = bytearray()
    while zigzag > 127:
        out.append(128 | (zigzag & 127))
        zigzag >>= 7
    return bytes([*out, zigzag])

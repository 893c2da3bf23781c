"""Records: answers, decisions and refused records in, output records (key, JSON value, CloudEvents headers) out.

Pure: an id is a function of the source offset, or of the user and a time, so a reprocessed topic gives equal records.
Stage probabilities are the hot ones: numbers are written for the whole block at once, the rest by one `%` per record.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from model.contract.events import TYPES
from model.contract.stages import STAGES
from worker.campaigns import Campaign
from worker.decode import Record
from worker.policy import Decision

Header: TypeAlias = tuple[str, bytes]
Output: TypeAlias = tuple[bytes | None, bytes | None, list[Header]]  # key, value, headers of a record
Bytes: TypeAlias = npt.NDArray[np.uint8]

DIGITS = 6  # decimals of a probability
NEXT = 3  # next events that a record names
FIRST_WIRE_TYPE = 2  # pad and unknown are no next events
DAY_MS = 86_400_000
# Where the clock's digits stand in an RFC 3339 text, from the last one, and the base of each (hours below 24: 10 does).
_CLOCK = ((22, 10), (21, 10), (20, 10), (18, 10), (17, 6), (15, 10), (14, 6), (12, 10), (11, 10))

_escape = msgspec.json.Encoder().encode
_JSON = ("content-type", b"application/json")
_BYTES = ("content-type", b"application/octet-stream")
_VERSION = ("ce_specversion", b"1.0")
_EVENT_TYPE = [b'"%b"' % name.encode() for name in TYPES]
_NEXT_TYPE = [b'"%b":' % name.encode() for name in TYPES[FIRST_WIRE_TYPE:]]
_STAGE = [b'"%b"' % name.encode() for name in STAGES]
_VALUE = (
    b'{"id":%b,"user_id":%b,"event_time":%d,"arrival_time":%b,"event_type":%b,"category":%b,"stage":%b,'
    b'"category_probabilities":%b,"next_event":{%b},"sequence_length":%d,"model":MODEL,"degraded":%b}'
)
_NUMBER = b"0." + b"0" * DIGITS
_REACH = b"{%b}" % b",".join(b'"%b":%b' % (stage.encode(), _NUMBER) for stage in STAGES)
_PROBABILITIES = b'%b,"user_probabilities":%b' % (_REACH, _REACH)
_NO_PROBABILITIES = b'{},"user_probabilities":{}'
_NUMBERS = [at for at in range(len(_PROBABILITIES)) if _PROBABILITIES.startswith(_NUMBER, at)]
_DIGITS_AT = (np.array(_NUMBERS)[:, None] + np.arange(len(_NUMBER))).ravel()  # (2 * 6 * 8,)
_PAIRS = b",".join([b"%b%b"] * NEXT)
_BOOLEAN = b"false", b"true"
# A probability is two words of four characters: "0.00" to "1.00", then "0000" to "9999".
_HEADS = np.frombuffer(b"".join(b"%d.%02d" % divmod(n, 100) for n in range(101)), "u4")
_TAILS = np.frombuffer(b"".join(b"%04d" % n for n in range(10_000)), "u4")


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
        self._value = _VALUE.replace(b"MODEL", _escape(self._model).replace(b"%", b"%%"))
        prefix = (model.sha256[:8] or model.name).encode().replace(b"%", b"%%")
        self._event_id = b"%b-%d-%%d" % (prefix, source.partition)
        self._end_id = b"%b-%%b-end-%%d" % prefix
        self._origin = ("ce_source", f"/funnelcast/{source.app_id}".encode())
        self._position = f"{source.topic}-{source.partition}"

    def stage_probabilities(self, answers: Answers) -> list[Output]:
        """Encode one record per answered row."""
        identities = self._identities(answers)
        values = map(
            self._value.__mod__,
            zip(
                [_escape(identity.decode()) for identity in identities],
                [_escape(key.decode()) for key in answers.keys],
                answers.event_time.tolist(),
                [b"%d" % ms if ms >= 0 else b"null" for ms in answers.arrival_time.tolist()],
                [_EVENT_TYPE[code] for code in answers.type.tolist()],
                [b"null" if name is None else _escape(name.decode()) for name in answers.category],
                [_STAGE[code] for code in answers.user_stage.tolist()],
                _reach_json(answers),
                _next_json(answers),
                answers.sequence_length.tolist(),
                [_BOOLEAN[flag] for flag in answers.degraded.tolist()],
                strict=True,
            ),
        )
        constant = [*_constants("stage-probability"), self._origin]
        headers = [
            [("ce_id", identity), ("ce_subject", key), ("ce_time", time), *constant]
            for identity, key, time in zip(identities, answers.keys, rfc3339(answers.event_time), strict=True)
        ]
        return list(zip(answers.keys, values, headers, strict=True))

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
        identity = _identity(decision.trigger_id.encode(), user, _rfc3339_one(event_time))
        return user, _escape(value), [*identity, *_constants("trigger"), self._origin]

    def dead_letter(self, record: Record, reason: str, detail: str) -> Output:
        """Encode a refused record: its bytes as they came, and where they came from."""
        return record.key, record.value, self._refusal(record, "dead-letter", reason, detail)

    def late(self, record: Record, detail: str = "older than the lateness bound") -> Output:
        """Encode an event that came too late for its user's sequence: its bytes as they came."""
        return record.key, record.value, self._refusal(record, "late", "late", detail)

    def _identities(self, answers: Answers) -> list[bytes]:
        identities = [self._event_id % offset for offset in answers.offset.tolist()]
        for row in np.flatnonzero(answers.offset < 0).tolist():
            identities[row] = self._end_id % (answers.keys[row], answers.event_time[row])
        return identities

    def _refusal(self, record: Record, kind: str, reason: str, detail: str) -> list[Header]:
        return [
            ("reason", reason.encode()),
            ("detail", detail[:500].encode("utf-8", "replace")),
            ("source_topic", self._source.topic.encode()),
            ("source_partition", b"%d" % self._source.partition),
            ("source_offset", b"%d" % record.offset),
            ("ce_id", f"{kind}-{self._position}-{record.offset}".encode()),
            ("ce_time", _rfc3339_one(max(0, record.timestamp))),
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


def _reach_json(answers: Answers) -> list[bytes]:
    """Write both scopes' probabilities of each row into copies of one fixed-width text."""
    if answers.reach is None:
        return [_NO_PROBABILITIES] * len(answers.keys)
    rows = len(answers.reach)
    text = np.tile(np.frombuffer(_PROBABILITIES, "u1"), (rows, 1))  # (A, T)
    text[:, _DIGITS_AT] = decimals(answers.reach).reshape(rows, len(_DIGITS_AT))  # (A, 2 * 6 * 8)
    return _lines(text)


def _next_json(answers: Answers) -> list[bytes]:
    """Write the likeliest next events of each row; a row without a distribution has none."""
    if answers.next_type is None:
        return [b""] * len(answers.keys)
    rest = answers.next_type[:, FIRST_WIRE_TYPE:].copy()  # (A, 18)
    known = rest.max(axis=1, initial=0) > 0  # (A,)
    row, columns = np.arange(len(rest)), []
    for _ in range(NEXT):
        best = rest.argmax(axis=1)  # (A,) the first one of equals
        columns.append([_NEXT_TYPE[code] for code in best.tolist()])
        columns.append(_lines(decimals(rest[row, best])))
        rest[row, best] = -1
    texts = list(map(_PAIRS.__mod__, zip(*columns, strict=True)))
    for empty in np.flatnonzero(~known).tolist():
        texts[empty] = b""
    return texts


def decimals(values: npt.NDArray[np.floating]) -> Bytes:
    """Write probabilities (...) as fixed-width decimals, such as 0.123456: uint8 (..., 8)."""
    millionths = np.rint(values.astype("f8") * 10**DIGITS).astype("i4")  # (...)
    head = millionths // 10_000
    words = np.stack((_HEADS[head], _TAILS[millionths - 10_000 * head]), axis=-1)  # (..., 2)
    return words.view("u1")


def rfc3339(times_ms: npt.NDArray[np.int64]) -> list[bytes]:
    """Write times as RFC 3339 in UTC with milliseconds."""
    if not len(times_ms):
        return []
    days, day = np.unique(times_ms // DAY_MS, return_inverse=True)
    dates = np.datetime_as_string(days.astype("M8[D]")).astype("S10").view("u1").reshape(-1, 10)  # (D, 10)
    text = np.empty((len(times_ms), 24), "u1")  # (N, 24)
    text[:, :10] = dates[day]
    text[:, 10:] = np.frombuffer(b"T00:00:00.000Z", "u1")
    rest = (times_ms % DAY_MS).astype("i4")
    for at, base in _CLOCK:
        quotient = rest // base
        text[:, at] = rest - base * quotient + ord("0")
        rest = quotient
    return _lines(text)


def _rfc3339_one(time_ms: int) -> bytes:
    return rfc3339(np.array([time_ms], "i8"))[0]


def _lines(text: Bytes) -> list[bytes]:
    """Cut a matrix of characters into its rows."""
    lines: list[bytes] = text.view(f"S{text.shape[1]}").ravel().tolist()
    return lines

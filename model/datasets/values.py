"""One value of a log -> one field of a click event, or `BadValue` with its reason."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Generic, NamedTuple, TypeVar

from model.contract.events import MAX_TIMESTAMP_MS
from model.datasets.problems import BadValue, Reason

T = TypeVar("T")

SECONDS_BELOW = 10**11  # as seconds the year 5138, as milliseconds March 1973
SHOWN_CHARACTERS = 40
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TimeUnit(StrEnum):
    """How a log writes event times."""

    AUTO = "auto"
    MILLISECONDS = "ms"
    SECONDS = "s"
    ISO = "iso"


class Reader(NamedTuple, Generic[T]):
    """How the values of a field are read: each alone, and a plain column at once (it raises where a value is not)."""

    one: Callable[[object], T]  # raises BadValue
    plain: Callable[[Sequence[Any]], Sequence[T]]
    blank: T  # stands in the place of a bad value


def convert(column: Sequence[object], reader: Reader[T], bad: dict[int, BadValue]) -> Sequence[T]:
    """Convert a column; where a value is bad, note its index in `bad`, unless noted before, and put the blank."""
    try:
        return reader.plain(column)
    except (BadValue, LookupError, TypeError, ValueError):
        return [_guarded(value, reader, index, bad) for index, value in enumerate(column)]


def _guarded(value: object, reader: Reader[T], index: int, bad: dict[int, BadValue]) -> T:
    try:
        return reader.one(value)
    except BadValue as problem:
        bad.setdefault(index, problem)
        return reader.blank


def _plain_names(column: Sequence[Any]) -> Sequence[Any]:
    """Return names as they are, if all are ASCII text and none is missing."""
    if not all(column) or not "".join(column).isascii():
        raise ValueError
    return column


def shown(value: object) -> str:
    """Quote a value of the log, shortened, for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def name(value: object) -> str | None:
    """Read an id or a name; empty, null and NaN are missing, a whole float loses its `.0`."""
    if isinstance(value, str):
        if not value.isascii():
            check_utf8(value)
        return value or None
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadValue(Reason.BAD_NAME, f"found {shown(value)}, expected text or a whole number")


def check_utf8(text: str) -> None:
    """Refuse text that was no UTF-8 in the file (read with surrogates in place of the bad bytes)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValue(Reason.INVALID_UTF8, shown(text)) from error


def user(value: object) -> str:
    """Read the user id, which every row needs."""
    found = name(value)
    if found is None:
        raise BadValue(Reason.MISSING_USER)
    return found


def price(value: object) -> float:
    """Read a price; NaN stands for a missing one."""
    if value is None or value == "":
        return math.nan
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise BadValue(Reason.BAD_PRICE, shown(value)) from error
    if found < 0 or math.isinf(found):
        raise BadValue(Reason.OUT_OF_RANGE, f"price {shown(value)}, expected 0 or more")
    return found


NAMES = Reader(name, _plain_names, None)
USERS = Reader(user, _plain_names, "")
PRICES = Reader(price, lambda column: list(map(price, column)), math.nan)


def float_users() -> Reader[str]:
    """Return the reader of user ids that the log's author once stored as floats: `200719.0` is `200719`."""

    def one(value: object) -> str:
        return user(value).removesuffix(".0")

    return Reader(one, lambda column: list(map(one, column)), "")


class _Codes(dict[str, int]):
    """Codes of event names; a name that is not there has the code of the first pattern that fits it."""

    def __missing__(self, found: str) -> int:
        for pattern, code in self.items():
            if found and "*" in pattern and fnmatchcase(found, pattern):
                return code
        raise KeyError(found)


def event_reader(codes: Mapping[str, int]) -> Reader[int]:
    """Return the reader of event types, by name or pattern; a name without a code is refused."""
    codes = _Codes(codes)

    def event(value: object) -> int:
        found = value if isinstance(value, str) else name(value)
        if not found:
            raise BadValue(Reason.MISSING_EVENT)
        try:
            return codes[found]
        except KeyError:
            raise BadValue(Reason.UNMAPPED_EVENT, shown(value)) from None

    return Reader(event, lambda column: list(map(codes.__getitem__, column)), 0)


def time_reader(unit: TimeUnit, utc_offset_ms: int) -> Reader[int]:
    """Return the reader of event times for a unit (AUTO was decided before, by `unit_of`); the offset is for ISO."""
    scale = 1000 if unit is TimeUnit.SECONDS else 1

    def iso(value: object) -> int:
        return _in_range(iso_ms(value) - utc_offset_ms, value)

    def number(value: object) -> int:
        return _in_range(number_ms(value, scale), value)

    def plain(column: Sequence[Any]) -> list[int]:
        """Read whole numbers, unless one is out of range."""
        numbers = list(map(int, column)) if set(map(type, column)) <= {int, str} else []
        if not numbers or min(numbers) <= 0 or max(numbers) * scale > MAX_TIMESTAMP_MS:
            raise ValueError
        return [number * scale for number in numbers]

    return Reader(iso, lambda column: list(map(iso, column)), -1) if unit is TimeUnit.ISO else Reader(number, plain, -1)


def unit_of(value: object) -> TimeUnit | None:
    """Guess the unit from one value: a small number is seconds, a large one milliseconds; None for no time at all."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return TimeUnit.ISO if _is_iso(value) else None
    if not 0 < number <= MAX_TIMESTAMP_MS:
        return None
    return TimeUnit.SECONDS if number < SECONDS_BELOW else TimeUnit.MILLISECONDS


def _is_iso(value: object) -> bool:
    try:
        iso_ms(value)
    except BadValue:
        return False
    return True


def iso_ms(value: object) -> int:
    """Read ISO 8601, a space for the T and a closing ` UTC` allowed; without a zone it is UTC."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.removesuffix(" UTC"))  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError) as error:
        raise BadValue(Reason.BAD_TIME, f"{shown(value)} is not ISO 8601") from error
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def number_ms(value: object, scale: int) -> int:
    """Read a number of seconds (scale 1000) or milliseconds (scale 1), whole or not."""
    try:
        return int(value) * scale if not isinstance(value, float) else round(value * scale)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return round(float(value) * scale)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadValue(Reason.BAD_TIME, f"{shown(value)} is not a number") from error


def _in_range(time_ms: int, value: object) -> int:
    """Refuse a time outside the bounds of the contract."""
    if not 0 < time_ms <= MAX_TIMESTAMP_MS:
        raise BadValue(Reason.OUT_OF_RANGE, f"time {shown(value)}")
    return time_ms

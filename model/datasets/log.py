"""A log as a stream of click events: `for row, event in read_log(path, "taobao")`; `log.problems` counts the rest.

Raw blocks of the files become `Block`s of clean columns; events and training columns are both made of these.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import compress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from model.contract.events import TYPE_CODE, TYPES, WIRE_TYPES, ClickEvent
from model.datasets import formats, values
from model.datasets.duplicates import RowSet
from model.datasets.files import RawBlock, container_of, first_fields, log_files, read_blocks
from model.datasets.formats import EVERY, FORMATS, Container, Format, LogError
from model.datasets.problems import BadValue, Problems, Reason
from model.datasets.values import Reader, TimeUnit, convert

T = TypeVar("T")
WHERE_FIELDS = ("category", "item_id", "user_id", "event")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How to read a log with columns of its own; public logs need none of it."""

    mapping: dict[str, str] = field(default_factory=dict)  # field of the click event -> column
    events: dict[str, str] = field(default_factory=dict)  # event name of the log -> canonical event
    time_unit: TimeUnit = TimeUnit.AUTO
    progress: bool | None = None  # None: where stderr is a terminal
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)  # field -> values kept, * stands for anything
    sample: float = 1.0  # share of the users that is kept


class Block(NamedTuple):
    """Clean columns of some rows, in source order."""

    rows: np.ndarray  # (N,) int64 0-based line
    users: Sequence[str]
    types: np.ndarray  # (N,) uint8
    ts: np.ndarray  # (N,) int64 milliseconds
    items: Sequence[str | None]
    categories: Sequence[str | None]
    prices: np.ndarray  # (N,) float64, NaN where missing
    message_ids: Sequence[str | None]


class Log:
    """An event log on disk; each iteration reads it anew and renews `problems`."""

    def __init__(self, path: Path, form: Format, options: LogOptions) -> None:
        self.path, self.form, self.files, self._options = path, form, log_files(path), options
        self.problems = Problems()
        self._hide_progress = (
            None if options.progress is None else not options.progress
        )  # None: tqdm looks for a terminal

    def __iter__(self) -> Iterator[tuple[int, ClickEvent]]:
        for block in self.blocks():
            events = [TYPES[code] for code in block.types.tolist()]
            prices = [None if price != price else price for price in block.prices.tolist()]
            names = block.items, block.categories, prices, block.message_ids
            clicks = map(ClickEvent, block.users, events, block.ts.tolist(), *names)
            yield from zip(block.rows.tolist(), clicks, strict=True)

    def blocks(self) -> Iterator[Block]:
        """Read the log once, block by block."""
        self.problems = Problems()
        cleaner, first_row = _Cleaner(self.form, self.problems, self._options), 0
        total = sum(file.stat().st_size for file in self.files)
        with tqdm(total=total, unit="B", unit_scale=True, desc=self.path.name, disable=self._hide_progress) as bar:
            for file in self.files:
                done = 0
                for raw in read_blocks(file, self.form, first_row, self.problems):
                    first_row = raw.next_row
                    bar.update(raw.file_bytes - done)
                    done = raw.file_bytes
                    yield cleaner.clean(raw)

    def check_events(self) -> None:
        """Refuse a log of which no row gave an event, once it is read."""
        if not self.problems.yielded:
            raise LogError(f"{self.summary()} Expected events: check --format, --map, --events and --time-unit.")

    def summary(self) -> str:
        """Say in one sentence what became of the rows."""
        return f"{self.path.name} ({self.form.name}): {self.problems.summary()}"


class _Cleaner:
    """Turns raw blocks of one log into clean ones; remembers the time unit it found and the rows it saw."""

    def __init__(self, form: Format, problems: Problems, options: LogOptions) -> None:
        self.form, self.problems, self.unit = form, problems, form.time
        self.kept: list[tuple[str, _Kept | _Drawn]] = [(name, _Kept(some)) for name, some in options.where.items()]
        if options.sample < 1:
            self.kept.append(("user_id", _Drawn(options.sample)))
        self.seen = RowSet() if form.unique else None
        events = form.events or dict(zip(WIRE_TYPES, WIRE_TYPES, strict=True))
        self.types = values.event_reader({name: TYPE_CODE[event] for name, event in events.items()})

    def clean(self, raw: RawBlock) -> Block:
        bad: dict[int, BadValue] = {}
        if self.seen is not None and raw.signatures is not None:
            bad |= dict.fromkeys(self.seen.repeated(raw.signatures), BadValue(Reason.DUPLICATE))
        block = Block(
            rows=np.array(raw.rows, "i8"),
            users=convert(raw.columns["user_id"], self.form.users, bad),
            types=self._types(raw, bad),
            ts=self._times(raw, bad),
            items=_optional(raw, "item_id", values.NAMES, bad),
            categories=_optional(raw, "category", values.NAMES, bad),
            prices=np.array(_optional(raw, "price", values.PRICES, bad), "f8"),
            message_ids=_optional(raw, "message_id", values.NAMES, bad),
        )
        for name, kept in self.kept:
            for index, value in enumerate(_named(block, name)):
                if not kept[value]:
                    bad.setdefault(index, BadValue(kept.reason))
        for index in sorted(bad):
            self.problems.add(raw.rows[index], bad[index])
        self.problems.yielded += len(raw.rows) - len(bad)
        return _without(block, bad) if bad else block

    def _types(self, raw: RawBlock, bad: dict[int, BadValue]) -> np.ndarray:
        if "event" not in raw.columns:
            return np.full(len(raw.rows), TYPE_CODE[self.form.events[EVERY]], "u1")
        return np.array(convert(raw.columns["event"], self.types, bad), "u1")

    def _times(self, raw: RawBlock, bad: dict[int, BadValue]) -> np.ndarray:
        column = raw.columns["timestamp"]
        if raw.time is None and self.unit is TimeUnit.AUTO:
            self.unit = next((unit for value in column if (unit := values.unit_of(value))), TimeUnit.AUTO)
        read = values.time_reader(raw.time or self.unit, self.form.utc_offset_ms)
        ts = np.array(convert(column, read, bad), "i8")
        if self.form.days_ms:
            first, end = self.form.days_ms
            for index in np.flatnonzero((ts < first) | (ts >= end)).tolist():
                bad.setdefault(index, BadValue(Reason.OUTSIDE_DAYS, f"time {values.shown(column[index])}"))
        return ts


class _Kept(dict[str | None, bool]):
    """Whether a value matches one of the patterns, remembered."""

    reason = Reason.LEFT_OUT

    def __init__(self, patterns: tuple[str, ...]) -> None:
        super().__init__()
        self.patterns = patterns

    def __missing__(self, value: str | None) -> bool:
        kept = self[value] = value is not None and any(fnmatchcase(value, pattern) for pattern in self.patterns)
        return kept


class _Drawn(dict[str | None, bool]):
    """Whether a user is drawn, by its name alone, remembered; a larger share draws the same users and others."""

    reason = Reason.NOT_DRAWN

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __missing__(self, user: str | None) -> bool:
        digest = hashlib.blake2b(f"sample:{user}".encode("utf-8", "replace"), digest_size=8).digest()
        drawn = self[user] = int.from_bytes(digest, "little") < self.share * 2**64
        return drawn


def _named(block: Block, name: str) -> Sequence[str | None]:
    """Return the column that --where calls so."""
    if name == "event":
        return [TYPES[code] for code in block.types.tolist()]
    return {"user_id": block.users, "item_id": block.items, "category": block.categories}[name]


def _optional(raw: RawBlock, field: str, reader: Reader[T], bad: dict[int, BadValue]) -> Sequence[T]:
    """Convert a column that the log may lack."""
    return convert(raw.columns[field], reader, bad) if field in raw.columns else [reader.blank] * len(raw.rows)


def _without(block: Block, bad: dict[int, BadValue]) -> Block:
    """Leave out the bad rows of a block."""
    keep = np.ones(len(block.rows), np.bool_)
    keep[list(bad)] = False
    chosen = keep.tolist()
    return Block._make(part[keep] if isinstance(part, np.ndarray) else list(compress(part, chosen)) for part in block)


def read_log(path: Path, fmt: str = "auto", options: LogOptions | None = None) -> Log:
    """Open an event log.

    Args:
        path: a file, gzipped or not, or a directory whose files are read in the order of their names.
        fmt: one of `FORMATS`; `auto` recognises public logs by their first line and others by their suffix.

    Raises:
        LogError: no such log, unknown format, a mapping that does not fit, a missing column.
    """
    options = options or LogOptions()
    if fmt not in FORMATS:
        raise LogError(f"the log format is {fmt!r}, expected one of {', '.join(FORMATS)}: choose one with --format.")
    form = _form(log_files(path)[0], fmt, options)
    return Log(path, form, options)


def _form(file: Path, fmt: str, options: LogOptions) -> Format:
    own = bool(options.mapping or options.events or options.time_unit is not TimeUnit.AUTO)
    public = formats.named(fmt)
    if public and own:
        found = f"found --format {fmt} with --map, --events or --time-unit"
        raise LogError(f"{found}, expected csv, jsonl or parquet with these: leave out one of the two.")
    if fmt == "auto" and not own and container_of(file) is Container.CSV:
        public = formats.recognised(first_fields(file))
    if public:
        return public
    container = container_of(file) if fmt == "auto" else Container(fmt)
    return formats.generic(container, options.mapping, options.events, options.time_unit)

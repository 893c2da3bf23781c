"""The reducer in plain Python: its specification. Slow and stateless: a row is described from the rows before it.

`Oracle.fold` and `Oracle.close_due` return rows as tuples; `Oracle.table` gives the bytes that the table must hold.
"""

import hashlib
import math
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from operator import attrgetter

from model.contract.events import TYPES, ClickEvent
from model.contract.stages import STAGES, Funnel

HOUR, DAY = 3_600_000, 86_400_000
PAGE, RING, LMAX = 8, 1024, 512
CLASSES = ("browse", "view", "search", "wishlist", "cart", "checkout", "order", "session")
CLASS = dict.fromkeys(TYPES, "browse") | {
    "product_view": "view", "search": "search", "wishlist_add": "wishlist", "cart_add": "cart", "cart_view": "checkout",
    "checkout_start": "checkout", "checkout_step": "checkout", "order": "order", "session_end": "session",
}  # fmt: skip
NEW, CLOSED, REVISED = range(3)
APPLIED, DUPLICATE, LATE = range(3)
NO_STAGE = 255


@dataclass
class Row:
    """What the source says about an event, and what the reducer says about it."""

    ts: int
    type: str
    item: int
    category: int
    name: bytes
    price: int
    stage: int = NO_STAGE
    features: bytes = b""
    seen: bytes = b""  # what the network sees of the row

    def __post_init__(self) -> None:
        self.kind, self.day = CLASS[self.type], self.ts // DAY


@dataclass
class User:
    rows: list[Row] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)

    @property
    def event_ms(self) -> int:
        """Time of the latest event."""
        return next((row.ts for row in reversed(self.rows) if row.type != "session_end"), -1)

    @property
    def is_open(self) -> bool:
        return bool(self.rows) and self.rows[-1].type != "session_end"


def quantise(value: int) -> int:
    """Exact below 16, then eight equal steps per doubling."""
    if value < 16:
        return value
    doublings = int(math.log2(value)) if value < 1 << 40 else value.bit_length() - 1
    return min(255, 8 * (doublings - 2) + (value - (1 << doublings)) * 8 // (1 << doublings))


def since(now: Row, then: Row | None) -> int:
    return 0 if then is None else min(255, 1 + quantise((now.ts - then.ts) // 1000))


def first_kept(count: int) -> int:
    """Only whole pages are forgotten: the page of the last row and the 127 before it stay."""
    return max(0, (count - 1) // PAGE * PAGE - (RING - PAGE))


def first_seen(last: int) -> int:
    """The first row that a score sees."""
    return 0 if last < RING else last // LMAX * LMAX - LMAX


def after(rows: list[Row], ts: int) -> list[Row]:
    """The rows later than a time."""
    return rows[bisect_right(rows, ts, key=attrgetter("ts")) :]


def open_cart(rows: list[Row]) -> int:
    cart = 0
    for row in rows:
        if row.type == "cart_add":
            cart = min(65_535, cart + 1)
        elif row.type == "cart_remove":
            cart = max(0, cart - 1)
        elif row.type == "order":
            cart = 0
    return cart


def days_by_class(rows: list[Row]) -> list[int]:
    days = Counter(kind for kind, _ in {(row.kind, row.day) for row in rows})
    return [days[kind] for kind in CLASSES]


def active_days(rows: list[Row]) -> int:
    return len({row.day for row in rows if row.type != "session_end"})


def describe(rows: list[Row], k: int, first: int, funnel: Funnel) -> tuple[int, bytes]:
    """Stage and features of row k; windows and category see the rows from `first` on only."""
    row, before, until = rows[k], rows[:k], rows[: k + 1]
    kept = rows[first : k + 1]
    features = []
    for window in (None, HOUR, 6 * HOUR, DAY):
        counts = Counter([r.kind for r in (until if window is None else after(kept, row.ts - window))])
        features += [quantise(counts[kind]) for kind in CLASSES]
    latest = {r.kind: r for r in before}
    features += [since(row, latest.get(kind)) for kind in CLASSES]
    features += [quantise(days) for days in days_by_class(until)]

    same = [r for r in kept if r.category == row.category and r.type != "session_end"]
    earlier = [r for r in same if r is not row]
    in_day = after(same, row.ts - DAY)
    in_category = Counter(r.kind for r in in_day)
    features += [quantise(active_days(until)), quantise(open_cart(until))]
    features.append(quantise(1 + [r.type for r in before].count("session_end")))
    features += [quantise(len(after(same, row.ts - HOUR))), quantise(len(in_day))]
    features.append(since(row, earlier[-1] if earlier else None))
    features += [quantise(in_category[kind]) for kind in ("wishlist", "cart", "order")]
    features += [since(row, before[-1] if before else None), row.ts // HOUR % 24, row.price]

    repeats = {
        "category_within_24h": any(r.kind == row.kind for r in in_day if r is not row),
        "ever": any(r.kind == row.kind for r in before),
    }
    return stage_of(row.type, repeats, funnel), bytes(features)


def stage_of(event: str, repeats: dict[str, bool], funnel: Funnel) -> int:
    for stage, repeat in funnel.repeats.items():
        if repeat.event == event and repeats[repeat.of]:
            return STAGES.index(stage)
    return next((STAGES.index(stage) for stage, events in funnel.stages.items() if event in events), NO_STAGE)


def user_stage(rows: list[Row], k: int, first: int) -> int:
    """The deepest stage of the 24 h up to row k."""
    return max((r.stage for r in after(rows[first : k + 1], rows[k].ts - DAY) if r.stage != NO_STAGE), default=0)


class Oracle:
    """The users of one partition."""

    def __init__(self, funnel: Funnel, gap_ms: int = 1_800_000, late_ms: int = 60_000) -> None:
        self.funnel, self.gap_ms, self.late_ms = funnel, gap_ms, late_ms
        self.users: dict[bytes, User] = {}
        self.stream_ms = 0

    def fold(self, events: list[ClickEvent]) -> tuple[list[tuple], list[int]]:
        """Rows written, and one verdict per event."""
        out: list[tuple] = []
        return out, [self._apply(index, event, out) for index, event in enumerate(events)]

    def close_due(self, stream_ms: int) -> list[tuple]:
        due = sorted((user.event_ms, key) for key, user in self.users.items() if self._due(user, stream_ms))
        out: list[tuple] = []
        for _, key in due:
            self._close(key, out)
        return out

    def _due(self, user: User, stream_ms: int) -> bool:
        return user.is_open and user.event_ms + self.gap_ms + self.late_ms <= stream_ms

    def _apply(self, source: int, event: ClickEvent, out: list[tuple]) -> int:
        key = event.user_id.encode()
        user = self.users.setdefault(key, User())
        if self._due(user, self.stream_ms):
            self._close(key, out)
        message = hashlib.blake2b(event.message_id.encode(), digest_size=8).digest() if event.message_id else None
        if message in user.ids:
            return DUPLICATE
        if user.is_open and event.timestamp - user.event_ms > self.gap_ms:
            self._close(key, out)
        self.stream_ms = max(self.stream_ms, event.timestamp)
        place = self._place(user, event.timestamp)
        if place is None:
            return LATE
        self._insert(key, place, row_of(event), source, NEW, out)
        if message is not None:
            user.ids = [*user.ids, message][-8:]
        return APPLIED

    def _place(self, user: User, ts: int) -> int | None:
        if ts < user.event_ms - self.late_ms:
            return None
        place = bisect_right(user.rows, ts, key=attrgetter("ts"))
        first = first_kept(len(user.rows) + 1)
        reopened = any(row.type == "session_end" for row in user.rows[place:])
        return None if reopened or (first > 0 and place <= first) else place

    def _close(self, key: bytes, out: list[tuple]) -> None:
        user = self.users[key]
        last = user.rows[-1]
        row = Row(user.event_ms + self.gap_ms, "session_end", 0, last.category, last.name, 0)
        self._insert(key, len(user.rows), row, -1, CLOSED, out)

    def _insert(self, key: bytes, place: int, row: Row, source: int, kind: int, out: list[tuple]) -> None:
        rows = self.users[key].rows
        rows.insert(place, row)
        first, low = first_kept(len(rows)), first_seen(len(rows) - 1)
        for k in range(place, len(rows)):
            r = rows[k]
            r.stage, r.features = describe(rows, k, first, self.funnel)
            head = (source, kind) if k == place else (-1, REVISED)
            r.seen = struct.pack("<BII", TYPES.index(r.type), r.item, r.category) + r.features
            seen = zlib.crc32(b"".join([s.seen for s in rows[low : k + 1]])) if k == place else None
            stages = (r.stage, user_stage(rows, k, first))
            out.append((key, k, *head, r.ts, TYPES.index(r.type), *stages, r.category, r.features, seen))

    def table(self) -> dict[bytes, bytes]:
        """The bytes of all users and of the stream time."""
        table = {b"t": b"\1" + struct.pack("<Q", self.stream_ms)} if self.stream_ms else {}
        for key, user in self.users.items():
            rows = user.rows
            if not rows:
                continue
            first, last = first_kept(len(rows)), (len(rows) - 1) // PAGE * PAGE
            table[b"s" + key] = head_bytes(user, rows[:first]) + rows_bytes(rows[last:]) + rows[-1].name
            for low in range(first, last, PAGE):
                table[b"p" + bytes([low // PAGE % 127]) + key] = b"\1" + rows_bytes(rows[low : low + PAGE])
        return table


def row_of(event: ClickEvent) -> Row:
    price = 0 if event.price is None else 1 + min(254, round(16 * math.log2(1 + event.price)))
    names = [None if name is None else name.encode() for name in (event.item_id, event.category)]
    item, category = (0 if name is None else zlib.crc32(name) or 1 for name in names)
    return Row(event.timestamp, event.event, item, category, names[1] or b"", price)


def head_bytes(user: User, gone: list[Row]) -> bytes:
    """Version, rows, flags, message ids, and what the rows gone have left behind."""
    flags = len(user.ids) | (128 if user.is_open else 0)
    value = struct.pack("<BIB", 1, len(user.rows), flags) + b"".join(user.ids)
    if gone:
        total, last = Counter(r.kind for r in gone), {r.kind: r.ts for r in gone}
        for kind, days in zip(CLASSES, days_by_class(gone), strict=True):
            value += struct.pack("<qII", last.get(kind, -1), total[kind], days)
        value += struct.pack("<II", active_days(gone), open_cart(gone))
    return value


def rows_bytes(rows: list[Row]) -> bytes:
    value, previous = b"", bytes(60)
    for r in rows:
        value += r.ts.to_bytes(6, "little") + struct.pack("<BBII", TYPES.index(r.type), r.stage, r.item, r.category)
        differs = [x for x in range(60) if r.features[x] != previous[x]]
        value += sum(1 << x for x in differs).to_bytes(8, "little") + bytes(r.features[x] for x in differs)
        previous = r.features
    return value

"""The tables of partitions: users in the arena become keys and values, and keys and values become users again.

b"t" holds the stream time, b"s" + user the head with the last page and the name of the latest category, b"p" + page
number + user a finished page. Each value starts with the version; only what is a function of the log goes in.
"""

from collections.abc import Callable

import numpy as np

from model.contract import pages
from model.contract.arena import PAGES_KEPT, Arena
from model.contract.errors import TableError
from model.contract.events import SESSION_END
from model.contract.head import oldest, rebuild
from model.contract.rows import PAGE, Array, Rules

STREAM_KEY = b"t"
Get = Callable[[bytes], bytes | None]


def head_key(user: bytes) -> bytes:
    """Table key of a user's head and last page."""
    return b"s" + user


def page_key(number: int, user: bytes) -> bytes:
    """Table key of a finished page."""
    return b"p%c%b" % (number, user)


def is_open(head_value: bytes) -> bool:
    """Tell from a head's value whether the user has an open session, which a timer must end."""
    check_version(head_value, b"s")
    return bool(head_value[pages.FLAGS] & pages.OPEN)


def stream_value(stream_ms: int) -> bytes:
    """Value of the stream time."""
    return bytes([pages.VERSION]) + stream_ms.to_bytes(8, "little")


def stream_of(value: bytes) -> int:
    """Read the value of the stream time."""
    check_version(value, STREAM_KEY)
    return int.from_bytes(value[1:9], "little")


def entries(arena: Arena, users: list[bytes], names: dict[int, bytes], partitions: int) -> list[dict[bytes, bytes]]:
    """Return by partition what changed since the last call; `users` by slot, `names` of categories by hash."""
    slots = arena.changed[: arena.counts[1]].copy()
    rows, low = arena.heads["rows"][slots], arena.heads["low"][slots]
    finished = np.minimum((rows - 1) // PAGE - low // PAGE, pages.PAGE_KEYS)
    most = int(len(slots) + finished.sum())
    out = np.empty(len(slots) * pages.HEAD_BYTES + most * (1 + PAGE * pages.ROW_BYTES), np.uint8)
    owners, numbers, ends = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int64)
    count = pages.pack(arena, slots, out, owners, numbers, ends)
    arena.counts[1] = 0

    found: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
    blob, start = out[: ends[count - 1] if count else 0].tobytes(), 0
    owners, numbers = owners[:count], numbers[:count]
    columns = (owners, numbers, ends[:count], arena.partition[owners], latest_categories(arena, owners))
    for owner, number, end, partition, category in zip(*(column.tolist() for column in columns), strict=True):
        user = users[owner]
        if number == pages.HEAD_VALUE:
            found[partition][head_key(user)] = blob[start:end] + names.get(category, b"")
        else:
            found[partition][page_key(number, user)] = blob[start:end]
        start = end
    return found


def restore(arena: Arena, rules: Rules, slot: int, user: bytes, get: Get) -> tuple[int, bytes] | None:
    """Read a user into an empty slot; return hash and name of the latest category, None if the table lacks the user.

    The arena must have PAGES_KEPT unused pages. Raises TableError.
    """
    key = head_key(user)
    value = get(key)
    if value is None:
        return None
    check_version(value, key)
    data = np.frombuffer(value, np.uint8)
    at, head = pages.unpack_head(arena, slot, data), arena.heads[slot]
    _complete(at >= 0 and head["rows"] > 0, key)
    rows = int(head["rows"])
    first, last = oldest(rows) // PAGE, (rows - 1) // PAGE
    unused = int(arena.counts[0])
    held = min(last + 1, PAGES_KEPT)
    arena.table[slot, :held] = arena.free[unused - held : unused]
    arena.counts[0] = unused - held
    at = pages.unpack_rows(arena, slot, last * PAGE, rows, data, at)
    _complete(at >= 0, key)
    for page in range(first, last):
        _restore_page(arena, slot, page, page_key(page % pages.PAGE_KEYS, user), get)
    rebuild(arena, slot)
    if latest_types(arena, np.array([slot]))[0] != SESSION_END:
        arena.due[slot] = int(head["event_ms"]) + rules.gap_ms + rules.late_ms
    return int(latest_categories(arena, np.array([slot]))[0]), value[at:]


def _restore_page(arena: Arena, slot: int, page: int, key: bytes, get: Get) -> None:
    value = get(key)
    if value is None:
        raise TableError(f"the table has no {key!r}, which {head_key(key[2:])!r} needs; rebuild it from the changelog")
    check_version(value, key)
    data = np.frombuffer(value, np.uint8)
    _complete(pages.unpack_rows(arena, slot, page * PAGE, (page + 1) * PAGE, data, 1) == len(data), key)


def check_version(value: bytes, key: bytes) -> None:
    """Refuse a value of another version."""
    found = value[0] if value else "none"
    if found != pages.VERSION:
        raise TableError(
            f"the table value of {key!r} has version {found}, but this program reads version {pages.VERSION}; "
            "use the release that wrote it, or a new app id and replay the topic"
        )


def _complete(whole: bool, key: bytes) -> None:
    if not whole:
        raise TableError(f"the table value of {key!r} has the wrong length; rebuild the table from the changelog")


def latest_categories(arena: Arena, slots: Array) -> Array:
    """Category hash of each user's latest row."""
    return _latest(arena, slots, "category")


def latest_types(arena: Arena, slots: Array) -> Array:
    """Type of each user's latest row."""
    return _latest(arena, slots, "type")


def _latest(arena: Arena, slots: Array, column: str) -> Array:
    last = arena.heads["rows"][slots] - 1
    page = arena.table[slots, last // PAGE % PAGES_KEPT]
    return np.asarray(arena.pages[column][page, last % PAGE])

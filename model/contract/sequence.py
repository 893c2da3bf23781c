"""The reducer: all users of one partition. Event columns enter; blocks of rows, network inputs and table bytes leave.

What leaves is a function of the partition's log alone, however it is cut into chunks and whenever timers run.
"""

from collections.abc import Iterator

import numpy as np

from model.contract import fold as kernel
from model.contract import pages, table
from model.contract.arena import NOT_DUE, PAGES_KEPT, blank_heads, more_pages, more_users, new_arena
from model.contract.errors import FunnelcastError
from model.contract.events import TYPE_CODE, ClickEvent
from model.contract.features import WIDTH, price_codes
from model.contract.head import oldest
from model.contract.rows import (
    APPLIED,
    CLOSED,
    DAY_MS,
    DUPLICATE,
    GAP_MS,
    LATE,
    LATE_MS,
    LMAX,
    NEW,
    PAGE,
    REVISED,
    RING,
    Array,
    Block,
    Events,
    Inputs,
    Rows,
    Rules,
    Wanted,
    base,
    bases,
    typed,
)
from model.contract.stages import load_funnel
from model.contract.table import STREAM_KEY, Get, is_open
from model.contract.vocabulary import hashes64, name_hash, name_hashes

__all__ = [
    "APPLIED", "CLOSED", "DAY_MS", "DUPLICATE", "GAP_MS", "LATE", "LATE_MS", "LMAX", "NAMES_KEPT", "NEW", "PAGE",
    "REVISED", "RING", "STREAM_KEY", "Block", "Events", "Inputs", "Rows", "Rules", "Sequences", "Wanted", "base",
    "default_rules",
    "is_open", "sequence_of", "warm",
]  # fmt: skip

EVENT_DTYPES = [np.dtype(kind) for kind in ("i4", "i8", "u1", "u4", "u4", "u1", "u8")]
BLOCK_DTYPES = ("i4", "i8", "i4", "u1", "i8", "u1", "u1", "u1", "u4")
BLOCK_ROWS = 8192  # at most; a late insert alone writes up to RING
NAMES_KEPT = 1 << 18  # category names remembered before those that no user's latest row has are forgotten


def default_rules() -> Rules:
    """Rules of the default funnel, with the default session gap and lateness."""
    return Rules(GAP_MS, LATE_MS, load_funnel().rules())


class _CategoryHashes(dict[str | None, int]):
    """Hashes of category names, remembered; a new name goes into `names`."""

    def __init__(self, names: dict[int, bytes]) -> None:
        super().__init__()
        self.names = names

    def __missing__(self, name: str | None) -> int:
        code = self[name] = name_hash(name)
        if name is not None:
            self.names[code] = name.encode()
        return code


class Sequences:
    """The users of one partition that are in memory.

    `stream_ms` is the latest event time of the partition; `verdicts` says of each event of the latest fold whether it
    was APPLIED, a DUPLICATE or LATE; `names` maps category hashes to names (names with one hash are one category).
    """

    def __init__(self, rules: Rules, users: int = 1024, pages: int = 4096) -> None:
        if rules.late_ms > rules.gap_ms:
            raise FunnelcastError(
                f"the lateness bound is {rules.late_ms} ms, but may not exceed the session gap of {rules.gap_ms} ms; "
                "shorten it or lengthen the gap"
            )
        self.rules = rules._replace(funnel=np.require(rules.funnel, np.uint8, ["C", "W"]))
        self.stream_ms = 0
        self.verdicts: Array = np.zeros(0, np.uint8)
        self.names: dict[int, bytes] = {}
        self._hashes = _CategoryHashes(self.names)
        self._arena = new_arena(users, pages)
        self._slots: dict[bytes, int] = {}
        self._keys: list[bytes] = []  # by slot; an unused slot keeps its last user
        self._unused: list[int] = []
        self._block, self._packed_stream_ms = 0, 0
        self._out = Block(*(np.empty(BLOCK_ROWS, kind) for kind in BLOCK_DTYPES))

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def key_of(self, slot: int) -> bytes:
        """Return the user of a slot."""
        return self._keys[slot]

    def unknown(self, keys: list[bytes]) -> list[bytes]:
        """Return the users that are not in memory, each once: to be loaded before their events are folded."""
        slots = self._slots
        return list(dict.fromkeys([key for key in keys if key not in slots]))

    def slots_of(self, keys: list[bytes]) -> Array:
        """Return the slots of users (N,) i4; those not in memory are added, without rows."""
        slots = self._slots
        try:
            return np.array([slots[key] for key in keys], np.int32)
        except KeyError:
            for key in self.unknown(keys):
                self._add(key)
            return np.array([slots[key] for key in keys], np.int32)

    def columns(self, events: list[ClickEvent], keys: list[bytes]) -> Events:
        """Turn click events and their users into columns; learns the names of their categories."""
        codes, hashes = TYPE_CODE, self._hashes
        return Events(
            self.slots_of(keys),
            np.array([event.timestamp for event in events], np.int64),
            np.array([codes[event.event] for event in events], np.uint8),
            name_hashes([event.item_id for event in events]),
            np.array([hashes[event.category] for event in events], np.uint32),
            price_codes(np.array([event.price for event in events], np.float64)),  # None becomes NaN
            hashes64([event.message_id for event in events]),
        )

    def fold(self, events: Events) -> Iterator[Block]:
        """Apply events in order; take the `inputs` of a block before asking for the next."""
        events = Events(*map(typed, events, EVENT_DTYPES))
        self.verdicts, at = np.zeros(len(events.slot), np.uint8), 0
        while at < len(events.slot):
            self._begin_block()
            at, rows, self.stream_ms = kernel.fold(
                self._arena, self.rules, events, at, self.stream_ms, self._block, self._out, self.verdicts
            )
            if rows:
                yield self._written(rows)

    def close_due(self, stream_ms: int) -> Iterator[Block]:
        """End the sessions that are due at a stream time; take the `inputs` of a block before asking for the next."""
        due, at = self._arena.due, 0
        waiting = sorted(np.flatnonzero(due <= stream_ms).tolist(), key=lambda slot: (due[slot], self._keys[slot]))
        slots = np.array(waiting, np.int32)
        while at < len(slots):
            self._begin_block()
            at, rows = kernel.close_all(self._arena, self.rules, slots, at, self._block, self._out)
            if rows:
                yield self._written(rows)

    def next_due_ms(self) -> int | None:
        """Return the earliest stream time at which a session is due to end, None if no session is open."""
        due = int(self._arena.due.min())
        return None if due == NOT_DUE else due

    def inputs(self, block: Block) -> Inputs:
        """Gather what the network must see to answer the NEW and CLOSED rows of the latest block."""
        return self.gather(self.wanted(block))

    def wanted(self, block: Block) -> Wanted:
        """Name the NEW and CLOSED rows of the latest block, and the rows that their scores depend on."""
        wanted = block.kind != REVISED
        slots, owner = np.unique(block.slot[wanted], return_inverse=True)  # (U,), (A,)
        ends = self._arena.heads["rows"][slots]  # (U,)
        return Wanted(slots, bases(ends - 1), ends, owner, block.row[wanted])

    def gather(self, wanted: Wanted) -> Inputs:
        """Copy the rows begin..end-1 of each user, which must be those of the latest block; older rows cost nothing."""
        lengths = wanted.end - wanted.begin  # (U,)
        total = int(lengths.sum())
        inputs = Inputs(
            lengths.astype(np.int32),
            np.empty(total, np.uint8),
            np.empty(total, np.uint32),
            np.empty(total, np.uint32),
            np.empty((total, WIDTH), np.uint8),
            wanted.owner.astype(np.int32),
            (wanted.row - wanted.begin[wanted.owner]).astype(np.int32),
        )
        pages.gather(self._arena, wanted.slot, wanted.begin, inputs)
        return inputs

    def rows(self, key: bytes) -> Rows:
        """Copy the kept rows of a user in memory."""
        slot = self._slots[key]
        count = int(self._arena.heads["rows"][slot])
        row = np.arange(oldest(count), count)  # (N,)
        page, j = self._arena.table[slot, row // PAGE % PAGES_KEPT], row % PAGE
        names = ("ts", "type", "stage", "item", "category", "features")
        return Rows(row, *(self._arena.pages[name][page, j] for name in names))

    @property
    def changed(self) -> Array:
        """Slots of the users changed since the last pack."""
        return self._arena.changed[: self._arena.counts[1]]

    def pack(self) -> tuple[list[bytes], list[bytes]]:
        """Return table keys and values of everything that changed since the last pack."""
        keys, values = table.entries(self._arena, self._keys, self.names)
        if self.stream_ms != self._packed_stream_ms:
            keys.append(STREAM_KEY)
            values.append(table.stream_value(self.stream_ms))
            self._packed_stream_ms = self.stream_ms
        return keys, values

    def load_stream(self, value: bytes) -> None:
        """Restore the stream time from its table value."""
        self.stream_ms = self._packed_stream_ms = table.stream_of(value)

    def load(self, key: bytes, get: Get) -> int:
        """Restore a user from the table that `get` reads, unless in memory; return the slot. Raises TableError."""
        if key in self._slots:
            return self._slots[key]
        slot = self._add(key)
        self._ensure_pages(PAGES_KEPT)
        latest = table.restore(self._arena, self.rules, slot, key, get)
        if latest is not None and latest[0]:
            self.names[latest[0]] = latest[1]
        return slot

    def drop_closed(self, keep: int) -> Array:
        """Drop users without an open session, the longest silent first, until at most `keep` users remain.

        Returns the slots that are free now.
        """
        assert not len(self.changed), "what is not packed yet must not be dropped"
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        closed = slots[self._arena.due[slots] == NOT_DUE]
        oldest_first = closed[np.argsort(self._arena.heads["event_ms"][closed], kind="stable")]
        dropped: Array = oldest_first[: max(0, len(slots) - keep)]
        for slot in dropped.tolist():
            self._remove(slot)
        if len(self.names) > NAMES_KEPT:
            latest = set(table.latest_categories(self._arena, np.array(list(self._slots.values()), np.int64)).tolist())
            for code in self.names.keys() - latest:
                del self.names[code]
            self._hashes.clear()
        return dropped

    def _add(self, key: bytes) -> int:
        if self._unused:
            slot = self._unused.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            if slot == len(self._arena.heads):
                self._arena = more_users(self._arena)
        self._slots[key] = slot
        return slot

    def _remove(self, slot: int) -> None:
        arena = self._arena
        held = min(-(-int(arena.heads["rows"][slot]) // PAGE), PAGES_KEPT)
        unused = int(arena.counts[0])
        arena.free[unused : unused + held] = arena.table[slot, :held]
        arena.counts[0] = unused + held
        arena.heads[slot] = blank_heads(1)[0]
        del self._slots[self._keys[slot]]
        self._unused.append(slot)

    def _begin_block(self) -> None:
        self._block += 1
        self._ensure_pages(1)

    def _ensure_pages(self, count: int) -> None:
        while self._arena.counts[0] < count:
            self._arena = more_pages(self._arena)

    def _written(self, rows: int) -> Block:
        return Block(*(column[:rows].copy() for column in self._out))


def sequence_of(key: bytes, get: Get, rules: Rules | None = None) -> Rows | None:
    """Read the rows of one user from the table that `get` reads, None if it lacks the user. Raises TableError."""
    sequences = Sequences(rules or default_rules(), 1, PAGES_KEPT)
    sequences.load(key, get)
    return sequences.rows(key) if len(sequences.rows(key).row) else None


def warm() -> None:
    """Compile everything that runs later, or load it from Numba's cache; the first time it takes many seconds."""
    sequences, values = Sequences(default_rules(), 1, 1), dict[bytes, bytes]()
    clicks = [ClickEvent("warm", "click", ts) for ts in range(PAGE, 0, -1)]  # late inserts, a finished page
    for block in sequences.fold(sequences.columns(clicks, [b"warm"] * PAGE)):
        sequences.inputs(block)
    for _ in sequences.close_due(DAY_MS):
        values.update(zip(*sequences.pack(), strict=True))
    assert sequence_of(b"warm", values.get) is not None

"""The reducer: the users of some partitions. Event columns enter; blocks of rows, network inputs, table bytes leave.

What leaves of a partition is a function of its log alone, however it is cut into chunks, whenever timers run and
whatever is folded beside it.
"""

from collections.abc import Callable, Iterator

import numpy as np

from model.contract import fold as kernel
from model.contract import pages, table
from model.contract.arena import NOT_DUE, PAGES_KEPT, blank_heads, more_pages, more_users, new_arena
from model.contract.columns import Categories, columns_of
from model.contract.errors import FunnelcastError
from model.contract.events import ClickEvent
from model.contract.features import WIDTH
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


class Sequences:
    """The users of some partitions that are in memory; a partition is named by its place among them, 0 where it is one.

    `streams` (partitions,) i8 are the latest event times; `verdicts` says of each event of the latest fold whether it
    was APPLIED, a DUPLICATE or LATE; `names` maps category hashes to names.
    """

    def __init__(self, rules: Rules, users: int = 1024, pages: int = 4096, partitions: int = 1) -> None:
        if rules.late_ms > rules.gap_ms:
            raise FunnelcastError(
                f"the lateness bound is {rules.late_ms} ms, but may not exceed the session gap of {rules.gap_ms} ms; "
                "shorten it or lengthen the gap"
            )
        self.rules = rules._replace(funnel=np.require(rules.funnel, np.uint8, ["C", "W"]))
        self.streams = np.zeros(partitions, np.int64)
        self.verdicts: Array = np.zeros(0, np.uint8)
        self._categories = Categories()
        self.names = self._categories.names
        self._arena = new_arena(users, pages)
        self._slots: list[dict[bytes, int]] = [{} for _ in range(partitions)]
        self._keys: list[bytes] = []  # by slot; an unused slot keeps its last user
        self._unused: list[int] = []
        self._block, self._packed_streams = 0, self.streams.copy()
        self._out = Block(*(np.empty(BLOCK_ROWS, kind) for kind in BLOCK_DTYPES))

    def __len__(self) -> int:
        return sum(map(len, self._slots))

    def users(self, partition: int) -> int:
        """Return how many users of a partition are in memory."""
        return len(self._slots[partition])

    def key_of(self, slot: int) -> bytes:
        """Return the user of a slot."""
        return self._keys[slot]

    def partitions_of(self, slots: Array) -> Array:
        """Return the partitions of the users of some slots, i4."""
        return np.asarray(self._arena.partition[slots])

    def unknown(self, keys: list[bytes], partition: int = 0) -> list[bytes]:
        """Return the users that are not in memory, each once: to be loaded before their events are folded."""
        slots = self._slots[partition]
        return list(dict.fromkeys([key for key in keys if key not in slots]))

    def slots_of(self, keys: list[bytes], partition: int = 0) -> Array:
        """Return the slots of users (N,) i4; those not in memory are added, without rows."""
        slots = self._slots[partition]
        try:
            return np.array([slots[key] for key in keys], np.int32)
        except KeyError:
            for key in self.unknown(keys, partition):
                self._add(key, partition)
            return np.array([slots[key] for key in keys], np.int32)

    def columns(self, events: list[ClickEvent], keys: list[bytes]) -> Events:
        """Turn click events and their users, of the first partition, into columns."""
        return self.columns_of(events, self.slots_of(keys))

    def columns_of(self, events: list[ClickEvent], slots: Array) -> Events:
        """Turn click events and their users' slots into columns; learns the names of their categories."""
        return columns_of(events, slots, self._categories)

    def fold(self, events: Events) -> Iterator[Block]:
        """Apply events in order; take the `inputs` of a block before asking for the next."""
        events = Events(*map(typed, events, EVENT_DTYPES))
        self.verdicts, at = np.zeros(len(events.slot), np.uint8), 0
        while at < len(events.slot):
            self._begin_block()
            at, rows = kernel.fold(
                self._arena, self.rules, events, at, self.streams, self._block, self._out, self.verdicts
            )
            if rows:
                yield self._written(rows)

    def close_due(self, stream_ms: int | Array) -> Iterator[Block]:
        """End the sessions that are due at a stream time, of each partition its own or the same for all.

        Take the `inputs` of a block before asking for the next. Rows come partition by partition.
        """
        arena, at = self._arena, 0
        due = sorted(
            self._due(stream_ms).tolist(), key=lambda slot: (arena.partition[slot], arena.due[slot], self._keys[slot])
        )
        slots = np.array(due, np.int32)
        while at < len(slots):
            self._begin_block()
            at, rows = kernel.close_all(self._arena, self.rules, slots, at, self._block, self._out)
            if rows:
                yield self._written(rows)

    def is_due(self, stream_ms: int | Array) -> bool:
        """Tell whether a session is due to end at a stream time, of each partition its own or the same for all."""
        return len(self._due(stream_ms)) > 0

    def _due(self, stream_ms: int | Array) -> Array:
        times = np.broadcast_to(stream_ms, self.streams.shape)
        users = len(self._keys)
        return np.flatnonzero(self._arena.due[:users] <= times[self._arena.partition[:users]])

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

    def rows(self, key: bytes, partition: int = 0) -> Rows:
        """Copy the kept rows of a user in memory."""
        slot = self._slots[partition][key]
        count = int(self._arena.heads["rows"][slot])
        row = np.arange(oldest(count), count)  # (N,)
        page, j = self._arena.table[slot, row // PAGE % PAGES_KEPT], row % PAGE
        names = ("ts", "type", "stage", "item", "category", "features")
        return Rows(row, *(self._arena.pages[name][page, j] for name in names))

    @property
    def changed(self) -> Array:
        """Slots of the users changed since the last pack."""
        return self._arena.changed[: self._arena.counts[1]]

    def pack(self) -> list[dict[bytes, bytes]]:
        """Return, by partition, the table's keys and values of everything that changed since the last pack."""
        packed = table.entries(self._arena, self._keys, self.names, len(self.streams))
        for partition in np.flatnonzero(self.streams != self._packed_streams).tolist():
            packed[partition][STREAM_KEY] = table.stream_value(int(self.streams[partition]))
        self._packed_streams[:] = self.streams
        return packed

    def load_stream(self, value: bytes, partition: int = 0) -> None:
        """Restore a partition's stream time from its table value."""
        self.streams[partition] = self._packed_streams[partition] = table.stream_of(value)

    def load(self, key: bytes, get: Get, partition: int = 0) -> int:
        """Restore a user from the table that `get` reads, unless in memory; return the slot. Raises TableError."""
        if key in self._slots[partition]:
            return self._slots[partition][key]
        slot = self._add(key, partition)
        self._ensure_pages(PAGES_KEPT)
        latest = table.restore(self._arena, self.rules, slot, key, get)
        if latest is not None and latest[0]:
            self.names[latest[0]] = latest[1]
        return slot

    def drop_closed(self, keep: int, are_needed: Callable[[Array], Array] | None = None) -> Array:
        """Drop users without an open session, the longest silent first, until at most `keep` users remain.

        Spares those whose slots are needed. Returns the slots that are free now.
        """
        assert not len(self.changed), "what is not packed yet must not be dropped"
        slots = self._held()
        closed = slots[self._arena.due[slots] == NOT_DUE]
        if are_needed is not None:
            closed = closed[~are_needed(closed)]
        oldest_first = closed[np.argsort(self._arena.heads["event_ms"][closed], kind="stable")]
        dropped: Array = oldest_first[: max(0, len(slots) - keep)]
        for slot in dropped.tolist():
            self._remove(slot)
        if len(self.names) > NAMES_KEPT:
            self._categories.keep(set(table.latest_categories(self._arena, self._held()).tolist()))
        return dropped

    def _held(self) -> Array:
        """Return the slots of the users in memory."""
        return np.fromiter((slot for slots in self._slots for slot in slots.values()), np.int64, len(self))

    def _add(self, key: bytes, partition: int) -> int:
        if self._unused:
            slot = self._unused.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            if slot == len(self._arena.heads):
                more_users(self._arena)
        self._arena.partition[slot] = partition
        self._slots[partition][key] = slot
        return slot

    def _remove(self, slot: int) -> None:
        arena = self._arena
        held = min(-(-int(arena.heads["rows"][slot]) // PAGE), PAGES_KEPT)
        unused = int(arena.counts[0])
        arena.free[unused : unused + held] = arena.table[slot, :held]
        arena.counts[0] = unused + held
        arena.heads[slot] = blank_heads(1)[0]
        del self._slots[arena.partition[slot]][self._keys[slot]]
        self._unused.append(slot)

    def _begin_block(self) -> None:
        self._block += 1
        self._ensure_pages(1)

    def _ensure_pages(self, count: int) -> None:
        while self._arena.counts[0] < count:
            more_pages(self._arena)

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
        values |= sequences.pack()[0]
    assert sequence_of(b"warm", values.get) is not None

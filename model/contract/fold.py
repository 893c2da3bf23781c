"""The fold, compiled: event columns enter, rows with features and stages are written into the arena and emitted.

tests/model/contract/oracle.py says the same in plain Python and is the specification. A late insert retreats the head
to its place, moves the later rows up and describes them again.
"""

from typing import Any

from model.contract import features as f
from model.contract.arena import NEVER, NOT_DUE, Arena
from model.contract.events import CLASS_OF, SESSION, SESSION_END
from model.contract.head import describe, latest_event, leave_window, oldest, page_of, retreat
from model.contract.jit import jit
from model.contract.rows import (
    APPLIED,
    CLOSED,
    DAY_MS,
    DUPLICATE,
    IDS_KEPT,
    LATE,
    LMAX,
    NEW,
    PAGE,
    REVISED,
    RING,
    Array,
    Block,
    Events,
    Rules,
)
from model.contract.stages import STAGES

N_STAGES = len(STAGES)


@jit
def put(arena: Arena, slot: int, k: int, ts: int, kind: int, item: int, category: int, price: int) -> None:
    """Write what the source says about row k."""
    page, j = page_of(arena, slot, k), k % PAGE
    page.ts[j], page.type[j], page.item[j], page.category[j] = ts, kind, item, category
    page.features[j, f.PRICE] = price


@jit
def make_room(arena: Arena, slot: int, n: int) -> None:
    """Give row n a page; a full ring first forgets the rows of its oldest page."""
    if n % PAGE:
        return
    if n < RING:
        arena.counts[0] -= 1
        arena.table[slot, n // PAGE] = arena.free[arena.counts[0]]
        return
    head = arena.heads[slot]
    for k in range(n - RING, n - RING + PAGE):
        page, j = page_of(arena, slot, k), k % PAGE
        for w in range(3):
            if head.start[w] == k:
                leave_window(head, w, page, k)
        c, day, event_ms = CLASS_OF[page.type[j]], page.ts[j] // DAY_MS, latest_event(head.gone_last)
        head.gone_total[c] += 1
        if head.gone_last[c] == NEVER or head.gone_last[c] // DAY_MS != day:
            head.gone_days_with[c] += 1
        if c != SESSION and (event_ms == NEVER or event_ms // DAY_MS != day):
            head.gone_days += 1
        head.gone_last[c], head.gone_cart = page.ts[j], page.cart[j]


@jit
def touch(arena: Arena, slot: int, low: int) -> None:
    """Note that rows from `low` on differ from the table."""
    head = arena.heads[slot]
    if not head.dirty:
        head.dirty, head.low = 1, low
        arena.changed[arena.counts[1]] = slot
        arena.counts[1] += 1
    head.low = min(head.low, low)


@jit
def open_place(arena: Arena, slot: int, k: int) -> None:
    """Make place k free for a new row: the rows from k on move up by one and leave the head."""
    head = arena.heads[slot]
    n = head.rows
    touch(arena, slot, min(k, max(0, n - 1)))  # n - 1: its page may be finished now
    for m in range(n - 1, k - 1, -1):
        retreat(arena, slot, m)
    make_room(arena, slot, n)
    head.rows = n + 1
    for m in range(n, k, -1):
        p, j = page_of(arena, slot, m - 1), (m - 1) % PAGE
        put(arena, slot, m, p.ts[j], p.type[j], p.item[j], p.category[j], p.features[j, f.PRICE])


@jit
def settle(arena: Arena, slot: int, k: int, source: int, kind: int, funnel: Array, out: Block, o: int) -> int:
    """Describe and emit row k and those after it; return the next place in the block."""
    rows = arena.heads[slot].rows
    for m in range(k, rows):
        describe(arena, slot, m, oldest(rows), funnel)
        emit(arena, slot, m, source if m == k else -1, kind if m == k else REVISED, out, o)
        o += 1
    return o


@jit
def emit(arena: Arena, slot: int, k: int, source: int, kind: int, out: Block, o: int) -> None:
    """Write row k into place o of the block."""
    head, page, j = arena.heads[slot], page_of(arena, slot, k), k % PAGE
    out.slot[o], out.row[o], out.source[o], out.kind[o] = slot, k, source, kind
    out.ts[o], out.type[o], out.stage[o], out.category[o] = page.ts[j], page.type[j], page.stage[j], page.category[j]
    out.user_stage[o] = 0
    for s in range(N_STAGES):
        if head.day_stages[s] > 0:
            out.user_stage[o] = s


@jit
def answer(arena: Arena, slot: int, k: int, block: int) -> None:
    """Note that row k is answered in this block."""
    head = arena.heads[slot]
    head.answered = max(head.answered, k) if head.block == block else k
    head.block = block


@jit
def must_flush(arena: Arena, slot: int, k: int, block: int) -> bool:
    """Tell whether a row at place k would change what the answers of this block are computed from."""
    head = arena.heads[slot]
    moves_base = head.rows >= RING and head.rows % LMAX == 0
    return bool(head.block == block and (k <= head.answered or moves_base))


@jit
def has_room(arena: Arena, slot: int, k: int, out: Block, o: int) -> bool:
    """Tell whether a row at place k, and the rows it moves, fit into the block and the arena."""
    return bool(o + arena.heads[slot].rows - k < len(out.slot) and arena.counts[0] > 0)


@jit
def close(arena: Arena, slot: int, rules: Rules, block: int, out: Block, o: int) -> int:
    """Append the session_end row of a user with an open session; return the next place in the block."""
    head = arena.heads[slot]
    k = head.rows
    category = page_of(arena, slot, k - 1).category[(k - 1) % PAGE]
    open_place(arena, slot, k)
    put(arena, slot, k, head.event_ms + rules.gap_ms, SESSION_END, 0, category, 0)
    arena.due[slot] = NOT_DUE
    answer(arena, slot, k, block)
    return settle(arena, slot, k, -1, CLOSED, rules.funnel, out, o)


@jit
def place(arena: Arena, slot: int, ts: int, late_ms: int) -> int:
    """Return the place of an event among its user's rows, -1 if it is too late for one."""
    head = arena.heads[slot]
    k: int = head.rows
    first = oldest(k + 1)
    if ts < head.event_ms - late_ms:
        return -1
    while k > first:
        page, j = page_of(arena, slot, k - 1), (k - 1) % PAGE
        if page.ts[j] <= ts:
            return k
        if page.type[j] == SESSION_END:  # a closed session never reopens
            return -1
        k -= 1
    return -1 if first > 0 else 0


@jit
def known(head: Any, message: int) -> bool:
    """Tell whether this message id is among the remembered ones."""
    if message == 0:
        return False
    for m in range(IDS_KEPT):
        if head.ids[m] == message:
            return True
    return False


@jit
def fold(
    arena: Arena, rules: Rules, events: Events, begin: int, streams: Array, block: int, out: Block, verdicts: Array
) -> tuple[int, int]:
    """Fold events[begin:] until all are done or the block must end; return (next event, rows written).

    `streams` (partitions,) are the stream times, which move on.
    """
    o, i = 0, begin
    while i < len(events.slot):
        slot, ts, message = events.slot[i], events.ts[i], events.id[i]
        partition = arena.partition[slot]
        head, silent = arena.heads[slot], arena.due[slot] <= streams[partition]
        if not silent:
            if known(head, message):
                verdicts[i] = DUPLICATE
                i += 1
                continue
            silent = arena.due[slot] != NOT_DUE and ts - head.event_ms > rules.gap_ms
        k = head.rows if silent else place(arena, slot, ts, rules.late_ms)
        if k >= 0 and (must_flush(arena, slot, k, block) or not has_room(arena, slot, k, out, o)):
            break
        if silent:
            o = close(arena, slot, rules, block, out, o)  # and look at the event again
            continue
        streams[partition], verdicts[i] = max(streams[partition], ts), APPLIED if k >= 0 else LATE
        if k >= 0:
            open_place(arena, slot, k)
            put(arena, slot, k, ts, events.type[i], events.item[i], events.category[i], events.price[i])
            answer(arena, slot, k, block)
            o = settle(arena, slot, k, i, NEW, rules.funnel, out, o)
            arena.due[slot] = head.event_ms + rules.gap_ms + rules.late_ms
            if message:
                head.ids[head.ids_seen % IDS_KEPT] = message
                head.ids_seen += 1
        i += 1
    return i, o


@jit
def close_all(arena: Arena, rules: Rules, slots: Array, begin: int, block: int, out: Block) -> tuple[int, int]:
    """Close the sessions of slots[begin:] until all are done or room ends; return (next, rows written)."""
    o, i = 0, begin
    while i < len(slots) and has_room(arena, slots[i], arena.heads[slots[i]].rows, out, o):
        o = close(arena, slots[i], rules, block, out, o)
        i += 1
    return i, o

"""A user's rows as table bytes, and as network inputs, compiled.

A row is 16 bytes (time 6, type 1, stage 1, item 4, category 4), then its features as differences from the row before it
in the same value (from zeros for the first): 8 mask bytes, and the bytes that differ. All integers are little-endian.
"""

import numpy as np

from model.contract.arena import NOT_DUE, PAGES_KEPT, Arena
from model.contract.events import N_CLASSES
from model.contract.features import WIDTH
from model.contract.head import oldest, page_of
from model.contract.jit import jit
from model.contract.rows import IDS_KEPT, PAGE, Array, Inputs

VERSION = 1
FIXED, GROUPS = 16, (WIDTH + 7) // 8
ROW_BYTES = FIXED + GROUPS + WIDTH  # at most
GONE_BYTES = 16 * N_CLASSES + 8
HEAD_BYTES = 6 + 8 * IDS_KEPT + GONE_BYTES  # at most
PAGE_KEYS = PAGES_KEPT - 1  # the last page lies in the head's value; so the others never leave a stale one behind
FLAGS, OPEN = 5, 128  # place of the number of message ids, and the bit there that tells an open session
HEAD_VALUE = -1  # page number of a head's value


@jit
def put_int(out: Array, at: int, value: int, size: int) -> int:
    """Write an integer of `size` bytes; return the place after it."""
    for b in range(size):
        out[at + b] = (value >> (8 * b)) & 255
    return at + size


@jit
def get_int(data: Array, at: int, size: int) -> int:
    """Read an integer of `size` bytes, unsigned."""
    value = np.int64(0)
    for b in range(size):
        value |= np.int64(data[at + b]) << (8 * b)
    return int(value)


@jit
def pack_rows(arena: Arena, slot: int, low: int, high: int, out: Array, at: int) -> int:
    """Write rows low..high-1, all of one page; return the place after them."""
    page = page_of(arena, slot, low)
    for k in range(low, high):
        j = k % PAGE
        at = put_int(out, at, page.ts[j], 6)
        out[at], out[at + 1] = page.type[j], page.stage[j]
        at = put_int(out, at + 2, page.item[j], 4)
        mask, at = put_int(out, at, page.category[j], 4), at + 4 + GROUPS
        for g in range(GROUPS):
            bits = 0
            for x in range(8 * g, min(WIDTH, 8 * g + 8)):
                if page.features[j, x] != (page.features[j - 1, x] if k > low else 0):
                    bits |= 1 << (x - 8 * g)
                    out[at] = page.features[j, x]
                    at += 1
            out[mask + g] = bits
    return at


@jit
def unpack_rows(arena: Arena, slot: int, low: int, high: int, data: Array, at: int) -> int:
    """Read rows low..high-1, all of one page; return the place after them, -1 if the data end before."""
    page = page_of(arena, slot, low)
    for k in range(low, high):
        j, mask = k % PAGE, at + FIXED
        if mask + GROUPS > len(data):
            return -1
        page.ts[j], page.type[j], page.stage[j] = get_int(data, at, 6), data[at + 6], data[at + 7]
        page.item[j], page.category[j] = get_int(data, at + 8, 4), get_int(data, at + 12, 4)
        at = mask + GROUPS
        for x in range(WIDTH):
            if data[mask + x // 8] >> (x % 8) & 1:
                if at == len(data):
                    return -1
                page.features[j, x] = data[at]
                at += 1
            else:
                page.features[j, x] = page.features[j - 1, x] if k > low else 0
    return at


@jit
def pack_head(arena: Arena, slot: int, out: Array, at: int) -> int:
    """Write version, number of rows, message ids, oldest first, and what the rows gone left; return the end."""
    head = arena.heads[slot]
    out[at] = VERSION
    at = put_int(out, at + 1, head.rows, 4)
    count = min(IDS_KEPT, head.ids_seen)
    out[at] = count | (OPEN if arena.due[slot] != NOT_DUE else 0)
    at += 1
    for m in range(head.ids_seen - count, head.ids_seen):
        message = head.ids[m % IDS_KEPT]
        for b in range(8):
            out[at + b] = (message >> np.uint64(8 * b)) & np.uint64(255)
        at += 8
    if oldest(head.rows) > 0:
        for c in range(N_CLASSES):
            at = put_int(out, at, head.gone_last[c], 8)
            at = put_int(out, at, head.gone_total[c], 4)
            at = put_int(out, at, head.gone_days_with[c], 4)
        at = put_int(out, at, head.gone_days, 4)
        at = put_int(out, at, head.gone_cart, 4)
    return at


@jit
def unpack_head(arena: Arena, slot: int, data: Array) -> int:
    """Read what pack_head wrote; return the place after it, -1 if the data end before."""
    head, at = arena.heads[slot], 6
    if len(data) < at:
        return -1
    head.rows, head.ids_seen = get_int(data, 1, 4), data[5] & (OPEN - 1)
    gone = GONE_BYTES if oldest(head.rows) > 0 else 0
    if head.ids_seen > IDS_KEPT or len(data) < at + 8 * head.ids_seen + gone:
        return -1
    for m in range(head.ids_seen):
        head.ids[m] = 0
        for b in range(8):
            head.ids[m] |= np.uint64(data[at + b]) << np.uint64(8 * b)
        at += 8
    if gone:
        for c in range(N_CLASSES):
            head.gone_last[c] = get_int(data, at, 8)
            head.gone_total[c], head.gone_days_with[c] = get_int(data, at + 8, 4), get_int(data, at + 12, 4)
            at += 16
        head.gone_days, head.gone_cart = get_int(data, at, 4), get_int(data, at + 4, 4)
        at += 8
    return at


@jit
def pack(arena: Arena, slots: Array, out: Array, owners: Array, numbers: Array, ends: Array) -> int:
    """Pack each user: its head and last page, then each finished page that changed; return the number of values."""
    at, v = 0, 0
    for slot in slots:
        head = arena.heads[slot]
        last = (head.rows - 1) // PAGE * PAGE
        at = pack_rows(arena, slot, last, head.rows, out, pack_head(arena, slot, out, at))
        owners[v], numbers[v], ends[v] = slot, HEAD_VALUE, at
        v += 1
        for low in range(max(head.low // PAGE * PAGE, oldest(head.rows)), last, PAGE):
            out[at] = VERSION
            at = pack_rows(arena, slot, low, low + PAGE, out, at + 1)
            owners[v], numbers[v], ends[v] = slot, low // PAGE % PAGE_KEYS, at
            v += 1
        head.dirty = 0
    return v


@jit
def gather(arena: Arena, slots: Array, begins: Array, out: Inputs) -> None:
    """Copy the rows of each user from its begin on, user after user."""
    at = 0
    for u in range(len(slots)):
        for k in range(begins[u], arena.heads[slots[u]].rows):
            page, j = page_of(arena, slots[u], k), k % PAGE
            out.type[at], out.item[at], out.category[at] = page.type[j], page.item[j], page.category[j]
            for x in range(WIDTH):
                out.features[at, x] = page.features[j, x]
            at += 1

"""The head of a user and the features of a row, compiled: a head is as of its user's latest row.

`advance` moves it on by a row, `retreat` back by one, `rebuild` derives it from the rows kept; `describe` writes
a row's features and stage on the way.
"""

from typing import Any

import numpy as np

from model.contract import features as f
from model.contract.arena import CHAINS, NEVER, PAGES_KEPT, Arena
from model.contract.events import (
    CART,
    CART_ADD,
    CART_REMOVE,
    CLASS_OF,
    N_CLASSES,
    ORDER,
    ORDER_TYPE,
    SESSION,
    SESSION_END,
    WISHLIST,
)
from model.contract.jit import jit
from model.contract.rows import DAY_MS, HOUR_MS, PAGE, RING, WINDOWS_MS, Array
from model.contract.stages import NO_STAGE, REPEAT_EVER, REPEAT_IN_CATEGORY

DAY_WINDOW, MAX_CART, MAX_LINK = 2, 65_535, 65_535


@jit
def code(value: int) -> int:
    """Quantise as features.quantise does: the top bits of the float64 are exponent and first three digits."""
    if value < 8:
        return value
    exponent_and_digits = np.float64(value).view(np.int64) >> 49
    return min(255, int(exponent_and_digits) - ((1023 << 3) + 16))


@jit
def since(ts: int, then: int) -> int:
    """Code the seconds from `then` to `ts`; 0 for never."""
    return 0 if then == NEVER else min(255, 1 + code((ts - then) // 1000))


@jit
def oldest(rows: int) -> int:
    """Return the first row kept when there are `rows` rows: the ring loses whole pages."""
    return max(0, (rows - 1) // PAGE * PAGE - (RING - PAGE))


@jit
def page_of(arena: Arena, slot: int, k: int) -> Any:
    """Return the page of row k, which lies there at k % PAGE."""
    return arena.pages[arena.table[slot, (k // PAGE) % PAGES_KEPT]]


@jit
def advance(arena: Arena, slot: int, k: int) -> None:
    """Move the head from as of row k - 1 to as of row k."""
    head, page, j = arena.heads[slot], page_of(arena, slot, k), k % PAGE
    ts, kind, stage = page.ts[j], page.type[j], page.stage[j]
    c, day = CLASS_OF[kind], ts // DAY_MS
    head.total[c] += 1
    if stage != NO_STAGE:
        head.day_stages[stage] += 1
    for w in range(3):
        head.window[w, c] += 1
        while True:
            s = head.start[w]
            p = page_of(arena, slot, s)
            if p.ts[s % PAGE] > ts - WINDOWS_MS[w]:
                break
            leave_window(head, w, p, s)
    if head.last[c] == NEVER or head.last[c] // DAY_MS != day:
        head.days_with[c] += 1
    head.last[c] = ts
    if kind != SESSION_END:
        if head.event_ms == NEVER or head.event_ms // DAY_MS != day:
            head.days += 1
        head.event_ms = ts
        head.cart = cart_after(head.cart, kind)
        chain = page.category[j] % CHAINS
        back = k + 1 - head.chain[chain] if head.chain[chain] else 0
        page.link[j] = back if back <= MAX_LINK else 0
        head.chain[chain] = k + 1
    page.cart[j] = head.cart


@jit
def leave_window(head: Any, w: int, page: Any, row: int) -> None:
    """Take the first row of a window out of it."""
    head.window[w, CLASS_OF[page.type[row % PAGE]]] -= 1
    if w == DAY_WINDOW and page.stage[row % PAGE] != NO_STAGE:
        head.day_stages[page.stage[row % PAGE]] -= 1
    head.start[w] = row + 1


@jit
def cart_after(cart: int, kind: int) -> int:
    """Count the open cart after an event."""
    if kind == CART_ADD:
        return min(MAX_CART, cart + 1)
    if kind == CART_REMOVE:
        return max(0, cart - 1)
    return 0 if kind == ORDER_TYPE else cart


@jit
def retreat(arena: Arena, slot: int, k: int) -> None:
    """Move the head from as of row k, an event, back to as of row k - 1."""
    head, page, j, first = arena.heads[slot], page_of(arena, slot, k), k % PAGE, oldest(arena.heads[slot].rows)
    ts, c, stage = page.ts[j], CLASS_OF[page.type[j]], page.stage[j]
    head.total[c] -= 1
    if stage != NO_STAGE:
        head.day_stages[stage] -= 1
    for w in range(3):
        head.window[w, c] -= 1
        reopen_window(arena, slot, w, k, first)
    m, last = k - 1, head.gone_last[c]
    while m >= first:
        p = page_of(arena, slot, m)
        if CLASS_OF[p.type[m % PAGE]] == c:
            last = p.ts[m % PAGE]
            break
        m -= 1
    head.last[c] = last
    if last == NEVER or last // DAY_MS != ts // DAY_MS:
        head.days_with[c] -= 1
    head.event_ms = latest_event(head.last)
    if head.event_ms == NEVER or head.event_ms // DAY_MS != ts // DAY_MS:
        head.days -= 1
    head.cart = page_of(arena, slot, k - 1).cart[(k - 1) % PAGE] if k else 0
    head.chain[page.category[j] % CHAINS] = k + 1 - page.link[j] if page.link[j] else 0


@jit
def reopen_window(arena: Arena, slot: int, w: int, k: int, first: int) -> None:
    """Take rows back into a window that is to end at row k - 1."""
    if k == 0:
        return
    head = arena.heads[slot]
    oldest_ms = page_of(arena, slot, k - 1).ts[(k - 1) % PAGE] - WINDOWS_MS[w]
    s = head.start[w]
    while s > first:
        p, j = page_of(arena, slot, s - 1), (s - 1) % PAGE
        if p.ts[j] <= oldest_ms:
            break
        head.window[w, CLASS_OF[p.type[j]]] += 1
        if w == DAY_WINDOW and p.stage[j] != NO_STAGE:
            head.day_stages[p.stage[j]] += 1
        s -= 1
    head.start[w] = s


@jit
def latest_event(last: Array) -> int:
    """Return the latest time of any class but session ends."""
    latest = NEVER
    for c in range(N_CLASSES):
        if c != SESSION:
            latest = max(latest, last[c])
    return latest


@jit
def rebuild(arena: Arena, slot: int) -> None:
    """Move a head that is as of the rows gone on over the rows kept."""
    head = arena.heads[slot]
    first = oldest(head.rows)
    for c in range(N_CLASSES):
        head.last[c], head.total[c], head.days_with[c] = head.gone_last[c], head.gone_total[c], head.gone_days_with[c]
    head.event_ms, head.days, head.cart = latest_event(head.gone_last), head.gone_days, head.gone_cart
    for w in range(3):
        head.start[w] = first
    for k in range(first, head.rows):
        advance(arena, slot, k)


@jit
def describe(arena: Arena, slot: int, k: int, first: int, funnel: Array) -> None:
    """Write the features and the stage of row k and move the head on to it; rows before `first` are not seen."""
    head, page, j = arena.heads[slot], page_of(arena, slot, k), k % PAGE
    ts, kind, out = page.ts[j], page.type[j], page.features[j]
    c = CLASS_OF[kind]
    for t in range(N_CLASSES):
        out[f.SINCE + t] = since(ts, head.last[t])
    out[f.SESSIONS] = code(1 + head.total[SESSION])
    out[f.SINCE_ROW] = since(ts, page_of(arena, slot, k - 1).ts[(k - 1) % PAGE]) if k else 0
    out[f.HOUR_OF_DAY] = ts // HOUR_MS % 24
    repeated_in_category = describe_category(arena, slot, k, first, out)
    stage, rule = funnel[kind, 0], funnel[kind, 2]
    if (rule == REPEAT_IN_CATEGORY and repeated_in_category) or (rule == REPEAT_EVER and head.total[c] > 0):
        stage = funnel[kind, 1]
    page.stage[j] = stage
    advance(arena, slot, k)
    for t in range(N_CLASSES):
        out[f.TOTAL + t] = code(head.total[t])
        for w in range(3):
            out[f.WINDOWS + w * N_CLASSES + t] = code(head.window[w, t])
        out[f.DAYS_WITH + t] = code(head.days_with[t])
    out[f.DAYS_ACTIVE], out[f.OPEN_CART] = code(head.days), code(head.cart)


@jit
def describe_category(arena: Arena, slot: int, k: int, first: int, out: Array) -> bool:
    """Write the features of row k's category; tell whether an event of its class is among those of the last 24 h."""
    page, j = page_of(arena, slot, k), k % PAGE
    ts, category, c = page.ts[j], page.category[j], CLASS_OF[page.type[j]]
    own = c != SESSION
    hour, day, then = int(own), int(own), NEVER
    wishlist, cart, order, same = int(c == WISHLIST), int(c == CART), int(c == ORDER), 0
    m = arena.heads[slot].chain[category % CHAINS] - 1
    while m >= first:
        p, i = page_of(arena, slot, m), m % PAGE
        if p.category[i] == category:
            then = max(then, p.ts[i])
            if p.ts[i] <= ts - DAY_MS:
                break
            day += 1
            hour += p.ts[i] > ts - HOUR_MS
            theirs = CLASS_OF[p.type[i]]
            wishlist, cart, order = wishlist + (theirs == WISHLIST), cart + (theirs == CART), order + (theirs == ORDER)
            same += theirs == c
        elif then != NEVER and p.ts[i] <= ts - DAY_MS:
            break
        if p.link[i] == 0:
            break
        m -= p.link[i]
    out[f.CATEGORY_HOUR], out[f.CATEGORY_DAY], out[f.SINCE_CATEGORY] = code(hour), code(day), since(ts, then)
    out[f.CATEGORY_WISHLIST], out[f.CATEGORY_CART], out[f.CATEGORY_ORDER] = code(wishlist), code(cart), code(order)
    return same > 0

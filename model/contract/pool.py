"""The pool of hot state: what attention keeps of each user, in fixed arrays that the step graph reads in place.

In: the rings and rows that the graphs return. Out: `kv` and `counts`, to bind as the step graph's `pool` and `counts`.
A ring belongs to one (slot, layer, head, LSH round, hash bucket) and holds the last W tokens that fell into it: its
place p the token whose rank among them is p modulo W. A slot whose counts are zero is an empty user, whatever kv holds.
"""

import msgspec
import numpy as np

from model.contract.jit import jit
from model.contract.rows import Array

KEY, VALUE = 0, 1  # the halves of a ring


class State(msgspec.Struct, frozen=True):
    """The sizes of the network that decide how the state of a user is laid out."""

    depth: int
    heads: int
    dim_head: int
    rounds: int
    hash_buckets: int
    window: int

    @property
    def rings(self) -> int:
        """Rings of one user."""
        return self.depth * self.heads * self.rounds * self.hash_buckets

    @property
    def bytes(self) -> int:
        """Memory of one user, its counts included."""
        return self.rings * (2 * self.window * self.dim_head + 1) * 4


class Pool:
    """The state of `slots` users, all empty at first; the memory is touched only as slots fill."""

    def __init__(self, state: State, slots: int) -> None:
        self.state, self.slots = state, slots
        self.kv = np.zeros((slots * state.rings, 2, state.window, state.dim_head), np.float32)
        self.counts = np.zeros(slots * state.rings, np.int32)

    @property
    def blocks(self) -> Array:
        """`kv` as the step graph takes it, without a copy: (slots * rings * 2, W, d)."""
        return self.kv.reshape(-1, self.state.window, self.state.dim_head)

    def write(self, ring: Array, key: Array, value: Array) -> None:
        """Append the rows of one step, at most one per slot: ring (B, depth, H*R), key and value (B, depth, H, d)."""
        _write(self.kv, self.counts, ring, key, value)

    def load(self, slots: Array, rings: Array, counts: Array) -> None:
        """Install states of the whole-sequence graph: rings (B, rings, 2, W, d), counts (B, rings)."""
        self.kv.reshape(self.slots, *rings.shape[1:])[slots] = rings
        self.counts.reshape(self.slots, -1)[slots] = counts

    def reset(self, slots: Array) -> None:
        """Empty some slots."""
        self.counts.reshape(self.slots, -1)[slots] = 0


def previous_of(turn: Array) -> Array:
    """Return the places (N, P) of the rows before each row of a burst, -1 for none.

    `turn` (N,) i8 counts each user's rows, which stand next to each other, from 0.
    """
    back = np.arange(1, turn.max(initial=1) + 1)  # (P,)
    return np.asarray(np.where(back <= turn[:, None], np.arange(len(turn))[:, None] - back, -1))


@jit
def _write(kv: Array, counts: Array, ring: Array, key: Array, value: Array) -> None:
    window, dim = kv.shape[2], kv.shape[3]
    rounds = ring.shape[2] // key.shape[2]
    for row in range(ring.shape[0]):
        for layer in range(ring.shape[1]):
            for place in range(ring.shape[2]):
                to = ring[row, layer, place]
                at = counts[to] % window
                for d in range(dim):
                    kv[to, KEY, at, d] = key[row, layer, place // rounds, d]
                    kv[to, VALUE, at, d] = value[row, layer, place // rounds, d]
                counts[to] += 1

"""The rows seen so far, as 64-bit hashes in one open table: exact duplicates in any order, for 16 to 32 bytes a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract.jit import jit

SMALLEST = 1 << 16


@jit
def _add(table: npt.NDArray[Any], hashes: npt.NDArray[Any], known: npt.NDArray[Any]) -> None:
    """Put hashes into the table (a power of two long, at most half full, 0 is empty); `known` says which it held."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(hashes)):
        at = hashes[i] & mask
        while table[at] != 0 and table[at] != hashes[i]:
            at = (at + np.uint64(1)) & mask
        known[i] = table[at] != 0
        table[at] = hashes[i]


class RowSet:
    """A set of rows, known by their hashes."""

    def __init__(self) -> None:
        self._table, self._count = np.zeros(SMALLEST, np.uint64), 0

    def repeated(self, signatures: Sequence[int]) -> list[int]:
        """Add rows by their hashes; return the indices of those that were seen before."""
        hashes = np.array(signatures, np.int64).view(np.uint64)
        hashes[hashes == 0] = 1
        while 2 * (self._count + len(hashes)) > len(self._table):
            self._grow()
        known = np.zeros(len(hashes), np.bool_)
        _add(self._table, hashes, known)
        self._count += len(hashes) - int(known.sum())
        return [int(index) for index in np.flatnonzero(known)]

    def _grow(self) -> None:
        old = self._table[self._table != 0]
        self._table = np.zeros(2 * len(self._table), np.uint64)
        _add(self._table, old, np.zeros(len(old), np.bool_))

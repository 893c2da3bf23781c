"""A whole log as flat columns, for training: user codes, times, types, hashes; 38 bytes a row, built block by block.

In: a `Log`. Out: `LogColumns` in source order. `event_time_order` gives the order in which to fold them.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.contract.features import price_codes
from model.contract.jit import jit
from model.contract.vocabulary import hashes64, name_hash, name_hashes
from model.datasets.log import Block, Log

HASHES_KEPT = 1 << 18  # names whose hash is remembered before all are forgotten
CRC_OF_BYTE = np.array([zlib.crc32(bytes([b])) ^ zlib.crc32(bytes(1)) for b in range(256)], np.uint32)  # (256,)


class LogColumns(NamedTuple):
    """The events of a log, column by column."""

    user: np.ndarray  # (N,) int32 index into users
    ts: np.ndarray  # (N,) int64 milliseconds
    type: np.ndarray  # (N,) uint8
    item: np.ndarray  # (N,) uint32 hash, 0 where missing
    category: np.ndarray  # (N,) uint32 hash, 0 where missing
    price: np.ndarray  # (N,) uint8 price code, 0 where missing
    id: np.ndarray  # (N,) uint64 hash of the message id, 0 where there is none
    row: np.ndarray  # (N,) int64 0-based line of the input
    users: list[str]
    categories: dict[int, str]  # hash -> name


class _Numbers(dict[str, int]):
    """Names numbered in the order in which they appear."""

    def __missing__(self, name: str) -> int:
        code = self[name] = len(self)
        return code


class _Hashes(dict[str | None, int]):
    """Hashes of names, remembered: looking one up costs a fifth of computing it."""

    def __missing__(self, name: str | None) -> int:
        code = self[name] = name_hash(name)
        return code

    def of(self, names: Sequence[str | None]) -> np.ndarray:
        """Return the hashes (N,) u4 of many names."""
        if len(self) > HASHES_KEPT:
            self.clear()
        return np.fromiter(map(self.__getitem__, names), np.uint32, len(names))


def item_hashes(names: Sequence[str | None]) -> np.ndarray:
    """Return the hashes (N,) u4 of many names that seldom come twice, as name_hashes does but all at once."""
    present = [name for name in names if name]
    text = "".join(present)
    if len(present) < len(names) or not text.isascii():
        return name_hashes(names)
    found = np.empty(len(names), np.uint32)
    ends = np.cumsum(np.fromiter(map(len, present), np.int64, len(names)))
    _crc32(np.frombuffer(text.encode(), np.uint8), ends, found)
    return found


@jit
def _crc32(text: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
    """Hash the stretches of a text that end at `ends`; none of them is empty."""
    begin = 0
    for i in range(len(ends)):
        code = np.uint32(0xFFFFFFFF)
        for k in range(begin, ends[i]):
            code = CRC_OF_BYTE[(code ^ text[k]) & np.uint32(0xFF)] ^ (code >> np.uint32(8))
        code = code ^ np.uint32(0xFFFFFFFF)
        out[i] = code if code else 1
        begin = ends[i]


class ColumnReader:
    """Turns the blocks of one log into columns; remembers the names of its users and categories."""

    def __init__(self) -> None:
        self.users = _Numbers()
        self._categories = _Hashes()
        self._names: dict[int, str | None] = {}

    def columns(self, block: Block) -> tuple[np.ndarray, ...]:
        """Return the columns of a block, those of LogColumns in their order."""
        user = np.fromiter(map(self.users.__getitem__, block.users), np.int32, len(block.users))
        item, known = item_hashes(block.items), len(self._categories)
        category = self._categories.of(block.categories)
        if len(self._categories) != known:
            self._names.update(zip(category.tolist(), block.categories, strict=True))
        price, ids = price_codes(block.prices), hashes64(block.message_ids)
        return user, block.ts, block.types, item, category, price, ids, block.rows

    @property
    def categories(self) -> dict[int, str]:
        """Names of categories by their hash."""
        return {code: name for code, name in self._names.items() if name is not None}


def read_columns(log: Log) -> LogColumns:
    """Read a log into columns; memory is that of the columns and of the names of users and categories.

    Raises:
        LogError: no row of the log gives an event.
    """
    reader = ColumnReader()
    blocks = [reader.columns(block) for block in log.blocks()]
    log.check_events()
    return LogColumns._make([*_joined(blocks), list(reader.users), reader.categories])


def _joined(blocks: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Join the blocks column by column, and let go of their parts on the way."""
    columns = list(zip(*blocks, strict=True))
    blocks.clear()
    return [np.concatenate(columns.pop()) for _ in range(len(columns))][::-1]


def event_time_order(columns: LogColumns) -> np.ndarray:
    """Return the order (N,) that sorts the events by event time; equal times keep the order of the source."""
    return np.argsort(columns.ts, kind="stable")

"""A whole log as flat columns, for training: user codes, times, types, hashes; 38 bytes a row, built block by block.

In: a `Log`. Out: `LogColumns` in source order. `event_time_order` gives the order in which to fold them.
"""

from typing import NamedTuple

import numpy as np

from model.contract.features import price_codes
from model.contract.vocabulary import hashes64, name_hashes
from model.datasets.formats import LogError
from model.datasets.log import Log


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


def read_columns(log: Log) -> LogColumns:
    """Read a log into columns; memory is that of the columns and of the names of users and categories.

    Raises:
        LogError: no row of the log gives an event.
    """
    codes: dict[str, int] = {}
    names: dict[int, str | None] = {}
    blocks: list[tuple[np.ndarray, ...]] = []
    for block in log.blocks():
        user = np.fromiter((codes.setdefault(user, len(codes)) for user in block.users), "i4", len(block.users))
        item, category = name_hashes(block.items), name_hashes(block.categories)
        names.update(zip(category.tolist(), block.categories, strict=True))
        price, ids = price_codes(block.prices), hashes64(block.message_ids)
        blocks.append((user, block.ts, block.types, item, category, price, ids, block.rows))
    if not log.problems.yielded:
        raise LogError(f"{log.summary()} Expected events: check --format, --map, --events and --time-unit.")
    categories = {code: name for code, name in names.items() if name is not None}
    return LogColumns._make([*_joined(blocks), list(codes), categories])


def _joined(blocks: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Join the blocks column by column, and let go of their parts on the way."""
    columns = list(zip(*blocks, strict=True))
    blocks.clear()
    return [np.concatenate(columns.pop()) for _ in range(len(columns))][::-1]


def event_time_order(columns: LogColumns) -> np.ndarray:
    """Return the order (N,) that sorts the events by event time; equal times keep the order of the source."""
    return np.argsort(columns.ts, kind="stable")

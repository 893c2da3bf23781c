"""Shards: a log divided by user into files of columns, so that a log of any length is scored in bounded memory.

In: a `Log`, read once. Out: one file of event columns per shard, and what a shard must know of the whole log. In memory
meanwhile: the names of the users.
"""

import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.contract.features import price_codes
from model.contract.rows import Array
from model.contract.vocabulary import hashes64, name_hashes
from model.datasets import Block, Log, LogColumns

FEWEST, MOST = 16, 256  # shards: enough to keep processes busy, few enough to hold all files open
SHARD_BYTES = 4 << 20  # of the log, gzipped or not, in one shard
EVENT = np.dtype(
    [("user", "i4"), ("ts", "i8"), ("type", "u1"), ("item", "u4"), ("category", "u4"), ("price", "u1"), ("id", "u8"),
     ("row", "i8")]
)  # fmt: skip


class Shards(NamedTuple):
    """A divided log."""

    paths: list[Path]
    users: list[list[str]]  # of each shard, by user code
    recorded: Array  # (1, 2) i8 first and last event time of the log
    events: int


def divide(log: Log, folder: Path) -> Shards:
    """Write the events of a log into shards by the hash of their user.

    Raises:
        LogError: no row of the log gives an event.
    """
    count = min(MOST, max(FEWEST, sum(file.stat().st_size for file in log.files) // SHARD_BYTES))
    paths = [folder / f"{number}.events" for number in range(count)]
    codes: list[dict[str, int]] = [{} for _ in paths]
    first, last = np.iinfo(np.int64).max, 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for block in log.blocks():
            if not len(block.ts):
                continue
            first, last = min(first, int(block.ts.min())), max(last, int(block.ts.max()))
            shard = np.array([zlib.crc32(user.encode()) % count for user in block.users])  # (N,)
            order = np.argsort(shard, kind="stable")
            events = _events(block, shard, codes)[order]
            numbers, starts = np.unique(shard[order], return_index=True)
            for number, part in zip(numbers.tolist(), np.split(events, starts[1:]), strict=True):
                files[number].write(part.tobytes())
    log.check_events()
    return Shards(paths, [list(known) for known in codes], np.array([[first, last]]), log.problems.yielded)


def _events(block: Block, shard: Array, codes: list[dict[str, int]]) -> Array:
    """Turn a block into event columns; users are numbered shard by shard."""
    events = np.empty(len(block.ts), EVENT)
    known = [codes[number] for number in shard.tolist()]
    events["user"] = [users.setdefault(user, len(users)) for users, user in zip(known, block.users, strict=True)]
    events["ts"], events["type"], events["row"] = block.ts, block.types, block.rows
    events["item"], events["category"] = name_hashes(block.items), name_hashes(block.categories)
    events["price"], events["id"] = price_codes(block.prices), hashes64(block.message_ids)
    return events


def read_shard(path: Path, users: list[str]) -> LogColumns:
    """Read the columns of one shard; names of categories are not kept."""
    events = np.fromfile(path, EVENT)
    columns = {name: np.ascontiguousarray(events[name]) for name in EVENT.fields or ()}
    return LogColumns(**columns, users=users, categories={})

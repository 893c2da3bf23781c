"""Spill: a log of any length onto disk as columns, and from there into shards of whole users.

In: a `Log`, read once. Out: `LogColumns` of some users at a time, all users in the order in which they appear in the
log. In memory meanwhile: the names of users and categories, and the events of one shard.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from model.contract.rows import Array
from model.datasets import ColumnReader, Log, LogColumns
from model.offline.shards import EVENT, MOST, read_shard

COLUMNS = EVENT.names or ()
PART_EVENTS = 1 << 20  # read back at once
SHARD_EVENTS = 1 << 20  # at least, where there are more: users are never divided


class Spill:
    """The columns of a log in the files of a folder, in source order."""

    def __init__(self, log: Log, folder: Path) -> None:
        """Read the log; LogError if no row of it gives an event."""
        self.folder, reader = folder, ColumnReader()
        with ExitStack() as stack:
            files = [stack.enter_context(self.path(name).open("wb")) for name in COLUMNS]
            for block in log.blocks():
                for file, column in zip(files, reader.columns(block), strict=True):
                    file.write(column.tobytes())
        log.check_events()
        self.users, self.events = list(reader.users), log.problems.yielded

    def path(self, name: str) -> Path:
        """Return the file of a column."""
        return self.folder / f"{name}.column"

    def column(self, name: str) -> Iterator[Array]:
        """Read a column part by part."""
        kind = EVENT[name]
        for begin in range(0, self.events, PART_EVENTS):
            yield np.fromfile(self.path(name), kind, PART_EVENTS, offset=begin * kind.itemsize)

    def parts(self) -> Iterator[Array]:
        """Read all columns part by part, (N,) EVENT."""
        for columns in zip(*map(self.column, COLUMNS), strict=True):
            events = np.empty(len(columns[0]), EVENT)
            for name, column in zip(COLUMNS, columns, strict=True):
                events[name] = column
            yield events

    def shards(self) -> Iterator[LogColumns]:
        """Divide the events by user, and return those of each shard; the columns are gone from the disk then."""
        counts = np.zeros(len(self.users), np.int64)  # (U,)
        for part in self.column("user"):
            counts += np.bincount(part, minlength=len(counts))
        before = np.cumsum(counts) - counts  # (U,)
        shard = before // max(SHARD_EVENTS, -(-self.events // MOST))  # (U,) ascending
        bounds = [*np.flatnonzero(np.diff(shard, prepend=-1)).tolist(), len(counts)]
        paths = [self.folder / f"{number}.events" for number in range(len(bounds) - 1)]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for events in self.parts():
                place = np.searchsorted(bounds, events["user"], "right") - 1  # (N,)
                events = events[np.argsort(place, kind="stable")]
                ends = np.cumsum(np.bincount(place, minlength=len(files)))
                for file, part in zip(files, np.split(events, ends[:-1]), strict=True):
                    file.write(part.tobytes())
        for name in COLUMNS:
            self.path(name).unlink()
        for path, first, last in zip(paths, bounds, bounds[1:], strict=False):
            columns = read_shard(path, self.users[first:last])
            path.unlink()
            yield columns._replace(user=columns.user - first)

"""Output: the parts of all shards in, one file in input order out, CSV or Parquet by its suffix.

Parts are merged a window of input lines at a time, so the memory does not grow with the log.
"""

import csv
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model.contract.bundle import SCOPES
from model.contract.errors import FunnelcastError
from model.contract.rows import Array
from model.contract.stages import STAGES
from model.offline.answers import Answers
from model.offline.parts import read_part
from model.offline.shards import Shards

WINDOW = 1 << 16  # input lines merged at a time
KINDS = np.array(["event", "session_end"])
SHOWN = STAGES[1:]  # interest to loyalty
COLUMNS = ("row", "user_id", "kind", "timestamp", *(f"{scope}_{stage}" for scope in SCOPES for stage in SHOWN))
SUFFIXES = (".csv", ".parquet")
_LINE = ",".join(["%d,%s,%s,%d", *["%.6f"] * (len(SCOPES) * len(SHOWN))]) + "\n"


class Writer(Protocol):
    """Takes answers, window by window, and the names of their users."""

    def write(self, answers: Answers, users: list[str]) -> None: ...


class CsvWriter(AbstractContextManager["CsvWriter"]):
    """Writes CSV with a header line; probabilities with six decimals, as the worker's records have them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write(",".join(COLUMNS) + "\n")

    def write(self, answers: Answers, users: list[str]) -> None:
        names = map(quoted, users)
        columns = (answers.row.tolist(), names, KINDS[answers.session_end.astype(int)].tolist(), answers.ts.tolist())
        self._file.writelines(map(_LINE.__mod__, zip(*columns, *_probabilities(answers).T.tolist(), strict=True)))

    def __exit__(self, *error: object) -> None:
        self._file.close()


class ParquetWriter(AbstractContextManager["ParquetWriter"]):
    """Writes Parquet, a row group per window; probabilities as float32."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        kinds = [pa.int64(), pa.string(), pa.string(), pa.int64(), *[pa.float32()] * (len(COLUMNS) - 4)]
        self._schema: Any = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
        self._batch = pa.record_batch
        self._file = parquet.ParquetWriter(path, self._schema)

    def write(self, answers: Answers, users: list[str]) -> None:
        kinds = KINDS[answers.session_end.astype(int)]
        columns = [answers.row, users, kinds.tolist(), answers.ts, *np.ascontiguousarray(_probabilities(answers).T)]
        self._file.write_batch(self._batch(columns, schema=self._schema))

    def __exit__(self, *error: object) -> None:
        self._file.close()


def check_suffix(path: Path) -> None:
    """Refuse a file of neither kind. Raises FunnelcastError; ModuleNotFoundError where Parquet cannot be written."""
    if path.suffix not in SUFFIXES:
        raise FunnelcastError(
            f"--out {path} ends in {path.suffix or 'no suffix'}, expected {' or '.join(SUFFIXES)}; rename it"
        )
    if path.suffix == ".parquet":
        import pyarrow  # noqa: F401 - tells before the log is read that it is missing


def open_writer(path: Path, suffix: str) -> CsvWriter | ParquetWriter:
    """Open the output under its temporary name."""
    return ParquetWriter(path) if suffix == ".parquet" else CsvWriter(path)


def merge(shards: Shards, writer: Writer) -> Iterator[int]:
    """Write the parts of all shards in input order; yield the number of lines after each window."""
    parts = [(part, users) for path, users in zip(shards.paths, shards.users, strict=True) if (part := read_part(path))]
    done = [0] * len(parts)
    last = max(int(part.row[-1]) for part, _ in parts)
    for end in range(WINDOW, last + WINDOW + 1, WINDOW):
        windows, names = [], []
        for number, (part, users) in enumerate(parts):
            begin, done[number] = done[number], int(np.searchsorted(part.row, end))
            window = Answers(*(np.asarray(column[begin : done[number]]) for column in part))
            windows.append(window)
            names += [users[code] for code in window.user.tolist()]
        whole = Answers(*(np.concatenate(column) for column in zip(*windows, strict=True)))
        order = np.lexsort((whole.session_end, whole.row))
        writer.write(Answers(*(column[order] for column in whole)), [names[index] for index in order.tolist()])
        yield len(order)


def quoted(name: str) -> str:
    """Write a name as a field of CSV."""
    if not any(mark in name for mark in ',"\r\n'):
        return name
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([name])
    return text.getvalue()


def _probabilities(answers: Answers) -> Array:
    """Return the columns shown, (N, 2 * 5)."""
    return np.asarray(answers.reach[:, :, 1:].reshape(len(answers.row), -1))

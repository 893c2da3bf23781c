"""The files of a log, read forward in blocks of raw rows: CSV, JSON Lines (gzipped or not) and Parquet.

In: a path and a `Format`. Out: `RawBlock`s; lines that are no rows at all are counted in `Problems` here.
One line is one row: no quoted line breaks, so that a stray quote costs one line and not the rest of the log.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec

from model.datasets.formats import Container, Format, LogError, found_columns
from model.datasets.problems import BadValue, Problems, Reason
from model.datasets.values import TimeUnit, shown

BLOCK_BYTES = 1 << 17  # of text per block, about 3,000 rows: more would leave the processor's cache
BLOCK_ROWS = 1 << 13  # of Parquet per block
FIRST_LINE_BYTES = 1 << 16
SUFFIXES = {".csv": Container.CSV, ".parquet": Container.PARQUET}
SUFFIXES |= dict.fromkeys((".jsonl", ".ndjson", ".json"), Container.JSON_LINES)


class RawBlock(NamedTuple):
    """Some rows as the file holds them, column by column."""

    rows: Sequence[int]  # 0-based line of each row
    columns: Mapping[str, Sequence[object]]  # field of the click event -> raw values
    next_row: int  # the line after the block
    file_bytes: int  # how far the file is read
    signatures: list[int] | None = None  # hash of each whole row, where the format drops exact duplicates
    time: TimeUnit | None = None  # where the column's type tells it


def log_files(path: Path) -> list[Path]:
    """Return the files of a log: the file itself, or those of a directory in the order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LogError(f"{path} was not found, expected an event log: check the path.")
    files = sorted(file for file in path.iterdir() if file.is_file() and suffix(file) in SUFFIXES)
    if not files:
        endings = ", ".join(SUFFIXES)
        raise LogError(f"{path} holds no log, expected files that end in {endings} (.gz after it too): name the file.")
    return files


def suffix(path: Path) -> str:
    """Return the suffix that tells the container, in lower case and without a closing `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def container_of(path: Path) -> Container:
    """Tell the container of a file by its suffix; CSV where the suffix says nothing."""
    return SUFFIXES.get(suffix(path), Container.CSV)


def first_fields(path: Path) -> list[str]:
    """Return the fields of the first line of a CSV file."""
    with _reading(path) as raw:
        line = _unzipped(raw).readline(FIRST_LINE_BYTES).decode("utf-8-sig", "replace")
    return next(csv.reader([line]), [])


def read_blocks(path: Path, form: Format, first_row: int, problems: Problems) -> Iterator[RawBlock]:
    """Read one file of a log; `first_row` is the number of its first line within the log."""
    readers = {Container.CSV: _csv_blocks, Container.JSON_LINES: _json_blocks, Container.PARQUET: _parquet_blocks}
    with _reading(path) as raw:
        yield from readers[form.container](raw, form, first_row, problems)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file; what a damaged or forbidden one raises becomes one sentence."""
    try:
        with path.open("rb") as raw:
            yield raw
    except (OSError, EOFError, zlib.error) as error:
        remedy = "expected a whole file that may be read: fetch it again"
        raise LogError(f"{path} cannot be read to its end ({error}), {remedy}.") from error


def _unzipped(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(2)
    raw.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if magic == b"\x1f\x8b" else raw


def _csv_blocks(raw: BinaryIO, form: Format, first_row: int, problems: Problems) -> Iterator[RawBlock]:
    with io.TextIOWrapper(_unzipped(raw), encoding="utf-8-sig", errors="surrogateescape") as text:
        header = list(form.header) or next(csv.reader([text.readline()]), [])
        columns, start, is_first = found_columns(form, header, raw.name), first_row + (not form.header), True
        while lines := text.readlines(BLOCK_BYTES):
            fields, kept = _csv_fields(lines, len(header), start, problems)
            if is_first and not kept:
                expected = f"expected rows of {', '.join(header)}: choose another --format"
                raise LogError(f"{raw.name} starts with {shown(lines[0])}, {expected}.")
            values = {field: fields[header.index(column)] for field, column in columns.items()}
            signatures = list(map(hash, zip(*fields, strict=True))) if form.unique else None
            start, is_first = start + len(lines), False
            yield RawBlock(kept, values, start, raw.tell(), signatures)


def _csv_fields(
    lines: list[str], width: int, start: int, problems: Problems
) -> tuple[list[Sequence[str]], Sequence[int]]:
    """Parse lines of CSV; return the columns of the sound rows, and their line numbers."""
    problems.read += len(lines)
    text = "".join(lines)
    if '"' not in text and set(map(methodcaller("count", ","), lines)) == {width - 1}:
        flat = text.removesuffix("\n").replace("\n", ",").split(",")
        return [flat[column::width] for column in range(width)], range(start, start + len(lines))
    good = [(row, index) for index, line in enumerate(lines, start) if (row := _csv_row(line, width, index, problems))]
    columns: list[Sequence[str]] = list(zip(*(row for row, _ in good), strict=True))
    return columns or [()] * width, [index for _, index in good]


def _csv_row(line: str, width: int, index: int, problems: Problems) -> list[str] | None:
    try:
        row = next(csv.reader([line], strict=True))
    except csv.Error as error:
        problems.add(index, BadValue(Reason.NOT_A_ROW, str(error)))
        return None
    if len(row) != width:
        problems.add(index, BadValue(Reason.NOT_A_ROW, f"{len(row)} columns, expected {width}"))
        return None
    return row


def _json_blocks(raw: BinaryIO, form: Format, first_row: int, problems: Problems) -> Iterator[RawBlock]:
    start, columns = first_row, None
    with io.BufferedReader(cast(Any, _unzipped(raw))) as stream:
        while lines := stream.readlines(BLOCK_BYTES):
            problems.read += len(lines)
            parsed = ((_json_row(line, index, problems), index) for index, line in enumerate(lines, start))
            good = [(row, index) for row, index in parsed if row is not None]
            if columns is None:
                columns = found_columns(form, list(dict.fromkeys(name for row, _ in good for name in row)), raw.name)
            values = {field: [row.get(column) for row, _ in good] for field, column in columns.items()}
            start += len(lines)
            yield RawBlock([index for _, index in good], values, start, raw.tell())


def _json_row(line: bytes, index: int, problems: Problems) -> dict[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except UnicodeDecodeError:
        problems.add(index, BadValue(Reason.INVALID_UTF8))
        return None
    except (msgspec.DecodeError, RecursionError) as error:
        problems.add(index, BadValue(Reason.NOT_A_ROW, str(error)))
        return None
    if not isinstance(row, dict):
        problems.add(index, BadValue(Reason.NOT_A_ROW, f"{shown(row)} is no object"))
        return None
    return row


def _parquet_blocks(raw: BinaryIO, form: Format, first_row: int, problems: Problems) -> Iterator[RawBlock]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise LogError("Parquet needs pyarrow, which is not installed: pip install 'funnelcast[train]'.") from error
    try:
        yield from _arrow_blocks(raw, form, first_row, problems)
    except pa.ArrowException as error:
        expected = "expected a whole Parquet file: fetch it again or choose another --format"
        raise LogError(f"{raw.name} cannot be read ({error}), {expected}.") from error


def _arrow_blocks(raw: BinaryIO, form: Format, first_row: int, problems: Problems) -> Iterator[RawBlock]:
    import pyarrow as pa
    from pyarrow import parquet

    file, size, start = parquet.ParquetFile(raw), Path(raw.name).stat().st_size, first_row
    columns = found_columns(form, file.schema_arrow.names, raw.name)
    is_moment = pa.types.is_timestamp(file.schema_arrow.field(columns["timestamp"]).type)
    unit = TimeUnit.MILLISECONDS if is_moment else None
    for batch in file.iter_batches(BLOCK_ROWS, columns=sorted(set(columns.values()))):
        arrays = {field: batch.column(column) for field, column in columns.items()}
        if is_moment:
            arrays["timestamp"] = arrays["timestamp"].cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        rows = range(start, start + batch.num_rows)
        problems.read, start = problems.read + batch.num_rows, start + batch.num_rows
        file_bytes = size * (start - first_row) // file.metadata.num_rows
        values = {field: array.to_pylist() for field, array in arrays.items()}
        yield RawBlock(rows, values, start, file_bytes, time=unit)

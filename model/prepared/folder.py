"""A prepared log on disk: examples as .npy files that are mapped into memory, so that training reads what it needs.

Files: one per array of Examples, users.json, and prepared.json, which says for what the log was labelled.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from model.contract.errors import FunnelcastError
from model.contract.features import WIDTH
from model.contract.rows import HOUR_MS
from model.contract.stages import STAGES, Funnel
from model.contract.vocabulary import Vocabulary
from model.examples import Examples, censored_rows
from model.labels import SCOPES

ABOUT, USERS, START = "prepared.json", "users.json", "start"
ROWS: dict[str, np.dtype[Any]] = {
    "ts": np.dtype("i8"), "type": np.dtype("u1"), "item": np.dtype("i8"), "category": np.dtype("i8"),
    "features": np.dtype(("u1", (WIDTH,))), "reach": np.dtype(("i1", (len(SCOPES), len(STAGES)))),
}  # fmt: skip


class Purpose(msgspec.Struct, frozen=True):
    """What rows were labelled and numbered for."""

    funnel: Funnel
    horizon_ms: int
    vocabulary: Vocabulary


class Prepared(msgspec.Struct, frozen=True):
    """What prepared.json holds."""

    purpose: Purpose
    data: dict[str, Any]  # what provenance says about the log
    told: list[str]  # what became of its rows


def array_path(folder: Path, name: str) -> Path:
    """Return the file of an array of the examples."""
    return folder / f"{name}.npy"


def write_arrays(folder: Path, parts: Iterable[Examples]) -> dict[str, int]:
    """Write examples that come some users at a time; return their numbers of rows and of censored ones."""
    users: list[str] = []
    start, rows, censored = [np.zeros(1, np.int64)], 0, 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(array_path(folder, name).open("wb")) for name in ROWS}
        for name, file in files.items():
            _write_header(file, ROWS[name], 0)
        for part in parts:
            for name, file in files.items():
                array = getattr(part, name)
                assert (array.dtype, array.shape[1:]) == (ROWS[name].base, ROWS[name].shape)
                file.write(array.tobytes())
            users += part.users
            start.append(part.start[1:] + rows)
            rows, censored = rows + len(part.ts), censored + censored_rows(part)
        for name, file in files.items():
            file.seek(0)
            _write_header(file, ROWS[name], rows)
    np.save(array_path(folder, START), np.concatenate(start))
    (folder / USERS).write_bytes(msgspec.json.encode(users))
    return {"rows": rows, "censored_rows": censored}


def _write_header(file: IO[bytes], row: np.dtype[Any], rows: int) -> None:
    """Write the header of an .npy file; NumPy leaves room in it, so that it may be written again for more rows."""
    descr = np.lib.format.dtype_to_descr(row.base)
    header = {"descr": descr, "fortran_order": False, "shape": (rows, *row.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def is_prepared(path: Path) -> bool:
    """Tell whether a path is a prepared log."""
    return (path / ABOUT).is_file()


def read_prepared(folder: Path, purpose: Purpose) -> tuple[Examples, Prepared]:
    """Map the examples of a prepared log into memory; what is written to them stays in this process.

    Raises:
        FunnelcastError: it is damaged, or was prepared for another purpose.
    """
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=Prepared)
        users = msgspec.json.decode((folder / USERS).read_bytes(), type=tuple[str, ...])
        arrays = {name: np.load(array_path(folder, name), mmap_mode="c") for name in (START, *ROWS)}
    except (OSError, ValueError, EOFError) as error:  # msgspec's errors are ValueErrors
        raise FunnelcastError(f"{folder} is no whole prepared log ({error}); prepare it again") from None
    fields = Purpose.__struct_fields__
    if differs := [name for name in fields if getattr(about.purpose, name) != getattr(purpose, name)]:
        found = f" (its is {about.purpose.horizon_ms / HOUR_MS:g} h)" if "horizon_ms" in differs else ""
        asked = f"{folder} was prepared for another {', '.join(differs)} than asked for{found}"
        raise FunnelcastError(f"{asked}; ask for the same, or prepare the log again")
    return Examples(users, **arrays), about

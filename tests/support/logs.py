"""Tiny logs for tests: written to disk, read back, accounted for."""

from __future__ import annotations

import gzip
from pathlib import Path

from model.contract.events import ClickEvent
from model.datasets import Log


def write(folder: Path, text: str | bytes, name: str = "log.csv") -> Path:
    """Write a log; a name in .gz is compressed."""
    data = text if isinstance(text, bytes) else text.encode()
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def clicks(log: Log) -> list[ClickEvent]:
    return [event for _, event in log]


def is_accounted_for(log: Log) -> bool:
    problems = log.problems
    return problems.read == problems.yielded + problems.dropped + problems.broken

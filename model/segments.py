"""Segments: a user's rows cut so that one run over a segment gives every row the score that the worker gives it."""

from collections.abc import Iterator
from typing import NamedTuple

from model.contract.rows import LMAX, RING, base


class Segment(NamedTuple):
    """A stretch of one user's rows; rows from `scored` on are answered, the rows before are what these see."""

    user: int
    begin: int
    scored: int
    end: int


def segments_of(user: int, rows: int) -> Iterator[Segment]:
    """Cut one user into stretches of at most RING rows."""
    yield Segment(user, 0, 0, min(rows, RING))
    for row in range(RING, rows, LMAX):
        yield Segment(user, base(row), row, min(rows, row + LMAX))

"""Pieces: what the hot state's plan asks of the network for one block, part by part, and the block's scores from them.

A piece that steps feeds only the rows that are new to its users' hot state; any other piece feeds whole sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from model.contract.events import N_TYPES
from model.contract.rows import Inputs

Array: TypeAlias = npt.NDArray[Any]

NOT_KEPT = -1  # place of a user whose state is not kept


class Scores(NamedTuple):
    """Answers to one request, in the order of its wanted rows."""

    reach: Array  # float32 (A, 2, 6): probabilities, calibrated
    next_type: Array  # float32 (A, 20): probabilities; all zero where degraded
    degraded: npt.NDArray[np.bool_]  # (A,): base rate instead of a score


class Places(NamedTuple):
    """Where the users of a piece keep their hot state."""

    slot: Array  # (U,) i8 in the pool, NOT_KEPT for none
    ticket: Array  # (U,) i8 names the user's stay in the slot
    end: Array  # (U,) i8 rows of the sequence, all in the state after this piece


def ignore(scores: Scores | None) -> None:
    """Take no notice of the outcome of a piece."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a block's users that runs at once."""

    inputs: Inputs
    rows: Array  # (A,) places of the wanted rows in the block
    places: Places
    steps: bool  # row by row from hot state, else whole sequences
    at_once: bool  # ahead of pieces that are not: its cost is bounded by its new rows
    done: Callable[[Scores | None], None] = ignore  # is told the outcome before anybody else, None if there is none
    ahead: bool = False  # for blocks to come: nobody waits for its scores

    @property
    def users(self) -> int:
        """Return the number of sequences that the network has to read."""
        return len(self.inputs.lengths)

    @property
    def longest(self) -> int:
        """Return the most rows that one user has in it."""
        return int(self.inputs.lengths.max(initial=1))


def base_rate_scores(rows: int, base_rates: Array) -> Scores:
    """Return degraded scores: the base rates (2, 6) for each row, no next event."""
    return Scores(
        np.tile(base_rates, (rows, 1, 1)).astype(np.float32),  # (A, 2, 6)
        np.zeros((rows, N_TYPES), np.float32),  # (A, 20)
        np.ones(rows, bool),
    )


def whole(inputs: Inputs) -> Piece:
    """Ask for the scores of whole sequences, where no state is kept."""
    users = len(inputs.lengths)
    nowhere = Places(np.full(users, NOT_KEPT), np.zeros(users, np.int64), inputs.lengths.astype(np.int64))
    return Piece(inputs, np.arange(len(inputs.owner)), nowhere, steps=False, at_once=True)


def join(pieces: Sequence[Piece], scores: Sequence[Scores]) -> Scores:
    """Put the scores of a block's pieces into the order of the block."""
    if len(pieces) == 1:
        return scores[0]
    order = np.argsort(np.concatenate([piece.rows for piece in pieces]))
    columns = zip(*scores, strict=True)
    return Scores(*(np.concatenate(column)[order] for column in columns))

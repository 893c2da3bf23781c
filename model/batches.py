"""Training batches: labelled sequences in, padded tensors out.

A row is scored in training from the rows that serving would see (`base`): long users are cut as the worker cuts them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.contract.features import WIDTH
from model.contract.stages import STAGES
from model.examples import CENSORED, Examples
from model.reformer import SCOPES, Rows
from model.segments import Segment, segments_of

NOTHING_NEXT = -1


class Batch(NamedTuple):
    rows: Rows
    reach: Tensor  # (B, L, 2, S) int8, or float32 of teachers; CENSORED also where a row is not scored
    next_type: Tensor  # (B, L) int64; NOTHING_NEXT where a row is not scored
    weight: Tensor  # (B, 1) float32: 1 / sqrt(rows of the user)


def segments(examples: Examples, users: Sequence[int]) -> list[Segment]:
    """Cut users into stretches of at most RING rows, each row seeing what the worker's score of it sees."""
    return [part for user in users for part in segments_of(user, examples.rows_of(user))]


def batches(cut: list[Segment], rows: int, draw: np.random.Generator | None = None) -> list[list[Segment]]:
    """Group segments of like length into batches of about `rows` padded rows, in random order if `draw` is given."""
    lengths = np.array([part.end - part.begin for part in cut])
    order = np.argsort(lengths * (1 if draw is None else 1 + 0.2 * draw.random(len(cut))), kind="stable")
    grouped: list[list[Segment]] = []
    longest = 0
    for index in order.tolist():
        longest = max(longest, int(lengths[index]))
        if not grouped or longest * (len(grouped[-1]) + 1) > rows:
            grouped.append([])
            longest = int(lengths[index])
        grouped[-1].append(cut[index])
    if draw is not None:
        grouped = [grouped[index] for index in draw.permutation(len(grouped))]
    return grouped


def collate(examples: Examples, cut: list[Segment], since_ms: int = 0) -> Batch:
    """Pad segments to the longest of them; of rows before a moment no next event is asked."""
    shape = len(cut), max(part.end - part.begin for part in cut)
    ids = {name: np.zeros(shape, np.int64) for name in ("type", "item", "category")}  # (B, L)
    features = np.zeros((*shape, WIDTH), np.uint8)  # (B, L, WIDTH)
    reach = np.full((*shape, SCOPES, len(STAGES)), CENSORED, examples.reach.dtype)  # (B, L, 2, S)
    next_type = np.full(shape, NOTHING_NEXT, np.int64)  # (B, L)
    for b, (user, begin, scored, end) in enumerate(cut):
        first, last = examples.start[user] + begin, examples.start[user] + end
        for name, array in ids.items():
            array[b, : end - begin] = getattr(examples, name)[first:last]
        features[b, : end - begin] = examples.features[first:last]
        reach[b, scored - begin : end - begin] = examples.reach[first + scored - begin : last]
        following = examples.type[first + scored - begin + 1 : min(last + 1, examples.start[user + 1])]
        next_type[b, scored - begin : scored - begin + len(following)] = following
        next_type[b, : end - begin][examples.ts[first:last] < since_ms] = NOTHING_NEXT
    lengths = np.array([part.end - part.begin for part in cut])
    rows = Rows(*map(torch.from_numpy, (*ids.values(), features, lengths)))
    weight = np.array([[1 / np.sqrt(examples.rows_of(part.user))] for part in cut], np.float32)  # (B, 1)
    return Batch(rows, torch.from_numpy(reach), torch.from_numpy(next_type), torch.from_numpy(weight))

"""Remap: a source checkpoint's model in, a model for the target's vocabulary out, by event names and hashed ids.

Embedding rows of event types move by name, those of items and categories by the hashes that occur in the target, where
the tables have other sizes. A type that the source never saw begins as the mean of those of its feature class that it
did see, or of all.
"""

from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.contract.events import CLASS_OF, TYPES
from model.contract.rows import Array
from model.contract.vocabulary import Vocabulary
from model.reformer import ClickModel, weights

UNMOVED = 0.9999  # cosine to the initial row: weight decay shrinks a row, only a gradient turns it


class Hashes(NamedTuple):
    """What occurs in the target log."""

    item: Array  # (I,) u4
    category: Array  # (C,) u4


def remap(model: ClickModel, checkpoint: Checkpoint, vocabulary: Vocabulary, hashes: Hashes) -> ClickModel:
    """Return a model of the target's vocabulary with the source's weights."""
    sizes = {"item_hashes": vocabulary.item_hashes, "category_hashes": vocabulary.category_hashes}
    config = msgspec.structs.replace(model.config, types=len(TYPES), **sizes)
    state = {name: value.clone() for name, value in weights(model).items()}
    seen = trained_types(model, checkpoint)  # (T,)
    for name in ("embed.types.weight", "next_type.weight", "next_type.bias"):
        state[name] = by_name(state[name], checkpoint.contract.types, seen)
    theirs = checkpoint.contract.vocabulary
    pairs = (
        ("embed.items.weight", hashes.item, theirs.item_index, vocabulary.item_index, vocabulary.item_hashes),
        ("embed.categories.weight", hashes.category, theirs.category_index, vocabulary.category_index,
         vocabulary.category_hashes),
    )  # fmt: skip
    for name, found, old, new, rows in pairs:
        if len(state[name]) != rows:
            state[name] = by_hash(state[name], torch.from_numpy(old(found)), torch.from_numpy(new(found)), rows)
    target = ClickModel(config)
    target.load_state_dict(state, strict=False)
    return target.eval()


def trained_types(model: ClickModel, checkpoint: Checkpoint) -> Tensor:
    """Tell which types the source's training moved, (T,) bool; all of them where its beginning cannot be redrawn."""
    seed = checkpoint.training.get("settings", {}).get("seed", 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        initial = ClickModel(model.config).embed.types.weight
    moved = torch.cosine_similarity(model.embed.types.weight, initial, dim=-1).detach() < UNMOVED
    return moved if moved.any() else torch.ones_like(moved)


def by_name(rows: Tensor, names: tuple[str, ...], seen: Tensor) -> Tensor:
    """Return a row per canonical type: the source's of that name if it was trained, else the mean of its class."""
    known = {name: rows[index] for index, name in enumerate(names) if seen[index]}
    found = []
    for code, name in enumerate(TYPES):
        alike = [known[TYPES[other]] for other in range(len(TYPES))
                 if CLASS_OF[other] == CLASS_OF[code] and TYPES[other] in known]  # fmt: skip
        found.append(known[name] if name in known else torch.stack(alike or list(known.values())).mean(0))
    return torch.stack(found)


def by_hash(rows: Tensor, old: Tensor, new: Tensor, count: int) -> Tensor:
    """Return `count` embedding rows: each the mean of the source's rows of the names that fall into it."""
    table = rows[2:].mean(0).repeat(count, 1)
    table[:2] = rows[:2]  # padding, missing
    summed = torch.zeros_like(table).index_add_(0, new, rows[old])
    names = torch.bincount(new, minlength=count)[:, None]
    return torch.where(names > 0, summed / names.clamp(min=1), table)

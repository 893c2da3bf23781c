"""The step graphs: new rows scored from the rings of a pool, one of each user (step.onnx) or several (burst.onnx).

In: a ClickModel. Out: modules whose ONNX form reads the pool where it lies and returns logits and the rows to append.
Every row reads one ring of W keys and values per layer, head and LSH round, however long the user's history is. A row
of a burst sees its rings as the rows of the user before it will leave them: the same numbers in the same places, so
the same bits as one step after the other.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from export.fused import FusedLayer, FusedModel
from model.attention import MASKED_LOGIT
from model.contract.pool import State
from model.contract.stages import STAGES
from model.reformer import SCOPES, ClickModel, ReformerConfig, Rows

SMALLEST = 1e-12  # of a norm to divide by, as in torch's normalize


class Held(NamedTuple):
    """What rings hold."""

    keys: Tensor  # (B, H*R, W, d)
    values: Tensor  # (B, H*R, W, d)
    rows: Tensor  # (B, H*R) how many ever fell into them


class StepLayer(FusedLayer):
    """One block for new rows."""

    def forward(
        self, left: Tensor, right: Tensor, first: Tensor, pool: Tensor, counts: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return both streams (B, D), key and value (B, H, 1, d), and the rings (B, H*R) read."""
        query, value, rotated = self.project(right)
        ring = first + rotated.view(-1, self.heads * self.rounds, self.hash_buckets).argmax(-1)  # (B, H*R)
        query, value = (part.view(-1, self.heads, 1, self.dim) for part in (query, value))  # (B, H, 1, d)
        key = query / query.norm(dim=-1, keepdim=True).clamp(min=SMALLEST)
        held = Held(pool[ring * 2], pool[ring * 2 + 1], counts[ring])
        if previous is not None:
            held = self.written(held, ring, key, value, previous)
        seen = self.attend(query, value, held).view(-1, self.heads * self.dim)  # (B, D)
        return *self.update(left, right, seen), key, value, ring

    def written(self, held: Held, ring: Tensor, key: Tensor, value: Tensor, previous: Tensor) -> Held:
        """Return what the rings hold when the rows `previous` (B, P) to each, -1 for none, are written to them."""
        places, before = ring.shape[1], previous.clamp(min=0)
        same = (ring[before] == ring[:, None]) & (previous >= 0)[..., None]  # (B, P, H*R)
        count = held.rows + same.sum(1).int()  # (B, H*R) also that of rows before this one: its place is this modulo W
        row, number, ring_number = same.nonzero(as_tuple=True)  # (M,) of each: who sees whom where
        writer = before[row, number]
        to = (row * places + ring_number) * self.window + (count % self.window)[writer, ring_number]
        vector = writer * self.heads + ring_number // self.rounds
        keys, values = (
            was.reshape(-1, self.dim).index_put((to,), part.reshape(-1, self.dim)[vector])
            for part, was in ((key, held.keys), (value, held.values))
        )
        return Held(keys, values, count)

    def attend(self, query: Tensor, value: Tensor, seen: Held) -> Tensor:
        """Attend to the rings of all rounds at once, to the row itself where they are empty: (B, H, 1, d)."""
        shape = (-1, self.heads, self.rounds * self.window, self.dim)
        keys, values = seen.keys.view(shape), seen.values.view(shape)
        held = seen.rows.view(-1, self.heads, self.rounds, 1)  # (B, H, R, 1)
        filled = torch.arange(self.window, dtype=torch.int32) < held  # (B, H, R, W)
        alone = held == 0  # (B, H, R, 1)
        if self.rounds > 1:
            filled = filled.view(-1, self.heads, 1, self.rounds * self.window)  # (B, H, 1, R*W)
            alone = alone.all(2, keepdim=True)  # (B, H, 1, 1)
        logits = torch.where(filled, query @ keys.transpose(-1, -2), MASKED_LOGIT)  # (B, H, 1, R*W)
        return torch.where(alone, value, logits.softmax(-1) @ values)


class Step(FusedModel):
    """The inference form of a ClickModel that is given new rows and the pool.

    Of a burst, `previous` names the places of up to P rows of the user that come before each row, at most W - 1.
    """

    def __init__(self, model: ClickModel) -> None:
        super().__init__(model)
        self.layers = nn.ModuleList(StepLayer(block) for block in model.reformer.layers.blocks)
        self.state = state_of(model.config)

    def forward(
        self,
        type: Tensor,
        item: Tensor,
        category: Tensor,
        features: Tensor,
        slot: Tensor,
        pool: Tensor,
        counts: Tensor,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return reach (B, 2, S), next_type (B, T), key and value (B, depth, H, d), ring (B, depth, H*R)."""
        x, wide = self.model.embed(Rows(type, item, category, features, slot))  # (B, D) twice
        rounds = self.state.heads * self.state.rounds
        place = torch.arange(rounds) * self.state.hash_buckets  # (H*R,)
        first = (slot * self.state.rings)[:, None] + place  # (B, H*R)
        left, right, rows = x, x, []
        for number, layer in enumerate(self.layers):
            rings = first + number * rounds * self.state.hash_buckets
            left, right, *row = layer(left, right, rings, pool, counts, previous)
            rows.append(row)
        hidden = self.hidden(left, right, wide)  # (B, 2D)
        reach = self.model.reach(hidden).view(-1, SCOPES, len(STAGES))  # (B, 2, S)
        shape = (-1, self.state.depth, self.state.heads, self.state.dim_head)
        key, value, ring = (torch.cat(column, 1) for column in zip(*rows, strict=True))
        key, value, ring = key.view(shape), value.view(shape), ring.view(-1, self.state.depth, rounds)
        return reach, self.model.next_type(hidden), key, value, ring


def state_of(config: ReformerConfig) -> State:
    """Return how the state of a user of this network is laid out."""
    dim_head = config.dim // config.heads
    return State(config.depth, config.heads, dim_head, config.rounds, config.hash_buckets, config.window)

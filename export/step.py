"""The step graph: one new row of each of B users, scored from the rings of a pool, as step.onnx.

In: a ClickModel. Out: a module whose ONNX form reads the pool where it lies and returns logits and the rows to append.
Every row reads one ring of W keys and values per layer, head and LSH round, however long the user's history is.
"""

import torch
from torch import Tensor, nn

from export.fused import FusedLayer, FusedModel
from model.attention import MASKED_LOGIT
from model.contract.pool import State
from model.contract.stages import STAGES
from model.reformer import SCOPES, ClickModel, ReformerConfig, Rows

SMALLEST = 1e-12  # of a norm to divide by, as in torch's normalize


class StepLayer(FusedLayer):
    """One block for one row per user."""

    def forward(self, left: Tensor, right: Tensor, first: Tensor, pool: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Return both streams (B, D), query and value (B, H, 1, d), and the rings (B, H*R) read."""
        query, value, rotated = self.project(right)
        ring = first + rotated.view(-1, self.heads * self.rounds, self.hash_buckets).argmax(-1)  # (B, H*R)
        query, value = (part.view(-1, self.heads, 1, self.dim) for part in (query, value))  # (B, H, 1, d)
        seen = self.attend(query, value, ring, pool, counts).view(-1, self.heads * self.dim)  # (B, D)
        return *self.update(left, right, seen), query, value, ring

    def attend(self, query: Tensor, value: Tensor, ring: Tensor, pool: Tensor, counts: Tensor) -> Tensor:
        """Attend to the rings of all rounds at once, to the row itself where they are empty: (B, H, 1, d)."""
        shape = (-1, self.heads, self.rounds * self.window, self.dim)
        keys, values = pool[ring * 2].view(shape), pool[ring * 2 + 1].view(shape)  # (B, H, R*W, d)
        held = counts[ring].view(-1, self.heads, self.rounds, 1)  # (B, H, R, 1)
        filled = torch.arange(self.window, dtype=torch.int32) < held  # (B, H, R, W)
        alone = held == 0  # (B, H, R, 1)
        if self.rounds > 1:
            filled = filled.view(-1, self.heads, 1, self.rounds * self.window)  # (B, H, 1, R*W)
            alone = alone.all(2, keepdim=True)  # (B, H, 1, 1)
        logits = torch.where(filled, query @ keys.transpose(-1, -2), MASKED_LOGIT)  # (B, H, 1, R*W)
        return torch.where(alone, value, logits.softmax(-1) @ values)


class Step(FusedModel):
    """The inference form of a ClickModel that is given one row per user and the pool."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__(model)
        self.layers = nn.ModuleList(StepLayer(block) for block in model.reformer.layers.blocks)
        self.state = state_of(model.config)

    def forward(
        self, type: Tensor, item: Tensor, category: Tensor, features: Tensor, slot: Tensor, pool: Tensor, counts: Tensor
    ) -> tuple[Tensor, ...]:
        """Return reach (B, 2, S), next_type (B, T), key and value (B, depth, H, d), ring (B, depth, H*R)."""
        x, wide = self.model.embed(Rows(type, item, category, features, slot))  # (B, D) twice
        rounds = self.state.heads * self.state.rounds
        place = torch.arange(rounds) * self.state.hash_buckets  # (H*R,)
        first = (slot * self.state.rings)[:, None] + place  # (B, H*R)
        left, right, rows = x, x, []
        for number, layer in enumerate(self.layers):
            left, right, *row = layer(left, right, first + number * rounds * self.state.hash_buckets, pool, counts)
            rows.append(row)
        hidden = self.hidden(left, right, wide)  # (B, 2D)
        reach = self.model.reach(hidden).view(-1, SCOPES, len(STAGES))  # (B, 2, S)
        shape = (-1, self.state.depth, self.state.heads, self.state.dim_head)
        query, value, ring = (torch.cat(column, 1) for column in zip(*rows, strict=True))
        query, value, ring = query.view(shape), value.view(shape), ring.view(-1, self.state.depth, rounds)
        key = query / query.norm(dim=-1, keepdim=True).clamp(min=SMALLEST)
        return reach, self.model.next_type(hidden), key, value, ring


def state_of(config: ReformerConfig) -> State:
    """Return how the state of a user of this network is laid out."""
    dim_head = config.dim // config.heads
    return State(config.depth, config.heads, dim_head, config.rounds, config.hash_buckets, config.window)

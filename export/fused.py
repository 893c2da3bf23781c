"""A ClickModel's weights, fused for onnxruntime: what the whole-sequence graph and the step graph share.

In: a ClickModel. Out: modules that hold its weights with one matrix per layer for query, value and hash rotations.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.reformer import ClickModel


class FusedLayer(nn.Module):
    """One reversible block; its attention's projections and rotations joined into one matrix."""

    joined: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention, feed = block.f.net.fn, block.g.net.fn.fn
        lsh = attention.lsh_attn
        self.heads, self.dim, self.rounds = attention.heads, attention.dim_head, lsh.rounds
        self.window, self.hash_buckets = lsh.window, lsh.hash_buckets
        self.before_attention, self.before_feed = block.f.net.norm, block.g.net.norm
        self.out, self.up, self.down = attention.to_out, feed.w1, feed.w2
        self.register_buffer("joined", join_projections(attention))

    def project(self, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query and value (..., D), and the rotations of each head and round end to end (..., H*R*NB)."""
        dim, rotations = self.heads * self.dim, self.heads * self.rounds * self.hash_buckets
        query, value, rotated = (self.before_attention(right) @ self.joined).split([dim, dim, rotations], -1)
        return query, value, rotated

    def update(self, left: Tensor, right: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Add what attention saw (..., D) to the left stream, then what the feed-forward makes of it to the right."""
        left = left + self.out(seen)
        return left, right + self.down(F.gelu(self.up(self.before_feed(left))))


class FusedModel(nn.Module):
    """The parts around the layers."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.model = model

    def hidden(self, left: Tensor, right: Tensor, wide: Tensor) -> Tensor:
        """Return what the heads see (..., 2D) of both streams and the plain features (..., D)."""
        return torch.cat([self.model.norm((left + right) * 0.5), wide], -1)


def join_projections(attention: Any) -> Tensor:
    """Return [query / sqrt(d) | value | query . rotations], (D, 2D + H*R*NB), computed in double precision."""
    lsh, dim = attention.lsh_attn, attention.dim_head
    query, value = attention.toqk.weight.detach().double(), attention.tov.weight.detach().double()
    per_head = query.view(attention.heads, dim, -1)  # (H, d, D)
    rotated = torch.einsum("hdx,drk->xhrk", per_head, lsh.rotations.double())
    rotated = torch.cat([rotated, -rotated], -1)  # (D, H, R, NB)
    if lsh.hash_buckets == 1:
        rotated = rotated[..., :1] * 0
    return torch.cat([query.t() * dim**-0.5, value.t(), rotated.flatten(1)], 1).float()

"""The whole-sequence graph: a ClickModel's weights, fused for onnxruntime, as model.onnx.

In: a ClickModel. Out: an ONNX file with dynamic batch and length (a multiple of W), logits at every position.
One matrix product per layer gives q, v and the hash rotations; sorting, windows and un-sorting are gathers.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.reformer import ClickModel, Rows

INPUTS = ("type", "item", "category", "features", "lengths")
OUTPUTS = ("reach", "next_type")
OPSET = 18


class WholeSequence(nn.Module):
    """The inference form of a ClickModel: same weights, same scores, operators that export."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(FusedLayer(block) for block in model.reformer.layers.blocks)

    def forward(
        self, type: Tensor, item: Tensor, category: Tensor, features: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return reach (B, L, 2, S) and next_type (B, L, T) logits."""
        x, wide = self.model.embed(Rows(type, item, category, features, lengths))  # (B, L, D) twice
        time = torch.arange(type.shape[1])
        pad = time[None, None] >= lengths[:, None, None]  # (B, 1, L)
        left = right = x
        for layer in self.layers:
            left, right = layer(left, right, pad, time)
        hidden = self.model.norm((left + right) * 0.5)
        reach, next_type = self.model.heads(torch.cat([hidden, wide], -1))
        return reach, next_type


class FusedLayer(nn.Module):
    """One reversible block; its attention's projections and rotations joined into one matrix."""

    joined: Tensor
    window_mask: Tensor
    fill: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention, feed = block.f.net.fn, block.g.net.fn.fn
        lsh = attention.lsh_attn
        self.heads, self.rounds = attention.heads, lsh.rounds
        self.window, self.hash_buckets = lsh.window, lsh.hash_buckets
        self.before_attention, self.before_feed = block.f.net.norm, block.g.net.norm
        self.out, self.up, self.down = attention.to_out, feed.w1, feed.w2
        self.register_buffer("joined", join_projections(attention))
        self.register_buffer("window_mask", lsh.band)
        self.register_buffer("fill", lsh.fill)

    def forward(self, left: Tensor, right: Tensor, pad: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        left = left + self.out(self.attend(self.before_attention(right) @ self.joined, pad, time))
        return left, right + self.down(F.gelu(self.up(self.before_feed(left))))

    def attend(self, projected: Tensor, pad: Tensor, time: Tensor) -> Tensor:
        """Attention of every row (B, L, 2D + H*R*NB) to the last W rows of its own hash bucket -> (B, L, D)."""
        batch, length = projected.shape[0], projected.shape[1]
        rings = self.heads * self.rounds
        width = projected.shape[-1] - rings * self.hash_buckets
        qv, rotated = projected[..., :width], projected[..., width:]
        buckets = rotated.view(batch, length, rings, self.hash_buckets).argmax(-1).transpose(1, 2)  # (B, H*R, L)
        buckets = torch.where(pad, self.hash_buckets, buckets)
        order = torch.topk((buckets * length + time).to(torch.int32), length, dim=-1, largest=False, sorted=True)[1]
        inverse = torch.zeros_like(order).scatter(-1, order, time.expand_as(order))  # (B, H*R, L)
        logits, values = self.windows(qv, buckets, order)  # (B, H*R, C, W, 2W), (B, H*R, C, 2W, d)
        seen = (logits.softmax(-1) @ values).view(batch * rings * length, -1)  # (B*H*R*L, d)
        ring = torch.arange(batch)[:, None, None] * rings + torch.arange(rings)[None, :, None]  # (B, H*R, 1)
        back = (ring * length + inverse).transpose(1, 2).reshape(-1)  # (B*L*H*R,)
        seen = seen[back].view(batch, length, self.heads, self.rounds, -1)
        if self.rounds == 1:
            return seen.reshape(batch, length, -1)  # (B, L, D)
        weight = logits.logsumexp(-1).view(-1)[back].view(batch, length, self.heads, self.rounds)
        return (seen * weight.softmax(-1)[..., None]).sum(3).view(batch, length, -1)  # (B, L, D)

    def windows(self, qv: Tensor, buckets: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return masked logits and values of each sorted chunk of W rows and the chunk before it."""
        batch, length = qv.shape[0], qv.shape[1]
        q, v = (part.reshape(batch, length, self.heads, -1) for part in qv.chunk(2, -1))  # (B, L, H, d)
        rows = torch.cat([q, F.normalize(q, dim=-1), v], -1).view(batch * length * self.heads, -1)
        head = torch.arange(self.heads * self.rounds)[None, :, None] // self.rounds
        place = (torch.arange(batch)[:, None, None] * length + order) * self.heads + head  # (B, H*R, L)
        rings, dim = self.heads * self.rounds, rows.shape[-1] // 3
        rows = rows[place.view(-1)].view(batch, rings, -1, self.window, 3 * dim)  # (B, H*R, C, W, 3d)
        mine = buckets.gather(-1, order).view(batch, rings, -1, self.window)  # (B, H*R, C, W)
        keys = with_chunk_before(rows[..., dim:], rows[:, :, :1, :, dim:])  # (B, H*R, C, 2W, 2d)
        theirs = with_chunk_before(mine, torch.full_like(mine[:, :, :1], -1))  # (B, H*R, C, 2W)
        logits = rows[..., :dim] @ keys[..., :dim].transpose(-1, -2)  # (B, H*R, C, W, 2W)
        allowed = (theirs[..., None, :] == mine[..., None]) & self.window_mask
        return torch.where(allowed, logits, self.fill), keys[..., dim:]


def with_chunk_before(chunks: Tensor, first: Tensor) -> Tensor:
    """Put before each chunk of (B, H*R, C, W, ...) the one that precedes it, `first` before the first."""
    return torch.cat([torch.cat([first, chunks[:, :, :-1]], 2), chunks], 3)  # (B, H*R, C, 2W, ...)


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


def export_onnx(model: ClickModel, path: Path) -> None:
    """Write the whole-sequence graph of a model."""
    window = model.config.window
    lengths = torch.tensor([4 * window, 5, window])
    ids = torch.ones(3, 4 * window, dtype=torch.long)
    features = torch.zeros(3, 4 * window, model.config.features, dtype=torch.uint8)
    axes = {name: {0: "batch", 1: "length"} for name in (*INPUTS[:4], *OUTPUTS)} | {"lengths": {0: "batch"}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # the exporter that keeps the batch dynamic
        torch.onnx.export(
            WholeSequence(model).eval(), (ids, ids, ids, features, lengths), str(path), dynamo=False,
            opset_version=OPSET, input_names=list(INPUTS), output_names=list(OUTPUTS), dynamic_axes=axes,
        )  # fmt: skip

"""The whole-sequence graph: every row of right-padded sequences, and the state after the last, as model.onnx.

In: a ClickModel. Out: a module whose ONNX form takes any batch and length (a multiple of W).
Sorting by hash bucket, windows and un-sorting are gathers. A recurrent network exports as torch has it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.fused import FusedLayer, FusedModel
from model.reformer import ClickModel, Rows


class WholeSequence(FusedModel):
    """The inference form of a ClickModel: same weights, same scores, operators that export."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__(model)
        self.layers = nn.ModuleList(WholeLayer(block) for block in model.reformer.layers.blocks)

    def forward(
        self, type: Tensor, item: Tensor, category: Tensor, features: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        """Return reach (B, L, 2, S) and next_type (B, L, T) logits, rings (B, rings, 2, W, d), counts (B, rings)."""
        x, wide = self.model.embed(Rows(type, item, category, features, lengths))  # (B, L, D) twice
        time = torch.arange(type.shape[1])
        pad = time[None, None] >= lengths[:, None, None]  # (B, 1, L)
        left, right, rings, counts = x, x, [], []
        for layer in self.layers:
            left, right, ring, count = layer(left, right, pad, time)
            rings.append(ring)
            counts.append(count)
        reach, next_type = self.model.heads(self.hidden(left, right, wide))
        return reach, next_type, torch.cat(rings, 1), torch.cat(counts, 1)


class Recurrence(nn.Module):
    """The inference form of a ClickModel whose network is an LSTM or a GRU."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, type: Tensor, item: Tensor, category: Tensor, features: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        """Return reach (B, L, 2, S) and next_type (B, L, T) logits."""
        return tuple(self.model(Rows(type, item, category, features, lengths)))


class WholeLayer(FusedLayer):
    """One block for whole sequences."""

    window_mask: Tensor
    fill: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.register_buffer("window_mask", block.f.net.fn.lsh_attn.band)
        self.register_buffer("fill", block.f.net.fn.lsh_attn.fill)

    def forward(self, left: Tensor, right: Tensor, pad: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return both streams (B, L, D), rings (B, H*R*NB, 2, W, d) and counts (B, H*R*NB)."""
        batch, length, rings = right.shape[0], right.shape[1], self.heads * self.rounds
        query, value, rotated = self.project(right)
        buckets = rotated.view(batch, length, rings, self.hash_buckets).argmax(-1).transpose(1, 2)  # (B, H*R, L)
        buckets = torch.where(pad, self.hash_buckets, buckets)  # pads sort last
        order = torch.topk((buckets * length + time).to(torch.int32), length, dim=-1, largest=False, sorted=True)[1]
        rows = self.rows(query, value)
        left, right = self.update(left, right, self.attend(rows, buckets, order, time))
        return left, right, *self.final_state(rows, buckets, order)

    def rows(self, query: Tensor, value: Tensor) -> Tensor:
        """Return query, key and value of each row and head, (B*L*H, 3d)."""
        query, value = query.reshape(-1, self.dim), value.reshape(-1, self.dim)  # (B*L*H, d)
        return torch.cat([query, F.normalize(query, dim=-1), value], -1)

    def attend(self, rows: Tensor, buckets: Tensor, order: Tensor, time: Tensor) -> Tensor:
        """Attention of every row to the last W rows of its own hash bucket -> (B, L, D)."""
        batch, rings, length = order.shape
        inverse = torch.zeros_like(order).scatter(-1, order, time.expand_as(order))  # (B, H*R, L)
        logits, values = self.windows(rows, buckets, order)  # (B, H*R, C, W, 2W), (B, H*R, C, 2W, d)
        seen = (logits.softmax(-1) @ values).view(batch * rings * length, -1)  # (B*H*R*L, d)
        ring = torch.arange(batch)[:, None, None] * rings + torch.arange(rings)[None, :, None]  # (B, H*R, 1)
        back = (ring * length + inverse).transpose(1, 2).reshape(-1)  # (B*L*H*R,)
        seen = seen[back].view(batch, length, self.heads, self.rounds, -1)
        if self.rounds == 1:
            return seen.reshape(batch, length, -1)  # (B, L, D)
        weight = logits.logsumexp(-1).view(-1)[back].view(batch, length, self.heads, self.rounds)
        return (seen * weight.softmax(-1)[..., None]).sum(3).view(batch, length, -1)  # (B, L, D)

    def windows(self, rows: Tensor, buckets: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return masked logits and values of each sorted chunk of W rows and the chunk before it."""
        batch, rings, length = order.shape
        place = self.place(order, length).view(-1)  # (B*H*R*L,)
        rows = rows[place].view(batch, rings, -1, self.window, 3 * self.dim)  # (B, H*R, C, W, 3d)
        mine = buckets.gather(-1, order).view(batch, rings, -1, self.window)  # (B, H*R, C, W)
        query, kv = rows[..., : self.dim], rows[..., self.dim :]
        kv = with_chunk_before(kv, kv[:, :, :1])  # (B, H*R, C, 2W, 2d)
        theirs = with_chunk_before(mine, torch.full_like(mine[:, :, :1], -1))  # (B, H*R, C, 2W)
        logits = query @ kv[..., : self.dim].transpose(-1, -2)  # (B, H*R, C, W, 2W)
        allowed = (theirs[..., None, :] == mine[..., None]) & self.window_mask
        return torch.where(allowed, logits, self.fill), kv[..., self.dim :]

    def final_state(self, rows: Tensor, buckets: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pool holds after the last row; places that no token has reached hold any other."""
        batch, rings, length = order.shape
        known = torch.arange(self.hash_buckets)
        counts = (buckets[..., None] == known).sum(2, dtype=torch.int32)  # (B, H*R, NB)
        first = (counts.cumsum(-1) - counts)[..., None]  # (B, H*R, NB, 1) where a hash bucket begins when sorted
        newest = counts[..., None] - 1
        age = (newest + self.window - torch.arange(self.window)) % self.window  # (B, H*R, NB, W) of each place
        there = age <= newest
        rank = torch.where(there, first + newest - age, 0).view(batch, rings, -1)  # (B, H*R, NB*W)
        row = self.place(order.gather(-1, rank), length).view(batch, rings, self.hash_buckets, 1, -1)
        halves = row * 3 + torch.arange(1, 3)[:, None]  # (B, H*R, NB, 2, W): key and value
        kv = rows.view(-1, self.dim)[halves]  # (B, H*R, NB, 2, W, d)
        shape = (batch, rings * self.hash_buckets, 2, self.window, self.dim)
        return kv.view(shape), counts.view(batch, -1)

    def place(self, time: Tensor, length: int) -> Tensor:
        """Return where in `rows` the tokens of given times (B, H*R, N) lie."""
        head = torch.arange(time.shape[1])[None, :, None] // self.rounds
        place: Tensor = (torch.arange(time.shape[0])[:, None, None] * length + time) * self.heads + head
        return place


def with_chunk_before(chunks: Tensor, first: Tensor) -> Tensor:
    """Put before each chunk of (B, H*R, C, W, ...) the one that precedes it, `first` before the first."""
    return torch.cat([torch.cat([first, chunks[:, :, :-1]], 2), chunks], 3)  # (B, H*R, C, 2W, ...)

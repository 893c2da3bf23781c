"""Windowed-bucket LSH attention: the training form, to stand inside reformer_pytorch's blocks.

In: shared query-key and value vectors of right-padded sequences. Out: what each position attends to, strictly causal.
Every (layer, head, LSH round) has a fixed number of hash buckets and stored rotations; a token attends to the last W
tokens of its own hash bucket, and to itself only when there are none. Nothing depends on padding or batch mates.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SELF_LOGIT = -5e4  # reformer_pytorch's value: a token attends to itself only if nothing else is there
MASKED_LOGIT = -6e4  # below SELF_LOGIT by more than exp() can resolve, and still a finite half-precision number


class Permute(torch.autograd.Function):
    """Rows of x (N, L, D) in the order of (N, R, L); the gradient is the inverse gather, so no scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.shared = x.dim() == 3
        return _take(x, order)  # (N, R, L, D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        gradient = _take(gradients[0], inverse)  # (N, R, L, D)
        return (gradient.sum(1) if ctx.shared else gradient), None, None


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Take rows of x, (N, L, D) or (N, R, L, D), in the order of (N, R, L)."""
    n, rounds, length = order.shape
    base = torch.arange(n if x.dim() == 3 else n * rounds, device=x.device) * length
    rows = order + base.view(n, -1, 1)
    return x.reshape(-1, x.shape[-1]).index_select(0, rows.reshape(-1)).view(n, rounds, length, -1)


class WindowedLSHAttention(nn.Module):
    """Stand in for reformer_pytorch.LSHAttention: same call, same returns, any length.

    `hash_buckets` = 1 is sliding-window attention over the last `window` tokens.
    """

    rotations: Tensor
    band: Tensor
    fill: Tensor

    def __init__(self, dim_head: int, rounds: int, hash_buckets: int, window: int, seed: int) -> None:
        super().__init__()
        self.rounds, self.hash_buckets, self.window = rounds, hash_buckets, window
        self.decisions: dict[int, Tensor] = {}  # hash buckets of the forward pass, for the reversible recomputation
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("rotations", torch.randn(dim_head, rounds, max(hash_buckets // 2, 1), generator=draw))
        distance = window + torch.arange(window)[:, None] - torch.arange(2 * window)[None]  # query row, key column
        self.register_buffer("band", (distance >= 1) & (distance <= window), persistent=False)
        fill = torch.where(distance == 0, SELF_LOGIT, MASKED_LOGIT)
        self.register_buffer("fill", fill, persistent=False)

    def hash(self, qk: Tensor) -> Tensor:
        """Return the hash bucket of each vector in each round: (N, L, D) -> (N, R, L)."""
        if self.hash_buckets == 1:
            return torch.zeros(qk.shape[0], self.rounds, qk.shape[1], dtype=torch.long, device=qk.device)
        rotated = torch.einsum("nld,drk->nrlk", qk, self.rotations)
        return torch.cat([rotated, -rotated], -1).argmax(-1)

    def forward(self, qk: Tensor, v: Tensor, input_mask: Tensor | None = None, **call: Any) -> tuple[Tensor, ...]:
        """Attend: (N, L, D) twice, mask (N, L) of real tokens -> (N, L, D), no weights, hash buckets (N, R * L)."""
        assert call.get("input_attn_mask") is None and call.get("pos_emb") is None
        length = qk.shape[1]
        padding = -length % self.window
        with torch.no_grad():
            buckets = self._decide(qk, input_mask, call.get("_depth"), bool(call.get("_reverse")))  # (N, R, L)
            padded = F.pad(buckets, (0, padding), value=self.hash_buckets)  # (N, R, L')
            order, inverse, allowed = self._sort(padded)
        qk, v = F.pad(qk, (0, 0, 0, padding)), F.pad(v, (0, 0, 0, padding))  # (N, L', D)
        out = self._attend(qk, v, order, inverse, allowed)
        return out[:, :length], torch.empty(0), buckets.flatten(1)

    def _decide(self, qk: Tensor, mask: Tensor | None, depth: int | None, again: bool) -> Tensor:
        if again and depth in self.decisions:
            return self.decisions.pop(depth).long()
        buckets = self.hash(qk)
        if mask is not None:
            buckets = torch.where(mask[:, None], buckets, self.hash_buckets)  # pads sort last
        if self.training and depth is not None:
            self.decisions[depth] = buckets.to(torch.int8)
        return buckets

    def _sort(self, buckets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sort by hash bucket, then time; return the order, its inverse (N, R, L) and who may see whom."""
        n, rounds, length = buckets.shape
        time = torch.arange(length, device=buckets.device)
        order = (buckets * length + time).argsort(-1)
        inverse = torch.empty_like(order).scatter_(-1, order, time.expand_as(order))
        mine = buckets.gather(-1, order).view(n, rounds, -1, self.window)  # (N, R, C, W)
        before = F.pad(mine[:, :, :-1], (0, 0, 1, 0), value=-1)
        keys = torch.cat([before, mine], -1)  # (N, R, C, 2W)
        return order, inverse, (keys[..., None, :] == mine[..., None]) & self.band  # (N, R, C, W, 2W)

    def _attend(self, qk: Tensor, v: Tensor, order: Tensor, inverse: Tensor, allowed: Tensor) -> Tensor:
        n, length, dim = qk.shape
        rows = torch.cat([qk * dim**-0.5, F.normalize(qk.float(), dim=-1), v], -1)  # halves would divide padding by 0
        rows = Permute.apply(rows, order, inverse).view(n, self.rounds, -1, self.window, 3 * dim)
        q, kv = rows[..., :dim], rows[..., dim:]
        kv = torch.cat([F.pad(kv[:, :, :-1], (0, 0, 0, 0, 1, 0)), kv], 3)  # (N, R, C, 2W, 2D)
        logits = torch.where(allowed, q @ kv[..., :dim].transpose(-1, -2), self.fill)  # (N, R, C, W, 2W)
        out = logits.softmax(-1) @ kv[..., dim:]  # (N, R, C, W, D)
        if self.rounds == 1:
            only: Tensor = Permute.apply(out.view(n, 1, length, dim), inverse, order)[:, 0]  # (N, L, D)
            return only
        weight = logits.logsumexp(-1, keepdim=True)  # (N, R, C, W, 1)
        sorted_rounds = torch.cat([out, weight], -1).view(n, self.rounds, length, dim + 1)
        both: Tensor = Permute.apply(sorted_rounds, inverse, order)  # (N, R, L, D + 1)
        return (both[..., :-1] * both[..., -1:].softmax(1)).sum(1)  # (N, L, D)

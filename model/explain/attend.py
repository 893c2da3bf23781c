"""What the last row of a sequence attends to: by layer and head, its hash bucket and the rows that it reads there.

In: a checkpoint's model and one sequence. Out: weights per layer, head and row. Needs torch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import WindowedLSHAttention
from model.contract.rows import Array
from model.reformer import ClickModel, Rows


class Attended(NamedTuple):
    """What the last of L rows reads."""

    weight: Array  # (layers, H, L) f4, 1 over each head's rows; LSH rounds are summed
    hash_bucket: Array  # (layers, H, R) i8 of the last row
    sizes: Array  # (layers, H, R, NB) i8 rows in each hash bucket


def attended(model: ClickModel, rows: Rows) -> Attended:
    """Run one sequence without padding and look into every layer."""
    seen: list[tuple[WindowedLSHAttention, Tensor]] = []

    def note(module: Any, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        seen.append((module, given[0]))

    modules = [attention.lsh_attn for attention in model.attentions()]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            model.eval()(rows)
    finally:
        for hook in hooks:
            hook.remove()
    found = [last_row(module, qk) for module, qk in seen]
    return Attended(*(np.stack(column) for column in zip(*found, strict=True)))


def last_row(module: WindowedLSHAttention, qk: Tensor) -> tuple[Array, Array, Array]:
    """Return weights (H, L), hash buckets (H, R) and their sizes (H, R, NB) for the last row of qk (H, L, d)."""
    length, dim = qk.shape[1:]
    buckets = module.hash(qk)  # (H, R, L)
    mine = buckets[..., -1]  # (H, R)
    same = buckets == mine[..., None]  # (H, R, L)
    later = same.flip(-1).cumsum(-1).flip(-1) - 1  # same hash bucket from here on, without the last row itself
    read = same & (later >= 1) & (later <= module.window)
    alone = ~read.any(-1, keepdim=True)  # (H, R, 1)
    read = read | (alone & (torch.arange(length) == length - 1))
    logits = torch.einsum("hd,hld->hl", qk[:, -1] * dim**-0.5, F.normalize(qk, dim=-1))[:, None]  # (H, 1, L)
    logits = torch.where(read, logits, -torch.inf)  # (H, R, L)
    share = logits.logsumexp(-1).masked_fill(alone[..., 0], -1e4).softmax(-1)  # (H, R)
    weight = (logits.softmax(-1) * share[..., None]).sum(1)  # (H, L)
    sizes = F.one_hot(buckets, module.hash_buckets).sum(2)  # (H, R, NB)
    return weight.numpy(), mine.numpy(), sizes.numpy()

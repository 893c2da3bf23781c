"""Networks to compare with: what may stand between the row embedding and the heads instead of our Reformer.

In: embedded rows (B, L, D) of right-padded sequences and the mask of real rows. Out: hidden states (B, L, D), causal.
"""

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from reformer_pytorch import Reformer
from torch import Tensor, nn

LIBRARY_WINDOW, LIBRARY_HASHES = 32, 2  # the library's bucket_size and n_hashes; lengths are padded to twice the first


class Sizes(Protocol):
    """What a network must know of ReformerConfig."""

    @property
    def dim(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def dropout(self) -> float: ...


class Recurrent(nn.Module):
    """An LSTM or a GRU.

    Neither needs to know where a sequence ends, but their graph is fed as ours is: what stands after the end is 0.
    """

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], sizes: Sizes) -> None:
        super().__init__()
        dropout = sizes.dropout if sizes.depth > 1 else 0.0
        self.cells = kind(sizes.dim, sizes.dim, sizes.depth, batch_first=True, dropout=dropout)

    def forward(self, x: Tensor, input_mask: Tensor) -> Tensor:
        hidden: Tensor = self.cells(x)[0]  # (B, L, D)
        return hidden * input_mask[..., None]


class Transformer(nn.Module):
    """Full causal attention."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            sizes.dim, sizes.heads, 4 * sizes.dim, sizes.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, sizes.depth, enable_nested_tensor=False)

    def forward(self, x: Tensor, input_mask: Tensor) -> Tensor:
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)  # (L, L) True: hidden
        hidden: Tensor = self.layers(x, mask=causal, is_causal=True)
        return hidden


class LibraryReformer(nn.Module):
    """reformer_pytorch as it is: chunks of sorted hash buckets, new rotations at every pass."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.blocks = Reformer(
            sizes.dim, sizes.depth, heads=sizes.heads, bucket_size=LIBRARY_WINDOW, n_hashes=LIBRARY_HASHES, causal=True,
            ff_chunks=1, ff_dropout=sizes.dropout, post_attn_dropout=sizes.dropout, reverse_thres=10**9,
        )  # fmt: skip

    def forward(self, x: Tensor, input_mask: Tensor) -> Tensor:
        length = x.shape[1]
        padding = -length % (2 * LIBRARY_WINDOW)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library calls functions that torch has renamed
            hidden: Tensor = self.blocks(F.pad(x, (0, 0, 0, padding)), input_mask=F.pad(input_mask, (0, padding)))
        return hidden[:, :length]


RECURRENT = ("lstm", "gru")
NETWORKS: dict[str, Callable[[Sizes], nn.Module]] = {
    "lstm": lambda sizes: Recurrent(nn.LSTM, sizes),
    "gru": lambda sizes: Recurrent(nn.GRU, sizes),
    "transformer": Transformer,
    "library_reformer": LibraryReformer,
}

"""The click model: rows of a user sequence -> reach logits and next-event logits at every row.

In: event types, hashed item and category rows, running-feature bytes, lengths (the inputs of the ONNX graph).
Between: reformer_pytorch's reversible blocks with windowed-bucket attention. No absolute position, strictly causal.
Checkpoints are a directory: weights.pt (tensors only) and a readable config.json beside it.
"""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from reformer_pytorch import Reformer
from torch import Tensor, nn

from model.attention import WindowedLSHAttention
from model.contract.errors import FunnelcastError
from model.contract.events import N_TYPES
from model.contract.features import WIDTH
from model.contract.stages import STAGES
from model.contract.vocabulary import UNK_ROW
from model.networks import NETWORKS

SCOPES = 2  # in the category of the row, anywhere
NAMED = UNK_ROW + 1  # first embedding row that stands for names
STANDARD = ("embed.wide.centre", "embed.wide.spread")  # older checkpoints took the features as they are
LEAST_SPREAD = 0.1  # of a view of a feature: what hardly varies is not blown up
LEAST_RATE = 1e-3  # of reach, and the most of it that is missing, where training begins
WEIGHTS, CONFIG = "weights.pt", "config.json"


class ReformerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the network, and what regularises it.

    `anonymity` is the share of training sequences whose names are shuffled: the network can tell same from other, but
    cannot learn an item by heart. On a log of a few hundred users anything less overfits.
    """

    dim: int = 64
    depth: int = 2
    heads: int = 4
    hash_buckets: int = 8
    window: int = 16
    rounds: int = 1
    item_hashes: int = 2048
    category_hashes: int = 1024
    types: int = N_TYPES
    features: int = WIDTH
    ramps: int = 0  # finer views of each feature; they overfit to outcomes, and serve a network taught by others
    dropout: float = 0.3
    anonymity: float = 1.0
    reversible: bool = False
    seed: int = 0
    network: str = "reformer"  # or one of model.networks, to compare with

    def __post_init__(self) -> None:
        if self.network != "reformer" and self.network not in NETWORKS:
            raise ValueError(f"the network {self.network!r} is none of reformer, {', '.join(NETWORKS)}")


TIERS = {"small": ReformerConfig(), "base": ReformerConfig(dim=128, depth=4, reversible=True)}


class Rows(NamedTuple):
    """Right-padded rows of B users; ids are vocabulary rows, features the bytes of the reducer."""

    type: Tensor  # (B, L) int64
    item: Tensor  # (B, L) int64
    category: Tensor  # (B, L) int64
    features: Tensor  # (B, L, F) uint8
    lengths: Tensor  # (B,) int64


class Logits(NamedTuple):
    reach: Tensor  # (B, L, 2, S)
    next_type: Tensor  # (B, L, T)


def byte_views() -> Tensor:
    """Return what the network sees of a feature byte, (256, 4): is it there, near zero, its logarithm, its size."""
    byte = torch.arange(256, dtype=torch.float64)
    near = torch.exp(-byte / 4)
    return torch.stack([(byte > 0).double(), near, torch.log1p(byte) / 5, byte / 128], -1).float()


def knots_of(rate: Tensor, count: int) -> Tensor:
    """Return ascending bytes (count,) for a byte that comes at these rates (256,): 0, 1, then equally likely shares.

    Where fewer bytes than that occur, the last is repeated: no byte that occurs lies beyond it.
    """
    above = rate.double().clone()
    above[0] = 0.0
    shares = torch.arange(1, count - 1, device=rate.device) / (count - 2) * above.sum()
    found = torch.searchsorted(above.cumsum(0) + 1e-9, shares.double().contiguous()).clamp(1, 255)
    knots = torch.unique(torch.cat([found.new_tensor([0, 1]), found]))
    return torch.cat([knots, knots[-1:].repeat(count - len(knots))]).float()


class Standardised(nn.Linear):
    """A linear layer over columns that it takes as centred and of unit spread."""

    centre: Tensor  # (columns,)
    spread: Tensor  # (columns,)

    def __init__(self, columns: int, dim: int) -> None:
        super().__init__(columns, dim)
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("spread", torch.ones(columns))

    def standardise(self, rates: Tensor, views: Tensor) -> None:
        """Learn how columns are distributed: the rates (F, 256) of each byte, and its views (F or 1, 256, V)."""
        mean = (rates[..., None] * views).sum(1)  # (F, V)
        square = (rates[..., None] * views**2).sum(1)  # (F, V)
        self.centre.copy_(mean.flatten())
        self.spread.copy_((square - mean**2).clamp(min=LEAST_SPREAD**2).sqrt().flatten())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.spread  # of (x - centre) / spread; constant in a graph
        return F.linear(x, weight, self.bias - (weight * self.centre).sum(-1))


class RowEmbedding(nn.Module):
    """Sum of the embeddings of type, item and category and of a small network over the running features."""

    views: Tensor
    knots: Tensor  # (F, K + 1) bytes between which the ramps rise

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        dim, self.anonymity = config.dim, config.anonymity
        self.types, self.items = nn.Embedding(config.types, dim), nn.Embedding(config.item_hashes, dim)
        self.categories = nn.Embedding(config.category_hashes, dim)
        for table, spread in ((self.types, 0.3), (self.items, 0.1), (self.categories, 0.1)):
            nn.init.normal_(table.weight, std=spread)
        self.register_buffer("views", byte_views())
        self.wide = Standardised(config.features * self.views.shape[1], dim)
        self.deep = nn.Sequential(nn.LayerNorm(dim), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(dim, dim))
        self.fine: Standardised | None = None
        if config.ramps:
            self.register_buffer("knots", torch.arange(config.ramps + 1.0).repeat(config.features, 1))
            self.fine = Standardised(config.features * config.ramps, dim)
            nn.init.zeros_(self.fine.weight)  # adds nothing to a teacher's weights at first
            nn.init.zeros_(self.fine.bias)

    def forward(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the embedding of each row (B, L, D), and the plain features (B, L, D) for the heads."""
        features = rows.features.long()
        wide = self.wide(self.views[features].flatten(-2))  # (B, L, D)
        if self.fine is not None:
            place = features + 256 * torch.arange(features.shape[-1], device=features.device)
            wide = wide + self.fine(self._ramps_of_bytes().flatten(0, 1)[place].flatten(-2))  # (B, L, D)
        names = self.items(self._shuffled(rows.item, self.items.num_embeddings))
        names = names + self.categories(self._shuffled(rows.category, self.categories.num_embeddings))
        return self.types(rows.type) + names + self.deep(wide), wide  # (B, L, D)

    def _ramps_of_bytes(self) -> Tensor:
        """Look each byte's ramps up in a graph, where this is constant, in the place of calculating them."""
        every = torch.arange(256.0, device=self.knots.device)[:, None].expand(-1, self.knots.shape[0])  # (256, F)
        return self.ramps(every).transpose(0, 1)  # (F, 256, K)

    def ramps(self, features: Tensor) -> Tensor:
        """Return how far each byte (..., F) has risen between each two knots, 0 to 1, (..., F, K).

        Piecewise linear encoding, of Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep
        Learning".
        """
        low, width = self.knots[:, :-1], (self.knots[:, 1:] - self.knots[:, :-1]).clamp(min=1.0)
        return ((features[..., None] - low) / width).clamp(0, 1)

    def standardise(self, rates: Tensor) -> None:
        """Let bytes that come at these rates (F, 256) be centred and of unit spread, and ramps equally likely."""
        self.wide.standardise(rates, self.views[None])
        if self.fine is not None:
            self.knots.copy_(torch.stack([knots_of(rate, self.knots.shape[1]) for rate in rates]))
            self.fine.standardise(rates, self._ramps_of_bytes())

    def _shuffled(self, names: Tensor, rows: int) -> Tensor:
        """While training, give the names of each sequence other embedding rows, the same name always the same one."""
        if not self.training or self.anonymity == 0:
            return names
        shift = torch.randint(rows - NAMED, names[:, :1].shape, device=names.device)  # (B, 1)
        shift = shift * (torch.rand(shift.shape, device=names.device) < self.anonymity)
        return torch.where(names < NAMED, names, NAMED + (names - NAMED + shift) % (rows - NAMED))


def windowed_trunk(config: ReformerConfig) -> nn.Module:
    """Return the library's blocks, whose attention ClickModel replaces."""
    trunk: nn.Module = Reformer(
        config.dim, config.depth, heads=config.heads, bucket_size=config.window, n_hashes=config.rounds,
        causal=True, ff_chunks=1, ff_dropout=config.dropout, post_attn_dropout=config.dropout,
        reverse_thres=0 if config.reversible else 10**9,
    )  # fmt: skip
    return trunk


class ClickModel(nn.Module):
    """Score every row of right-padded sequences from the rows up to it."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = RowEmbedding(config)
        self.reformer: Any = (
            windowed_trunk(config) if config.network == "reformer" else NETWORKS[config.network](config)
        )
        for layer, attention in enumerate(self.attentions()):
            sizes = config.dim // config.heads, config.rounds, config.hash_buckets, config.window
            attention.lsh_attn = WindowedLSHAttention(*sizes, seed=1000 * config.seed + layer)
        self.norm = nn.LayerNorm(config.dim)
        self.drop = nn.Dropout(config.dropout)
        self.reach = nn.Linear(2 * config.dim, SCOPES * len(STAGES))
        self.next_type = nn.Linear(2 * config.dim, config.types)

    def attentions(self) -> list[Any]:
        """Return the library's self-attention module of each layer that has windowed-bucket attention."""
        if self.config.network != "reformer":
            return []
        return [block.f.net.fn for block in self.reformer.layers.blocks]

    def forward(self, rows: Rows) -> Logits:
        x, wide = self.embed(rows)  # (B, L, D) twice
        real = torch.arange(x.shape[1], device=x.device)[None] < rows.lengths[:, None]  # (B, L)
        hidden = self.drop(self.norm(self.reformer(x, input_mask=real)))  # (B, L, D)
        return self.heads(torch.cat([hidden, wide], -1))

    def begin(self, bytes_seen: Tensor, reached: Tensor) -> None:
        """Start from what the training rows are on average: rates (F, 256) of feature bytes and (2, S) of reach."""
        self.embed.standardise(bytes_seen)
        with torch.no_grad():
            self.reach.bias.copy_(torch.logit(reached, LEAST_RATE).flatten())

    def heads(self, hidden: Tensor) -> Logits:
        """Hidden state and plain features (B, L, 2D) -> logits."""
        reach = self.reach(hidden).unflatten(-1, (SCOPES, len(STAGES)))  # (B, L, 2, S)
        return Logits(reach, self.next_type(hidden))


def weights(model: ClickModel) -> dict[str, Tensor]:
    """Return the tensors worth keeping; the library lists its blocks twice."""
    return {name: value for name, value in model.state_dict().items() if ".irrev_blocks." not in name}


def save_weights(model: ClickModel, path: Path) -> None:
    """Write the tensors to a temporary name and rename."""
    temporary = path.with_suffix(".tmp")
    torch.save({name: value.detach().cpu().clone() for name, value in weights(model).items()}, temporary)
    os.replace(temporary, path)


def load_weights(model: ClickModel, path: Path) -> None:
    """Fill the model from a file of save_weights; FunnelcastError if the tensors are not those of this model."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise FunnelcastError(f"{path} does not hold the weights its config describes ({error}); train again") from None
    missing = [name for name in missing if ".irrev_blocks." not in name and name not in STANDARD]
    if missing or unexpected:
        found = f"lacks {missing[:3]}" if missing else f"holds unknown tensors {unexpected[:3]}"
        raise FunnelcastError(f"{path} {found}: it belongs to another version of the network; train again")


def load_config(folder: Path) -> ReformerConfig:
    """Read the sizes of the network from the config.json of a checkpoint directory."""
    try:
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=_Config).model
    except OSError:
        raise FunnelcastError(
            f"no checkpoint in {folder}: expected {CONFIG} and {WEIGHTS}; give the --out of a finished funnelcast train"
        ) from None
    except msgspec.DecodeError as error:
        raise FunnelcastError(f"{folder / CONFIG} is not a checkpoint's config ({error}); train again") from None


class _Config(msgspec.Struct):
    model: ReformerConfig


def load_checkpoint(folder: Path | str) -> ClickModel:
    """Return the model of a checkpoint directory, ready to score; FunnelcastError if it is not one."""
    folder = Path(folder)
    model = ClickModel(load_config(folder))
    load_weights(model, folder / WEIGHTS)
    return model.eval()

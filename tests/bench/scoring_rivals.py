"""What the hot state is measured against in scoring.py: an LSTM step, full attention, the library's own Reformer.

In: a ReformerConfig. Out: ONNX files or torch modules with the click model's row embedding and heads, random weights.
"""

import warnings
from pathlib import Path

import torch
from reformer_pytorch import Reformer
from torch import Tensor, nn

from export.fused import FusedLayer, FusedModel
from export.to_onnx import INPUTS, ROW, write
from model.attention import MASKED_LOGIT, SELF_LOGIT
from model.contract.stages import STAGES
from model.reformer import SCOPES, ClickModel, ReformerConfig, RowEmbedding, Rows

HIDDEN, LAYERS = 192, 2  # of the LSTM
LSTM_OUTPUTS = ("reach", "next_type", "after")


class LSTMStep(nn.Module):
    """One row per user through an LSTM whose state (slots, 2 * layers, hidden) is gathered in the graph."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.embed = RowEmbedding(config)
        self.lstm = nn.LSTM(config.dim, HIDDEN, LAYERS)
        self.reach = nn.Linear(HIDDEN + config.dim, SCOPES * len(STAGES))
        self.next_type = nn.Linear(HIDDEN + config.dim, config.types)

    def forward(
        self, type: Tensor, item: Tensor, category: Tensor, features: Tensor, slot: Tensor, state: Tensor
    ) -> tuple[Tensor, ...]:
        x, wide = self.embed(Rows(type, item, category, features, slot))  # (B, D) twice
        before = state[slot].transpose(0, 1)  # (2 * layers, B, hidden)
        out, (h, c) = self.lstm(x[None], (before[:LAYERS].contiguous(), before[LAYERS:].contiguous()))
        hidden = torch.cat([out[0], wide], -1)
        reach = self.reach(hidden).view(-1, SCOPES, len(STAGES))
        return reach, self.next_type(hidden), torch.cat([h, c]).transpose(0, 1)


def export_lstm(config: ReformerConfig, path: Path) -> None:
    """Write an LSTM step graph."""
    ids, features = torch.ones(3, dtype=torch.long), torch.zeros(3, config.features, dtype=torch.uint8)
    example = (ids, ids, ids, features, torch.arange(3), torch.zeros(5, 2 * LAYERS, HIDDEN))
    axes = {name: {0: "batch"} for name in (*ROW, "slot", *LSTM_OUTPUTS)} | {"state": {0: "slots"}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Exporting a model to ONNX with a batch_size")
        write(LSTMStep(config), example, path, (*ROW, "slot", "state"), LSTM_OUTPUTS, axes)


class FullAttention(FusedModel):
    """A ClickModel whose rows attend to all earlier rows; logits at every position."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__(model)
        self.layers = nn.ModuleList(FusedLayer(block) for block in model.reformer.layers.blocks)

    def forward(
        self, type: Tensor, item: Tensor, category: Tensor, features: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        x, wide = self.model.embed(Rows(type, item, category, features, lengths))  # (B, L, D) twice
        left, right = x, x
        time = torch.arange(type.shape[1])
        earlier, self_ = time[None] < time[:, None], time[None] == time[:, None]  # (L, L)
        fill = torch.where(self_, SELF_LOGIT, MASKED_LOGIT)
        for layer in self.layers:
            query, value, _ = layer.project(right)
            shape = (type.shape[0], -1, layer.heads, layer.dim)
            query, value = (part.view(shape).transpose(1, 2) for part in (query, value))  # (B, H, L, d)
            key = query / query.norm(dim=-1, keepdim=True)
            seen = torch.where(earlier, query @ key.transpose(-1, -2), fill).softmax(-1) @ value
            left, right = layer.update(left, right, seen.transpose(1, 2).flatten(2))
        return tuple(self.model.heads(self.hidden(left, right, wide)))


def export_full_attention(config: ReformerConfig, path: Path) -> None:
    """Write a whole-sequence graph of full attention."""
    ids, features = torch.ones(3, 32, dtype=torch.long), torch.zeros(3, 32, config.features, dtype=torch.uint8)
    axes = {name: {0: "batch", 1: "length"} for name in (*ROW, "reach", "next_type")} | {"lengths": {0: "batch"}}
    example = (ids, ids, ids, features, torch.tensor([32, 5, 1]))
    write(FullAttention(ClickModel(config)), example, path, INPUTS, ("reach", "next_type"), axes)


def library_reformer(config: ReformerConfig, chunk: int = 32) -> ClickModel:
    """Return a click model around the library's own LSH attention, as many rounds as ours."""
    model = ClickModel(config)
    model.reformer = Reformer(
        config.dim, config.depth, heads=config.heads, bucket_size=chunk, n_hashes=config.rounds, causal=True,
        ff_chunks=1, reverse_thres=10**9,
    )  # fmt: skip
    return model.eval()

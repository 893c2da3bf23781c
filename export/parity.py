"""Parity: does model.onnx score as the torch model does, whatever the padding and the batch mates?

In: a ClickModel and its ONNX file. Out: figures for the provenance, or ParityError.
Hash decisions are compared first (a near-tie may fall differently in another kernel), then values; the same user alone,
in a batch and under other padding must come out bitwise equal.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor

from export.to_onnx import INPUTS, OUTPUTS
from model.attention import WindowedLSHAttention
from model.contract.errors import FunnelcastError
from model.reformer import ClickModel, ReformerConfig, Rows

TOLERANCE = 1e-5  # in probability
NEAR_TIE = 1e-5  # relative distance of the two best rotations below which a hash decision may fall either way
BATCHES = (1, 3, 6)  # users per run of each length class

Arrays = dict[str, npt.NDArray[Any]]


class ParityError(FunnelcastError):
    """The exported graph does not score as the torch model does."""


class Parity(NamedTuple):
    """What was compared, and the worst that was found."""

    positions: int = 0
    decisions: int = 0
    near_ties_flipped: int = 0
    reach: float = 0.0  # largest difference in probability
    next_type: float = 0.0

    def plus(self, other: "Parity") -> "Parity":
        return Parity(
            self.positions + other.positions,
            self.decisions + other.decisions,
            self.near_ties_flipped + other.near_ties_flipped,
            max(self.reach, other.reach),
            max(self.next_type, other.next_type),
        )


def check_parity(model: ClickModel, path: Path, classes: tuple[int, ...], seed: int = 0) -> Parity:
    """Compare on random users of every length class, in several batch sizes; ParityError on the first failure."""
    rng = np.random.default_rng(seed)
    shipped, traced = session(path.read_bytes()), session(with_decisions(path))
    found, shorter = Parity(), 0
    for length in classes:
        for users in BATCHES:
            lengths = rng.integers(shorter + 1, length + 1, users)
            inputs = random_inputs(model.config, lengths, length, rng)
            found = found.plus(compare(model, shipped, traced, inputs))
            check_alone(shipped, inputs, classes, model.config, rng)
        shorter = length
    return found


def compare(
    model: ClickModel, shipped: onnxruntime.InferenceSession, traced: onnxruntime.InferenceSession, inputs: Arrays
) -> Parity:
    """Compare one batch: hash decisions, then the values of users whose decisions agree."""
    expected, decisions, ties = run_torch(model, inputs)
    real = np.arange(inputs["type"].shape[1])[None] < inputs["lengths"][:, None]  # (B, L)
    extra = traced.run(None, inputs)[len(shipped.get_outputs()) :]
    made = np.reshape(extra, decisions.shape)  # (layers, B, L, H*R)
    differ = (made != decisions) & real[None, :, :, None]
    if (differ & ~ties).any():
        raise ParityError(
            f"{int((differ & ~ties).sum())} hash decisions of the exported graph differ from torch beyond near-ties,"
            " expected none; nothing was written: export again, and report it if it repeats"
        )
    same = ~differ.any((0, 2, 3))  # (B,)
    reach, next_type = shipped.run(list(OUTPUTS), inputs)
    kept = real & same[:, None]
    worst = [
        difference(sigmoid(reach), sigmoid(expected["reach"]), kept),
        difference(softmax(next_type), softmax(expected["next_type"]), kept),
    ]
    if not max(worst) <= TOLERANCE:
        raise ParityError(
            f"scores of the exported graph differ from torch by {max(worst):.1e} in probability, expected at most"
            f" {TOLERANCE:.0e}; nothing was written: export again, and report it if it repeats"
        )
    return Parity(int(real.sum()), int(real.sum()) * differ.shape[0] * differ.shape[3], int(differ.sum()), *worst)


def check_alone(
    shipped: onnxruntime.InferenceSession,
    inputs: Arrays,
    classes: tuple[int, ...],
    config: ReformerConfig,
    rng: np.random.Generator,
) -> None:
    """Score each user alone, in its own length class and under other padding; all bits must agree."""
    together = shipped.run(list(OUTPUTS), inputs)
    for user, length in enumerate(inputs["lengths"]):
        padded = next(size for size in classes if size >= length)
        alone = random_inputs(config, inputs["lengths"][user : user + 1], padded, rng)
        for name in INPUTS[:4]:
            alone[name][:, :length] = inputs[name][user, :length]
        for one, many in zip(shipped.run(list(OUTPUTS), alone), together, strict=True):
            if not np.array_equal(one[0, :length], many[user, :length]):
                raise ParityError(
                    f"a user of {length} rows scores differently alone and in a batch, expected the same bits;"
                    " nothing was written: export again, and report it if it repeats"
                )


def run_torch(model: ClickModel, inputs: Arrays) -> tuple[Arrays, npt.NDArray[Any], npt.NDArray[Any]]:
    """Return torch's logits, its hash decisions (layers, B, L, H*R), and where these are near-ties.

    A network that does not hash has no layers of them.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: Any, arguments: tuple[Tensor, ...], result: tuple[Tensor, ...]) -> None:
        seen.append((module.hash(arguments[0]), near_ties(module, arguments[0])))  # (B*H, R, L) each

    hooks = [attention.lsh_attn.register_forward_hook(note) for attention in model.attentions()]
    try:
        logits = expected_outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    batch, length = inputs["type"].shape
    if not seen:
        nothing = np.zeros((0, batch, length, 0), np.bool_)
        return logits, nothing, nothing
    decisions, ties = (
        np.stack([part.view(batch, -1, length).transpose(1, 2).numpy() for part in column])
        for column in zip(*seen, strict=True)
    )
    return logits, decisions, ties


def ring_counts(decisions: npt.NDArray[Any], lengths: npt.NDArray[Any], hash_buckets: int) -> npt.NDArray[Any]:
    """Return how many tokens hash decisions (layers, B, L, H*R) put into each ring of each user, (B, rings)."""
    layers, users, padded, rounds = decisions.shape
    real = (np.arange(padded) < lengths[:, None])[:, :, None, None]  # (B, L, 1, 1)
    made = decisions.transpose(1, 2, 0, 3)[..., None] == np.arange(hash_buckets)  # (B, L, layers, H*R, NB)
    return np.asarray((made & real[..., None]).sum(1, dtype=np.int32).reshape(users, layers * rounds * hash_buckets))


def near_ties(attention: WindowedLSHAttention, qk: Tensor) -> Tensor:
    """Mark vectors (N, L, D) whose two best rotations are too close to call -> (N, R, L)."""
    if attention.hash_buckets == 1:
        return torch.zeros(qk.shape[0], attention.rounds, qk.shape[1], dtype=torch.bool)
    rotated = torch.einsum("nld,drk->nrlk", qk, attention.rotations)
    best = torch.cat([rotated, -rotated], -1).topk(2, -1).values
    return best[..., 0] - best[..., 1] <= NEAR_TIE * best[..., 0]


def expected_outputs(model: ClickModel, inputs: Arrays) -> Arrays:
    """Return the torch model's logits for graph inputs."""
    model.eval()
    with torch.no_grad():
        logits = model(Rows(*(torch.from_numpy(inputs[name]) for name in INPUTS)))
    return {"reach": logits.reach.numpy(), "next_type": logits.next_type.numpy()}


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """Open a graph on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def with_decisions(path: Path) -> bytes:
    """Return the graph with the hash decisions of every layer as further outputs."""
    graph = onnx.load(path)
    for node in graph.graph.node:
        if node.op_type == "ArgMax":
            graph.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT64, None))
    return bytes(graph.SerializeToString())


def random_inputs(config: ReformerConfig, lengths: npt.NDArray[Any], padded: int, rng: np.random.Generator) -> Arrays:
    """Draw users of given lengths, their padding filled with garbage of valid range."""
    shape = (len(lengths), padded)
    scale = rng.choice([1.0, 8.0, 40.0], (*shape[:1], 1, config.features))
    return {
        "type": rng.integers(2, config.types, shape),
        "item": rng.integers(1, config.item_hashes, shape),
        "category": rng.integers(1, config.category_hashes, shape) // 100 * 100 + 1,
        "features": np.minimum(rng.exponential(scale, (*shape, config.features)), 255).astype(np.uint8),
        "lengths": lengths.astype(np.int64),
    }


def difference(found: npt.NDArray[Any], expected: npt.NDArray[Any], kept: npt.NDArray[Any]) -> float:
    """Return the largest difference over kept positions; NaN counts as infinite."""
    gap = np.abs(found - expected)[kept]
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def sigmoid(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))

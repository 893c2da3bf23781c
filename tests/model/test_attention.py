"""Laws of windowed-bucket attention, against a plain loop over tokens that is its specification."""

import pytest
import torch
from torch import Tensor

from model.attention import SELF_LOGIT, WindowedLSHAttention

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

LENGTH, DIM = 41, 8


def attention(rounds: int = 1, hash_buckets: int = 4, window: int = 4) -> WindowedLSHAttention:
    return WindowedLSHAttention(DIM, rounds, hash_buckets, window, seed=3).eval()


def vectors(users: int, length: int = LENGTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(users, length, DIM, generator=draw), torch.randn(users, length, DIM, generator=draw)


def by_the_rule(layer: WindowedLSHAttention, qk: Tensor, v: Tensor) -> Tensor:
    """One token at a time: the last W tokens of its own hash bucket in each round, itself only if nothing else."""
    buckets, out = layer.hash(qk[None])[0], torch.zeros_like(v)  # (R, L), (L, D)
    for t in range(len(qk)):
        logits, values = [], []
        for row in buckets:
            seen = [s for s in range(t) if row[s] == row[t]][-layer.window :]
            keys = qk[seen] / qk[seen].norm(dim=-1, keepdim=True)
            logits += [keys @ qk[t] / DIM**0.5, torch.tensor([SELF_LOGIT])]
            values += [v[seen], v[t : t + 1]]
        out[t] = torch.cat(logits).softmax(0) @ torch.cat(values)
    return out


@pytest.mark.parametrize(
    ("rounds", "hash_buckets", "window"), [(1, 4, 4), (2, 4, 4), (1, 8, 16), (1, 1, 4), (1, 4, 64)]
)
def test_a_token_attends_to_the_last_tokens_of_its_own_hash_bucket(rounds: int, hash_buckets: int, window: int) -> None:
    layer = attention(rounds, hash_buckets, window)
    qk, v = vectors(2)
    out = layer(qk, v)[0]
    for user in range(2):
        torch.testing.assert_close(out[user], by_the_rule(layer, qk[user], v[user]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rounds", [1, 2])
def test_later_tokens_never_change_earlier_outputs(rounds: int) -> None:
    layer = attention(rounds)
    qk, v = vectors(3)
    whole = layer(qk, v)[0]
    for length in (1, 7, 16, 40):
        prefix = layer(qk[:, :length], v[:, :length])[0]
        torch.testing.assert_close(prefix, whole[:, :length], atol=1e-6, rtol=0)


def test_padding_never_changes_a_token() -> None:
    layer = attention()
    qk, v = vectors(1, 64)
    mask = torch.arange(64)[None] < LENGTH
    padded = layer(qk, v, input_mask=mask)[0][:, :LENGTH]
    torch.testing.assert_close(padded, layer(qk[:, :LENGTH], v[:, :LENGTH])[0], atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_plain_rule() -> None:
    layer = attention(rounds=2)
    found, expected = [], []
    for grads, forward in (
        (found, lambda qk, v: layer(qk, v)[0][0]),
        (expected, lambda qk, v: by_the_rule(layer, qk[0], v[0])),
    ):
        qk, v = (part.requires_grad_() for part in vectors(1))
        (forward(qk, v) * torch.arange(LENGTH)[:, None]).sum().backward()
        grads += [qk.grad, v.grad]
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-4)


def test_rotations_are_stored_not_drawn_anew() -> None:
    layer = attention()
    assert "rotations" in layer.state_dict()
    qk, v = vectors(2)
    assert torch.equal(layer(qk, v)[0], layer(qk, v)[0])
    assert not torch.equal(layer.rotations, WindowedLSHAttention(DIM, 1, 4, 4, seed=4).rotations)

"""Laws of the pool: the last W tokens of each ring, each in its place; slots do not touch each other."""

import numpy as np
import pytest

from model.contract.pool import KEY, VALUE, Pool, State

STATE = State(depth=2, heads=2, dim_head=3, rounds=2, hash_buckets=4, window=5)


def step(pool: Pool, slots: list[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as the step graph returns them."""
    ring = np.arange(STATE.depth * STATE.heads * STATE.rounds).reshape(1, STATE.depth, -1) * STATE.hash_buckets
    ring = np.array(slots)[:, None, None] * STATE.rings + ring
    ring = ring + rng.integers(0, STATE.hash_buckets, ring.shape)
    key, value = rng.standard_normal((2, len(slots), STATE.depth, STATE.heads, STATE.dim_head)).astype("f4")
    pool.write(ring, key, value)
    return ring, key, value


def test_a_ring_holds_its_last_tokens_each_at_its_rank_modulo_the_window() -> None:
    pool, rng = Pool(STATE, 3), np.random.default_rng(1)
    told: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for _ in range(60):
        slots = rng.permutation(3)[: rng.integers(1, 4)].tolist()
        ring, key, value = step(pool, slots, rng)
        for (row, layer, place), to in np.ndenumerate(ring):
            head = place // STATE.rounds
            told.setdefault(int(to), []).append((key[row, layer, head], value[row, layer, head]))
    assert pool.counts.tolist() == [len(told.get(ring, [])) for ring in range(3 * STATE.rings)]
    for ring, tokens in told.items():
        for rank in range(max(0, len(tokens) - STATE.window), len(tokens)):
            np.testing.assert_array_equal(pool.kv[ring, KEY, rank % STATE.window], tokens[rank][0])
            np.testing.assert_array_equal(pool.kv[ring, VALUE, rank % STATE.window], tokens[rank][1])


def test_a_state_loaded_into_another_slot_goes_on_as_the_old_one_would() -> None:
    pool, rng = Pool(STATE, 4), np.random.default_rng(2)
    for _ in range(30):
        step(pool, [1, 3], rng)
    shape = pool.slots, STATE.rings
    rings, counts = pool.kv.reshape(*shape, 2, STATE.window, -1), pool.counts.reshape(shape)
    pool.load(np.array([2, 0]), rings[[1, 3]].copy(), counts[[1, 3]].copy())
    step(pool, [1, 3], np.random.default_rng(3))
    step(pool, [2, 0], np.random.default_rng(3))
    np.testing.assert_array_equal(rings[[2, 0]], rings[[1, 3]])
    np.testing.assert_array_equal(counts[[2, 0]], counts[[1, 3]])


def test_a_reset_slot_is_empty_and_its_neighbours_are_not() -> None:
    pool, rng = Pool(STATE, 3), np.random.default_rng(4)
    step(pool, [0, 1, 2], rng)
    pool.reset(np.array([1]))
    assert (pool.counts.reshape(3, -1).sum(1) > 0).tolist() == [True, False, True]


def test_blocks_are_the_same_memory_in_the_graphs_shape() -> None:
    pool = Pool(STATE, 2)
    assert pool.blocks.shape == (2 * STATE.rings * 2, STATE.window, STATE.dim_head)
    assert np.shares_memory(pool.blocks, pool.kv)


@pytest.mark.parametrize("slots", [1, 7])
def test_the_bytes_of_a_user_are_what_the_arrays_hold(slots: int) -> None:
    pool = Pool(STATE, slots)
    assert STATE.bytes * slots == pool.kv.nbytes + pool.counts.nbytes

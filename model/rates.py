"""Rates: how often the positions of some users reach each stage, and how often each feature has each byte."""

from collections.abc import Iterator

import numpy as np

from model.contract.features import WIDTH
from model.contract.rows import Array
from model.examples import CENSORED, Examples
from model.reformer import LEAST_RATE

USERS_READ = 4096  # at once


def known_outcomes(examples: Examples, users: list[int]) -> Iterator[Array]:
    """Yield the outcomes (P, 2, S) of the positions of some users that are not censored, some users at a time."""
    for begin in range(0, len(users), USERS_READ):
        some = users[begin : begin + USERS_READ]
        reach = np.concatenate([examples.reach[examples.start[user] : examples.start[user + 1]] for user in some])
        yield np.asarray(reach[reach[:, 0, 0] != CENSORED])


def base_rates(examples: Examples, users: list[int]) -> Array:
    """Return how often each stage is reached after the positions of some users, (2, S)."""
    hits, known = 0.0, 0
    for reach in known_outcomes(examples, users):
        hits, known = hits + reach.sum(0, dtype=np.float64), known + len(reach)
    return np.asarray(hits / max(known, 1))


def odds_of(examples: Examples, users: list[int]) -> Array:
    """Return how many positions do not reach a stage for one that does, (2, S)."""
    rate = base_rates(examples, users)
    return np.asarray((1 - rate) / np.maximum(rate, LEAST_RATE))


def byte_rates(examples: Examples, users: list[int]) -> Array:
    """Return how often each feature has each byte in the rows of some users, (F, 256)."""
    count = np.zeros((WIDTH, 256))
    for user in users:
        seen = examples.features[examples.start[user] : examples.start[user + 1]]  # (L, F)
        np.add.at(count, (np.arange(WIDTH), seen), 1)
    return np.asarray(count / max(count[0].sum(), 1))

"""Refining: journeys in, those kept that the refiner's odds and a draw of their own let pass. Numpy alone."""

from collections.abc import Iterator

import numpy as np

from model.contract.rows import Array
from model.virtual.habits import Refiner
from model.virtual.journeys import Journey
from model.virtual.statistics import Path, statistics

LEAF = -2  # scikit-learn's mark in Tree.feature


def odds(refiner: Refiner, table: Array) -> Array:
    """Return the log-odds (U,) of being real, from statistics (U, F)."""
    found = np.full(len(table), refiner.start)
    users = np.arange(len(table))
    for tree in refiner.trees:
        feature, threshold = np.array(tree.feature), np.array(tree.threshold)
        left, right, node = np.array(tree.left), np.array(tree.right), np.zeros(len(table), np.int64)
        while (feature[node] != LEAF).any():
            inner = feature[node] != LEAF
            low = table[users, np.where(inner, feature[node], 0)].astype(np.float32) <= threshold[node]
            node = np.where(inner, np.where(low, left[node], right[node]), node)
        found += refiner.rate * np.array(tree.value)[node]
    return found


def path_of(journey: Journey) -> Path:
    """Return a journey as its statistics want it."""
    return Path(np.array(journey.type), np.array(journey.ts, np.int64), journey.item, journey.category)


def kept(journeys: Iterator[Journey], refiner: Refiner, seed: int, first_ms: int) -> Iterator[Journey]:
    """Yield the journeys that are kept; each one's draw depends on seed and number alone."""
    for journey in journeys:
        table = statistics(path_of(journey), refiner.trigrams, first_ms)[None]
        chance = np.exp(min(0.0, float(odds(refiner, table)[0]) - refiner.ceiling))
        if np.random.default_rng([seed, journey.number, 1]).random() < chance:
            yield journey

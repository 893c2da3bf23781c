"""Tables: habits made ready for drawing, by sums that a random number between 0 and 1 is looked up in."""

import numpy as np

from model.contract.events import TYPE_CODE, TYPES
from model.contract.rows import Array
from model.virtual.habits import ANY, Habits


class Tables:
    """Habits, cumulated for drawing."""

    def __init__(self, habits: Habits, start_ms: int | None, gap_ms: int) -> None:
        self.gap_ms = gap_ms
        self.start_ms = habits.start_ms if start_ms is None else start_ms
        self.first_types = [TYPE_CODE[name] for name in habits.first]
        self.first_chances = np.cumsum(list(habits.first.values()))
        self.visits = cumulated([users for _, _, users in habits.visits])
        self.manners = cumulated([manner.users for manner in habits.manners])
        self.days = np.array(habits.day_share) / sum(habits.day_share)
        self.hours = cumulated(habits.hour_share)
        self.ranks = [cumulated(ranks) for ranks in habits.ranks]
        self.category_names = [name for name, _, _ in habits.categories] or [""]
        self.category_chances = cumulated([visitors for _, visitors, _ in habits.categories] or [1])
        self.items = {name: max(items, 1) for name, _, items in habits.categories}
        self._gaps, self._turns = habits.gaps, {name: np.array(chances) for name, chances in habits.turns.items()}
        self._even = np.linspace(0, 1, len(habits.gaps[ANY]))

    def turn(self, before: int | None, kind: int) -> Array:
        pair = ANY if before is None else f"{TYPES[before]}>{TYPES[kind]}"
        return self._turns.get(pair, self._turns[ANY])

    def gap(self, before: int, kind: int, chance: float) -> float:
        """Return a gap inside a session, ms."""
        quantiles = self._gaps.get(f"{TYPES[before]}>{TYPES[kind]}", self._gaps[ANY])
        return float(1000 * np.interp(chance, self._even, quantiles))


def cumulated(shares: Array | list[float] | list[int]) -> Array:
    """Return running sums that end at 1."""
    summed = np.cumsum(np.asarray(shares, np.float64))
    return np.asarray(summed / max(summed[-1], 1e-12))

"""Budgets: the target's users in, those to be asked at the end and shares of the others to learn from out.

Three in ten are asked and never seen before; smaller budgets lie inside larger ones. The users of a budget are divided
into folds, the first of which stops whatever needs users to stop by.
"""

from typing import NamedTuple

import numpy as np

from model.contract.errors import FunnelcastError
from model.evaluation.splits import place
from model.examples import Examples
from model.transfer.strategies import has_answers

TEST_SHARE, FOLDS = 0.3, 4
FEWEST_USERS = 4  # of a budget: two folds of two


class Budget(NamedTuple):
    """Some share of the target's users."""

    name: str
    folds: list[list[int]]

    @property
    def users(self) -> list[int]:
        """All of them, ascending."""
        return sorted(user for part in self.folds for user in part)

    @property
    def validation(self) -> list[int]:
        """Those to stop by, where one split has to do."""
        return self.folds[0]

    @property
    def train(self) -> list[int]:
        """Those to train on, where one split has to do."""
        return self.without(0)

    def without(self, fold: int) -> list[int]:
        """Return the users of the other folds, ascending."""
        return sorted(user for number, part in enumerate(self.folds) if number != fold for user in part)


def budgets_of(target: Examples, shares: list[float], seed: int) -> tuple[list[Budget], list[int]]:
    """Divide the target's users into budgets and test users, each by a hash of the name."""
    everyone = range(len(target.users))
    test = [user for user in everyone if place(target.users[user], seed, "test") < TEST_SHARE]
    pool = [user for user in everyone if place(target.users[user], seed, "test") >= TEST_SHARE]
    pool.sort(key=lambda user: place(target.users[user], seed, "budget"))
    if len(pool) < 2 * FEWEST_USERS or not has_answers(target, test):
        raise FunnelcastError(
            f"the target has {len(target.users)} users, expected at least {3 * FEWEST_USERS} with rows whose horizon"
            " ends inside the log; use a longer log or a shorter --horizon-minutes"
        )
    found = []
    for share in sorted(shares):
        users = pool[: max(FEWEST_USERS, round(share * len(pool)))]
        ranked = sorted(users, key=lambda user: place(target.users[user], seed, "validation"))
        parts = np.array_split(ranked, min(FOLDS, len(ranked) // 2))
        budget = Budget(f"{share:.4g}", [sorted(part.tolist()) for part in parts])
        for name, part in (("train", budget.train), ("validation", budget.validation)):
            if not has_answers(target, part):
                raise FunnelcastError(
                    f"with {share:.1%} of the target's users no {name} user has a row whose horizon ends inside the"
                    " log; give a larger share"
                )
        found.append(budget)
    return found, test

"""Splits: who is fitted on, who decides when to stop and how to calibrate, and who is asked, never seen before.

Folds group by user. The time split fits on the past and asks about the future: what the past did not know is cut off.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from model.contract.errors import FunnelcastError
from model.contract.rows import Array
from model.examples import CENSORED, Examples

VALIDATION_SHARE = 0.15  # of the users that are not tested on
PAST_SHARE = 0.6  # of the time of the log
TIME = "time"


class Split(NamedTuple):
    """One fit and one test; `past` are the examples as the fit may see them."""

    name: str
    past: Examples
    train: list[int]
    validation: list[int]
    whole: Examples
    test: list[int]


def place(user: str, seed: int, what: str) -> float:
    """Place a user in 0 to 1 by its name alone, so that no other user moves it."""
    digest = hashlib.blake2b(f"{seed}:{what}:{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def user_folds(examples: Examples, count: int, seed: int) -> list[Split]:
    """Divide the users into folds, each tested once."""
    fold = [int(place(user, seed, "fold") * count) for user in examples.users]
    held = [place(user, seed, "validation") < VALIDATION_SHARE for user in examples.users]
    everyone = range(len(examples.users))
    return [
        Split(
            f"fold{number}",
            examples,
            [user for user in everyone if fold[user] != number and not held[user]],
            [user for user in everyone if fold[user] != number and held[user]],
            examples,
            [user for user in everyone if fold[user] == number],
        )
        for number in range(count)
    ]


def time_split(examples: Examples, horizon_ms: int, seed: int) -> Split:
    """Fit on rows whose horizon ends before a moment, test on the rows after it; the same users may be in both."""
    first, last = int(examples.ts.min()), int(examples.ts.max())
    moment = first + int(PAST_SHARE * (last - first))
    future = examples.reach.copy()
    future[examples.ts < moment] = CENSORED
    past = before(examples, moment, horizon_ms)
    held = [place(user, seed, "validation") < VALIDATION_SHARE for user in examples.users]
    there = np.flatnonzero(np.diff(past.start)).tolist()
    return Split(
        TIME,
        past,
        [user for user in there if not held[user]],
        [user for user in there if held[user]],
        examples._replace(reach=future),
        list(range(len(examples.users))),
    )


def only(examples: Examples, users: list[int]) -> Examples:
    """Return some users and nobody else, in their order."""
    rows = np.concatenate([np.arange(examples.start[user], examples.start[user + 1]) for user in users])
    start = np.concatenate([[0], np.cumsum(np.diff(examples.start)[users])])
    columns = {name: getattr(examples, name)[rows] for name in Examples._fields[2:]}
    return Examples(users=tuple(examples.users[user] for user in users), start=start, **columns)


def before(examples: Examples, moment: int, horizon_ms: int) -> Examples:
    """Return the examples as they were known at a moment: no later rows, no label that looks beyond it."""
    keep = examples.ts < moment  # (N,)
    kept: Array = np.concatenate([[0], np.cumsum(keep)])
    reach = examples.reach.copy()
    reach[examples.ts + horizon_ms > moment] = CENSORED
    columns = {name: getattr(examples, name)[keep] for name in ("ts", "type", "item", "category", "features")}
    return Examples(users=examples.users, start=kept[examples.start], reach=reach[keep], **columns)


def check(split: Split) -> None:
    """Refuse a split in which somebody has nothing to go by."""
    sides = (("train", split.past, split.train), ("validation", split.past, split.validation))
    for name, examples, users in (*sides, ("test", split.whole, split.test)):
        known = [bool((_reach(examples, user) != CENSORED).any()) for user in users]
        if not any(known):
            raise FunnelcastError(
                f"{split.name} has {len(users)} {name} users and none has a row whose horizon ends in time, expected"
                " some; use a longer log, fewer --folds or fewer --horizon-hours"
            )


def _reach(examples: Examples, user: int) -> Array:
    return np.asarray(examples.reach[examples.start[user] : examples.start[user + 1], 0, 0])

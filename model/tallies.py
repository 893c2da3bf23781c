"""Tallies: what of a user came before a row with the same category, the same item or in the same session.

A worker keeps none of this, so no network is given it: trees that teach one are, for it sees the rows themselves.
"""

import numpy as np

from model.contract.events import CLASS_OF, N_CLASSES, SESSION_END
from model.contract.rows import DAY_MS, Array
from model.examples import Examples


def tallies(examples: Examples, rows: Array) -> Array:
    """Return columns (P, C) float32 of some rows (P,), from rows of their users up to them and none after.

    Of its category, item and session: rows, and how many are the first of their day, session, category and item; rows
    of each feature class; ms since the first and the one before. Last the share of the category in the user's rows.
    """
    users = np.unique(examples.user_of(rows))
    every = np.concatenate([np.arange(examples.start[user], examples.start[user + 1]) for user in users])  # (N,)
    user, ts, kind = examples.user_of(every), examples.ts[every], examples.type[every]
    ends = kind == SESSION_END
    session = np.cumsum(ends) - ends  # one that ends belongs to it
    category, item, classes = examples.category[every], examples.item[every], np.eye(N_CLASSES)[CLASS_OF[kind]]
    columns = []
    for group in (category, item, session):
        one = np.unique(pairs(user, group), return_inverse=True)[1]  # (N,) number of a user's group
        fresh = [is_first(one, other) for other in (ts // DAY_MS, session, category, item)]
        columns += [so_far(one, np.column_stack([np.ones(len(one)), *fresh, classes])), since(one, ts)]
    so_many = so_far(user, np.ones((len(user), 1)))
    columns.append(columns[0][:, :1] / so_many)
    return np.hstack(columns, dtype=np.float32, casting="same_kind")[np.searchsorted(every, rows)]


def pairs(group: Array, other: Array) -> Array:
    """Return a number (N,) for each pair of two columns of numbers from 0 on."""
    return np.asarray(group * (int(other.max()) + 1) + other)


def is_first(group: Array, other: Array) -> Array:
    """Say of each row (N,) whether it is the first of its group with this value of another column."""
    first = np.zeros(len(group), bool)
    first[np.unique(pairs(group, other), return_index=True)[1]] = True
    return first


def so_far(group: Array, values: Array) -> Array:
    """Sum values (N, V) over the rows of the group up to each one, itself among them."""
    order = np.argsort(group, kind="stable")
    total = np.cumsum(values[order], axis=0)
    begin = np.searchsorted(group[order], group[order])
    found = np.empty_like(total)
    found[order] = total - total[begin] + values[order][begin]
    return found


def since(group: Array, ts: Array) -> Array:
    """Return ms since the first row of the group and since the one before, (N, 2); 0 where there is none."""
    order = np.argsort(group, kind="stable")
    sorted_ts, begin = ts[order], np.searchsorted(group[order], group[order])
    before = np.maximum(np.arange(len(group)) - 1, begin)
    found = np.empty((len(group), 2))
    found[order] = np.column_stack([sorted_ts - sorted_ts[begin], sorted_ts - sorted_ts[before]])
    return found

"""Memories: what the table remembers of each user's campaigns in; a column per campaign, for the policy, and back out.

A table value is a version byte, then (campaign key, 2 * time of the last fire + armed), by key. Campaigns that are not
in the policy at present are kept as they are.
"""

from __future__ import annotations

from struct import Struct

import numpy as np

from model.contract.errors import TableError
from worker.policy import NEVER, Numbers, Policy

VERSION = 1
_ENTRY = Struct("<Iq")


class Memories:
    """The campaign memories of some users, by their slots."""

    def __init__(self, policy: Policy) -> None:
        self._column = {campaign.key: column for column, campaign in enumerate(policy.campaigns)}
        self._codes = np.full((0, len(self._column)), NEVER, np.int64)
        self._others: dict[int, dict[int, int]] = {}  # by slot, by campaign key: of other campaigns

    def of(self, slots: Numbers) -> Numbers:
        """Return the memories (U, C), in which the policy writes; they have room for these users."""
        users = int(slots.max(initial=-1)) + 1
        if users > len(self._codes):
            more = max(users, 2 * len(self._codes)) - len(self._codes)
            self._codes = np.pad(self._codes, ((0, more), (0, 0)), constant_values=NEVER)
        return self._codes

    def load(self, slot: int, value: bytes | None) -> None:
        """Take up what the table remembers of a user; raise TableError if it is of another version."""
        if value is None:
            return
        if value[:1] != bytes([VERSION]) or len(value) % _ENTRY.size != 1:
            raise TableError(
                f"a campaign memory of {len(value)} bytes and version {value[0] if value else 'none'} was found, "
                f"version {VERSION} is expected; run the release that wrote it, or start with a new app_id"
            )
        codes, others = self.of(np.array([slot]))[slot], {}
        for key, code in _ENTRY.iter_unpack(value[1:]):
            if key in self._column:
                codes[self._column[key]] = code
            else:
                others[key] = code
        if others:
            self._others[slot] = others

    def value(self, slot: int) -> bytes | None:
        """Return the table value of a user; None for an empty one, which needs no table entry."""
        codes = self._codes[slot].tolist() if slot < len(self._codes) else []
        known = {key: codes[column] for key, column in self._column.items() if codes and codes[column] != NEVER}
        entries = sorted((self._others.get(slot, {}) | known).items())
        return bytes([VERSION]) + b"".join(_ENTRY.pack(*entry) for entry in entries) if entries else None

    def drop(self, slots: Numbers) -> None:
        """Forget the users of some slots."""
        self.of(slots)[slots] = NEVER
        for slot in slots.tolist():
            self._others.pop(slot, None)

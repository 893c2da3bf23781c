"""Click events in, the reducer's columns out; and the names of the categories, which the columns hold as hashes."""

import numpy as np

from model.contract.events import TYPE_CODE, ClickEvent
from model.contract.features import price_codes
from model.contract.rows import Array, Events
from model.contract.vocabulary import hashes64, name_hash, name_hashes


class Categories(dict[str | None, int]):
    """Hashes of category names, remembered; `names` maps them back (names with one hash are one category)."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, bytes] = {}

    def __missing__(self, name: str | None) -> int:
        code = self[name] = name_hash(name)
        if name is not None:
            self.names[code] = name.encode()
        return code

    def keep(self, codes: set[int]) -> None:
        """Forget all names but those of these hashes."""
        for code in self.names.keys() - codes:
            del self.names[code]
        self.clear()


def columns_of(events: list[ClickEvent], slots: Array, categories: Categories) -> Events:
    """Turn click events and their users' slots into columns; learns the names of their categories."""
    codes = TYPE_CODE
    return Events(
        slots,
        np.array([event.timestamp for event in events], np.int64),
        np.array([codes[event.event] for event in events], np.uint8),
        name_hashes([event.item_id for event in events]),
        np.array([categories[event.category] for event in events], np.uint32),
        price_codes(np.array([event.price for event in events], np.float64)),  # None becomes NaN
        hashes64([event.message_id for event in events]),
    )

"""Names to numbers: stable hashes of items, categories and message ids, and the vocabulary of the network."""

import hashlib
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from model.contract.events import TYPES

MISSING = 0  # hash of a name that is not there
UNK_ROW = 1  # embedding row of a missing name; row 0 pads


def name_hash(name: str | None) -> int:
    """Hash a name to 32 bits: 0 for a missing one, else its crc32, where 0 becomes 1."""
    return MISSING if name is None else zlib.crc32(name.encode()) or 1


def hash64(message_id: str) -> int:
    """Hash a message id to 64 bits; 0 stands for a missing one."""
    return int.from_bytes(hashlib.blake2b(message_id.encode(), digest_size=8).digest(), "little")


def name_hashes(names: Iterable[str | None]) -> npt.NDArray[np.uint32]:
    """Hash many names as name_hash does."""
    crc32 = zlib.crc32
    return np.array([0 if name is None else crc32(name.encode()) or 1 for name in names], np.uint32)


def hashes64(message_ids: Iterable[str | None]) -> npt.NDArray[np.uint64]:
    """Hash many message ids as hash64 does; 0 for a missing one."""
    hasher, missing = hashlib.blake2b, bytes(8)
    digests = [missing if i is None else hasher(i.encode(), digest_size=8).digest() for i in message_ids]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


class Vocabulary(msgspec.Struct, frozen=True):
    """What the embedding rows of the network stand for."""

    types: tuple[str, ...] = TYPES
    item_hashes: int = 2048
    category_hashes: int = 1024
    hash: str = "crc32"

    def item_index(self, hashes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Embedding row of each item hash: 1 for a missing one, else 2 and up; same shape, int64."""
        return _index(hashes, self.item_hashes)

    def category_index(self, hashes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Embedding row of each category hash: 1 for a missing one, else 2 and up; same shape, int64."""
        return _index(hashes, self.category_hashes)

    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def _index(hashes: npt.NDArray[Any], rows: int) -> npt.NDArray[np.int64]:
    return np.where(hashes == MISSING, UNK_ROW, 2 + hashes.astype(np.int64) % (rows - 2))

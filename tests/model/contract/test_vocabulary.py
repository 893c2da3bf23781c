"""Hashes and embedding rows: stable, never colliding with what is missing, and fixed by a fingerprint."""

import zlib

import msgspec
import numpy as np

from model.contract.vocabulary import Vocabulary, hash64, hashes64, name_hash, name_hashes


def test_names_hash_to_their_crc32_and_missing_ones_to_0() -> None:
    assert name_hash("tent") == zlib.crc32(b"tent")
    assert name_hash(None) == 0


def test_no_name_hashes_to_0() -> None:
    assert zlib.crc32(b"") == 0
    assert name_hash("") == 1


def test_many_names_hash_as_each_alone() -> None:
    names = ["tent", "", None, "Zelte ü", "1"]
    assert name_hashes(names).tolist() == [name_hash(name) for name in names]
    assert hashes64(names).tolist() == [0 if name is None else hash64(name) for name in names]


def test_embedding_rows_keep_0_for_padding_and_1_for_missing() -> None:
    vocabulary = Vocabulary(item_hashes=10, category_hashes=5)
    hashes = np.array([[0, 1, 7], [8, 2**32 - 1, 9]], np.uint32)
    assert vocabulary.item_index(hashes).tolist() == [[1, 3, 9], [2, 2 + (2**32 - 1) % 8, 3]]
    assert vocabulary.category_index(hashes).tolist() == [[1, 3, 3], [4, 2 + (2**32 - 1) % 3, 2]]
    assert vocabulary.item_index(hashes).dtype == np.int64


def test_every_embedding_row_is_used_and_none_outside() -> None:
    rows = Vocabulary().category_index(np.arange(100_000, dtype=np.uint32))
    assert set(rows.tolist()) == set(range(1, 1024))


def test_the_default_vocabulary_has_the_fingerprint_that_models_were_trained_with() -> None:
    assert Vocabulary().fingerprint() == "9005aeec1120488fb6b80ecdf8aec305476db6825cbbabdb0c8b796c6affffa9"


def test_any_change_of_the_vocabulary_changes_its_fingerprint() -> None:
    changed = [
        Vocabulary(item_hashes=2047),
        Vocabulary(category_hashes=1),
        Vocabulary(hash="sha1"),
        Vocabulary(types=("pad",)),
    ]
    assert len({Vocabulary().fingerprint(), *(vocabulary.fingerprint() for vocabulary in changed)}) == 5


def test_a_vocabulary_read_from_json_is_the_same() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Vocabulary()), type=Vocabulary) == Vocabulary()

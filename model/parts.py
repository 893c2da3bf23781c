"""Parts: the users of a log in; whom to train on, whom to stop and calibrate by, whom to report on out."""

import hashlib

SHARES = {"test": 0.15, "validation": 0.15}  # of the users; the rest is trained on


def split(users: tuple[str, ...], seed: int) -> dict[str, list[int]]:
    """Divide users into train, validation and test by a hash of their name, so that no other user moves one."""
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index, user in enumerate(users):
        digest = hashlib.blake2b(f"{seed}:{user}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "little") / 2**64
        name = "test" if place < SHARES["test"] else "validation" if place < sum(SHARES.values()) else "train"
        parts[name].append(index)
    return parts

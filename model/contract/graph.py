"""What every program that runs the whole-sequence graph shares: its outputs, its groups of users, its golden answers.

No runtime is imported here: whoever opens a session passes it in.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from model.contract.bundle import Bundle
from model.contract.errors import BundleError
from model.contract.rows import Array

GROUP_TOKENS = 8192  # rows of one run, padding included: bounds its memory and its time
TOLERANCE = 1e-5  # between the golden probabilities and ours
OUTPUTS = ("reach", "next_type")


class Session(Protocol):
    """What is needed of an onnxruntime session."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array]) -> Sequence[Any]: ...


def groups(lengths: Array, classes: Sequence[int]) -> Iterator[tuple[Array, int]]:
    """Yield users of the same length class and that length, no more users together than one run may hold."""
    ordered = sorted(classes)
    wanted = np.searchsorted(ordered, lengths)
    for place, length in enumerate(ordered):
        users = np.flatnonzero(wanted == place)
        size = max(1, GROUP_TOKENS // length)
        for first in range(0, len(users), size):
            yield users[first : first + size], length


def check_golden(bundle: Bundle, session: Session) -> None:
    """Compare this machine's answers with the bundle's golden ones. Raises BundleError."""
    golden = bundle.golden()
    feed = {name: golden[name] for name in ("type", "item", "category", "features", "lengths")}
    real = np.arange(feed["type"].shape[1]) < feed["lengths"][:, None]  # (B, L)
    reach, next_type = session.run(OUTPUTS, feed)
    compare_golden(bundle, golden, real, reach[real], next_type[real])


def compare_golden(bundle: Bundle, golden: Mapping[str, Array], real: Array, reach: Array, next_type: Array) -> None:
    """Refuse a bundle whose `real` golden rows (B, L) are answered otherwise on this machine."""
    pairs = (("reach", reach, bundle.calibration.apply), ("next_type", next_type, softmax))
    apart = max(
        float(np.abs(probabilities(mine) - probabilities(golden[name][real])).max(initial=0))
        for name, mine, probabilities in pairs
    )
    if not apart <= TOLERANCE:
        raise BundleError(
            f"the bundle {bundle.path} answers its golden inputs {apart:.1e} off on this machine, at most "
            f"{TOLERANCE:.0e} is allowed; use the onnxruntime version of its provenance or export it again"
        )


def softmax(logits: Array) -> Array:
    """Turn logits (..., n) into probabilities, float64."""
    powers = np.exp(logits.astype("f8") - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

"""Answering: network inputs in, logits at every row out; by a bundle's graph, or by a checkpoint where torch is there.

Offline tools ask either through the same call, so that what they say of one holds for the other.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from model.contract.bundle import LENGTH_CLASSES, Calibration, Contract, load_bundle, pad
from model.contract.graph import Session, groups
from model.contract.rows import Array, Inputs
from model.contract.stages import STAGES
from model.offline.answers import Scorer

SCOPES = 2  # in the category of the row, anywhere


class Answerer(Protocol):
    """A network that can be asked."""

    name: str
    contract: Contract
    calibration: Calibration

    def run(self, feed: dict[str, Array]) -> Array:
        """Return reach logits (B, L, 2, S) of padded graph inputs."""


class GraphAnswerer:
    """The whole-sequence graph of a bundle."""

    def __init__(self, folder: Path) -> None:
        bundle = load_bundle(folder)
        self._session: Session = Scorer(bundle).session
        self.name, self.contract, self.calibration = bundle.name, bundle.contract, bundle.calibration

    def run(self, feed: dict[str, Array]) -> Array:
        (reach,) = self._session.run(("reach",), feed)
        return np.asarray(reach)


class TorchAnswerer:
    """The torch model of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        from model.checkpoint import read_checkpoint

        self.model, checkpoint = read_checkpoint(folder)
        self.name, self.contract, self.calibration = checkpoint.name, checkpoint.contract, checkpoint.calibration

    def run(self, feed: dict[str, Array]) -> Array:
        import torch

        from model.reformer import Rows

        with torch.no_grad():
            return np.asarray(self.model(Rows(*(torch.from_numpy(feed[name]) for name in Rows._fields))).reach)


def reach_logits(answerer: Answerer, inputs: Inputs) -> Array:
    """Return the reach logits of every row of the inputs, users end to end: (N, 2, S)."""
    starts = np.concatenate([[0], np.cumsum(inputs.lengths)])
    found = np.empty((starts[-1], SCOPES, len(STAGES)), np.float32)  # (N, 2, S)
    for users, length in groups(inputs.lengths, LENGTH_CLASSES):
        reach = answerer.run(pad(inputs, users.tolist(), length, answerer.contract.vocabulary))  # (B, L, 2, S)
        for user, rows in zip(users.tolist(), reach, strict=True):
            found[starts[user] : starts[user + 1]] = rows[: inputs.lengths[user]]
    return found

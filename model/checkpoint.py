"""A finished training run on disk: weights.pt, and config.json with all that export needs beside the weights.

In: a directory. Out: the Checkpoint struct and the ClickModel it describes, or FunnelcastError.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from model.contract.bundle import Calibration, Contract
from model.contract.errors import FunnelcastError
from model.reformer import CONFIG, WEIGHTS, ClickModel, ReformerConfig, load_checkpoint, save_weights


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What config.json holds: the network's sizes, what it was trained for, and how."""

    name: str
    model: ReformerConfig
    contract: Contract
    calibration: Calibration
    training: dict[str, Any] = {}
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}


def save_checkpoint(folder: Path, model: ClickModel, checkpoint: Checkpoint) -> None:
    """Write weights and config; each file appears whole or not at all."""
    save_weights(model, folder / WEIGHTS)
    write_whole(folder / CONFIG, msgspec.json.format(msgspec.json.encode(checkpoint), indent=2) + b"\n")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def read_checkpoint(folder: Path | str) -> tuple[ClickModel, Checkpoint]:
    """Return the model, ready to score, and its config; FunnelcastError if the directory is no finished run."""
    folder = Path(folder)
    model = load_checkpoint(folder)
    try:
        return model, msgspec.json.decode((folder / CONFIG).read_bytes(), type=Checkpoint)
    except msgspec.DecodeError as error:
        raise FunnelcastError(f"{folder / CONFIG} is not the config of a finished run ({error}); train again") from None

"""Pack a bundle: the directory that the worker loads, complete or not there at all.

In: a checkpoint. Out: model.onnx, contract.json, calibration.json, golden.npz and provenance.json in a new directory.
Everything is written under a temporary name, checked (parity with torch, the contract's own loader), then renamed.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.parity import Arrays, Parity, check_parity, expected_outputs, random_inputs
from export.to_onnx import export_onnx
from model.checkpoint import Checkpoint, read_checkpoint
from model.contract.bundle import (
    CALIBRATION,
    CONTRACT,
    FILES,
    GOLDEN,
    MODEL,
    PROVENANCE,
    Bundle,
    Contract,
    load_bundle,
    to_json,
)
from model.contract.errors import FunnelcastError
from model.reformer import WEIGHTS, ClickModel

GOLDEN_LENGTHS = (1, 7, 32, 33, 90, 128)  # rows of the golden users, padded with garbage to the longest
GOLDEN_SEED = 20171125
PACKAGES = ("funnelcast", "torch", "reformer-pytorch", "numpy", "onnx", "onnxruntime")


def pack(checkpoint: Path, target: Path, name: str = "") -> tuple[Bundle, Parity]:
    """Export a checkpoint into a new bundle directory; on any failure nothing is left behind."""
    if target.exists():
        raise FunnelcastError(f"{target} exists already, expected a new name; remove it or choose another")
    model, config = read_checkpoint(checkpoint)
    if config.model.network != "reformer":
        raise FunnelcastError(
            f"{checkpoint} holds a network of the kind {config.model.network}, but only reformer can be exported; train"
            " one with --model reformer"
        )
    identity = {"name": name or config.name, "version": sha256(checkpoint / WEIGHTS)[:12]}
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=parent))
    except OSError as error:
        raise FunnelcastError(f"cannot write to {target}: {error.strerror}; choose another directory") from None
    try:
        parity = fill(temporary, model, config, identity)
        load_bundle(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_bundle(target), parity


def fill(folder: Path, model: ClickModel, config: Checkpoint, identity: dict[str, str]) -> Parity:
    """Write every file of the bundle; ParityError if the graph does not score as torch does."""
    export_onnx(model, folder / MODEL)
    add_identity(folder / MODEL, identity, config.contract)
    parity = check_parity(model, folder / MODEL, config.contract.length_classes)
    (folder / CONTRACT).write_bytes(to_json(config.contract))
    (folder / CALIBRATION).write_bytes(to_json(config.calibration))
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden(model))
    (folder / PROVENANCE).write_bytes(to_json(provenance(folder, config, identity, parity)))
    return parity


def golden(model: ClickModel) -> Arrays:
    """Return fixed users of several lengths with the torch model's logits."""
    rng = np.random.default_rng(GOLDEN_SEED)
    inputs = random_inputs(model.config, np.array(GOLDEN_LENGTHS), max(GOLDEN_LENGTHS), rng)
    return inputs | expected_outputs(model, inputs)


def add_identity(path: Path, identity: dict[str, str], contract: Contract) -> None:
    """Repeat in the graph's own metadata what the bundle is."""
    graph = onnx.load(path)
    properties = {
        "contract_version": str(contract.version),
        "contract_fingerprint": contract.fingerprint(),
        "vocabulary_fingerprint": contract.vocabulary.fingerprint(),
    }
    onnx.helper.set_model_props(graph, identity | properties)
    onnx.save(graph, path)


def provenance(folder: Path, config: Checkpoint, identity: dict[str, str], parity: Parity) -> dict[str, Any]:
    """Return where the bundle comes from, with the sha256 of each of its files."""
    return identity | {
        "contract_fingerprint": config.contract.fingerprint(),
        "git_commit": git_commit(),
        "data": config.data,
        "model": config.model,
        "training": config.training,
        "metrics": config.metrics,
        "parity": parity._asdict(),
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "files": {name: sha256(folder / name) for name in FILES},
    }


def installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def git_commit() -> str:
    """Return the commit of this source tree, marked if it was changed since; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

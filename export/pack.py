"""Pack a bundle: the directory that the worker loads, complete or not there at all.

In: a checkpoint. Out: a new directory with its graphs, contract, calibration, golden inputs and provenance.
A network without windowed-bucket attention has no step graphs: the worker then scores whole sequences.
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

import msgspec
import numpy as np
import onnx

from export.parity import Arrays, Parity, check_parity, random_inputs, ring_counts, run_torch
from export.step import state_of
from export.step_parity import StepParity, check_step
from export.to_onnx import export_onnx, export_step
from model.checkpoint import Checkpoint, read_checkpoint
from model.contract.bundle import (
    BURST,
    CALIBRATION,
    CONTRACT,
    GOLDEN,
    MODEL,
    PROVENANCE,
    STEP,
    Bundle,
    Contract,
    files,
    load_bundle,
    to_json,
)
from model.contract.errors import FunnelcastError
from model.networks import RECURRENT
from model.reformer import WEIGHTS, ClickModel

GOLDEN_LENGTHS = (1, 7, 32, 33, 90, 128)  # rows of the golden users, padded with garbage to the longest
GOLDEN_SEED = 20171125
EXPORTABLE = ("reformer", *RECURRENT)
PACKAGES = ("funnelcast", "torch", "reformer-pytorch", "numpy", "onnx", "onnxruntime")


def pack(
    checkpoint: Path, target: Path, name: str = "", gate: dict[str, Any] | None = None
) -> tuple[Bundle, Parity, StepParity | None]:
    """Export a checkpoint into a new bundle directory; on any failure nothing is left behind.

    `gate` are the figures of its comparison with the serving bundle, for the provenance.
    """
    if target.exists():
        raise FunnelcastError(f"{target} exists already, expected a new name; remove it or choose another")
    model, config = read_checkpoint(checkpoint)
    if config.model.network not in EXPORTABLE:
        raise FunnelcastError(
            f"{checkpoint} holds a network of the kind {config.model.network}, but only {', '.join(EXPORTABLE)} can be"
            " exported; train one with --model"
        )
    identity = {"name": name or config.name, "version": sha256(checkpoint / WEIGHTS)[:12]}
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=parent))
    except OSError as error:
        raise FunnelcastError(f"cannot write to {target}: {error.strerror}; choose another directory") from None
    try:
        found = fill(temporary, model, config, identity, gate or {})
        load_bundle(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_bundle(target), *found


def fill(
    folder: Path, model: ClickModel, config: Checkpoint, identity: dict[str, str], gate: dict[str, Any]
) -> tuple[Parity, StepParity | None]:
    """Write every file of the bundle; ParityError if a graph does not score as torch does."""
    stepping = bool(model.attentions())
    contract = msgspec.structs.replace(config.contract, state=state_of(model.config) if stepping else None)
    export_onnx(model, folder / MODEL)
    if stepping:
        export_step(model, folder / STEP)
        export_step(model, folder / BURST, burst=True)
    for graph in folder.glob("*.onnx"):
        add_identity(graph, identity, contract)
    parity = check_parity(model, folder / MODEL, contract.length_classes)
    step_parity = check_step(model, folder / MODEL, folder / STEP, folder / BURST) if stepping else None
    (folder / CONTRACT).write_bytes(to_json(contract))
    (folder / CALIBRATION).write_bytes(to_json(config.calibration))
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden(model))
    told = provenance(config, identity) | {
        "parity": parity._asdict() | ({"step": step_parity._asdict()} if step_parity else {}),
        **({"gate": gate} if gate else {}),
        "files": {name: sha256(folder / name) for name in files(contract)},
    }
    (folder / PROVENANCE).write_bytes(to_json(told))
    return parity, step_parity


def golden(model: ClickModel) -> Arrays:
    """Return fixed users of several lengths with the torch model's logits, and how full their rings are at the end."""
    rng = np.random.default_rng(GOLDEN_SEED)
    lengths = np.array(GOLDEN_LENGTHS)
    inputs = random_inputs(model.config, lengths, max(GOLDEN_LENGTHS), rng)
    logits, decisions, _ = run_torch(model, inputs)  # decisions (layers, B, L, H*R)
    return inputs | logits | {"counts": ring_counts(decisions, lengths, model.config.hash_buckets)}


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


def provenance(config: Checkpoint, identity: dict[str, str]) -> dict[str, Any]:
    """Return where the bundle comes from."""
    return identity | {
        "contract_fingerprint": config.contract.fingerprint(),
        "git_commit": git_commit(),
        "data": config.data,
        "model": config.model,
        "training": config.training,
        "metrics": config.metrics,
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
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

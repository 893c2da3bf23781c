"""The bundle, all that export and worker share: a directory enters, checked structs leave; also builds graph inputs."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from model.contract.errors import BundleError
from model.contract.events import PAD, TYPES
from model.contract.features import FEATURES, WIDTH
from model.contract.pool import State
from model.contract.rows import DAY_MS, GAP_MS, LATE_MS, LMAX, Array, Inputs
from model.contract.stages import STAGES, Funnel
from model.contract.vocabulary import Vocabulary

CONTRACT_VERSION = 1
SCOPES = ("category", "user")
LENGTH_CLASSES = (32, 64, 128, 256, 512, 1024)
MODEL, STEP, BURST, CONTRACT, CALIBRATION, GOLDEN, PROVENANCE = (
    "model.onnx",
    "step.onnx",
    "burst.onnx",
    "contract.json",
    "calibration.json",
    "golden.npz",
    "provenance.json",
)
AGREED = ("version", "stages", "scopes", "types", "vocabulary", "features", "funnel", "gap_ms", "late_ms", "lmax")
FILES = (MODEL, CONTRACT, CALIBRATION, GOLDEN)  # of every bundle, each with its sha256 in provenance.json
SHIPPED = Path(__file__).parent.parent / "bundles" / "taobao"  # the bundle that comes with the project
T = TypeVar("T")


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """What a model was trained for; `base_rates` is per scope and stage (2, 6).

    `state` says how the hot state of a user is laid out; None where the bundle has no step graph.
    """

    version: int = CONTRACT_VERSION
    stages: tuple[str, ...] = tuple(STAGES)
    scopes: tuple[str, ...] = SCOPES
    types: tuple[str, ...] = TYPES
    vocabulary: Vocabulary = Vocabulary()
    features: tuple[str, ...] = FEATURES
    funnel: Funnel
    horizon_ms: int = DAY_MS
    gap_ms: int = GAP_MS
    late_ms: int = LATE_MS
    lmax: int = LMAX
    window: int
    length_classes: tuple[int, ...] = LENGTH_CLASSES
    base_rates: list[list[float]]
    thresholds: dict[str, float] = msgspec.field(default_factory=lambda: {"low": 0.3, "high": 0.7})
    state: State | None = None

    def agreed(self) -> dict[str, Any]:
        """Return the fields in which training and serving must be equal."""
        return {name: msgspec.to_builtins(getattr(self, name)) for name in AGREED}

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the canonical JSON of what training and serving must agree on."""
        return hashlib.sha256(msgspec.json.encode(self.agreed(), order="sorted")).hexdigest()


Kind = Literal["platt", "isotonic"]


class Knots(msgspec.Struct, frozen=True):
    """A rising line through points: probability `p` at logit `x`, straight between knots and level beyond them."""

    x: list[float]
    p: list[float]

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.p):
            raise ValueError(f"{len(self.x)} logits and {len(self.p)} probabilities are no knots")
        rising = np.all(np.diff(self.x) > 0) and np.all(np.diff(self.p) >= 0)
        if not (rising and 0 <= self.p[0] and self.p[-1] <= 1 and np.isfinite([*self.x, *self.p]).all()):
            raise ValueError("knots must rise, and their probabilities lie between 0 and 1")


class Calibration(msgspec.Struct, frozen=True):
    """Calibration per scope and stage, by the kind that its table names; one name stands for all tables.

    Platt: p = sigmoid(scale * logit + shift). Isotonic: the line through the table's knots. To reach a stage is to
    reach all before it, so a deeper one is never likelier: it gets at most the probability of the one before.
    """

    scale: list[list[float]]  # (2, 6)
    shift: list[list[float]]  # (2, 6)
    kind: Kind | list[list[Kind]] = "platt"
    knots: list[list[Knots | None]] = []  # (2, 6) where a kind is isotonic

    def __post_init__(self) -> None:
        if not np.isfinite([value for table in (*self.scale, *self.shift) for value in table]).all():
            raise ValueError("scale and shift must be finite numbers")
        for scope, stage in self.isotonic():
            if scope >= len(self.knots) or stage >= len(self.knots[scope]) or self.knots[scope][stage] is None:
                raise ValueError(f"the isotonic table {scope}, {stage} has no knots")

    def kinds(self) -> list[list[Kind]]:
        """Return the kind of every table."""
        return self.kind if isinstance(self.kind, list) else [[self.kind] * len(row) for row in self.scale]

    def isotonic(self) -> list[tuple[int, int]]:
        """Return scope and stage of the isotonic tables."""
        return [(a, s) for a, row in enumerate(self.kinds()) for s, kind in enumerate(row) if kind == "isotonic"]

    def apply(self, logits: Array) -> Array:
        """Turn logits (..., 2, 6) into probabilities, float64, that do not rise from stage to stage."""
        z = logits.astype(np.float64) * np.array(self.scale) + np.array(self.shift)  # (..., 2, 6)
        p = 0.5 * (1 + np.tanh(0.5 * z))  # a sigmoid that cannot overflow
        for scope, stage in self.isotonic():
            knots = self.knots[scope][stage]
            assert knots is not None
            p[..., scope, stage] = np.interp(logits[..., scope, stage], knots.x, knots.p)
        return np.asarray(np.minimum.accumulate(p, axis=-1))


class Bundle(msgspec.Struct, frozen=True):
    """A bundle on disk whose files are the ones its provenance names."""

    path: Path
    contract: Contract
    calibration: Calibration
    provenance: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """The whole-sequence graph."""
        return self.path / MODEL

    @property
    def step_path(self) -> Path:
        """The step graph; there if the contract has a state."""
        return self.path / STEP

    @property
    def burst_path(self) -> Path:
        """The step graph for several rows of a user; likewise."""
        return self.path / BURST

    @property
    def model_sha256(self) -> str:
        """Identity of the graph, in hex."""
        return str(self.provenance["files"][MODEL])

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.provenance["name"])

    @property
    def version(self) -> str:
        """Version of the model."""
        return str(self.provenance["version"])

    def golden(self) -> dict[str, Array]:
        """Read the graph inputs and the outputs they must give.

        `reach` and `next_type` hold for all graphs, the step graph fed row by row; `counts` is how full the rings
        then are.
        """
        with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def to_json(value: Any) -> bytes:
    """Encode a Contract, a Calibration or a provenance dict as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def from_json(data: bytes, kind: type[T], path: Path) -> T:
    """Decode a file of the bundle; raises BundleError with the path."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as a {kind.__name__}: {error}; export the bundle again") from error


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check that it is complete, undamaged and of this contract version."""
    folder = Path(path)
    provenance = from_json(_read(folder, PROVENANCE), dict[str, Any], folder / PROVENANCE)
    missing = [key for key in ("name", "version", "files") if key not in provenance]
    if missing or not isinstance(provenance["files"], dict):
        raise BundleError(
            f"{folder / PROVENANCE} lacks {', '.join(missing) or 'sha256s by file'}; export the bundle again"
        )
    contract = _contract(_checked(folder, CONTRACT, provenance), folder / CONTRACT)
    contents = {name: _checked(folder, name, provenance) for name in files(contract)}
    calibration = from_json(contents[CALIBRATION], Calibration, folder / CALIBRATION)
    tables = {"base_rates": contract.base_rates, "scale": calibration.scale, "shift": calibration.shift}
    for label, table in (tables | {"kind": calibration.kinds()}).items():
        _by_scope_and_stage(folder, label, table)
    if not zipfile.is_zipfile(folder / GOLDEN):
        raise BundleError(f"{folder / GOLDEN} is not an npz archive; export the bundle again")
    return Bundle(folder, contract, calibration, provenance)


def files(contract: Contract) -> tuple[str, ...]:
    """Return the files that a bundle of this contract holds beside its provenance."""
    return FILES if contract.state is None else (*FILES, STEP, BURST)


def check_against(bundle: Bundle, funnel: Funnel, gap_ms: int = GAP_MS, late_ms: int = LATE_MS) -> None:
    """Refuse a bundle that was made for other rules than this program serves with."""
    same = Vocabulary()  # but the number of embedding rows is the model's own affair
    vocabulary = msgspec.structs.replace(bundle.contract.vocabulary, types=same.types, hash=same.hash)
    ours = Contract(funnel=funnel, gap_ms=gap_ms, late_ms=late_ms, vocabulary=vocabulary, window=1, base_rates=[])
    theirs = bundle.contract.agreed()
    for name, expected in ours.agreed().items():
        if theirs[name] != expected:
            raise BundleError(
                f"the bundle {bundle.path} was made for {name} {_short(theirs[name])}, but this worker is configured "
                f"for {_short(expected)}; configure the same or export a bundle for it"
            )


def pad_class(length: int, classes: Sequence[int] = LENGTH_CLASSES) -> int:
    """Return the smallest length class that holds `length` rows."""
    fitting = [size for size in classes if size >= length]
    if not fitting:
        raise ValueError(f"no length class of {tuple(classes)} holds {length} rows")
    return min(fitting)


def pad(inputs: Inputs, users: Sequence[int], length: int, vocabulary: Vocabulary) -> dict[str, Array]:
    """Build the graph inputs of some users of `inputs`, padded on the right to `length`."""
    count = len(users)
    starts = np.concatenate(([0], np.cumsum(inputs.lengths)))
    kind = np.full((count, length), PAD, np.int64)  # (B, L)
    item, category = np.zeros((count, length), np.int64), np.zeros((count, length), np.int64)  # (B, L)
    features = np.zeros((count, length, WIDTH), np.uint8)  # (B, L, WIDTH)
    for b, user in enumerate(users):
        n, rows = int(inputs.lengths[user]), slice(int(starts[user]), int(starts[user + 1]))
        kind[b, :n], features[b, :n] = inputs.type[rows], inputs.features[rows]
        item[b, :n] = vocabulary.item_index(inputs.item[rows])
        category[b, :n] = vocabulary.category_index(inputs.category[rows])
    lengths = inputs.lengths[np.asarray(users, np.int64)].astype(np.int64)  # (B,)
    return {"type": kind, "item": item, "category": category, "features": features, "lengths": lengths}


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"the bundle {folder} has no readable {name}; export it again or correct the path") from error


def _checked(folder: Path, name: str, provenance: dict[str, Any]) -> bytes:
    data = _read(folder, name)
    found, expected = hashlib.sha256(data).hexdigest(), provenance["files"].get(name)
    if found != expected:
        raise BundleError(
            f"{folder / name} has sha256 {found}, {PROVENANCE} says {expected}; copy or export the bundle again"
        )
    return data


def _contract(data: bytes, path: Path) -> Contract:
    version = from_json(data, dict[str, Any], path).get("version")
    if version != CONTRACT_VERSION:
        raise BundleError(
            f"{path} has contract version {version}, but this program reads {CONTRACT_VERSION}; "
            "export the bundle again with this release"
        )
    contract = from_json(data, Contract, path)
    state = contract.state
    if state is not None and (min(msgspec.structs.astuple(state)) < 1 or state.window != contract.window):
        raise BundleError(
            f"{path} has a state of {_short(state)}, expected sizes of at least 1 and a window of {contract.window}; "
            "export the bundle again"
        )
    return contract


def _by_scope_and_stage(folder: Path, label: str, table: Sequence[Sequence[object]]) -> None:
    shape = [len(row) for row in table]
    if shape != [len(STAGES)] * len(SCOPES):
        expected = f"{len(SCOPES)} rows of {len(STAGES)}"
        raise BundleError(f"{label} in {folder} has rows of {shape}, expected {expected}; export the bundle again")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

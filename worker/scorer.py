"""Scorer: the inputs of one micro-batch in, calibrated probabilities per wanted row out, from the bundle's graph.

Users are grouped by length class, so a user's padding, and with it the score, does not depend on the others. What the
network cannot answer gets the base rate and is marked degraded; no row is left without an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.contract.bundle import Bundle, Calibration, pad
from model.contract.errors import BundleError
from model.contract.graph import OUTPUTS, Session, check_golden, groups, softmax
from model.contract.rows import Inputs
from worker.pieces import Piece, Scores, base_rate_scores

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]

STATE_OUTPUTS = ("rings", "counts")  # of each user after its last row

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

NO_GPU = (
    "the network runs on the CPU, though this onnxruntime is built for CUDA: give the worker a GPU whose driver fits "
    "(nvidia-smi lists it, no line of onnxruntime above complains), or install onnxruntime instead of onnxruntime-gpu "
    "(the image without -gpu)"
)

Keep: TypeAlias = Callable[[Array, Array, Array], None]  # users, their rings and their counts


def open_session(path: Path, threads: int, on_cpu: bool = False) -> onnxruntime.InferenceSession:
    """Load a graph for CUDA where this onnxruntime has it, unless it is wanted on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin for work take the CPU from broker and Python: two to nine times the latency on two CPUs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers: list[Any] = [CPU]
    if not on_cpu and CUDA in onnxruntime.get_available_providers():
        providers.insert(0, (CUDA, {"use_tf32": "0"}))  # tf32 would miss the tolerance
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common class
        raise BundleError(f"{path} cannot be loaded: {error}; export the bundle again") from error


class Scorer:
    """One loaded bundle; `score` is called from one thread."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 1,
        on_failure: Callable[[], None] = lambda: None,
        session: Session | None = None,
    ) -> None:
        self.bundle, self.on_failure = bundle, on_failure
        self._session = session or open_session(bundle.model_path, threads)
        self.base_rates = np.array(bundle.contract.base_rates, "f4")  # (2, 6)
        self.misses_gpu = self.on_cpu and session is None and CUDA in onnxruntime.get_available_providers()
        if self.misses_gpu:
            log.warning(NO_GPU)
        check_golden(bundle, self._session)

    @property
    def on_cpu(self) -> bool:
        """Whether the graph runs where a pool in host memory can be read in place."""
        return not isinstance(self._session, onnxruntime.InferenceSession) or self._session.get_providers() == [CPU]

    def run(self, pieces: Sequence[Piece]) -> list[Scores]:
        """Score all wanted rows of some pieces, from whole sequences."""
        return self.score([piece.inputs for piece in pieces])

    def score(self, requests: Sequence[Inputs], keep: Keep | None = None) -> list[Scores]:
        """Score all wanted rows of the requests; `keep` takes the final states of their users, numbered through."""
        whole = merge(requests)
        answers = Answers(len(whole.owner), self.base_rates)
        for users, length in groups(whole.lengths, self.bundle.contract.length_classes):
            for done, outputs in self._run(whole, users, length, keep is not None):
                answers.fill(*self._wanted(whole, done, outputs), self.bundle.calibration)
                if keep is not None:
                    keep(done, outputs[2], outputs[3])
        return answers.split([len(request.owner) for request in requests])

    def _run(self, whole: Inputs, users: Array, length: int, state: bool) -> Iterator[tuple[Array, Sequence[Array]]]:
        """Run a group; when that fails its halves, down to single users, who then stay without a score."""
        waiting = [users]
        while waiting:
            group = waiting.pop()
            outputs = self._attempt(whole, group, length, state)
            if outputs is not None:
                yield group, outputs
            elif len(group) > 1:
                waiting += np.array_split(group, 2)

    def _attempt(self, whole: Inputs, users: Array, length: int, state: bool) -> Sequence[Array] | None:
        feed = pad(whole, users.tolist(), length, self.bundle.contract.vocabulary)
        try:
            return self._session.run(OUTPUTS + STATE_OUTPUTS if state else OUTPUTS, feed)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors, out of memory among them, have no common class
            log.error("inference failed for %d users of length class %d: %r", len(users), length, error)
            self.on_failure()
            return None

    def _wanted(self, whole: Inputs, users: Array, outputs: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Return the wanted rows of a group of users, and their logits."""
        place = np.full(len(whole.lengths), -1)
        place[users] = np.arange(len(users))
        rows = np.flatnonzero(place[whole.owner] >= 0)  # (R,)
        at = place[whole.owner[rows]], whole.position[rows]
        return rows, outputs[0][at], outputs[1][at]  # (R,), (R, 2, 6), (R, 20)


class Answers:
    """The scores of some wanted rows; base rates, until a row is filled."""

    def __init__(self, rows: int, base_rates: Array) -> None:
        self._scores = base_rate_scores(rows, base_rates)

    def fill(self, rows: Array, reach: Array, next_type: Array, calibration: Calibration) -> None:
        """Put in the logits (R, 2, 6) and (R, 20) of some rows, as far as they are finite."""
        finite = np.isfinite(reach).all(axis=(1, 2)) & np.isfinite(next_type).all(axis=1)  # (R,)
        rows = rows[finite]
        self._scores.reach[rows] = calibration.apply(reach[finite])
        self._scores.next_type[rows] = softmax(next_type[finite])
        self._scores.degraded[rows] = False

    def split(self, sizes: Sequence[int]) -> list[Scores]:
        """Divide the rows, in order, among the requests."""
        columns = (np.split(column, np.cumsum(sizes)[:-1]) for column in self._scores)
        return [Scores(*parts) for parts in zip(*columns, strict=True)]


def merge(requests: Sequence[Inputs]) -> Inputs:
    """Join the inputs of several requests into one."""
    if len(requests) == 1:
        return requests[0]
    before = np.cumsum([0, *(len(request.lengths) for request in requests)])
    columns = {name: np.concatenate([getattr(request, name) for request in requests]) for name in Inputs._fields}
    owners = [request.owner + first for request, first in zip(requests, before[:-1], strict=True)]
    return Inputs(**{**columns, "owner": np.concatenate(owners)})

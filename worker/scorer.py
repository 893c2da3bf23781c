"""Scorer: the inputs of one micro-batch in, calibrated probabilities per wanted row out, from the bundle's graph.

Users are grouped by length class, so a user's padding, and with it the score, does not depend on the others. What the
network cannot answer gets the base rate and is marked degraded; no row is left without an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.contract.bundle import Bundle, pad
from model.contract.errors import BundleError
from model.contract.events import N_TYPES
from model.contract.graph import OUTPUTS, Session, check_golden, groups, softmax
from model.contract.rows import Inputs

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]


class Scores(NamedTuple):
    """Answers to one request, in the order of its wanted rows."""

    reach: Array  # float32 (A, 2, 6): probabilities, calibrated
    next_type: Array  # float32 (A, 20): probabilities; all zero where degraded
    degraded: npt.NDArray[np.bool_]  # (A,): base rate instead of a score


def open_session(bundle: Bundle, threads: int) -> onnxruntime.InferenceSession:
    """Load the graph for CUDA where this onnxruntime has it, else for the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))  # tf32 would miss the tolerance
    try:
        return onnxruntime.InferenceSession(bundle.model_path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common class
        raise BundleError(f"{bundle.model_path} cannot be loaded: {error}; export the bundle again") from error


class Scorer:
    """One loaded bundle; `score` is called from one thread."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 1,
        on_failure: Callable[[], None] = lambda: None,
        session: Session | None = None,
    ) -> None:
        self._bundle, self._on_failure = bundle, on_failure
        self._session = session or open_session(bundle, threads)
        self._base_rates = np.array(bundle.contract.base_rates, "f4")  # (2, 6)
        check_golden(bundle, self._session)

    def score(self, requests: Sequence[Inputs]) -> list[Scores]:
        """Score all wanted rows of the requests."""
        whole = merge(requests)
        rows = len(whole.owner)
        scores = Scores(
            np.tile(self._base_rates, (rows, 1, 1)),  # (A, 2, 6)
            np.zeros((rows, N_TYPES), "f4"),  # (A, 20)
            np.ones(rows, bool),
        )
        for users, length in groups(whole.lengths, self._bundle.contract.length_classes):
            for done, outputs in self._run(whole, users, length):
                self._fill(scores, whole, done, outputs)
        ends = np.cumsum([len(request.owner) for request in requests])[:-1]
        return [Scores(*parts) for parts in zip(*(np.split(column, ends) for column in scores), strict=True)]

    def _run(self, whole: Inputs, users: Array, length: int) -> Iterator[tuple[Array, Sequence[Array]]]:
        """Run a group; when that fails its halves, down to single users, who then stay without a score."""
        waiting = [users]
        while waiting:
            group = waiting.pop()
            outputs = self._attempt(whole, group, length)
            if outputs is not None:
                yield group, outputs
            elif len(group) > 1:
                waiting += np.array_split(group, 2)

    def _attempt(self, whole: Inputs, users: Array, length: int) -> Sequence[Array] | None:
        feed = pad(whole, users.tolist(), length, self._bundle.contract.vocabulary)
        try:
            return self._session.run(OUTPUTS, feed)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors, out of memory among them, have no common class
            log.error("inference failed for %d users of length class %d: %r", len(users), length, error)
            self._on_failure()
            return None

    def _fill(self, scores: Scores, whole: Inputs, users: Array, outputs: Sequence[Array]) -> None:
        """Put the group's finite rows into the answers."""
        place = np.full(len(whole.lengths), -1)
        place[users] = np.arange(len(users))
        rows = np.flatnonzero(place[whole.owner] >= 0)  # (R,)
        at = place[whole.owner[rows]], whole.position[rows]
        reach, next_type = outputs[0][at], outputs[1][at]  # (R, 2, 6), (R, 20)
        finite = np.isfinite(reach).all(axis=(1, 2)) & np.isfinite(next_type).all(axis=1)  # (R,)
        rows = rows[finite]
        scores.reach[rows] = self._bundle.calibration.apply(reach[finite])
        scores.next_type[rows] = softmax(next_type[finite])
        scores.degraded[rows] = False


def merge(requests: Sequence[Inputs]) -> Inputs:
    """Join the inputs of several requests into one."""
    if len(requests) == 1:
        return requests[0]
    before = np.cumsum([0, *(len(request.lengths) for request in requests)])
    columns = {name: np.concatenate([getattr(request, name) for request in requests]) for name in Inputs._fields}
    owners = [request.owner + first for request, first in zip(requests, before[:-1], strict=True)]
    return Inputs(**{**columns, "owner": np.concatenate(owners)})

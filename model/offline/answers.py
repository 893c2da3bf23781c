"""Answers: the histories of some users in, the calibrated reach probabilities of every row out.

The rows come from the contract's fold and the probabilities from the bundle's graph, as in the worker; but one run
answers all rows of a segment, where the worker asks for them as they come.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime

from model.contract.bundle import Bundle, pad
from model.contract.errors import BundleError
from model.contract.graph import Session, check_golden, groups
from model.contract.rows import Array, Inputs
from model.histories import Histories
from model.segments import Segment, segments_of


class Answers(NamedTuple):
    """One line of the output per event and per session end of some users."""

    row: Array  # (N,) i8 0-based line of the input; for a session end the line that the silence followed
    ts: Array  # (N,) i8 ms
    user: Array  # (N,) i4 code
    session_end: Array  # (N,) bool
    reach: Array  # (N, 2, 6) f4 calibrated


class Scorer:
    """One loaded bundle, run on one thread."""

    def __init__(self, bundle: Bundle, session: Session | None = None) -> None:
        self.bundle = bundle
        self.session = session or open_session(bundle)
        check_golden(bundle, self.session)

    def score(self, histories: Histories) -> Array:
        """Return the reach probabilities (N, 2, 6) of all rows; the base rate where the network gives no number."""
        rates = np.array(self.bundle.contract.base_rates, np.float32)  # (2, 6)
        reach = np.tile(rates, (len(histories.ts), 1, 1))  # (N, 2, 6)
        rows = np.diff(histories.offsets).tolist()
        cut = [part for user, count in enumerate(rows) for part in segments_of(user, count)]
        lengths = np.array([part.end - part.begin for part in cut], np.int32)
        for chosen, length in groups(lengths, self.bundle.contract.length_classes):
            parts = [cut[index] for index in chosen]
            feed = pad(inputs_of(histories, parts), range(len(parts)), length, self.bundle.contract.vocabulary)
            (logits,) = self.session.run(("reach",), feed)  # (B, L, 2, 6)
            for part, found in zip(parts, logits, strict=True):
                at = histories.offsets[part.user] + part.scored
                wanted = found[part.scored - part.begin : part.end - part.begin]  # (R, 2, 6)
                finite = np.isfinite(wanted).all(axis=(1, 2))
                reach[at : at + len(wanted)][finite] = self.bundle.calibration.apply(wanted[finite])
        return reach


def open_session(bundle: Bundle) -> Session:
    """Load the graph for one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session: Session = onnxruntime.InferenceSession(bundle.model_path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise BundleError(f"{bundle.model_path} cannot be loaded: {error}; export the bundle again") from error
    return session


def inputs_of(histories: Histories, parts: Sequence[Segment]) -> Inputs:
    """Gather the rows of some segments, end to end."""
    begins = [int(histories.offsets[part.user]) + part.begin for part in parts]
    lengths = np.array([part.end - part.begin for part in parts], np.int32)
    rows = np.concatenate([np.arange(begin, begin + n) for begin, n in zip(begins, lengths.tolist(), strict=True)])
    names = ("type", "item", "category", "features")
    nothing = np.zeros(0, np.int32)  # every row is wanted
    columns = {name: getattr(histories, name)[rows] for name in names}
    return Inputs(lengths=lengths, **columns, owner=nothing, position=nothing)


def answer(histories: Histories, scorer: Scorer, rows: Array, first_user: int) -> Answers:
    """Answer every row of the histories of a group of users; `rows` (M,) are the lines of the log's events."""
    ended = histories.session_end
    last_event = np.maximum.accumulate(np.where(ended, 0, np.arange(len(ended))))  # a user's first row is an event
    user = np.repeat(np.arange(len(histories.users), dtype=np.int32), np.diff(histories.offsets)) + first_user
    return Answers(rows[histories.source[last_event]], histories.ts, user, ended, scorer.score(histories))

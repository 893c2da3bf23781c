"""Rooms: what the partitions of a worker use, and what comes in and out of them; nouns only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.rows import DAY_MS, Block, Rules
from worker.decode import Bounds
from worker.explanations import Explainer
from worker.frames import Frame
from worker.hotstate import HotState
from worker.metrics import Metrics
from worker.policy import Policy
from worker.records import Encoder, Output


@dataclass(frozen=True, slots=True)
class Topics:
    """Where the outputs of a partition go."""

    stage_probabilities: str
    triggers: str
    dead_letters: str
    late: str


@dataclass(frozen=True, slots=True)
class Rooms:
    """What all partitions use."""

    rules: Rules
    bounds: Bounds
    policy: Policy
    encoder: Callable[[int], Encoder]
    topics: Topics
    metrics: Metrics
    hot: HotState | None = None  # None: every score comes from the whole sequence
    explainer: Explainer | None = None
    horizon_ms: int = DAY_MS


class Pending(NamedTuple):
    """A block of new rows that waits for its scores; source offset and arrival time of the events that it names."""

    block: Block
    offsets: npt.NDArray[np.int64]
    arrivals: npt.NDArray[np.int64]


OnBlock = Callable[[Pending], None]


class Rejected(NamedTuple):
    """Records of one partition that are not answered, for one topic."""

    partition: int
    topic: str
    outputs: list[Output]


class Answered(NamedTuple):
    """What one partition says of a block."""

    partition: int
    frames: Iterator[Frame]  # stage probabilities
    triggers: list[Output]

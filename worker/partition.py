"""One source partition's life: records in; answers, triggers, dead letters, late events and changed table bytes out.

No Kafka, no clock: the emitter passes records and the time in and carries everything out in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.rows import DAY_MS
from model.contract.sequence import LATE, REVISED, Block, Rules, Sequences, is_open
from worker.decode import Bounds, Chunk, Record, decode_chunk
from worker.explanations import Asked, Explainer, Sample
from worker.frames import Frame
from worker.hotstate import HotState, UserStates
from worker.metrics import Metrics
from worker.outcomes import Outcomes
from worker.pieces import Piece, Scores, whole
from worker.policy import Policy
from worker.records import Answers, Encoder, Header, Output
from worker.sequences import CAMPAIGN_KEY, HEAD_KEY, MARK, MARK_KEY, STREAM_KEY, SequenceTable
from worker.triggers import Triggers

LIVE_MS = 300_000  # a source whose newest event is this close to its arrival is live: its silence takes wall time
NO_EVENTS = np.empty(0, np.int64)
USERS_KEPT = 100_000  # users kept in memory before those without an open session are dropped: about 1 GB


@dataclass(frozen=True, slots=True)
class Topics:
    """Where the outputs of a partition go."""

    stage_probabilities: str
    triggers: str
    dead_letters: str
    late: str


@dataclass(frozen=True, slots=True)
class Rooms:
    """What every partition uses."""

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


class Partition:
    """The users of one source partition; in memory, ahead of the table by the open transaction."""

    def __init__(self, number: int, table: SequenceTable, rooms: Rooms) -> None:
        self.number = number
        self.sequences = Sequences(rooms.rules)
        self._read = partial(table.read, number)
        self._scan = partial(table.scan, number)
        self._rooms = rooms
        self.topics = rooms.topics
        self._encoder = rooms.encoder(number)
        self._states = UserStates(rooms.hot) if rooms.hot is not None else None
        self._sample = (
            Sample(rooms.explainer, self._encoder, self.sequences, number) if rooms.explainer is not None else None
        )
        self._outcomes = Outcomes(rooms.horizon_ms, rooms.policy, rooms.metrics)
        self._triggers = Triggers(rooms.policy, self._encoder, rooms.metrics)
        self.next_offset: int | None = None  # of the source: where the table ends
        self._arrival_ms = 0
        self._arrived_at = 0.0

    def open(self, monotonic: float, wall_ms: int) -> None:
        """Take up the recovered table: the stream time and every user whose session is open."""
        stream = self._read(STREAM_KEY)
        if stream is not None:
            self.sequences.load_stream(stream)
        mark = self._read(MARK_KEY)
        if mark is not None:
            self._arrival_ms, self.next_offset = MARK.unpack(mark)
            self._arrived_at = monotonic - max(0, wall_ms - self._arrival_ms) / 1000
        for key, value in self._scan(HEAD_KEY):
            if is_open(value):
                self._load(key[len(HEAD_KEY) :])

    def take(self, records: Sequence[Record], monotonic: float, on_block: OnBlock) -> list[tuple[str, list[Output]]]:
        """Decode and fold one chunk; return what is rejected. `on_block` takes the inputs of each block of new rows."""
        chunk = decode_chunk(records, self._rooms.bounds)
        self._arrival_ms, self._arrived_at = records[-1].timestamp, monotonic
        self.next_offset = records[-1].offset + 1
        good = [records[i] for i in chunk.index]
        keys = [bytes(record.key or b"") for record in good]
        for key in self.sequences.unknown(keys):
            self._load(key)
        offsets = np.array([record.offset for record in good], np.int64)
        arrivals = np.array([record.timestamp for record in good], np.int64)
        for block in self.sequences.fold(self.sequences.columns(chunk.events, keys)):
            on_block(Pending(block, offsets, arrivals))
        late = [good[i] for i in np.flatnonzero(self.sequences.verdicts == LATE)]
        self._rooms.metrics.taken(
            self.number, len(records), self.sequences.verdicts, [error.reason for _, error in chunk.dead]
        )
        return list(self._rejected(records, chunk, late))

    def _rejected(
        self, records: Sequence[Record], chunk: Chunk, late: list[Record]
    ) -> Iterator[tuple[str, list[Output]]]:
        topics, encoder = self.topics, self._encoder
        if chunk.dead:
            yield (
                topics.dead_letters,
                [encoder.dead_letter(records[i], error.reason, error.detail) for i, error in chunk.dead],
            )
        if late:
            yield topics.late, [encoder.late(record) for record in late]

    def _load(self, user: bytes) -> None:
        slot = self.sequences.load(user, self._read)
        self._triggers.memories.load(slot, self._read(CAMPAIGN_KEY + user))

    def stream_now_ms(self, monotonic: float) -> int:
        """Return the stream time: the newest event time, moved on by the wall clock only while the source is live."""
        stream_ms = self.sequences.stream_ms
        if self._arrival_ms - stream_ms >= LIVE_MS:
            return stream_ms
        return stream_ms + int((monotonic - self._arrived_at) * 1000)

    def is_due(self, monotonic: float) -> bool:
        """Tell whether a silent user's session has to be closed."""
        due = self.sequences.next_due_ms()
        return due is not None and due <= self.stream_now_ms(monotonic)

    def close_silent(self, monotonic: float, on_block: OnBlock) -> None:
        """Close the sessions of users who fell silent."""
        for block in self.sequences.close_due(self.stream_now_ms(monotonic)):
            on_block(Pending(block, NO_EVENTS, NO_EVENTS))

    def pieces(self, pending: Pending) -> list[Piece]:
        """Return what the network has to do for a block; only while the block is the newest, and to be submitted."""
        if self._sample is not None:
            self._sample.look(pending.block, pending.offsets)
        if self._states is None:
            return [whole(self.sequences.inputs(pending.block))]
        return self._states.plan(self.sequences, pending.block)

    def answer(
        self, pending: Pending, scores: Scores | None, time_ms: int, context: Sequence[Header] = ()
    ) -> tuple[Iterator[Frame], list[Output]]:
        """Encode the block's stage probabilities and decide on its triggers; return batches and records.

        The records carry the time and the context of the transaction.
        """
        block = pending.block
        pick = np.flatnonzero(block.kind != REVISED)
        slots = block.slot[pick].astype(np.int64)  # (A,)
        answers = self._answers(pending, pick, scores)
        self._outcomes.observe(answers, block, self._triggers.memories.of(slots)[slots])
        triggers = self._triggers.of(answers, slots) if scores is not None else []
        self._rooms.metrics.answered(len(answers.keys), int(answers.degraded.sum()))
        return self._encoder.stage_probabilities(answers, time_ms, context), triggers

    def _answers(self, pending: Pending, pick: npt.NDArray[np.int64], scores: Scores | None) -> Answers:
        block = pending.block
        index = block.source[pick]  # (A,) -1 for session ends, which takes the sentinel that stands last
        names, key_of = self.sequences.names, self.sequences.key_of
        return Answers(
            keys=[key_of(slot) for slot in block.slot[pick].tolist()],
            offset=np.append(pending.offsets, -1)[index],
            event_time=block.ts[pick],
            arrival_time=np.append(pending.arrivals, -1)[index],
            type=block.type[pick],
            user_stage=block.user_stage[pick],
            category=[names.get(category) for category in block.category[pick].tolist()],
            sequence_length=block.row[pick] + 1,
            reach=None if scores is None else scores.reach,
            next_type=None if scores is None else scores.next_type,
            degraded=np.zeros(len(pick), bool) if scores is None else scores.degraded,
        )

    def changes(self) -> dict[bytes, bytes | None]:
        """Return the table updates of everything changed since the last call, and how far the source was read."""
        names, values = self.sequences.pack()
        updates: dict[bytes, bytes | None] = dict(zip(names, values, strict=True))
        updates |= {CAMPAIGN_KEY + user: value for user, value in self._triggers.changes().items()}
        if self.next_offset is not None:
            updates[MARK_KEY] = MARK.pack(self._arrival_ms, self.next_offset)
        return updates

    def picked(self) -> Asked | None:
        """Take the answer of this transaction that is to be explained."""
        return None if self._sample is None else self._sample.take()

    @property
    def is_full(self) -> bool:
        """Whether there are so many users that some should be forgotten."""
        return len(self.sequences) > USERS_KEPT

    def forget_idle(self) -> None:
        """Bound the memory: drop users without an open session; only after all changes are committed."""
        if self.is_full:
            dropped = self.sequences.drop_closed(USERS_KEPT // 2)
            if self._states is not None:
                self._states.drop(dropped)
            self._triggers.memories.drop(dropped)

    def close(self) -> None:
        """Let go of what the worker's partitions share."""
        if self._states is not None:
            self._states.close()

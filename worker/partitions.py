"""The source partitions of a worker: records in; answers, triggers, refused records and changed table bytes out.

All are folded, planned and answered together, because a call costs the same for one partition's clicks as for all; what
is said of each depends on its own records alone. No Kafka, no clock: the emitter passes records and the time in and
carries everything out in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.sequence import LATE, REVISED, Sequences, is_open
from worker.decode import Chunk, Record, decode_chunk
from worker.explanations import Asked, Sample
from worker.hotstate import UserStates
from worker.outcomes import Outcomes
from worker.pieces import Piece, Scores, whole
from worker.progress import Progress
from worker.records import Answers, Header, lay_out
from worker.rooms import Answered, OnBlock, Pending, Rejected, Rooms
from worker.sequences import CAMPAIGN_KEY, HEAD_KEY, MARK_KEY, STREAM_KEY, SequenceTable, Updates
from worker.triggers import Triggers

NO_EVENTS = np.empty(0, np.int64)
USERS_KEPT = 100_000  # users per partition kept in memory before those without an open session are dropped: about 1 GB


class _Part(NamedTuple):
    """One partition's chunk on its way into the fold."""

    place: int
    records: Sequence[Record]
    chunk: Chunk
    good: list[Record]  # those that are events
    slots: npt.NDArray[np.int32]  # of the events' users


class Partitions:
    """The users of some source partitions; in memory, ahead of the tables by the open transaction.

    Inside, a partition is its place among the given ones.
    """

    def __init__(self, partitions: Sequence[int], table: SequenceTable, rooms: Rooms) -> None:
        self.progress = [Progress(partition) for partition in partitions]
        self.sequences = Sequences(rooms.rules, partitions=len(partitions))
        self.topics = rooms.topics
        self._rooms = rooms
        self._read = [partial(table.read, partition) for partition in partitions]
        self._scan = [partial(table.scan, partition) for partition in partitions]
        self._marks: list[bytes | None] = [None] * len(partitions)  # as the tables have them
        self._encoders = [rooms.encoder(partition) for partition in partitions]
        self._states = UserStates(rooms.hot) if rooms.hot is not None else None
        self._sample = Sample(rooms.explainer, self._encoders, self.sequences) if rooms.explainer is not None else None
        self._outcomes = Outcomes(rooms.horizon_ms, rooms.policy, rooms.metrics, len(partitions))
        self._triggers = Triggers(rooms.policy, rooms.metrics)

    def open(self, monotonic: float, wall_ms: int) -> None:
        """Take up the recovered tables: the stream times and every user whose session is open."""
        for place, progress in enumerate(self.progress):
            stream, mark = self._read[place](STREAM_KEY), self._read[place](MARK_KEY)
            if stream is not None:
                self.sequences.load_stream(stream, place)
            if mark is not None:
                progress.load(mark, monotonic, wall_ms)
                self._marks[place] = mark
            for key, value in self._scan[place](HEAD_KEY):
                if is_open(value):
                    self._load(place, key[len(HEAD_KEY) :])

    def take(self, chunks: Mapping[int, Sequence[Record]], monotonic: float, on_block: OnBlock) -> list[Rejected]:
        """Decode and fold one chunk of each of some places; return what is rejected.

        `on_block` takes the inputs of each block of new rows.
        """
        parts = [self._decoded(place, records) for place, records in chunks.items()]
        for place, records in chunks.items():
            self.progress[place].read(records[-1], monotonic)
        good = list(chain.from_iterable(part.good for part in parts))
        offsets = np.array([record.offset for record in good], np.int64)
        arrivals = np.array([record.timestamp for record in good], np.int64)
        events = [event for part in parts for event in part.chunk.events]
        columns = self.sequences.columns_of(events, np.concatenate([part.slots for part in parts]))
        for block in self.sequences.fold(columns):
            on_block(Pending(block, offsets, arrivals))
        verdicts = self.sequences.verdicts
        sizes = {self.progress[place].partition: len(records) for place, records in chunks.items()}
        self._rooms.metrics.taken(sizes, verdicts, [error.reason for part in parts for _, error in part.chunk.dead])
        cuts = np.cumsum([len(part.good) for part in parts])[:-1]
        by_part = zip(parts, np.split(verdicts, cuts), strict=True)
        return [rejected for part, said in by_part for rejected in self._rejected(part, said)]

    def _decoded(self, place: int, records: Sequence[Record]) -> _Part:
        chunk = decode_chunk(records, self._rooms.bounds)
        good = [records[i] for i in chunk.index]
        keys = [bytes(record.key or b"") for record in good]
        for key in self.sequences.unknown(keys, place):
            self._load(place, key)
        return _Part(place, records, chunk, good, self.sequences.slots_of(keys, place))

    def _rejected(self, part: _Part, verdicts: npt.NDArray[np.uint8]) -> Iterator[Rejected]:
        encoder = self._encoders[part.place]
        dead = [encoder.dead_letter(part.records[i], error.reason, error.detail) for i, error in part.chunk.dead]
        late = [encoder.late(part.good[i]) for i in np.flatnonzero(verdicts == LATE)]
        for topic, outputs in ((self.topics.dead_letters, dead), (self.topics.late, late)):
            if outputs:
                yield Rejected(encoder.partition, topic, outputs)

    def _load(self, place: int, user: bytes) -> None:
        slot = self.sequences.load(user, self._read[place], place)
        self._triggers.memories.load(slot, self._read[place](CAMPAIGN_KEY + user))

    def _streams_now(self, monotonic: float) -> npt.NDArray[np.int64]:
        both = zip(self.progress, self.sequences.streams.tolist(), strict=True)
        return np.array([progress.stream_now_ms(stream_ms, monotonic) for progress, stream_ms in both], np.int64)

    def is_due(self, monotonic: float) -> bool:
        """Tell whether a silent user's session has to be closed."""
        return self.sequences.is_due(self._streams_now(monotonic))

    def close_silent(self, monotonic: float, on_block: OnBlock) -> None:
        """Close the sessions of users who fell silent."""
        for block in self.sequences.close_due(self._streams_now(monotonic)):
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
    ) -> Iterator[Answered]:
        """Encode the block's stage probabilities and decide on its triggers, partition by partition.

        The records carry the time and the context of the transaction.
        """
        block = pending.block
        pick = np.flatnonzero(block.kind != REVISED)
        slots = block.slot[pick].astype(np.int64)  # (A,)
        places = self.sequences.partitions_of(slots)
        answers = self._answers(pending, pick, scores)
        self._outcomes.observe(answers, block, self._triggers.memories.of(slots)[slots], slots, places)
        fired = self._triggers.of(answers, slots) if scores is not None else []
        self._rooms.metrics.answered(len(answers.keys), int(answers.degraded.sum()))
        columns = lay_out(answers)
        for place, rows in _shares(places):
            encoder = self._encoders[place]
            frames = encoder.stage_probabilities(columns, time_ms, context, rows)
            triggers = [
                encoder.trigger(answers.keys[row], decision, int(answers.event_time[row]))
                for row, decision in fired
                if row in rows
            ]
            yield Answered(encoder.partition, frames, triggers)

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

    def changes(self) -> dict[int, Updates]:
        """Return by partition what changed in the tables since the last call, and how far the source was read."""
        changes: list[dict[bytes, bytes | None]] = [dict(packed) for packed in self.sequences.pack()]
        remembered = self._triggers.changes()
        places = self.sequences.partitions_of(np.array([*remembered], np.int64)).tolist()
        for place, (slot, value) in zip(places, remembered.items(), strict=True):
            changes[place][CAMPAIGN_KEY + self.sequences.key_of(slot)] = value
        for place, progress in enumerate(self.progress):
            if progress.mark != self._marks[place]:
                self._marks[place] = changes[place][MARK_KEY] = progress.mark
        return {self.progress[place].partition: updates for place, updates in enumerate(changes) if updates}

    def picked(self) -> Asked | None:
        """Take the answer of this transaction that is to be explained."""
        return None if self._sample is None else self._sample.take()

    @property
    def _most_users(self) -> int:
        return USERS_KEPT * len(self.progress)

    @property
    def is_full(self) -> bool:
        """Whether there are so many users that some should be forgotten."""
        return len(self.sequences) > self._most_users

    def forget_idle(self) -> None:
        """Bound the memory: drop users without an open session; only after all changes are committed."""
        if self.is_full:
            dropped = self.sequences.drop_closed(self._most_users // 2, self._outcomes.are_followed)
            if self._states is not None:
                self._states.drop(dropped)
            self._triggers.memories.drop(dropped)

    def close(self) -> None:
        """Let go of the hot state."""
        if self._states is not None:
            self._states.close()


def _shares(places: npt.NDArray[np.int32]) -> Iterator[tuple[int, range]]:
    """Divide answered rows, which lie partition by partition, among the partitions."""
    begins = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
    for begin, end in pairwise([*begins, len(places)]):
        yield int(places[begin]), range(begin, end)

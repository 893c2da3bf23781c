"""Runs a log through the compiled reducer the way a worker does, and collects what the oracle says too."""

import random
import zlib
from collections.abc import Callable

import numpy as np

from model.contract.events import ClickEvent
from model.contract.features import WIDTH
from model.contract.sequence import REVISED, Block, Rules, Sequences, default_rules

NETWORK = np.dtype([("type", "u1"), ("item", "<u4"), ("category", "<u4"), ("features", "u1", WIDTH)])


class Run:
    """A partition's worker: chunks in; rows as the oracle's tuples, verdicts and the table out."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or default_rules()
        self.sequences = Sequences(self.rules, 1, 1)
        self.rows: list[tuple] = []
        self.verdicts: list[int] = []
        self.table: dict[bytes, bytes] = {}

    def fold(self, events: list[ClickEvent]) -> None:
        keys = [event.user_id.encode() for event in events]
        for key in self.sequences.unknown(keys):
            self.sequences.load(key, self.table.get)
        begin = len(self.verdicts)
        for block in self.sequences.fold(self.sequences.columns(events, keys)):
            self._collect(block, begin)
        self.verdicts += self.sequences.verdicts.tolist()

    def close_due(self, stream_ms: int) -> None:
        for block in self.sequences.close_due(stream_ms):
            self._collect(block, 0)

    def commit(self) -> None:
        self.table |= self.sequences.pack()[0]

    def restart(self) -> None:
        """Begin again with what is committed."""
        self.commit()
        self.sequences = Sequences(self.rules, 1, 1)
        if b"t" in self.table:
            self.sequences.load_stream(self.table[b"t"])
        for key in self.table:
            if key[:1] == b"s":
                self.sequences.load(key[1:], self.table.get)

    def _collect(self, block: Block, begin: int) -> None:
        inputs = self.sequences.inputs(block)
        starts = np.concatenate(([0], np.cumsum(inputs.lengths)))
        seen = np.empty(len(inputs.type), NETWORK)
        for name in NETWORK.names:
            seen[name] = getattr(inputs, name)
        answers = zip(inputs.owner.tolist(), inputs.position.tolist(), strict=True)
        columns = block._replace(source=np.where(block.source >= 0, block.source + begin, -1))
        for slot, row, source, kind, *rest in zip(*(column.tolist() for column in columns), strict=True):
            key, answer = self.sequences.key_of(slot), (None, None)
            if kind != REVISED:
                owner, position = next(answers)
                sequence = seen[starts[owner] : starts[owner] + position + 1]
                answer = (sequence[-1]["features"].tobytes(), zlib.crc32(sequence.tobytes()))
            self.rows.append((key, row, source, kind, *rest, *answer))
        assert next(answers, None) is None


def run(
    log: list[ClickEvent], chunk: int = 700, rules: Rules | None = None, between: Callable[[Run], None] = Run.commit
) -> Run:
    """Fold a log chunk by chunk; `between` chunks something happens."""
    worker = Run(rules)
    for low in range(0, len(log), chunk):
        worker.fold(log[low : low + chunk])
        between(worker)
    worker.commit()
    return worker


def by_user(rows: list[tuple]) -> dict[bytes, list[tuple]]:
    """Rows per user in order: where timers run, rows of different users come in another order."""
    users: dict[bytes, list[tuple]] = {}
    for row in rows:
        users.setdefault(row[0], []).append(row)
    return users


def at_random(seed: int) -> Callable[[Run], None]:
    """Run the timer, commit or restart between some chunks."""
    rng = random.Random(seed)

    def between(worker: Run) -> None:
        if rng.random() < 0.5:
            worker.close_due(worker.sequences.streams[0])
        if rng.random() < 0.3:
            worker.commit()
        if rng.random() < 0.1:
            worker.restart()

    return between

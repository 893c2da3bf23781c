"""No skew: what the worker's network is fed for a real log is what training learns from, every row and byte of it.

The log goes the worker's way: as records of a topic through decode, fold, hot state and scorer, with a network that is
exact in integers; beside it the examples that training reads from the same file.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from model.contract.pool import Pool
from model.contract.rows import HOUR_MS, LATE_MS, Wanted
from model.contract.sequence import Block
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import LogOptions, read_log
from model.examples import Examples, read_examples
from model.segments import segments_of
from tests.support.clicks import EXCERPT, TAOBAO
from tests.support.fake_network import MODULUS, STATE, BurstGraph, StepGraph, WholeGraph, fake_bundle, logits, worth
from tests.support.hot_runs import HotRun, Partition, Said
from worker.decode import Bounds, decode_chunk
from worker.hotscorer import HotScorer
from worker.pieces import Piece, Scores
from worker.replay import prepare
from worker.scorer import Scorer

LOG = TAOBAO if TAOBAO.exists() else EXCERPT
CHUNK, SLOTS = 512, 40  # so few slots that states are lost and rebuilt
NAMES = ("type", "item", "category", "features")


class Fed(NamedTuple):
    """Rows of a user that the network was fed at once, and the ones of them that were answered."""

    user: str
    first: int
    rows: dict[str, npt.NDArray[Any]]


class Live(HotRun):
    """A worker's way from records to scores; keeps what the network was fed, and whose rows were answered."""

    def __init__(self) -> None:
        pool = Pool(STATE, SLOTS)
        self.whole, self.step, self.vocabulary = WholeGraph(), StepGraph(pool), Vocabulary()
        scorer = Scorer(fake_bundle(), session=self.whole)
        network = HotScorer(scorer, self.step, BurstGraph(self.step), pool)
        super().__init__(network, SLOTS, partitions=1)
        self.fed: list[Fed] = []
        self.answered: list[list[tuple[str, int]]] = []  # by block: user and row of each score
        self.whole.rows.clear()
        self.step.waves.clear()

    def ask(self, partition: Partition, block: Block) -> None:
        sequences = partition.sequences
        wanted, pieces = sequences.wanted(block), partition.states.plan(sequences, block)
        names = [sequences.key_of(int(slot)).decode() for slot in wanted.slot]
        self.answered.append([(names[u], int(row)) for u, row in zip(wanted.owner, wanted.row, strict=True)])
        for piece in pieces:
            self.fed += self._fed(piece, wanted, names)
        self.said.append(Said(sequences.inputs(block), self.batcher.submit(pieces)))

    def _fed(self, piece: Piece, wanted: Wanted, names: list[str]) -> list[Fed]:
        inputs, ends = piece.inputs, np.cumsum(piece.inputs.lengths)
        columns = {
            "type": inputs.type,
            "item": self.vocabulary.item_index(inputs.item),
            "category": self.vocabulary.category_index(inputs.category),
            "features": inputs.features,
        }
        found = []
        for user, (end, length) in enumerate(zip(ends.tolist(), inputs.lengths.tolist(), strict=True)):
            one = int(
                np.flatnonzero(inputs.owner == user)[0]
            )  # any of the user's answered rows tells which rows these are
            at = piece.rows[one]
            rows = {name: column[end - length : end] for name, column in columns.items()}
            found.append(Fed(names[wanted.owner[at]], int(wanted.row[at] - inputs.position[one]), rows))
        return found


def examples() -> Examples:
    """Read the log as training does."""
    log = read_log(LOG, "taobao", LogOptions(progress=False))
    return read_examples(log, load_funnel(), 24 * HOUR_MS, Vocabulary(), progress=False)[0]


async def live() -> Live:
    """Send the log as `funnelcast replay` does, and serve it; the sessions that are due are closed by a timer."""
    run, sequences = Live(), None
    events = prepare(read_log(LOG, "taobao", LogOptions(progress=False)), "log", None, None)
    for begin in range(0, len(events), CHUNK):
        records = [
            SimpleNamespace(
                key=event.user_id.encode(), value=msgspec.json.encode(event), offset=offset, timestamp=event.timestamp
            )
            for offset, event in enumerate(events[begin : begin + CHUNK], begin)
        ]
        chunk = decode_chunk(records, Bounds())
        assert not chunk.dead
        run.fold(0, chunk.events)
        sequences = run.partitions[0].sequences
        run.close_due(0, sequences.streams[0] - LATE_MS)
        await run.breathe(50)
    assert sequences is not None
    run.close_due(0, sequences.streams[0])
    return run


def differing(fed: list[Fed], expected: Examples) -> list[tuple[str, int, str]]:
    """Name user, first row and field of what was fed but is not what training learns from, to the byte."""
    number = {user: index for index, user in enumerate(expected.users)}
    found = []
    for user, first, rows in fed:
        begin = int(expected.start[number[user]]) + first
        for name in NAMES:
            theirs = getattr(expected, name)[begin : begin + len(rows[name])]
            if rows[name].dtype != theirs.dtype or rows[name].tobytes() != theirs.tobytes():
                found.append((user, first, name))
    return found


def expected_scores(expected: Examples) -> dict[tuple[str, int], npt.NDArray[Any]]:
    """Answer every row of the examples as the network of whole sequences would: its logits (2, 6)."""
    found = {}
    for u, user in enumerate(expected.users):
        for part in segments_of(u, expected.rows_of(u)):
            rows = slice(int(expected.start[u]) + part.begin, int(expected.start[u]) + part.end)
            added, h = worth({name: getattr(expected, name)[rows] for name in NAMES}).tolist(), 0
            for row, one in enumerate(added, part.begin):
                h = (31 * h + one) % MODULUS
                if row >= part.scored:
                    found[user, row] = logits(np.array(h))[0]
    return found


class Played(NamedTuple):
    """A log, learned from and served."""

    learned: Examples
    run: Live
    scores: list[Scores]


@pytest.fixture(scope="module")
def played() -> Played:
    async def story() -> Played:
        run = await live()
        return Played(examples(), run, await run.end())

    return asyncio.run(story())


def test_the_network_sees_every_row_of_a_real_log_as_training_does(played: Played) -> None:
    learned, run = played.learned, played.run
    assert differing(run.fed, learned) == []
    rows = {(user, row) for u, user in enumerate(learned.users) for row in range(learned.rows_of(u))}
    assert {(one.user, one.first + row) for one in run.fed for row in range(len(one.rows["type"]))} == rows
    assert sum(run.step.waves) and sum(run.whole.rows)  # both graphs had their share


def test_the_network_answers_every_row_of_a_real_log_from_what_training_sees(played: Played) -> None:
    expected = expected_scores(played.learned)
    told = [place for places in played.run.answered for place in places]
    assert len(told) == len(set(told)) == len(expected)
    answers = np.array([expected[place] for place in told])
    assert not np.concatenate([one.degraded for one in played.scores]).any()
    reach = fake_bundle().calibration.apply(answers).astype(np.float32)
    assert np.array_equal(np.concatenate([one.reach for one in played.scores]), reach)


def test_a_feature_that_is_off_by_one_in_one_row_is_found(played: Played) -> None:
    features = np.array(played.learned.features)
    features[len(features) // 2, 17] ^= 1
    assert {name for *_, name in differing(played.run.fed, played.learned._replace(features=features))} == {"features"}

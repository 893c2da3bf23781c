"""Explanations: one in N answers in; what moved them, from a process of its own, out to a topic of its own.

Best effort and at most once: picked by a hash of the answer's id, asked for after the answer's transaction, published
outside of it, one at a time; what comes meanwhile is dropped and counted. Nothing here may hold up or end the worker.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaProducer

from model.contract.rows import REVISED, Block, Rows
from model.contract.sequence import Sequences
from worker.metrics import Metrics
from worker.records import Encoder, Header
from worker.retell import Question, question

log = logging.getLogger(__name__)

MOST_SECONDS = 300.0  # of one explanation: the longest takes 1 of a core, of which a busy machine leaves little
MOST_BYTES = 1 << 20  # of an explanation


class Asked(NamedTuple):
    """A question, and where its explanation goes."""

    question: Question
    user: bytes
    headers: list[Header]
    partition: int
    explainer: Explainer


class Explainer:
    """Explains one answer at a time; the process and the producer are there from the first one on."""

    def __init__(self, one_in: int, bundle: Path, topic: str, client: dict[str, Any], metrics: Metrics) -> None:
        self.one_in, self.count = one_in, metrics.explained
        self._bundle, self._topic, self._client, self._metrics = bundle, topic, client, metrics
        self._waiting: asyncio.Queue[Asked] = asyncio.Queue(1)
        self.busy = False
        self._process: asyncio.subprocess.Process | None = None
        self._producer: AIOKafkaProducer | None = None

    def ask(self, asked: Asked) -> None:
        """Explain an answer, unless another one is being explained."""
        if self.busy:
            self.count("busy")
            return
        self.busy = True
        self._waiting.put_nowait(asked)

    async def run(self) -> None:
        """Explain until cancelled."""
        try:
            while True:
                await self._explain(await self._waiting.get())
                self.busy = False
        finally:
            await self._stop()

    async def _explain(self, asked: Asked) -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(MOST_SECONDS):
                await self._publish(asked, await self._retell(asked.question))
        except Exception as error:  # noqa: BLE001  (whatever it is, the answers go on)
            log.warning("answer %s stays unexplained: %r", asked.question.id, error)
            self.count("failed")
            await self._stop()
            return
        self.count("published")
        self._metrics.explanation_seconds.observe(time.monotonic() - started)

    async def _retell(self, asked: Question) -> bytes:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker.retell", str(self._bundle)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MOST_BYTES,
                start_new_session=True,  # a terminal's Ctrl-C is for the worker, whose end closes the pipe
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise RuntimeError(f"the process that explains ended with {await self._process.wait()}")
        return line[:-1]

    async def _publish(self, asked: Asked, value: bytes) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(**self._client)
            await self._producer.start()
        await self._producer.send_and_wait(self._topic, value, asked.user, asked.partition, headers=asked.headers)

    async def _stop(self) -> None:
        process, producer, self._process, self._producer = self._process, self._producer, None, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if producer is not None:
            with suppress(Exception):
                await producer.stop()


class Sample:
    """The answers that are to be explained: at most one of a transaction."""

    def __init__(self, explainer: Explainer, encoders: list[Encoder], sequences: Sequences) -> None:
        self._explainer, self._encoders, self._sequences = explainer, encoders, sequences  # encoders of the partitions
        self._picked: Asked | None = None

    def look(self, block: Block, offsets: npt.NDArray[np.int64]) -> None:
        """Pick among the answers of the newest block, while the rows are those that are scored.

        `offsets` are those of the source records that the block names.
        """
        rows = np.flatnonzero(block.kind != REVISED)
        slots, places = block.slot[rows], self._sequences.partitions_of(block.slot[rows])
        columns = (places, slots, block.row[rows], block.ts[rows], np.append(offsets, -1)[block.source[rows]])
        for place, slot, row, time_ms, offset in zip(*(column.tolist() for column in columns), strict=True):
            user = self._sequences.key_of(slot)
            answer_id = self._encoders[place].answer_id(user, offset, time_ms)
            if zlib.crc32(answer_id) % self._explainer.one_in == 0:
                self._pick(answer_id, user, place, row, time_ms)

    def _pick(self, answer_id: bytes, user: bytes, place: int, row: int, time_ms: int) -> None:
        if self._picked is not None or self._explainer.busy:
            self._explainer.count("busy")
            return
        kept = self._sequences.rows(user, place)
        if kept.row[0] > 0:
            self._explainer.count("long")  # the first rows are gone, so the past cannot be told again
            return
        past = Rows(*(column[: row + 1] for column in kept))
        asked = question(answer_id.decode(), user, past, self._sequences.names)
        encoder = self._encoders[place]
        headers = encoder.explanation_headers(answer_id, user, time_ms)
        self._picked = Asked(asked, user, headers, encoder.partition, self._explainer)

    def take(self) -> Asked | None:
        """Return the answer that was picked, to be asked about once it is committed."""
        picked, self._picked = self._picked, None
        return picked

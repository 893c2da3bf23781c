"""Parts: shards of the log in, their answers as files in input order out; shards are shared out among processes.

Every process opens the bundle once. Answers do not depend on how the users were divided, so neither does the output.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from model.contract.bundle import load_bundle
from model.contract.errors import FunnelcastError
from model.contract.rows import Array, Rules
from model.histories import replay_groups
from model.offline.answers import Answers, Scorer, answer
from model.offline.shards import Shards, read_shard

_scorers: dict[Path, Scorer] = {}  # of this process, by bundle


def score_shards(shards: Shards, bundle: Path, processes: int) -> Iterator[int]:
    """Score every shard into a part beside it; yield the number of events of each as it is done."""
    tasks = [(path, users, shards.recorded, bundle) for path, users in zip(shards.paths, shards.users, strict=True)]
    if processes == 1:
        yield from map(score_shard, *zip(*tasks, strict=True))
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin)
    try:
        for done in [pool.submit(score_shard, *task) for task in tasks]:
            yield done.result()
    except BrokenProcessPool:
        raise FunnelcastError(
            "a scoring process was killed, most likely for want of memory; give fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process without a word; the parent tells


def score_shard(path: Path, users: list[str], recorded: Array, bundle: Path) -> int:
    """Score one shard and write its part; return its number of events."""
    scorer = _scorers.get(bundle) or _scorers.setdefault(bundle, Scorer(load_bundle(bundle)))
    contract = scorer.bundle.contract
    columns = read_shard(path, users)
    path.unlink()
    if not users:
        return 0
    rules, found, first_user = Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules()), [], 0
    for histories in replay_groups(columns, rules, progress=False, recorded=recorded):
        found.append(answer(histories, scorer, columns.row, first_user))
        first_user += len(histories.users)
    write_part(path, Answers(*(np.concatenate(column) for column in zip(*found, strict=True))))
    return len(columns.ts)


def write_part(path: Path, answers: Answers) -> None:
    """Write answers in input order, a session end after the event that it followed."""
    order = np.lexsort((answers.session_end, answers.row))
    for name, column in answers._asdict().items():
        np.save(path.with_suffix(f".{name}.npy"), column[order])


def read_part(path: Path) -> Answers | None:
    """Map the part of a shard into memory; None where the shard has no user."""
    files = [path.with_suffix(f".{name}.npy") for name in Answers._fields]
    return Answers(*(np.load(file, mmap_mode="r") for file in files)) if files[0].exists() else None

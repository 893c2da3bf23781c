"""`funnelcast prepare LOG --out DIR`: a log replayed and labelled once, in bounded memory, however long it is.

`train`, `tune` and `evaluate` take DIR in place of LOG: the same rows, features and labels, mapped into memory.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tqdm import tqdm

from model.contract.errors import FunnelcastError
from model.contract.rows import HOUR_MS, Array
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import Log, add_log_arguments, log_from_args
from model.examples import FINGERPRINTED, Examples, digest_of, facts_of, labelled, rules_of
from model.histories import recorded_stretches, replay_groups
from model.options import hours
from model.prepared.folder import ABOUT, Prepared, Purpose, is_prepared, write_arrays
from model.prepared.spill import Spill


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the log, what it is labelled for, and the directory."""
    add_log_arguments(parser)
    add = parser.add_argument_group("the prepared log").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="a new directory, about 110 bytes an event")
    add("--funnel", type=Path, help="which events reach which stage (default: the funnel that ships)")
    add("--horizon-hours", type=hours, default=24, help="reached if within so many hours (default: 24)")


def run(arguments: argparse.Namespace) -> int:
    """Prepare the log; the directory appears whole or not at all."""
    out: Path = arguments.out
    purpose = Purpose(load_funnel(arguments.funnel), round(arguments.horizon_hours * HOUR_MS), Vocabulary())
    log = log_from_args(arguments)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FunnelcastError(f"{out} is there already; give a new --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        about = prepare(log, purpose, out, arguments.progress)
    except OSError as error:
        raise FunnelcastError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    finally:
        if not is_prepared(out):
            shutil.rmtree(out, ignore_errors=True)
    print("\n".join(about.told))
    print(f"prepared  {out}  ({about.data['rows']:,} rows of {about.data['users']:,} users)")
    return 0


def prepare(log: Log, purpose: Purpose, folder: Path, progress: bool | None = None) -> Prepared:
    """Fill a directory with the examples of a log; what says that it is whole comes last."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        spill = Spill(log, Path(temporary))
        recorded = recorded_stretches(spill.column("ts"))
        digest = digest_of(spill.users, (part for name in FINGERPRINTED for part in spill.column(name)))
        facts = facts_of(log.path.name, digest, spill.events, len(spill.users), recorded)
        hide = None if progress is None else not progress  # None: tqdm looks for a terminal
        with tqdm(total=spill.events, unit=" events", unit_scale=True, desc="replay", disable=hide) as bar:
            facts |= write_arrays(folder, examples_of(spill, purpose, recorded, bar))
    about = Prepared(purpose, facts, [log.summary(), *log.problems.lines()])
    temporary_name = folder / f"{ABOUT}.tmp"
    temporary_name.write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")
    os.replace(temporary_name, folder / ABOUT)
    return about


def examples_of(spill: Spill, purpose: Purpose, recorded: Array, bar: tqdm) -> Iterator[Examples]:
    """Replay and label the log some users at a time."""
    for columns in spill.shards():
        for histories in replay_groups(columns, rules_of(purpose.funnel), progress=False, recorded=recorded):
            yield labelled(histories, purpose.horizon_ms, purpose.vocabulary)
        bar.update(len(columns.ts))

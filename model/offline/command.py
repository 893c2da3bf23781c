"""`funnelcast score LOG --out FILE`: every event and session end of a log with its calibrated reach probabilities.

What the worker would have said of the log in event-time order, by the same fold and the same graph, without Kafka. A
session end stands where the silence was seen within the log: on the user's next event, or when the log went on for
session gap and lateness bound after the last one. An event with the message id of an earlier one has no line, as it has
no answer.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from model.contract.bundle import SHIPPED, check_against, load_bundle
from model.contract.errors import FunnelcastError
from model.datasets import Log, add_log_arguments, log_from_args
from model.offline.output import check_suffix, merge, open_writer
from model.offline.parts import score_shards
from model.offline.shards import divide
from model.options import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the log, the bundle and the output."""
    add_log_arguments(parser)
    add = parser.add_argument_group("the scores").add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="where to write them: .csv or .parquet")
    add("--bundle", type=Path, default=SHIPPED, metavar="DIR", help="default: the bundle that ships")
    add(
        "--processes", type=at_least(1), default=len(os.sched_getaffinity(0)), metavar="N", help="default: one per core"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score the log; the file appears whole or not at all."""
    out: Path = arguments.out
    check_suffix(out)
    bundle = load_bundle(arguments.bundle)
    contract = bundle.contract
    check_against(bundle, contract.funnel, contract.gap_ms, contract.late_ms)
    log = log_from_args(arguments)
    try:
        if out.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
        try:
            score(log, folder, arguments)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise FunnelcastError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None
    return 0


def score(log: Log, folder: Path, arguments: argparse.Namespace) -> None:
    """Divide, score and merge in a folder of temporary files beside the output."""
    out, started = arguments.out, time.monotonic()
    hide = None if arguments.progress is None else not arguments.progress  # None: tqdm looks for a terminal
    shards = divide(log, folder)
    print(log.summary(), *log.problems.lines(), sep="\n", file=sys.stderr)
    with tqdm(total=shards.events, unit=" events", unit_scale=True, desc="score", disable=hide) as bar:
        for events in score_shards(shards, arguments.bundle, arguments.processes):
            bar.update(events)
    written, temporary = 0, folder / "out"
    with open_writer(temporary, out.suffix) as writer:
        for lines in merge(shards, writer):
            written += lines
    os.replace(temporary, out)
    seconds = time.monotonic() - started
    print(f"{written:,} lines written to {out} in {seconds:.1f} s ({shards.events / seconds:,.0f} events/s)")

"""`funnelcast simulate --users N --out FILE`: journeys of virtual users, for load and campaign tests, without torch.

What they do next comes from the network's next-event head; when they come, how fast they click and what they turn to,
from habits. `--like LOG` fits habits to a log, and a refiner that throws away journeys which a classifier does not
believe; its report says how well the classifier tells virtual from real users before and after.
"""

import argparse
import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from tqdm import tqdm

from model.contract.bundle import SHIPPED, Bundle, load_bundle
from model.contract.errors import FunnelcastError
from model.contract.events import TYPES
from model.datasets import add_log_arguments, log_from_args
from model.options import at_least, moment
from model.virtual.habits import Habits, load_habits
from model.virtual.journeys import TOGETHER, Generator, Journey
from model.virtual.refine import kept

TAOBAO = Path(__file__).with_name("taobao.json")  # the habits that come with the project
FORMATS = ("jsonl", "csv")
HEADER = "user_id,event,timestamp,item_id,category\n"


class Event(NamedTuple):
    """A line of the output; the fields are those of a click event."""

    user_id: str
    event: str
    timestamp: int
    item_id: str
    category: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how many users, from which model and habits, and where to."""
    add = parser.add_argument_group("the virtual users").add_argument
    add("--users", type=at_least(1), metavar="N", help="how many")
    add("--out", type=_file, metavar="FILE", help="their events, user by user: .jsonl or .csv, with .gz compressed")
    add("--seed", type=at_least(0), default=0, help="the same seed gives the same events (default: 0)")
    add("--bundle", type=Path, default=SHIPPED, metavar="DIR", help="whose forecasts they follow (default: shipped)")
    add("--habits", type=Path, default=TAOBAO, metavar="FILE", help="when and how they come (default: Taobao's)")
    add("--start", type=moment, metavar="DAY", help="first day, as 2026-01-31 (default: that of the habits)")
    add("--raw", action="store_true", help="keep also what the refiner would throw away")
    why = "habits from a log: fitted, refined, judged and written to --habits FILE, with FILE's report beside it"
    add_log_arguments(parser, "--like", why)
    parser.add_argument(
        "--judges", type=at_least(20), default=600, metavar="N", help="virtual users of each part of it"
    )


def _file(text: str) -> Path:
    path = Path(text)
    if form_of(path) not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text} ends in none of {', '.join(f'.{form}' for form in FORMATS)}")
    return path


def form_of(path: Path) -> str:
    """Return the format that a file name asks for."""
    return path.name.removesuffix(".gz").rpartition(".")[2]


def run(arguments: argparse.Namespace) -> int:
    """Fit habits where asked, then simulate where asked; each file appears whole or not at all."""
    if arguments.log is None and arguments.users is None:
        raise FunnelcastError("found neither --users nor --like, expected one of them; say how many users to simulate")
    if (arguments.users is None) != (arguments.out is None):
        raise FunnelcastError("found one of --users and --out, expected both or none; give the other too")
    if arguments.log and arguments.habits == TAOBAO:
        raise FunnelcastError("found --like without --habits, expected a file to write them to; name one")
    bundle = load_bundle(arguments.bundle)
    if arguments.log:
        from model.virtual.fitting import fit_and_judge

        fit_and_judge(log_from_args(arguments), bundle, arguments)
    if arguments.users:
        simulate(bundle, load_habits(arguments.habits), arguments)
    return 0


def journeys(bundle: Bundle, habits: Habits, arguments: argparse.Namespace) -> Iterator[Journey]:
    """Yield journeys without end."""
    together = min(TOGETHER, 2 * arguments.users)
    walked = Generator(bundle, habits, arguments.seed, arguments.start).walk(together=together)
    if arguments.raw or habits.refiner is None:
        return walked
    first_ms = habits.start_ms if arguments.start is None else arguments.start
    return kept(walked, habits.refiner, arguments.seed, first_ms)


def simulate(bundle: Bundle, habits: Habits, arguments: argparse.Namespace) -> None:
    """Write the events of all users, one user after another."""
    hide = None if arguments.progress is None else not arguments.progress
    endless = journeys(bundle, habits, arguments)
    count = 0
    with (
        open_whole(arguments.out) as file,
        tqdm(total=arguments.users, unit=" users", desc="simulate", disable=hide) as bar,
    ):
        write = Lines(file, form_of(arguments.out))
        for number, journey in enumerate(islice(endless, arguments.users)):
            write(events_of(journey, f"virtual-{arguments.seed}-{number:07d}"))
            count += len(journey.ts)
            bar.update()
    print(f"{count:,} events of {arguments.users:,} virtual users in {arguments.out}")


def events_of(journey: Journey, user: str) -> Iterator[Event]:
    """Turn a journey into lines."""
    for kind, ts, item, category in zip(*journey[1:], strict=True):
        yield Event(user, TYPES[kind], ts, item, category)


class Lines:
    """Writes events in one of the formats."""

    def __init__(self, file: IO[bytes], form: str) -> None:
        self._file, self._csv = file, form == "csv"
        if self._csv:
            file.write(HEADER.encode())

    def __call__(self, events: Iterator[Event]) -> None:
        if self._csv:
            lines = [",".join(map(str, event)).encode() for event in events]
        else:
            lines = [msgspec.json.encode(event._asdict()) for event in events]
        self._file.write(b"\n".join(lines) + b"\n")


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears whole or not at all; .gz is compressed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed, io.BufferedWriter(packed) as file:
                    yield file
            else:
                yield raw
        os.replace(temporary, path)
    except OSError as error:
        raise FunnelcastError(f"cannot write {path}: {error.strerror or error}; choose another --out") from None
    finally:
        temporary.unlink(missing_ok=True)

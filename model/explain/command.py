"""`funnelcast explain LOG --out DIR`: which past events moved a user's answer, and what the model goes by in general.

By leaving out, not by gradients: the inputs are bytes and hashes that an event changes in every later row, so only a
past told again without it, through the same fold, asks the question that a person means. Each user and the population
become a JSON file and a picture.
"""

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from model.answering import Answerer, GraphAnswerer, TorchAnswerer
from model.checkpoint import write_whole
from model.contract.bundle import SHIPPED
from model.contract.errors import FunnelcastError
from model.contract.rows import Array, Rules
from model.datasets import LogColumns, add_log_arguments, log_from_args, read_columns
from model.explain import pictures
from model.explain.population import Settings, asked, importance_of_features, importance_of_types, sample_of
from model.explain.user import as_dict, attention_of, explain_user, question_of
from model.histories import Histories, replay
from model.labels import reach_labels
from model.options import at_least
from model.reformer import WEIGHTS

CHECKPOINT_OF_BUNDLE = "checkpoint"  # where a bundle may carry the weights that it was made of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the log, the model, whom to explain and where to."""
    add_log_arguments(parser)
    add = parser.add_argument_group("the explanation").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="for a JSON file and a picture each")
    add("--bundle", type=Path, metavar="DIR", help="ask its graph (default: the bundle that ships)")
    add("--checkpoint", type=Path, metavar="DIR", help="ask the torch model instead; shows attention too")
    add("--user", action="append", default=[], metavar="U", help="a user of the log; may be given again")
    add("--row", type=at_least(0), metavar="N", help="ask at the event of this 0-based line (default: the last)")
    ended = "ask at the end of the session after the event (default: of the last event, if one follows it in the log)"
    add("--session-end", action=argparse.BooleanOptionalAction, help=ended)
    add("--latest", type=at_least(0), default=100, metavar="N", help="events to leave out in turn (default: 100)")
    add("--population", type=at_least(2), metavar="N", help="what the model goes by, on N users of the log")
    add("--resamples", type=at_least(20), default=100, metavar="N", help="bootstrap replicates (default: 100)")
    add("--seed", type=at_least(0), default=0, help="of users, permutations and replicates (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Explain; the files are there when this returns."""
    check(arguments)
    answerer: Answerer
    answerer = TorchAnswerer(arguments.checkpoint) if arguments.checkpoint else _graph(arguments.bundle)
    log = log_from_args(arguments)
    columns = read_columns(log)
    print("\n".join([log.summary(), *log.problems.lines()]))
    contract = answerer.contract
    rules = Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules())
    histories = replay(columns, rules, arguments.progress)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for user in arguments.user:
            told = one_user(user, columns, answerer, rules, histories.recorded, arguments)
            save(arguments.out / f"user-{quote(user, safe='')}", told, pictures.user_picture(told))
        if arguments.population:
            told = population(columns, histories, answerer, rules, arguments)
            save(arguments.out / "population", told, pictures.population_picture(told))
    except OSError as error:
        raise FunnelcastError(f"cannot write to {arguments.out}: {error.strerror}; choose another --out") from None
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuse what asks for nothing, or for two things at once."""
    if not arguments.user and not arguments.population:
        raise FunnelcastError("found neither --user nor --population, expected one of them; name whom to explain")
    if arguments.bundle and arguments.checkpoint:
        raise FunnelcastError("found both --bundle and --checkpoint, expected one; leave out the other")
    if arguments.row is not None and len(arguments.user) != 1:
        raise FunnelcastError(f"found --row with {len(arguments.user)} users, expected one --user; name it")


def _graph(bundle: Path | None) -> Answerer:
    return GraphAnswerer(bundle or SHIPPED)


def one_user(
    user: str, columns: LogColumns, answerer: Answerer, rules: Rules, recorded: Array, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Explain one user."""
    question = question_of(columns, user, arguments.row, arguments.session_end, rules)
    explained = explain_user(columns, question, answerer, rules, recorded, arguments.latest)
    carried = (arguments.bundle or SHIPPED) / CHECKPOINT_OF_BUNDLE
    attention = attention_of(answerer, explained, carried if (carried / WEIGHTS).exists() else None)
    return {"model": answerer.name, **as_dict(columns, user, explained, attention)}


def population(
    columns: LogColumns, histories: Histories, answerer: Answerer, rules: Rules, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure importance on a sample of the users."""
    settings = Settings(arguments.population, arguments.resamples, arguments.seed, arguments.progress)
    sample = sample_of(histories, reach_labels(histories, answerer.contract.horizon_ms), settings)
    return {
        "model": answerer.name,
        "users": len(set(sample.user.tolist())),
        "positions": len(sample.known),
        "method": {
            "features": "permuted among all rows of these users: fall of AUC, rise of log-loss",
            "types": "all past events of the type left out, the past folded again: change of the probability",
        },
        "features": importance_of_features(sample, asked(sample, answerer), settings),
        "types": importance_of_types(columns, sample, answerer, rules, histories.recorded, settings),
    }


def save(path: Path, told: dict[str, Any], picture: bytes) -> None:
    """Write the JSON file and the picture beside it, and say so."""
    write_whole(path.with_name(path.name + ".json"), msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    write_whole(path.with_name(path.name + ".png"), picture)
    print(f"{path}.json and .png")

"""The command line: `funnelcast COMMAND ...`; a command's module is imported only when it is chosen.

A refusal leaves as one sentence on stderr and exit code 2, Ctrl-C as 130; any other exception is a fault of ours.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

from model.contract.errors import FunnelcastError

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class Command(NamedTuple):
    """Where a subcommand lives: a module with `add_arguments(parser)` and `run(arguments) -> exit code`."""

    module: str
    help: str
    extra: str = "worker"


COMMANDS = {
    "topics": Command("worker.topics", "create the topics, or check them"),
    "worker": Command("worker.serve", "score clicks as they come; publish stage probabilities and triggers"),
    "replay": Command("worker.replay", "send an event log to the clickstream in event-time order"),
    "watch": Command("worker.watch", "show stage probabilities and triggers as they come"),
    "prepare": Command("model.prepared.command", "replay and label a long event log once, in bounded memory", "train"),
    "train": Command("model.train", "train a network on an event log", "train"),
    "evaluate": Command("model.evaluation.command", "compare the network with its rivals on an event log", "train"),
    "explain": Command("model.explain.command", "show what moved a user's answer, or what the model goes by", "train"),
    "tune": Command("model.tuning.command", "search for good settings on an event log, for some minutes", "train"),
    "transfer": Command(
        "model.transfer.command", "fine-tune a checkpoint on another log, and say what it is worth", "train"
    ),
    "simulate": Command("model.virtual.command", "make virtual users whose events can be replayed"),
    "score": Command("model.offline.command", "score every event and session end of an event log into a file"),
    "export": Command("export.__main__", "turn a checkpoint into the bundle that the worker serves", "export"),
}
TRAINING = ("pyarrow", "sklearn", "matplotlib", "torch", "reformer_pytorch", "optuna")
EXTRA_OF = dict.fromkeys(TRAINING, "train") | {"onnx": "export"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = _overview().parse_args(words[:1]).command
    try:
        return _run(name, words[1:])
    except FunnelcastError as error:
        print(f"funnelcast: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: `funnelcast watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(name: str, words: list[str]) -> int:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(command.module)
        parser = argparse.ArgumentParser(prog=f"funnelcast {name}", description=f"{name}: {command.help}.")
        module.add_arguments(parser)
        code: int = module.run(parser.parse_args(words))
        return code
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "worker", "model", "export"):
            raise
        extra = EXTRA_OF.get(missing, command.extra)
        raise FunnelcastError(
            f"`funnelcast {name}` needs {missing}, which is not installed; run pip install 'funnelcast[{extra}]'"
        ) from None


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="funnelcast",
        description="Funnel-stage probabilities and campaign triggers from a clickstream, live.",
        epilog=f"commands:\n{lines}\n\n`funnelcast COMMAND --help` lists the options of one command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"funnelcast {metadata.version('funnelcast')}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    return parser


if __name__ == "__main__":
    sys.exit(main())

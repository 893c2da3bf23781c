"""`funnelcast export CHECKPOINT BUNDLE`, also `python -m export`: turn a trained checkpoint into a bundle."""

import argparse
import sys
from pathlib import Path
from typing import Any

from export.pack import pack
from model.contract.errors import FunnelcastError
from model.datasets import add_log_arguments, log_from_args
from model.gate import judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="directory written by funnelcast train")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="new directory to write the bundle to")
    parser.add_argument("--name", default="", help="name of the model in every record (default: that of the run)")
    serving = "refuse a model that is worse than this bundle, beyond noise, on the users of --on kept aside"
    parser.add_argument("--serving", type=Path, metavar="DIR", help=serving)
    add_log_arguments(parser, "--on", "the log to compare on")


def run(arguments: argparse.Namespace) -> int:
    """Compare where asked; export, check and report."""
    verdict = compare(arguments)
    bundle, parity, step = pack(arguments.checkpoint, arguments.bundle, arguments.name, verdict)
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    print(f"bundle   {bundle.path}  {bundle.name} {bundle.version}  {size / 1e6:.2f} MB")
    print(f"graph    sha256 {bundle.model_sha256}")
    print(
        f"parity   {parity.positions:,} positions: reach within {parity.reach:.1e}, next type within"
        f" {parity.next_type:.1e}"
    )
    if step is None:
        kind = bundle.provenance["model"]["network"]
        print(f"step     none: a network of the kind {kind} keeps no hot state, the worker scores whole sequences")
        return 0
    print(f"         {parity.near_ties_flipped} of {parity.decisions:,} hash decisions fell differently, all near-ties")
    print(
        f"step     {step.positions:,} positions, users of up to {step.longest:,} rows: reach within {step.reach:.1e},"
        f" from a rebuilt state within {step.rebuilt:.1e}; near-ties of {step.near_ties_flipped} users fell differently"
    )
    return 0


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the comparison with the serving bundle; FunnelcastError if the new model is worse."""
    if (arguments.serving is None) != (arguments.log is None):
        raise FunnelcastError("found one of --serving and --on, expected both or none; give the other too")
    if arguments.serving is None:
        return {}
    log = log_from_args(arguments)
    verdict = judge(arguments.checkpoint, arguments.serving, log, arguments.progress)
    print("\n".join([log.summary(), *verdict.lines()]))
    if verdict.worse:
        raise FunnelcastError(
            f"{arguments.checkpoint} is worse than {arguments.serving} beyond noise: {'; '.join(verdict.worse)};"
            " nothing was written: keep serving that one, or train on more"
        )
    return verdict.figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except FunnelcastError as error:
        print(f"funnelcast: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

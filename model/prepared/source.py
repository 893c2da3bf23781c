"""Where training and evaluation get their examples: from an event log, or from a log prepared before."""

import argparse
from typing import Any

from model.contract.errors import FunnelcastError
from model.contract.stages import Funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import log_from_args
from model.examples import Examples, read_examples
from model.prepared.folder import Purpose, is_prepared, read_prepared

READING = {"format": "auto", "map": "", "events": "", "where": [], "time_unit": "auto"}  # options and their defaults


def examples_from(
    arguments: argparse.Namespace, funnel: Funnel, horizon_ms: int, vocabulary: Vocabulary
) -> tuple[Examples, dict[str, Any]]:
    """Return the examples of what LOG names, and what provenance says about the data; print what became of the rows."""
    if is_prepared(arguments.log):
        if given := [name for name, default in READING.items() if getattr(arguments, name) != default]:
            option = given[0].replace("_", "-")
            raise FunnelcastError(f"found --{option} with a prepared log; give it to funnelcast prepare instead")
        examples, about = read_prepared(arguments.log, Purpose(funnel, horizon_ms, vocabulary))
        print("\n".join(about.told))
        return examples, about.data
    log = log_from_args(arguments)
    examples, data = read_examples(log, funnel, horizon_ms, vocabulary, arguments.progress)
    print("\n".join([log.summary(), *log.problems.lines()]))
    return examples, data

"""What one event costs in training against the length of the sequences, on one thread: ours beside other networks.

Each network has the row embedding, heads and losses of the product, and takes whole training steps (batch, forward,
backward, optimizer) over about 4,096 rows of users with L rows each. Times are CPU time of this process; networks take
turns in every round. Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.training [--lengths 128,512,1024] [--rounds 5]     (about 2 minutes)
"""

from __future__ import annotations

import statistics
import time

import msgspec
import numpy as np
import torch

from model.batches import segments
from model.contract.events import N_TYPES
from model.contract.features import WIDTH
from model.contract.rows import RING
from model.contract.stages import STAGES
from model.examples import Examples
from model.fit import Settings, Trainer
from model.networks import NETWORKS
from model.reformer import SCOPES, TIERS
from tests.bench.measure import options, publish, say

PACKAGES = ("torch", "reformer-pytorch", "numpy")
ROWS = 4096  # of one step


def users_of(length: int) -> Examples:
    """Return random examples of users with `length` rows each."""
    draw, users = np.random.default_rng(length), max(1, ROWS // length)
    rows = users * length
    return Examples(
        users=tuple(f"user{number}" for number in range(users)),
        start=np.arange(0, rows + 1, length),
        ts=np.tile(np.arange(length) * 60_000, users),
        type=draw.integers(2, N_TYPES, rows).astype(np.uint8),
        item=draw.integers(2, 2048, rows),
        category=draw.integers(2, 1024, rows),
        features=draw.integers(0, 256, (rows, WIDTH)).astype(np.uint8),
        reach=draw.integers(0, 2, (rows, SCOPES, len(STAGES))).astype(np.int8),
    )


def step_seconds(trainer: Trainer, examples: Examples) -> float:
    """Return CPU seconds of one training step over all users."""
    started = time.process_time()
    trainer.step(trainer.batch(examples, segments(examples, range(len(examples.users)))))
    return time.process_time() - started


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")],
                        default=[128, 512, 1024], metavar="A,B", help=f"rows of each user, at most {RING}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="steps of each network, in turn (default 5)")
    args = parser.parse_args()
    if max(args.lengths) > RING:
        parser.error(
            f"--lengths has {max(args.lengths)}, expected at most {RING}: longer sequences are cut in training"
        )
    if args.quick:
        args.lengths, args.rounds = [64], 1
    torch.set_num_threads(1)
    small = TIERS["small"]
    networks = ("reformer", *NETWORKS)
    trainers = {name: Trainer(Settings(msgspec.structs.replace(small, network=name))) for name in networks}
    examples = {length: users_of(length) for length in args.lengths}
    cases = [(name, length) for name in networks for length in args.lengths]
    for name, length in cases:
        step_seconds(trainers[name], examples[length])  # the first step allocates
    spent: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for number in range(args.rounds):
        for name, length in cases:
            seconds = step_seconds(trainers[name], examples[length])
            spent[name, length].append(1e6 * seconds / len(examples[length].ts))
        say(f"round {number + 1} of {args.rounds}")
    systems = {
        name: {
            "figures": [
                {
                    "length": length,
                    "us_per_event": round(statistics.median(spent[name, length]), 1),
                    "us_per_event_min_max": [round(edge(spent[name, length]), 1) for edge in (min, max)],
                }
                for length in args.lengths
            ]
        }
        for name in networks
    }
    publish("training", args, PACKAGES, {"systems": systems, "threads": 1})


if __name__ == "__main__":
    main()

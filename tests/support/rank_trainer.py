"""One of the processes of torchrun: trains as the command does; keeps its first state and which weights it ended with.

python tests/support/rank_trainer.py FOLDER OPTIONS_OF_TRAIN...
"""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from model import train
from model.fit import Trainer
from model.recipe import Trained
from model.reformer import weights
from model.train import STATE

fit, save = train.fit, Trainer.save


def told(*given: Any) -> Trained:
    """Train, and write the digest of the weights and of their average to a file of this rank."""
    trained, digest = fit(*given), hashlib.sha256()
    for model in (trained.trainer.model, trained.trainer.average):
        for value in weights(model).values():
            digest.update(value.numpy().tobytes())
    Path(sys.argv[1], f"rank{os.environ['RANK']}").write_text(digest.hexdigest())
    return trained


def kept(trainer: Trainer, path: Path, identity: str) -> None:
    """Save the state of an epoch; keep that of the first one."""
    save(trainer, path, identity)
    if trainer.epoch == 1:
        shutil.copy(path, Path(sys.argv[1], STATE))


parser = argparse.ArgumentParser()
train.add_arguments(parser)
train.fit, Trainer.save = told, kept  # type: ignore[method-assign]
sys.exit(train.run(parser.parse_args(sys.argv[2:])))

"""Offline scores: the torch model over the same inputs that the worker's graph gets.

In: Inputs of the reducer. Out: calibrated reach probabilities of the wanted rows. Plain: what serving is held to.
"""

import numpy as np
import torch

from model.contract.bundle import LENGTH_CLASSES, Calibration, pad, pad_class
from model.contract.rows import Array, Inputs
from model.contract.stages import STAGES
from model.contract.vocabulary import Vocabulary
from model.reformer import SCOPES, ClickModel, Rows

USERS_PER_RUN = 16


def score_offline(model: ClickModel, calibration: Calibration, inputs: Inputs) -> Array:
    """Return the reach probability of each wanted row, scope and stage: (A, 2, S)."""
    reach = np.zeros((len(inputs.owner), SCOPES, len(STAGES)), np.float32)  # (A, 2, S)
    by_length = np.argsort(inputs.lengths, kind="stable")
    for start in range(0, len(by_length), USERS_PER_RUN):
        users = by_length[start : start + USERS_PER_RUN]
        logits = run(model, inputs, users)  # (B, L, 2, S)
        rank = np.full(len(inputs.lengths), -1)
        rank[users] = np.arange(len(users))
        wanted = rank[inputs.owner] >= 0  # (A,)
        reach[wanted] = logits[rank[inputs.owner[wanted]], inputs.position[wanted]]
    return calibration.apply(reach)


def run(model: ClickModel, inputs: Inputs, users: Array) -> Array:
    """Return reach logits at every row of some users, (B, L, 2, S)."""
    vocabulary = Vocabulary(item_hashes=model.config.item_hashes, category_hashes=model.config.category_hashes)
    length = pad_class(int(inputs.lengths[users].max()), LENGTH_CLASSES)
    arrays = pad(inputs, [int(user) for user in users], length, vocabulary)
    rows = Rows(*(torch.from_numpy(arrays[name]) for name in Rows._fields))
    model.eval()
    with torch.no_grad():
        return np.asarray(model(rows).reach)

"""The detector: a classifier that tells virtual from real users, and the refiner made of one that lowers its success.

A journey is kept with a chance in proportion to the odds that the refiner gives it of being real (rejection sampling);
how well that works is judged by a detector fitted anew, on real users that neither habits nor refiner have seen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier

from model.contract.rows import Array
from model.evaluation.figures import area, interval, rank
from model.virtual.habits import Refiner, Tree
from model.virtual.refine import odds
from model.virtual.statistics import Trigram

CEILING = 0.97  # quantile of the odds among virtual users: beyond it a journey is always kept
REPLICATES = 500


def fit_detector(real: Array, virtual: Array, seed: int, trees: int = 200) -> GradientBoostingClassifier:
    """Fit on the statistics (U, F) of real and virtual users; both weigh the same."""
    x, y = np.vstack([real, virtual]), np.repeat([1, 0], [len(real), len(virtual)])
    weight = np.where(y, len(y) / len(real), len(y) / len(virtual)) / 2
    model = GradientBoostingClassifier(
        n_estimators=trees, max_depth=3, learning_rate=0.05, subsample=0.7, max_features=0.3, random_state=seed
    )
    return model.fit(x, y, sample_weight=weight)


def judge(model: GradientBoostingClassifier, real: Array, virtual: Array, seed: int) -> dict[str, Any]:
    """Return the AUC on users that it has not seen, with an interval of user-bootstrap replicates."""
    score = model.decision_function(np.vstack([real, virtual]))
    y = np.repeat([1.0, 0.0], [len(real), len(virtual)])
    ranked, draw, areas = rank(score, y), np.random.default_rng(seed), []
    for _ in range(REPLICATES):
        again = np.concatenate([draw.integers(0, len(real), len(real)), draw.integers(len(real), len(y), len(virtual))])
        areas.append(area(ranked, np.bincount(again, minlength=len(y)).astype(np.float64)))
    return {
        "auc": area(ranked, np.ones(len(y))),
        "interval": interval(np.array(areas)),
        "real_users": len(real),
        "virtual_users": len(virtual),
    }


def refiner_of(model: GradientBoostingClassifier, virtual: Array, trigrams: Sequence[Trigram]) -> Refiner:
    """Take the trees out of a classifier, so that they are used without scikit-learn."""
    trees = [_tree(estimator.tree_) for estimator in model.estimators_[:, 0]]
    blank = Refiner(trees, 0.0, float(model.learning_rate), 0.0, list(trigrams))
    start = float(np.mean(model.decision_function(virtual) - odds(blank, virtual)))
    whole = Refiner(trees, start, float(model.learning_rate), 0.0, list(trigrams))
    return Refiner(trees, start, whole.rate, float(np.quantile(odds(whole, virtual), CEILING)), whole.trigrams)


def _tree(tree: Any) -> Tree:
    return Tree(
        feature=tree.feature.tolist(),
        threshold=[round(float(t), 6) for t in tree.threshold],
        left=tree.children_left.tolist(),
        right=tree.children_right.tolist(),
        value=[round(float(v), 6) for v in tree.value[:, 0, 0]],
    )

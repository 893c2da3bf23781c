"""Laws of the measures, against definitions written out."""

import numpy as np
import pytest

from model.measures import auc, calibration_error, log_loss, measure


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = np.random.default_rng(0)
    scores, outcomes = draw.integers(0, 8, 80), draw.integers(0, 2, 80)
    pairs = [(a, b) for a in scores[outcomes == 1] for b in scores[outcomes == 0]]
    expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert auc(scores, outcomes) == pytest.approx(expected)
    assert np.isnan(auc(scores, np.ones(80)))


def test_log_loss_and_calibration_error_follow_their_definitions() -> None:
    p, y = np.array([0.9, 0.2, 0.6]), np.array([1, 0, 0])
    losses = -np.log([0.9, 0.8, 0.4])
    assert log_loss(p, y) == pytest.approx(losses.mean())
    assert log_loss(p, y, np.array([1, 0, 3])) == pytest.approx((losses[0] + 3 * losses[2]) / 4)
    assert calibration_error(np.array([0.3, 0.3, 0.9]), np.array([0, 1, 1])) == pytest.approx((0.4 + 0.1) / 3)


def test_figures_stand_beside_those_of_the_base_rate() -> None:
    outcomes = np.random.default_rng(3).integers(0, 2, (400, 2, 6))
    figures = measure(np.where(outcomes, 0.8, 0.2), outcomes, np.full((2, 6), 0.5))
    cell = figures["category"]["intent"]
    assert cell["auc"] == 1.0
    assert cell["log_loss"] == pytest.approx(-np.log(0.8))
    assert cell["base_log_loss"] == pytest.approx(np.log(2))
    assert cell["calibration_error"] == pytest.approx(0.2)

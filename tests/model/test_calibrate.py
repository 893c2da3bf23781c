"""Laws of calibration: the better kind is found, rare stages survive, session ends count for more than their number."""

import numpy as np
import pytest

from model.calibrate import extended, fit_calibration, isotonic, platt, sigmoid, weights_of
from model.contract.rows import Array
from model.measures import calibration_error


def users(positions: int, count: int = 100) -> Array:
    return np.random.default_rng(9).integers(0, count, positions)


def no_end(positions: int) -> Array:
    return np.zeros(positions, bool)


def test_platt_finds_the_scale_and_shift_that_made_the_outcomes() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 2, (20000, 2, 6))
    outcomes = draw.random(logits.shape) < 1 / (1 + np.exp(1 - 0.5 * logits))
    found = fit_calibration(logits, outcomes, users(20000), no_end(20000))
    np.testing.assert_allclose(found.scale, 0.5, atol=0.05)
    np.testing.assert_allclose(found.shift, -1.0, atol=0.1)
    assert sum(row.count("platt") for row in found.kinds()) >= 8


def test_isotonic_is_chosen_where_no_sigmoid_fits() -> None:
    draw = np.random.default_rng(2)
    logits = draw.normal(0, 2, (20000, 2, 6))
    truth = np.where(logits < -1, 0.1, np.where(logits < 2, 0.4, 0.5))
    truth[:, 1] = sigmoid(logits[:, 1])
    outcomes = draw.random(logits.shape) < truth
    found = fit_calibration(logits, outcomes, users(20000), no_end(20000))
    assert found.kinds()[0] == ["isotonic"] * 6
    other = draw.normal(0, 2, (5000, 2, 6))
    expected = np.where(other < -1, 0.1, np.where(other < 2, 0.4, 0.5))
    assert np.abs(found.apply(other)[:, 0, 0] - expected[:, 0, 0]).mean() < 0.03


@pytest.mark.parametrize("outcome", [0, 1])
def test_a_stage_that_nobody_or_everybody_reaches_keeps_finite_tables_and_no_certainty(outcome: int) -> None:
    logits = np.random.default_rng(2).normal(size=(500, 2, 6))
    found = fit_calibration(logits, np.full((500, 2, 6), outcome), users(500), no_end(500))
    p = found.apply(np.zeros((2, 6)))
    assert (np.abs(p - outcome) < 0.05).all()


def test_isotonic_knots_rise_and_are_few() -> None:
    draw = np.random.default_rng(3)
    logits = draw.integers(-3, 4, 3000).astype(float)  # many ties
    knots = isotonic(logits, draw.integers(0, 2, 3000), np.ones(3000))
    assert len(knots.x) <= 7
    assert (np.diff(knots.p) >= 0).all()


def test_beyond_the_knots_higher_logits_still_rank_higher() -> None:
    draw = np.random.default_rng(5)
    logits = draw.normal(size=4000)
    y, ones = draw.random(4000) < sigmoid(2 * logits - 1), np.ones(4000)
    knots, line = isotonic(logits, y, ones), platt(logits, y, ones)
    longer = extended(knots, line)
    beyond = np.array([knots.x[-1] + 0.1, knots.x[-1] + 0.5, knots.x[-1] + 1.5])
    assert (np.diff(np.interp(beyond, longer.x, longer.p)) > 0).all()
    assert longer.x[1:-1] == knots.x


def test_session_ends_pull_a_shared_table_towards_themselves() -> None:
    ended = np.arange(4000) % 10 == 0
    weight = weights_of(ended)
    assert weight.mean() == pytest.approx(1)
    assert weight[ended].sum() == pytest.approx(0.3 * 4000)
    assert weights_of(np.ones(5, bool)).tolist() == [1.0] * 5
    logits, outcomes = np.zeros(4000), np.where(ended, 0, 1)
    with_ends = sigmoid(platt(logits, outcomes, weight)[1])
    assert with_ends == pytest.approx(0.7, abs=0.02)


def test_calibrated_probabilities_of_users_not_fitted_on_are_calibrated() -> None:
    draw = np.random.default_rng(4)
    logits = draw.normal(0, 1.5, (8000, 2, 6))
    truth = np.minimum.accumulate(sigmoid(0.7 * logits - 0.3), axis=-1)
    outcomes = draw.random(truth.shape) < truth
    fitted = fit_calibration(logits[:4000], outcomes[:4000], users(4000), no_end(4000))
    p = fitted.apply(logits[4000:])
    assert calibration_error(p[:, 0, 0], outcomes[4000:, 0, 0]) < 0.04
    assert (np.diff(p, axis=-1) <= 0).all()

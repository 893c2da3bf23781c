"""Laws of the recipe: what a pupil is told, how it ends nearer to its teachers, and when it stops."""

import msgspec
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from model.calibrate import sigmoid
from model.contract.features import WIDTH
from model.examples import CENSORED, Examples
from model.fit import Settings, Trainer, score
from model.measures import auc
from model.recipe import NETWORK_SHARE, RAMPS, follow, lessons_of, seen_by_trees, settings_of_pupil
from model.reformer import ClickModel, ReformerConfig
from model.tabular import Tabular, Trees, boosting, bytes_and_type

torch.set_num_threads(1)  # small tensors: threads would only wait for each other
threadpool_limits(1)

CONFIG = ReformerConfig(dim=16, depth=1, heads=2, item_hashes=64, category_hashes=32)
SETTINGS = Settings(CONFIG, learning_rate=1e-2, warm_up=5, batch_rows=200, average=0.8, taught=True)
TRAIN, VALIDATION = list(range(40)), list(range(40, 55))


@pytest.fixture(scope="module")
def data() -> Examples:
    """Users who reach the stages where one feature lies within bounds, and seldom elsewhere; some rows are censored."""
    draw, users, rows = np.random.default_rng(0), 60, 20
    features = draw.integers(0, 100, (users * rows, WIDTH)).astype(np.uint8)
    inside = (features[:, 3] > 30) & (features[:, 3] < 60)
    reached = draw.random(users * rows) < np.where(inside, 0.8, 0.1)
    reach = np.repeat(reached[:, None], 12, 1).reshape(-1, 2, 6).astype(np.int8)
    reach[::7] = CENSORED
    names = [draw.integers(2, 30, users * rows) for _ in range(2)]
    start, ts = np.arange(0, users * rows + 1, rows), np.arange(users * rows)
    return Examples(
        tuple(map(str, range(users))), start, ts, np.full(users * rows, 3, np.uint8), *names, features, reach
    )


def test_a_pupil_is_told_the_mean_of_its_teachers_logits_in_every_row_of_those_asked_and_in_no_other(
    data: Examples,
) -> None:
    network = ClickModel(CONFIG).eval()
    trees = Tabular(lambda: boosting(0, Trees(min_samples_leaf=5)), bytes_and_type, stops_early=True)
    trees.fit(data, TRAIN, VALIDATION, False)
    lessons = lessons_of(network, trees, data, [7, 2])
    asked = data._replace(reach=np.zeros_like(data.reach))
    for user in (2, 7):
        rows = slice(data.start[user], data.start[user + 1])
        logits = NETWORK_SHARE * score(network, asked, [user]).logits
        logits = logits + (1 - NETWORK_SHARE) * trees.logits(asked, [user])
        np.testing.assert_allclose(lessons.reach[rows], sigmoid(logits), atol=1e-3)
    others = np.ones(len(data.ts), bool)
    others[np.r_[data.start[2] : data.start[3], data.start[7] : data.start[8]]] = False
    assert (lessons.reach[others] == CENSORED).all()


def test_trees_that_teach_see_how_often_a_user_came_back_to_a_category_which_a_worker_does_not_keep(
    data: Examples,
) -> None:
    rows = np.arange(len(data.ts))
    often = np.array([(data.category[row - row % 20 : row + 1] == data.category[row]).sum() for row in rows])
    reach = np.repeat(often > 1, 12).reshape(-1, 2, 6).astype(np.int8)
    asked, found = np.isin(data.user_of(rows), VALIDATION), []
    for columns in (bytes_and_type, seen_by_trees):
        trees = Tabular(lambda: boosting(0, Trees(min_samples_leaf=5)), columns, stops_early=True)
        trees.fit(data._replace(reach=reach), TRAIN, VALIDATION, False)
        found.append(auc(trees.logits(data._replace(reach=reach), VALIDATION)[:, 0, 0], reach[asked, 0, 0]))
    assert found[0] < 0.8
    assert found[1] > 0.99


def test_a_pupil_says_what_its_teachers_say_more_nearly_than_the_network_that_it_began_as(data: Examples) -> None:
    def run(trainer: Trainer, name: str) -> None:
        while not trainer.finished and trainer.epoch < 15:
            trainer.run_epoch(data, TRAIN, VALIDATION, False)

    kept = follow(SETTINGS, data, (TRAIN, VALIDATION), run)
    assert kept.trainer.start is not None
    assert kept.trainer.best_loss < kept.trainer.start - 0.003
    assert kept.trainer.settings.model.ramps == RAMPS
    assert list(kept.phases()) == ["reach", "reach, as its teachers say"]
    alone = follow(msgspec.structs.replace(SETTINGS, taught=False), data, (TRAIN, VALIDATION), run)
    assert alone.teacher is None
    assert alone.trainer.settings.model.ramps == 0


def test_a_rate_that_falls_ends_at_nothing_and_training_with_it(data: Examples) -> None:
    trainer = Trainer(msgspec.structs.replace(SETTINGS, fall=4, patience=1, warm_up=1))
    rates = []
    while not trainer.finished:
        trainer.run_epoch(data, TRAIN, VALIDATION, False)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.008536, 0.005, 0.001464], abs=1e-5)


def test_a_pupil_learns_for_more_epochs_where_they_are_short(data: Examples) -> None:
    small = msgspec.structs.replace(SETTINGS, batch_rows=40)  # two users
    assert [settings_of_pupil(small, data, TRAIN[:users]).fall for users in (2, 40)] == [60, 28]

"""Intervals that hold pictures and trainings: known variances, the null case, and what one training can say."""

import numpy as np
import pytest

from salmask.rows.statistics import difference, mean_replicates
from salmask.rows.trainings import collapsed, compare_rows, over_trainings


def scores(generator, pictures: np.ndarray, *, trainings: int, between: float, residual: float = 0.2) -> np.ndarray:
    """Return (pictures, trainings): what a picture is worth, what a training is worth, and noise of both."""
    effects = generator.normal(0, between, trainings)
    return pictures[:, None] + effects + generator.normal(0, residual, (len(pictures), trainings))


def test_the_variance_is_that_of_pictures_and_trainings_together():
    n, k, within, between, residual = 400, 40, 0.5, 0.1, 0.2
    generator = np.random.default_rng(0)
    pictures = generator.normal(0, within, n)
    values = scores(generator, pictures - pictures.mean(), trainings=k, between=between, residual=residual)
    spread = over_trainings(values.mean(0), mean_replicates(values), key="row").var()
    expected = within**2 / n + between**2 / k + residual**2 / (n * k)
    assert spread == pytest.approx(expected, rel=0.25)
    pictures_alone = mean_replicates(values).mean(1).var()
    assert pictures_alone == pytest.approx(within**2 / n, rel=0.25) and spread > 1.2 * pictures_alone


@pytest.mark.parametrize(("ours", "theirs"), [(3, 3), (2, 2), (3, 0)])
def test_equal_recipes_are_told_apart_in_at_most_one_case_of_twenty(ours, theirs):
    """Both rows are the same recipe (or, untrained, its true value), and trainings differ by more than pictures do."""
    generator = np.random.default_rng(ours)
    wrong = once = 0
    for _ in range(200):
        pictures = generator.normal(0, 0.3, 200)
        first = scores(generator, pictures, trainings=ours, between=0.06)
        second = scores(generator, pictures, trainings=theirs, between=0.06) if theirs else pictures[:, None]
        wrong += compare_rows(("a", first), ("b", second), resamples=500).p < 0.05
        once += difference(("a", first[:, 0]), ("b", second[:, 0])).p < 0.05
    assert wrong <= 14  # 5 % of 200, and two standard deviations of that
    assert once > 60  # one training a row, over pictures alone: what made wrong verdicts


def test_a_difference_beyond_the_spread_of_trainings_is_seen():
    generator = np.random.default_rng(0)
    pictures = generator.normal(0, 0.3, 300)
    better = scores(generator, pictures, trainings=3, between=0.01) - 0.2
    found = compare_rows(("a", better), ("b", scores(generator, pictures, trainings=3, between=0.01)))
    assert found.p < 0.01 and found.interval.high < -0.1 and found.trainings == (3, 3)


def test_two_rows_draw_their_trainings_apart():
    """Shared draws would cancel, and the spread of two rows would be that of none."""
    values = np.tile([0.0, 0.1, 0.2], (50, 1))
    found = compare_rows(("a", values), ("b", values)).interval
    assert found.mean == 0 and found.high - found.low > 0.3


def test_one_column_a_row_is_the_paired_bootstrap_of_pictures():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 60))
    found, paired = (
        compare_rows(("a", first[:, None]), ("b", second[:, None])).interval,
        difference(("a", first), ("b", second)),
    )
    assert (found.mean, found.n) == (pytest.approx(paired.interval.mean), 60)
    assert (found.low, found.high) == pytest.approx((paired.interval.low, paired.interval.high))


def test_pictures_without_a_value_of_every_training_are_left_out_and_counted():
    values = np.array([[1.0, 3.0], [np.nan, 100.0], [1.0, 3.0]])
    found = compare_rows(("a", values), ("b", np.array([[0.0], [0.0], [0.0]])))
    assert (found.interval.mean, found.interval.n, found.interval.missing) == (2.0, 2, 1)
    assert np.isnan(compare_rows(("a", np.full((3, 1), np.nan))).interval.mean)


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match="same pictures for a and b, got 3 and 2"):
        compare_rows(("a", np.zeros((3, 1))), ("b", np.zeros((2, 1))))


def test_maps_that_are_mostly_empty_or_full_are_collapsed():
    masks = {
        "sound": np.full(10, 0.5),
        "full": np.array([0.95] * 6 + [0.5] * 4),
        "empty": np.array([0.0] * 9 + [np.nan]),
        "half": np.array([0.0] * 3 + [0.95] * 2 + [0.5] * 5),
    }
    assert collapsed(masks) == {"full": 0.6, "empty": 1.0}

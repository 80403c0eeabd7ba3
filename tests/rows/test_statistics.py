"""Intervals, differences and tests: closed forms, scipy as the other implementation, and NaN."""

import numpy as np
import pytest
from scipy import stats

from salmask.rows import statistics
from salmask.rows.statistics import Interval


def values(n: int = 60, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, columns))


def test_constant_data_has_an_interval_of_no_width():
    replicates = statistics.mean_replicates(np.full((50, 1), 0.1))[:, 0]
    interval = statistics.as_interval(0.1, replicates, n=50)
    assert interval.low == interval.high == 0.1


def test_weights_draw_every_image_n_times_in_all():
    chunks = list(statistics.resample_weights(7, resamples=30, seed=3))
    weights = np.concatenate(chunks)
    assert weights.shape == (30, 7)
    assert (weights.sum(1) == 7).all() and (weights >= 0).all() and (weights > 1).any()


def test_chunks_of_resamples_change_nothing(monkeypatch):
    whole = statistics.mean_replicates(values(), resamples=40)
    monkeypatch.setattr(statistics, "_CELLS", 60 * 7)
    assert len(list(statistics.resample_weights(60, resamples=40))) > 1
    np.testing.assert_allclose(statistics.mean_replicates(values(), resamples=40), whole)


def test_interval_agrees_with_scipy_and_normal_theory():
    column = values(400, 1)[:, 0]
    replicates = statistics.mean_replicates(column[:, None], resamples=4000)[:, 0]
    ours = statistics.as_interval(column.mean(), replicates, n=400)
    theirs = stats.bootstrap((column,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = 2 * 1.96 * column.std() / 20
    assert abs(ours.low - theirs.low) < 0.05 * width and abs(ours.high - theirs.high) < 0.05 * width
    assert (ours.high - ours.low) == pytest.approx(width, rel=0.06)


def test_seed_decides():
    first, again, other = (statistics.mean_replicates(values(), seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def test_missing_values_are_left_out_and_counted():
    column = values(40, 1)
    holed = np.concatenate([column, np.full((10, 1), np.nan)])
    assert np.isfinite(statistics.mean_replicates(holed)).all()
    found = statistics.difference(("a", holed[:, 0]), ("b", np.zeros(50)))
    assert (found.interval.n, found.interval.missing) == (40, 10)
    assert found.interval.mean == pytest.approx(column.mean())


def test_all_missing_gives_nan_not_an_error():
    found = statistics.difference(("a", np.full(5, np.nan)), ("b", np.zeros(5)))
    assert np.isnan(found.interval.mean) and np.isnan(found.p) and found.interval.n == 0


def test_set_level_scores_add_counts_up():
    counts = np.stack([np.arange(20) % 2, np.ones(20, dtype=int)], axis=1)

    def compute(c: np.ndarray) -> float:
        return c[:, 0].sum() / c[:, 1].sum()

    score, replicates = statistics.count_replicates(counts, compute, resamples=300)
    means = statistics.mean_replicates(counts[:, :1].astype(float), resamples=300)[:, 0]
    assert score == 0.5
    np.testing.assert_allclose(replicates, means)  # a ratio of counts that is a mean has the mean's interval


def test_set_level_scores_in_blocks_of_columns(monkeypatch):
    counts = np.random.default_rng(0).integers(9, size=(30, 4, 5))
    compute = lambda c: float(c.sum(0)[1, 2])  # noqa: E731
    whole = statistics.count_replicates(counts, compute, resamples=20)[1]
    monkeypatch.setattr(statistics, "_CELLS", 90)
    np.testing.assert_array_equal(statistics.count_replicates(counts, compute, resamples=20)[1], whole)


def test_paired_difference_has_the_sign_of_first_minus_second():
    base = values(80, 1)[:, 0]
    found = statistics.difference(("worse", base + 0.3), ("better", base))
    assert found.interval.mean == pytest.approx(0.3)
    assert found.interval.high - found.interval.low < 1e-9  # pairing takes the images' spread away
    assert found.p == pytest.approx(1 / 10000)


def test_difference_of_unequal_lengths_names_both():
    with pytest.raises(ValueError, match="same images for a and b"):
        statistics.difference(("a", np.zeros(3)), ("b", np.zeros(4)))


def test_sign_flip_agrees_with_scipys_exact_test():
    column = np.array([0.3, -0.1, 0.4, 0.2, 0.5, -0.2, 0.35])
    exact = stats.permutation_test(
        (column,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    assert statistics.sign_flip(column[:, None], permutations=40000)[0] == pytest.approx(exact, abs=0.006)


def test_sign_flip_is_uniform_without_a_difference():
    p = statistics.sign_flip(values(100, 400), permutations=999)
    assert 0.02 < (p < 0.05).mean() < 0.09
    assert 0.45 < p.mean() < 0.55


def test_all_zero_differences_are_no_difference():
    zeros = np.zeros((10, 1))
    assert statistics.sign_flip(zeros)[0] == 1 and statistics.wilcoxon(zeros)[0] == 1


def test_wilcoxon_leaves_missing_values_out():
    column = values(50, 1) + 0.8
    holed = np.concatenate([column, np.full((5, 1), np.nan)])
    expected = stats.wilcoxon(column[:, 0], zero_method="zsplit", method="approx").pvalue
    assert statistics.wilcoxon(holed)[0] == pytest.approx(expected)


def test_replicate_p():
    assert statistics.replicate_p(np.full(99, 0.2)) == pytest.approx(0.02)  # two-sided: 2 / (resamples + 1) at least
    assert statistics.replicate_p(np.linspace(-1, 1, 101)) == 1
    assert statistics.replicate_p(np.array([-1.0] + [1.0] * 99)) == pytest.approx(4 / 101)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_holm_does_not_count_missing_tests():
    adjusted = statistics.holm([0.01, float("nan"), 0.02])
    assert adjusted[0] == pytest.approx(0.02) and np.isnan(adjusted[1])


def test_agreement_turns_the_sign_of_down_metrics():
    scores = {"error": [0.1, 0.2, 0.3], "accuracy": [0.9, 0.8, 0.7], "reversed": [1.0, 2.0, 3.0], "flat": [1.0] * 3}
    ways = {"error": "down", "accuracy": "up", "reversed": "up", "flat": "up", "size": "none"}
    names, tau = statistics.agreement(scores | {"size": [1.0, 2.0, 3.0]}, ways)
    assert names == ["error", "accuracy", "reversed", "flat"]
    assert tau[0, 1] == 1 and tau[0, 2] == -1 and np.isnan(tau[0, 3]) and (np.diag(tau)[:3] == 1).all()


def test_agreement_takes_another_coefficient():
    spearman = lambda a, b: float(stats.spearmanr(a, b).statistic)  # noqa: E731
    _, rho = statistics.agreement(
        {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 2.0, 4.0, 3.0]}, {"a": "up", "b": "up"}, coefficient=spearman
    )
    assert rho[0, 1] == pytest.approx(0.8)


def test_agreement_needs_three_common_explainers():
    _, tau = statistics.agreement({"a": [1.0, 2.0, np.nan], "b": [1.0, 2.0, 3.0]}, {"a": "up", "b": "up"})
    assert np.isnan(tau[0, 1]) and tau[1, 1] == 1


def test_json_has_null_for_what_is_not_known():
    assert Interval(0.5, float("nan"), float("nan"), 1).as_dict() == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert Interval(0.5, 0.4, 0.6, 9, 2).as_dict()["missing"] == 2


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="expected values"):
        statistics.mean_replicates(np.zeros((0, 3)))


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        next(statistics.resample_weights(0))

from dataclasses import replace

import numpy as np
import pytest
import torch

from metric_cases import part, random_case
from salmask.metrics import METRICS
from salmask.metrics.attention import ncc, order_auc, sampled_auc, sncc


def densities(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[:, None, None, :]


def test_ncc_is_pearson() -> None:
    case = random_case()
    expected = [np.corrcoef(m.flatten(), g.flatten())[0, 1] for m, g in zip(case.masks, case.gaze, strict=True)]
    assert ncc(case.masks, case.gaze).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(ncc(case.masks * 0.5 + 0.1, case.gaze), ncc(case.masks, case.gaze), atol=1e-5)


def test_ncc_of_a_constant_map_is_zero() -> None:
    gaze = torch.rand(1, 1, 5, 5)
    for value in (0.0, 0.3, 1.0):
        assert ncc(torch.full((1, 1, 5, 5), value), gaze).item() == 0


def test_shuffled_ncc_takes_the_centre_off() -> None:
    gaze, centre = densities([0.0, 0, 0, 1]), densities([0.0, 1, 1, 0])
    assert sncc(gaze, gaze, centre).item() == pytest.approx(1 - ncc(gaze, centre).item())
    assert sncc(centre, gaze, centre).item() == pytest.approx(ncc(centre, gaze).item() - 1)
    assert sncc(gaze, centre, centre).item() == 0


def test_shuffled_ncc_by_hand() -> None:
    """Gaze 0 0 0 1, centre 0 1 1 0: covariance -1/2 over 4 pixels, norms sqrt(3/4) and 1, so NCC = -1/sqrt 3."""
    gaze, centre = densities([0.0, 0, 0, 1]), densities([0.0, 1, 1, 0])
    assert ncc(gaze, centre).item() == pytest.approx(-(3**-0.5), abs=1e-6)
    assert sncc(gaze, gaze, centre).item() == pytest.approx(1 + 3**-0.5, abs=1e-6)
    assert sncc(centre, gaze, centre).item() == pytest.approx(-(3**-0.5) - 1, abs=1e-6)


def test_every_image_may_have_its_own_centre() -> None:
    case = random_case()
    own = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(9)) + 0.01
    for name in ("sncc", "sauc", "sauc:exact"):
        whole = METRICS[name](replace(case, centre=own, memo={}))
        alone = [METRICS[name](replace(part(case, [i]), centre=own[i : i + 1], memo={})).item() for i in range(5)]
        assert whole.tolist() == pytest.approx(alone, abs=1e-6)


def test_auc_by_hand() -> None:
    mask = densities([0.1, 0.2, 0.2, 0.9])
    gaze, centre = densities([0.0, 1, 0, 3]), densities([1.0, 0, 1, 0])
    # positives: .2 (1/4), .9 (3/4); negatives: .1 (1/2), .2 (1/2)
    expected = 0.25 * (0.5 + 0.5 * 0.5) + 0.75 * 1
    assert order_auc(mask, gaze, centre).item() == pytest.approx(expected)
    drawn = sampled_auc(mask, gaze, centre, ids=["a"], seed=0, samples=20000)
    assert drawn.item() == pytest.approx(expected, abs=0.01)


def test_auc_of_a_constant_map_and_of_the_same_density_is_one_half() -> None:
    case = random_case(count=2)
    flat = torch.full_like(case.masks, 0.4)
    assert order_auc(flat, case.gaze, case.centre).tolist() == pytest.approx([0.5, 0.5])
    assert sampled_auc(flat, case.gaze, case.centre, ids=case.ids, seed=0).tolist() == [0.5, 0.5]
    assert order_auc(case.masks, case.gaze, case.gaze).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("change", [torch.square, lambda m: 0.5 * m + 0.2])
def test_auc_sees_only_the_order(change) -> None:
    case = random_case()
    other = replace(case, masks=change(case.masks), memo={})
    for name in ("sauc", "sauc:exact", "gaze_auc"):
        assert torch.allclose(METRICS[name](case), METRICS[name](other), atol=1e-6)


def test_draws_belong_to_the_image_and_the_seed() -> None:
    case = random_case()
    values = METRICS["sauc"](case)
    reversed_ = METRICS["sauc"](part(case, [4, 3, 2, 1, 0]))
    assert torch.equal(values, reversed_.flip(0))
    assert not torch.equal(values, METRICS["sauc"](replace(case, seed=1, memo={})))
    assert torch.allclose(values, METRICS["sauc:exact"](case), atol=0.08)


def test_a_mask_of_the_gaze_beats_a_mask_of_the_centre() -> None:
    x = torch.linspace(-1, 1, 32)
    centre = torch.exp(-(x[:, None] ** 2 + x**2) * 4)[None, None]
    gaze = torch.exp(-((x[:, None] - 0.7) ** 2 + (x + 0.7) ** 2) * 8)[None, None]
    assert sncc(gaze, gaze, centre).item() > 0.5 > 0 > sncc(centre, gaze, centre).item()
    assert order_auc(gaze, gaze, centre).item() > 0.9
    assert order_auc(centre, gaze, centre).item() < 0.5


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_gaze_that_is_no_density_is_refused(value: float) -> None:
    case = random_case()
    gaze = case.gaze.clone()
    gaze[3] = value
    with pytest.raises(ValueError, match="'a/3'"):
        METRICS["sauc"](replace(case, gaze=gaze, memo={}))

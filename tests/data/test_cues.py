"""Pictures with two cues: together, apart, in conflict; each known to the pixel, and drawn as it says."""

from collections import Counter

import numpy as np
import pytest
import torch

from salmask.data.cues import CUES, CuePictures

SIZE = 48


def drawn(cues, n: int = 60, **options) -> CuePictures:
    return CuePictures(n, seed=4, cues=cues, **options)


def test_a_cue_says_the_label_as_often_as_asked_and_other_classes_alike_often_else() -> None:
    for share in (0.0, 0.25, 0.8, 1.0):
        data = drawn({"shape": 1.0, "mark": share}, n=2000)
        said = [data.said(index) for index in range(len(data))]
        assert [one["shape"] for one in said] == data.targets
        right = np.mean([one["mark"] == target for one, target in zip(said, data.targets, strict=True)])
        assert abs(right - share) < 0.03
        away = Counter((one["mark"] - target) % 4 for one, target in zip(said, data.targets, strict=True))
        if share < 1:
            others = sum(away[k] for k in (1, 2, 3))
            assert all(abs(away[k] / others - 1 / 3) < 0.1 for k in (1, 2, 3))


def test_classes_come_in_equal_shares_and_ids_are_unique() -> None:
    data = drawn({"shape": 1.0})
    assert set(Counter(data.targets).values()) == {15}
    assert len(set(data.ids)) == 60 and sorted(data.ids) == data.ids
    assert not set(data.ids) & set(drawn({"shape": 1.0, "mark": 0.0}).ids)


@pytest.mark.parametrize("cues", [{"shape": 1.0, "mark": 1.0}, {"shape": 1.0, "texture": 0.0}, dict.fromkeys(CUES, 1)])
def test_cues_never_cover_each_other_and_lie_where_the_pixels_say(cues) -> None:
    data = drawn(cues, n=30)
    for index in range(30):
        planted = data.planted(index).pixels
        assert list(planted) == [cue for cue in CUES if cue in cues]
        assert all(int(one.sum()) > 20 for one in planted.values())
        assert int(torch.stack([*planted.values()]).sum(0).max()) == 1
        blank = CuePictures(30, seed=4, cues={"mark": 1.0})  # another picture, with the same ground
        if "mark" not in cues:
            away = ~(sum(planted.values()) + blank.planted(index).pixels["mark"]).bool()
            assert away.float().mean() > 0.3


def test_the_mark_tells_its_class_by_its_colour_alone() -> None:
    data = drawn({"mark": 1.0}, n=40)
    colours = {label: [] for label in range(4)}
    for index in range(40):
        sample, planted = data[index], data.planted(index)
        inside = sample.image[:, planted.pixels["mark"].bool()].float().mean(1)
        colours[sample.target].append(inside)
    means = torch.stack([torch.stack(colours[label]).mean(0) for label in range(4)])
    for label, values in colours.items():
        nearest = (torch.stack(values)[:, None] - means[None]).norm(dim=2).argmin(1)
        assert (nearest == label).all()


def test_the_colours_of_the_object_do_not_tell_its_class() -> None:
    data = drawn({"shape": 1.0}, n=400)
    means = {label: [] for label in range(4)}
    for index in range(400):
        sample = data[index]
        means[sample.target].append(sample.image[:, sample.pixels.bool()].float().mean(1) / 255)
    averages = torch.stack([torch.stack(one).mean(0) for one in means.values()])
    assert (averages - averages.mean(0)).abs().max() < 0.1


def test_four_textures_are_told_apart_by_the_directions_of_their_waves() -> None:
    data = drawn({"texture": 1.0}, n=80)
    steps = {label: [] for label in range(4)}
    for index in range(80):
        sample, planted = data[index], data.planted(index)
        rows, columns = torch.where(planted.pixels["texture"] == 1)
        middle = int(rows.float().mean()), int(columns.float().mean())
        patch = sample.image.float().mean(0)[middle[0] - 3 : middle[0] + 4, middle[1] - 3 : middle[1] + 4]
        down, across = patch.diff(dim=0).abs().mean(), patch.diff(dim=1).abs().mean()
        steps[sample.target].append(float(down / (down + across)))
    assert min(steps[0]) > 0.65 and max(steps[1]) < 0.35
    assert all(0.3 < value < 0.7 for value in steps[2] + steps[3])


def test_what_says_the_label_is_the_evidence_of_a_sample() -> None:
    conflict, together = drawn({"shape": 1.0, "mark": 0.0}), drawn({"shape": 1.0, "mark": 1.0})
    assert torch.equal(conflict[3].pixels, conflict.planted(3).pixels["shape"])
    both = together.planted(3).pixels
    assert torch.equal(together[3].pixels, both["shape"] | both["mark"])
    assert len(drawn({"mark": 0.0})[3].boxes) == 0


def test_a_picture_depends_on_seed_index_and_cues_alone() -> None:
    short, long = drawn({"shape": 1.0, "mark": 0.5}, n=3), drawn({"shape": 1.0, "mark": 0.5}, n=50)
    for index in (2, 0):
        assert torch.equal(short[index].image, long[index].image)
    other = CuePictures(3, seed=5, cues={"shape": 1.0, "mark": 0.5})
    assert not torch.equal(short[0].image, other[0].image)


def test_only_the_cue_that_is_left_out_changes_the_picture() -> None:
    """Apart or together: the ground and the other cue stay as they are, but for the grain of every picture."""
    both, alone = drawn({"shape": 1.0, "mark": 1.0}), drawn({"shape": 1.0})
    for index in range(5):
        changed = (both[index].image.float() - alone[index].image.float()).abs().amax(0) > 40
        assert not (changed & ~both.planted(index).pixels["mark"].bool()).any()


@pytest.mark.parametrize(
    "wrong", [{"cues": {}}, {"cues": {"smell": 1.0}}, {"cues": {"shape": 1.2}}, {"n": 0}, {"size": 16}, {"seed": -1}]
)
def test_bad_input_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        CuePictures(**{"n": 4, "seed": 0, "cues": {"shape": 1.0}, **wrong})


def test_an_index_beyond_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        drawn({"shape": 1.0})[60]

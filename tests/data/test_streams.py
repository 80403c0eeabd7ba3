"""Streams of batches: exact passes, resuming, workers; and the data sets made out of data sets."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset

from salmask.data import (
    Batch,
    CropFlip,
    Sample,
    cached,
    evaluation_batches,
    no_boxes,
    shuffled_labels,
    split_off,
    subset,
    training_batches,
)


class Counting(Dataset):
    """n pictures of noise, `classes` classes in turn; counts how often each is read."""

    def __init__(self, n: int = 10, *, classes: int = 2) -> None:
        self.classes = [f"c{label}" for label in range(classes)]
        self.targets = [index % classes for index in range(n)]
        self.ids = [f"{index}.png" for index in range(n)]
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=generator)
        boxes = torch.tensor([[1.0, 2, 9, 10]]) if index % 3 else no_boxes()
        pixels = torch.ones(12, 12, dtype=torch.uint8) if index % 2 else None
        return Sample(self.ids[index], image, self.targets[index], boxes, pixels)


def same(left: Batch, right: Batch) -> bool:
    return (
        left.ids == right.ids
        and torch.equal(left.images, right.images)
        and torch.equal(left.targets, right.targets)
        and all(map(torch.equal, left.boxes, right.boxes))
        and all((a is None and b is None) or torch.equal(a, b) for a, b in zip(left.pixels, right.pixels, strict=True))
    )


def stream(data: Dataset, batches: int, **settings) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 7, "augment": CropFlip(8)} | settings
    return list(islice(training_batches(data, **settings), batches))


# The training stream


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 23])
def test_every_pass_reads_every_image_once(batch_size: int) -> None:
    ids = [name for batch in stream(Counting(), 40, batch_size=batch_size) for name in batch.ids]
    passes = [ids[start : start + 10] for start in range(0, len(ids) - 9, 10)]
    assert len(passes) >= 4
    assert all(sorted(one) == sorted(Counting().ids) for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)  # each in an order of its own


def test_batches_are_never_partial() -> None:
    assert {len(batch.ids) for batch in stream(Counting(), 9)} == {4}


@pytest.mark.parametrize("start", [1, 2, 3, 8])
def test_a_stream_that_starts_later_is_the_tail(start: int) -> None:
    whole = stream(Counting(), 10)
    assert all(map(same, stream(Counting(), 10 - start, start=start), whole[start:]))


def test_workers_change_nothing() -> None:
    assert all(map(same, stream(Counting(), 6, workers=2), stream(Counting(), 6)))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = stream(Counting(), 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert all(map(same, stream(Counting(), 3), first))
    assert not same(stream(Counting(), 1, seed=8)[0], first[0])


def test_an_image_is_augmented_anew_in_every_pass() -> None:
    one = stream(Counting(1), 6, batch_size=1)
    assert len({batch.images.sum().item() for batch in one}) == 6


def test_the_generator_is_restored_after_a_failure() -> None:
    def fail(sample: Sample) -> Sample:
        torch.rand(3)
        raise KeyError(sample.id)

    state = torch.get_rng_state()
    with pytest.raises(KeyError):
        stream(Counting(), 1, augment=fail)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_augmentation_pictures_come_as_they_are() -> None:
    batch = stream(Counting(), 1, augment=None)[0]
    expected = Counting()[int(batch.ids[0].split(".")[0])].image
    assert torch.equal((batch.images[0] * 255).round().byte(), expected)


def test_training_batches_leave_boxes_and_pixel_masks_behind() -> None:
    seen: list[Sample] = []

    def note(sample: Sample) -> Sample:
        seen.append(sample)
        return sample

    for batch in stream(Counting(), 3, augment=note):
        assert all(len(boxes) == 0 for boxes in batch.boxes) and batch.pixels == [None] * 4
    assert len(seen) == 12 and all(len(one.boxes) == 0 and one.pixels is None for one in seen)


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="empty"):
        training_batches(Counting(0), batch_size=1, seed=0)
    for settings in ({"batch_size": 0}, {"batch_size": 1, "start": -1}, {"batch_size": 1, "workers": -1}):
        with pytest.raises(ValueError, match=r"\(batch_size\)|start >= 0|are 0 to 256"):
            training_batches(Counting(), seed=0, **settings)
    with pytest.raises(ValueError, match="batch_size"):
        evaluation_batches(Counting(), batch_size=0)


# Evaluation and the cache


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_all_in_order(workers: int) -> None:
    batches = list(evaluation_batches(Counting(), batch_size=4, workers=workers))
    assert [len(batch.ids) for batch in batches] == [4, 4, 2]
    assert [name for batch in batches for name in batch.ids] == Counting().ids
    assert [len(boxes) for batch in batches for boxes in batch.boxes] == [0, 1, 1, 0, 1, 1, 0, 1, 1, 0]
    assert list(evaluation_batches(Counting(0), batch_size=4)) == []


def test_a_cache_reads_once_and_changes_nothing() -> None:
    data = Counting()
    kept = cached(data)
    assert all(map(same, stream(kept, 8), stream(Counting(), 8)))
    assert (kept.ids, kept.targets, kept.classes) == (data.ids, data.targets, data.classes)
    assert set(data.reads.values()) == {1}


def test_a_full_cache_reads_the_rest_each_time() -> None:
    data = Counting()
    kept = cached(data, limit=1440)  # the first three: 432 bytes each, and a mask of 144
    data.reads.clear()
    assert [kept[index].id for index in range(10)] == data.ids
    assert set(data.reads) == {3, 4, 5, 6, 7, 8, 9}


# Subsets


def test_a_subset_is_balanced_seeded_and_nested() -> None:
    data = Counting(30, classes=3)
    few, more = subset(data, per_class=2, seed=1), subset(data, per_class=5, seed=1)
    assert Counter(few.targets) == {0: 2, 1: 2, 2: 2}
    assert set(few.ids) < set(more.ids)
    assert few.indices == sorted(few.indices)
    assert few.ids == subset(data, per_class=2, seed=1).ids
    assert few.ids != subset(data, per_class=2, seed=2).ids
    assert [few[i].id for i in range(6)] == few.ids
    assert [few[i].target for i in range(6)] == few.targets
    with pytest.raises(ValueError, match="class c0 has 10 images, expected at least 11"):
        subset(data, per_class=11, seed=0)
    with pytest.raises(ValueError, match="per_class=0"):
        subset(data, per_class=0, seed=0)


def test_a_subset_of_classes_counts_them_anew() -> None:
    data = Counting(30, classes=3)
    two = subset(data, classes=["c2", "c1"], seed=0)
    assert two.classes == ["c1", "c2"]
    assert len(two) == 20
    assert all(two.classes[two[i].target] == data.classes[int(two.ids[i].split(".")[0]) % 3] for i in range(20))
    drawn = {tuple(subset(data, classes=1, per_class=1, seed=seed).classes) for seed in range(20)}
    assert drawn == {("c0",), ("c1",), ("c2",)}
    for wrong in (0, 4, ["c1", "nope"], []):
        with pytest.raises(ValueError, match="expected"):
            subset(data, classes=wrong, seed=0)


def test_classes_without_a_picture_are_no_part_of_a_subset() -> None:
    data = Counting(30, classes=3)
    data.classes, data.targets = ["x", "c0", "y", "c1", "c2", "z"], [(1, 3, 4)[target] for target in data.targets]
    few = subset(data, per_class=2, seed=1)
    assert Counter(data.targets[index] for index in few.indices) == {1: 2, 3: 2, 4: 2}
    assert {tuple(subset(data, classes=1, seed=seed).classes) for seed in range(20)} == {("c0",), ("c1",), ("c2",)}
    assert Counter(data.targets[index] for index in split_off(data, per_class=3, seed=0)[1].indices) == {
        1: 3,
        3: 3,
        4: 3,
    }
    with pytest.raises(ValueError, match="expected 1 to 3 classes, got 4"):
        subset(data, classes=4, seed=0)


def test_a_split_is_disjoint_and_complete() -> None:
    data = Counting(30, classes=3)
    rest, held = split_off(data, per_class=3, seed=0)
    assert Counter(held.targets) == {0: 3, 1: 3, 2: 3}
    assert sorted(rest.indices + held.indices) == list(range(30))
    assert subset(rest, per_class=7, seed=0).ids == rest.ids


def test_shuffled_labels_are_uniform_and_say_nothing() -> None:
    data = Counting(3000, classes=3)
    shuffled = shuffled_labels(data, seed=0)
    assert shuffled.ids == data.ids
    assert shuffled.targets == shuffled_labels(data, seed=0).targets != shuffled_labels(data, seed=1).targets
    assert shuffled[5].target == shuffled.targets[5]
    table = Counter(zip(data.targets, shuffled.targets, strict=True))
    assert len(table) == 9
    assert all(abs(count - 1000 / 3) < 80 for count in table.values())  # over five standard deviations
    assert len(set(Counter(shuffled.targets).values())) > 1  # drawn with replacement, not permuted

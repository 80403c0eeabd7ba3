"""The pool of earlier classifiers: when it stores, what it lends, what it writes."""

import pytest
import torch
from torch import Generator

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.training.pool import ClassifierPool


@pytest.fixture
def classifier(small_net: SmallNet) -> Classifier:
    return Classifier(small_net, mean=(0.5,) * 3, std=(0.2,) * 3, layers=("stem", "deep"), image_size=16)


def new_pool(classifier: Classifier, *, size: int = 3, every: int = 2, seed: int = 0) -> ClassifierPool:
    return ClassifierPool(classifier, size=size, every=every, generator=Generator().manual_seed(seed))


def mark(classifier: Classifier, value: float) -> None:
    """Make the state of a step recognisable, in a weight and in a statistic."""
    with torch.no_grad():
        classifier.network.head.bias.fill_(value)
        classifier.network.stem[1].running_mean.fill_(value)


def marks(lent: Classifier) -> tuple[float, float]:
    return lent.network.head.bias[0].item(), lent.network.stem[1].running_mean[0].item()


def offered(pool: ClassifierPool, classifier: Classifier, steps: range) -> ClassifierPool:
    for step in steps:
        mark(classifier, float(step))
        pool.offer(step, classifier.network)
    return pool


def test_the_first_is_stored_at_the_start_and_then_every_so_many_batches(classifier) -> None:
    assert offered(new_pool(classifier, size=9), classifier, range(7)).steps == [0, 2, 4, 6]
    assert offered(new_pool(classifier, size=9, every=100), classifier, range(7)).steps == [0]
    assert offered(new_pool(classifier, size=9), classifier, range(3, 7)).steps == [3, 4, 6]


def test_members_are_copies_of_weights_and_statistics_and_are_drawn_uniformly(classifier) -> None:
    pool = offered(new_pool(classifier), classifier, range(6))
    mark(classifier, -1.0)  # the live network moves on
    drawn = [marks(pool.draw()) for _ in range(600)]
    assert set(drawn) == {(0.0, 0.0), (2.0, 2.0), (4.0, 4.0)}
    for member in set(drawn):
        assert 150 < drawn.count(member) < 250
    assert marks(classifier) == (-1.0, -1.0)


def test_what_is_lent_is_frozen_and_another_network_than_the_trained_one(classifier) -> None:
    classifier.network.train()
    pool = offered(new_pool(classifier), classifier, range(1))
    lent = pool.draw()
    assert lent is not classifier and lent.network is not classifier.network
    assert not any(module.training for module in lent.network.modules())
    assert not any(parameter.requires_grad for parameter in lent.parameters())
    assert all(module.training for module in classifier.network.modules())
    shared = {p.data_ptr() for p in classifier.parameters()} & {p.data_ptr() for p in lent.parameters()}
    assert not shared


def test_a_full_pool_replaces_a_drawn_member_and_stays_full(classifier) -> None:
    replaced = set()
    for seed in range(40):
        pool = offered(new_pool(classifier, every=1, seed=seed), classifier, range(3))
        offered(pool, classifier, range(3, 4))
        assert len(pool) == 3 and 3 in pool.steps
        replaced |= {0, 1, 2} - set(pool.steps)
    assert replaced == {0, 1, 2}


def test_members_come_back_from_disk(classifier, tmp_path) -> None:
    pool = offered(new_pool(classifier), classifier, range(6))
    steps = pool.save(tmp_path / "pool")
    again = new_pool(classifier)
    again.load(tmp_path / "pool", steps)
    assert again.steps == pool.steps == [0, 2, 4]
    assert {marks(again.draw()) for _ in range(50)} == {(0.0, 0.0), (2.0, 2.0), (4.0, 4.0)}


def test_each_member_is_written_once_and_pruned_when_it_is_none_any_more(classifier, tmp_path) -> None:
    pool = offered(new_pool(classifier, size=2), classifier, range(3))
    pool.save(tmp_path)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    pool.save(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == first
    offered(pool, classifier, range(3, 9))
    pool.save(tmp_path)
    assert len(list(tmp_path.iterdir())) > 2  # the last checkpoint may still name them
    (tmp_path / ".000000099.pt.half.pt").write_bytes(b"half")
    pool.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{step:09d}.pt" for step in sorted(pool.steps)]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"every": 0}])
def test_a_pool_without_room_or_interval_is_refused(classifier, wrong) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        new_pool(classifier, **wrong)

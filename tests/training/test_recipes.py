"""The table of recipes, and the laws of the price of area that is found in training."""

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor

from salmask.objective import Objective, area_weighted
from salmask.outcome import Outcome
from salmask.terms import area
from salmask.training.recipes import HISTORIES, RECIPES, Balance, Recipe

CPU = torch.device("cpu")
K = 10


def played(kept: float, removed: float, *, clean: float = 1.0, count: int = 20, classes: int = K) -> Outcome:
    """A batch of which so many are right on the kept side, wrong on the removed one, right as they are."""
    targets = torch.zeros(count, dtype=torch.long)

    def right(share: float) -> Tensor:
        logits = torch.zeros(count, classes)
        logits[:, 1] = 5.0
        logits[: round(share * count), 0] = 10.0
        return logits

    return Outcome(torch.full((count, 1, 4, 4), 0.5), targets, right(clean), right(kept), right(1 - removed))


def after(balance: Balance, outcome: Outcome, steps: int, classes: int = K) -> float:
    state = balance.start(classes, CPU)
    for _ in range(steps):
        state = balance.step(state, outcome)
    return float(balance.price(state, classes))


# The table


def test_every_recipe_is_a_value_that_json_can_hold() -> None:
    for name, recipe in RECIPES.items():
        settings = json.loads(json.dumps(recipe.settings()))
        assert settings["recipe"] == recipe.name == name
        assert settings["weights"].keys() == recipe.objective.terms.keys()
        assert settings["fixed"] == recipe.fixed
        assert recipe.history in HISTORIES
        assert recipe.fixed <= (recipe.history == "off")  # a fixed classifier has no history


def test_the_published_recipes_have_their_published_settings() -> None:
    part = {name: (r.fixed, r.history, r.historic, r.pool_every) for name, r in RECIPES.items()}
    assert part["fix"][:2] == (True, "off")
    assert part["ca"] == (False, "skip_update", 0.5, 100)
    assert part["casm_f"][0] and not part["casm_l"][0]
    assert part["casm_l"][1] == "off"
    assert part["casm_fl"][1:3] == part["casm_l100"][1:3] == part["casm_l1000"][1:3] == ("sample", 0.5)
    assert part["casm_fl"][3] > 10**8 and part["casm_l100"][3] == 100 and part["casm_l1000"][3] == 1000
    assert all(recipe.pool_size == 30 for recipe in RECIPES.values())
    areas = {name: recipe.settings()["weights"].get("area_if_removed_wrong") for name, recipe in RECIPES.items()}
    assert [areas[n] for n in ("fix", "ca", "casm_f", "casm_l", "casm_fl", "casm_l100", "casm_l1000")] == [
        10, 15, 2.5, 14, 7.5, 10, 10,
    ]  # fmt: skip


def test_auto_asks_for_no_area_weights() -> None:
    for name in ("auto", "auto_ca"):
        assert RECIPES[name].balance is not None
        assert not {"area_if_kept_right", "area_if_removed_wrong"} & RECIPES[name].objective.terms.keys()


def test_weighted_changes_weights_alone() -> None:
    other = RECIPES["ca"].weighted(area_if_removed_wrong=3.0)
    assert other.objective.terms["area_if_removed_wrong"][0] == 3.0
    assert other.settings()["weights"] == {**RECIPES["ca"].settings()["weights"], "area_if_removed_wrong": 3.0}
    assert (other.fixed, other.history, other.name) == (False, "skip_update", "ca")
    with pytest.raises(ValueError, match="no term 'area_if_removed_wrong'"):
        RECIPES["auto"].weighted(area_if_removed_wrong=3.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"history": "always"}, "history is one of off, skip_update, sample, came 'always'"),
        ({"historic": 1.5}, r"historic is a probability, came 1\.5"),
        ({"objective": Objective({"area": (1.0, area)}), "balance": Balance()}, "a balanced recipe needs the terms"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPES["ca"], **wrong)


# The price of area


def test_the_price_begins_as_stated() -> None:
    balance = Balance(first=0.3)
    assert float(balance.price(balance.start(K, CPU), K)) == pytest.approx(0.3)


@pytest.mark.parametrize(("kept", "removed", "sign"), [(0.0, 1.0, -1), (1.0, 0.0, -1), (0.0, 0.0, -1), (1.0, 1.0, 1)])
def test_the_price_falls_while_a_constraint_fails_and_rises_while_both_hold(kept, removed, sign) -> None:
    balance, outcome = Balance(), played(kept, removed)
    previous = balance.first
    for steps in (1, 3, 10):
        now = after(balance, outcome, steps)
        assert sign * (now - previous) > 0
        previous = now


def test_the_harder_constraint_alone_moves_the_price() -> None:
    balance = Balance()
    assert after(balance, played(0.2, 1.0), 5) == pytest.approx(after(balance, played(0.2, 0.9), 5))


def test_the_price_stays_within_its_bounds_and_comes_back_at_once() -> None:
    balance = Balance(bounds=(0.1, 50.0))
    assert after(balance, played(0, 0), 500) == pytest.approx(0.1)
    assert after(balance, played(1, 1), 500) == pytest.approx(50.0)
    state = balance.start(K, CPU)
    for _ in range(500):
        state = balance.step(state, played(1, 1))
    for _ in range(30):
        state = balance.step(state, played(0, 0))
    assert float(balance.price(state, K)) < 50.0


def test_nothing_moves_where_the_classifier_gets_nothing_right() -> None:
    balance = Balance()
    state = balance.step(balance.start(K, CPU), played(0.2, 0.9))
    assert torch.equal(balance.step(state, played(0.0, 0.0, clean=0.0)), state)
    assert torch.equal(balance.step(state, played(1.0, 0.0, clean=0.0)), state)


def test_only_images_that_the_classifier_gets_right_count() -> None:
    half = played(0.5, 1.0, clean=0.5)  # the half that is right as it is is the half that is right when kept
    assert after(Balance(), half, 5) == pytest.approx(after(Balance(), played(1.0, 1.0), 5))


def test_the_state_stands_still_where_the_shares_are_as_stated() -> None:
    stated = Balance(kept=0.5, removed=0.5)
    chance = 1 / K
    outcome = played(chance + 0.9 * 0.5, 0.9 * 0.5, count=1000)
    assert after(stated, outcome, 200) == pytest.approx(Balance().first, rel=0.02)


def test_batches_of_any_size_say_the_same() -> None:
    assert after(Balance(), played(0.5, 0.5, count=10), 7) == pytest.approx(
        after(Balance(), played(0.5, 0.5, count=40), 7)
    )


def total(objective: Objective, outcome: Outcome) -> float:
    return float(objective(outcome).total.mean())


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_an_ignorant_classifier_costs_the_same_for_any_number_of_classes(classes) -> None:
    """Cross-entropy and entropy are divided by log K, their value where all classes are as probable."""
    balance = Balance()
    flat = torch.zeros(4, classes)
    clean = flat.clone()
    clean[:, 0] = 1
    outcome = Outcome(torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long), clean, flat, flat)
    weighed = balance.weigh(area_weighted(tv=0.0), balance.start(classes, CPU), classes)
    assert total(weighed, outcome) == pytest.approx(1 - 1 + 0.5 * balance.first, abs=1e-5)
    weights = {name: float(weight) for name, (weight, _) in weighed.terms.items()}
    assert weights["max_class_kept"] * math.log(classes) == pytest.approx(1.0)


def test_both_sides_count_whatever_the_price() -> None:
    balance = Balance()
    for kept, removed in ((0, 0), (1, 0), (1, 1)):
        state = balance.start(K, CPU)
        for _ in range(50):
            state = balance.step(state, played(kept, removed))
        terms = balance.weigh(area_weighted(), state, K).terms
        weights = {name: float(weight) for name, (weight, _) in terms.items()}
        assert weights["max_class_kept"] == weights["max_entropy_removed"] == pytest.approx(1 / math.log(K))
        assert weights["area"] == pytest.approx(float(balance.price(state, K)))
        assert weights["total_variation"] == pytest.approx(0.002 * weights["area"], rel=1e-5)


def test_what_is_asked_for_is_corrected_for_chance() -> None:
    """With two classes a removed picture is right by chance in half of the cases, and no more can be asked."""
    balance = Balance(kept=0.8, removed=0.8)
    assert after(balance, played(0.85, 0.35, classes=2), 20, classes=2) < balance.first
    assert after(balance, played(0.95, 0.45, classes=2), 20, classes=2) > balance.first


@pytest.mark.parametrize("wrong", [{"kept": 0.0}, {"kept": 1.0}, {"removed": 1.2}, {"removed": -0.1}])
def test_shares_outside_zero_and_one_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"is a share in \(0, 1\)"):
        Balance(**wrong)


def test_a_recipe_of_one_s_own_needs_an_objective_alone() -> None:
    own = Recipe(Objective({"area": (1.0, area)}))
    assert own.fixed and own.history == "off" and own.name == "own"

"""The table of recipes."""

import dataclasses
import json

import pytest

from salmask.objective import Objective
from salmask.terms import area
from salmask.training.recipes import HISTORIES, RECIPES, Recipe
from salmask.training.settings import RECIPE

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


def test_the_default_spares_the_user_s_classifier_and_shows_masked_pictures_to_a_copy_that_learns() -> None:
    reader = RECIPES[RECIPE]
    assert (reader.fixed, reader.reader, reader.spares_classifier) == (False, "given", True)
    assert (reader.history, reader.historic, reader.statistics) == ("skip_update", 0.5, "all")
    assert reader.settings()["weights"] == RECIPES["ca"].settings()["weights"]
    spared = {name for name, recipe in RECIPES.items() if recipe.spares_classifier}
    assert spared == {"reader", "fix", "casm_f", "dabkowski_gal", "lmac", "lmac_tuned"}


def test_areas_of_the_default_count_with_the_range_of_the_entropies() -> None:
    """Both are log K: 15 beside log 1000 is 5 beside log 10."""

    def areas(recipe: Recipe) -> list[float]:
        weights = recipe.settings()["weights"]
        return [weights["area_if_kept_right"], weights["area_if_removed_wrong"]]

    reader = RECIPES[RECIPE]
    assert areas(reader.at(1000)) == pytest.approx([1, 15]) and areas(reader.at(10)) == pytest.approx([1 / 3, 5])
    assert areas(reader.at(1)) == areas(reader.at(2)) != [0, 0]  # a single logit tells two classes apart
    assert reader.at(10).at(10) == reader.at(10) and reader.at(10).settings()["areas_for"] is None
    assert areas(reader.weighted(area_if_removed_wrong=3.0).at(10)) == [1, 3]  # weights that are named are meant
    assert areas(reader.weighted(total_variation=0.0).at(10)) == pytest.approx([1 / 3, 5])
    assert RECIPES["ca"].at(10) is RECIPES["ca"]
    with pytest.raises(ValueError, match="areas_for is a number of classes, at least 2, got 1"):
        dataclasses.replace(reader, areas_for=1)


def test_weighted_changes_weights_alone() -> None:
    other = RECIPES["ca"].weighted(area_if_removed_wrong=3.0)
    assert other.objective.terms["area_if_removed_wrong"][0] == 3.0
    assert other.settings()["weights"] == {**RECIPES["ca"].settings()["weights"], "area_if_removed_wrong": 3.0}
    assert (other.fixed, other.history, other.name) == (False, "skip_update", "ca")
    with pytest.raises(ValueError, match="no term 'area_if_removed_wrong'"):
        RECIPES["dabkowski_gal"].weighted(area_if_removed_wrong=3.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"history": "always"}, "history is one of off, skip_update, sample, got 'always'"),
        ({"historic": 1.5}, r"historic is a probability, got 1\.5"),
        ({"reader": "mine"}, "reader is one of opponent, given, got 'mine'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPES["ca"], **wrong)


def test_a_recipe_of_one_s_own_needs_an_objective_alone() -> None:
    own = Recipe(Objective({"area": (1.0, area)}))
    assert own.fixed and own.history == "off" and own.name == "own"

"""What the measurement makes of reports: tables, and marks that are filled."""

import pytest

from training.measure import Measured, dense_table, fill, grid_table, silent_table


def gate(value, *, verdict="retained", silent=False):
    return {
        "dense": 0.9,
        "compressed": 0.9 * value,
        "verdict": verdict,
        "items": {"used": 400},
        "estimate": {"value": value, "low": value - 0.02, "high": value + 0.02},
        "perplexity_ratio": 1.01,
        "perplexity_bounds": [1.0, 1.02],
        "silent_damage": silent,
    }


@pytest.fixture
def found():
    tail = {
        recipe: gate(value, verdict=verdict, silent=verdict == "degraded")
        for recipe, value, verdict in [
            ("none", 1.0, "retained"),
            ("wanda:0.5", 0.7, "degraded"),
            ("rtn:8", 0.95, "undecided"),
        ]
    }
    return Measured(
        {
            (recipe, f"test_free_answers-{'-'.join(sorted([recipe, 'tail']))}"): g
            for recipe, g in tail.items()
        }
    )


def test_parameters_of_a_test_are_found_in_either_order(found):
    assert found.gate("rtn:8", "test_free_answers[{}-tail]")["verdict"] == "undecided"
    assert found.gate("rtn:8", "test_free_answers[tail-{}]")["verdict"] == "undecided"
    assert found.gate("rtn:4", "test_free_answers[{}-tail]") is None


def test_tables_hold_verdicts_and_bounds(found):
    assert "| facts, tail | 0.900 | 0.6 | 400 |" in dense_table(found)
    grid = grid_table(found)
    assert "**0.700**" in grid
    assert "_0.950_" in grid
    silent = silent_table(found)
    assert silent.count("\n") == 2
    assert "0.700 [0.680, 0.720] | 1.010 [1.000, 1.020]" in silent


def test_without_silent_damage_that_is_said():
    assert silent_table(Measured({})) == "No recipe of the grid is silent damage."


def test_marks_are_filled_again_and_again():
    text = "a\n<!-- figures: dense -->\nold\n<!-- end -->\nb"
    once = fill(text, {"dense": "new"})
    assert once == "a\n<!-- figures: dense -->\nnew\n<!-- end -->\nb"
    assert fill(once, {"dense": "new"}) == once
    with pytest.raises(KeyError):
        fill(text, {})

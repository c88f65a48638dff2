"""One frozen `Settings`: what resolves to it, and how a marker tightens it."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from capcheck.errors import UsageError
from capcheck.recipe import Recipe
from capcheck.settings import Given, Settings, resolve


def test_nothing_given_gives_the_defaults():
    assert resolve({}) == Settings()


def test_values_are_read_and_the_last_of_one_counts():
    found = resolve(
        {
            "model": Given(("m",), "--model"),
            "compress": Given(("wanda:.5", "none"), "--compress"),
            "seed": Given(("1", "2"), "--capcheck-seed"),
        }
    )
    assert found.compress == (Recipe.parse("wanda:0.5"), Recipe())
    assert found.seed == 2


def test_a_recipe_given_twice_however_it_is_spelt():
    with pytest.raises(UsageError, match=r"^here: the recipe wanda:0.5 is given twice$"):
        resolve({"compress": Given(("wanda:0.5", "rtn:4", "wanda:.50"), "here")})


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Settings().seed = 3


@pytest.mark.parametrize(
    ("model", "name", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@v1@2", "org/name@v1", "2"),
        ("@home", "@home", None),
        (None, "", None),
    ],
)
def test_the_revision_of_a_model(model, name, revision):
    settings = Settings(model=model)
    assert (settings.model_name, settings.revision) == (name, revision)


def test_a_folder_may_have_an_at_sign(tmp_path):
    folder = tmp_path / "dense@home"
    folder.mkdir()
    settings = Settings(model=str(folder))
    assert (settings.model_name, settings.revision) == (str(folder), None)


def test_a_marker_tightens():
    found = Settings().tightened(
        "t", confidence=0.99, items="all", undecided="fail", vacuous="fail"
    )
    assert (found.confidence, found.items, found.undecided, found.vacuous) == (
        0.99,
        "all",
        "fail",
        "fail",
    )
    assert Settings().tightened("t") == Settings()
    assert Settings().tightened("t", confidence=0.95) == Settings()


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ({}, {"confidence": 0.9}),
        ({"undecided": "fail"}, {"undecided": "hold"}),
        ({"vacuous": "fail"}, {"vacuous": "skip"}),
        ({"items": "all"}, {"items": "auto"}),
        ({}, {"items": 100}),
        ({"items": 200}, {"items": 100}),
    ],
)
def test_a_marker_never_loosens(before, wanted):
    with pytest.raises(UsageError, match=r"^test_x: its marker sets .* weaker"):
        Settings(**before).tightened("test_x", **wanted)


@pytest.mark.parametrize(
    ("before", "wanted"),
    [({"items": 100}, {"items": 200}), ({"items": 100}, {"items": "auto"}), ({}, {"items": "all"})],
)
def test_more_items_are_stricter(before, wanted):
    assert Settings(**before).tightened("t", **wanted).items == wanted["items"]


def test_a_marker_names_what_it_takes():
    says = r"the marker capcheck has no 'confidance' \(did you mean 'confidence'\?\); it takes"
    with pytest.raises(UsageError, match=says):
        Settings().tightened("t", confidance=0.99)
    with pytest.raises(UsageError, match=r"^t: confidence=1: must be between"):
        Settings().tightened("t", confidence=1)


def test_json():
    settings = Settings(model="m", compress=(Recipe.parse("rtn:4"),), data=Path("d"))
    found = settings.to_json()
    assert found["compress"] == ["rtn:4"]
    assert found["data"] == "d"
    assert found["time_budget"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_alpha():
    assert Settings(confidence=0.75).alpha == 0.25

"""The recipe language: text and `Recipe` are the same thing, and errors teach."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capcheck.errors import UsageError
from capcheck.methods import METHODS
from capcheck.recipe import Recipe, Sparsity, Step

AWKWARD = st.text(st.sampled_from("+,:='\"\\ \t\nab1é本🙂[]none") | st.characters(codec="utf-8"))
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)
PATTERNS = st.integers(2, 64).flatmap(
    lambda m: st.integers(1, m - 1).map(lambda n: Sparsity((m - n) / m, n, m))
)


def values(key):
    if key.type is bool:
        return st.booleans()
    if key.type is str:
        return st.sampled_from(key.choices) if key.choices else AWKWARD.filter(bool)
    low = 0 if key.low is None else key.low
    if key.type is int:
        return st.integers(int(low), int(key.high) if key.high is not None else 2**40)
    return st.floats(low, key.high if key.high is not None else 1e6)


@st.composite
def steps(draw):
    name = draw(st.sampled_from(sorted(METHODS)))
    signature = METHODS[name]
    if signature.argument == "none":
        argument = None
    elif signature.argument == "path":
        argument = draw(AWKWARD.filter(lambda text: text.strip()))
    elif signature.argument == "bits":
        argument = draw(st.integers(2, 8))
    else:
        argument = draw(FRACTIONS.map(Sparsity) | PATTERNS)
    chosen = draw(st.sets(st.sampled_from(sorted(signature.keys)))) if signature.keys else ()
    keys = {key: draw(values(signature.keys[key])) for key in sorted(chosen)}
    kept = {key: value for key, value in keys.items() if value != signature.keys[key].default}
    return Step(name, argument, tuple(sorted(kept.items())))


RECIPES = st.lists(steps(), max_size=4).map(lambda found: Recipe(tuple(found)))


# The first draw of a character reads Unicode's tables; a slow machine takes a second for it.
calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@calmly
@given(RECIPES)
def test_text_and_back(recipe):
    assert Recipe.parse(str(recipe)) == recipe
    assert str(Recipe.parse(str(recipe))) == str(recipe)


PARTS = [
    "wanda",
    "rtn",
    ":",
    "0.5",
    "2:4",
    "4",
    "+",
    ",",
    "n=",
    "'",
    "\\",
    '"',
    "none",
    "calib=",
    "a",
    "=",
    "true",
]


@calmly
@given(st.lists(st.sampled_from(PARTS), max_size=9))
def test_any_text_is_a_recipe_or_a_usage_error(parts):
    try:
        recipe = Recipe.parse("".join(parts))
    except UsageError:
        return
    assert Recipe.parse(str(recipe)) == recipe


@calmly
@given(RECIPES)
def test_spaces_around_parts_mean_nothing(recipe):
    if "'" not in str(recipe):
        spaced = str(recipe).replace("+", " + ").replace(",", " , ").replace("=", " = ")
        assert Recipe.parse(f" {spaced} ") == recipe


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        (" none ", "none"),
        ("wanda:.50", "wanda:0.5"),
        ("wanda:5e-1", "wanda:0.5"),
        ("wanda:0.5,n=128", "wanda:0.5"),
        ("wanda:0.5,n=64,length=8", "wanda:0.5,length=8,n=64"),
        ("wanda:02:04", "wanda:2:4"),
        ("rtn:4,group=0128", "rtn:4,group=128"),
        ("rtn:4,symmetric=false", "rtn:4,symmetric=false"),
        ("wanda:0.5,calib='./a+b,c'", "wanda:0.5,calib='./a+b,c'"),
        ('wanda:0.5,calib="a.txt"', "wanda:0.5,calib=a.txt"),
        (r"wanda:0.5,calib='it\'s \\'", r"wanda:0.5,calib='it\'s \\'"),
        ("wanda:0.5+rtn:4", "wanda:0.5+rtn:4"),
        ("wanda:0.0000001", "wanda:0.0000001"),
    ],
)
def test_one_spelling(text, canonical):
    assert str(Recipe.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wnada:0.5", r"no method is named 'wnada' \(did you mean 'wanda'\?\); the methods are"),
        ("", "a part is empty; a recipe is method"),
        ("wanda:0.5+", "a part is empty"),
        ("wanda:0.5,", "a part is empty"),
        ("wanda", "wanda needs its sparsity, for example wanda:0.5 or wanda:2:4"),
        ("rtn:", "rtn needs its bits, for example rtn:4"),
        ("rtn:1", "bits must be an integer from 2 to 8, not '1'"),
        ("rtn:4.0", "bits must be an integer"),
        ("rtn:²", "bits must be an integer"),
        ("wanda:0", "the sparsity 0 must lie between 0 and 1"),
        ("wanda:1", "the sparsity 1 must lie between"),
        ("wanda:50%", "a sparsity is a number, not '50%'"),
        ("wanda:nan", "a sparsity is a number, not 'nan'"),
        ("wanda:0_5", "a sparsity is a number"),
        ("wanda:4:2", "in the pattern '4:2', N of every M weights are kept, so 0 < N < M"),
        ("wanda:0:4", "so 0 < N < M"),
        ("wanda:2:4:8", "is not an N:M pattern of two integers"),
        ("wanda:0.5,groop=3", "wanda has no key 'groop'.*its keys are"),
        ("rtn:4,grp=3", r"rtn has no key 'grp' \(did you mean 'group'\?\)"),
        ("rtn:4,group", "'group' is not key=value"),
        ("rtn:4,group=", "'group' has no value"),
        ("rtn:4,group=''", "'group' has no value"),
        ("rtn:4,group=3,group=3", "'group' is given twice"),
        ("rtn:4,group=1.5", "group is an integer, not '1.5'"),
        ("rtn:4,group=-1", "group must be at least 0, not -1"),
        ("rtn:4,symmetric=yes", "symmetric is true or false, not 'yes'"),
        ("magnitude:0.5,scope=rows", r"scope is one of row, layer, global, not 'rows' .*'row'"),
        ("wanda:0.5,calib='a", "the quote ' is not closed"),
        ("wanda:0.5,n=1e99", "n is a number"),
        ("wanda:0.5+none", "'none' stands alone, it cannot be a step"),
    ],
)
def test_an_error_says_what_is_wrong(text, says):
    with pytest.raises(UsageError, match=says) as caught:
        Recipe.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sparsity_that_a_float_cannot_hold():
    """What is written is what is meant, also where rounding would make it 0 or 1."""
    for text in ("wanda:1e-400", "wanda:0.99999999999999999999"):
        with pytest.raises(UsageError, match="must lie between 0 and 1"):
            Recipe.parse(text)


def test_what_a_step_knows():
    step = Recipe.parse("wanda:2:4,n=64").steps[0]
    assert step.sparsity == Sparsity(0.5, 2, 4)
    assert step.bits is None
    assert step["n"] == 64
    assert step["length"] == METHODS["wanda"].keys["length"].default
    assert step.get("symmetric") is None
    with pytest.raises(KeyError):
        step["nothing"]
    assert Recipe.parse("rtn:3").steps[0].bits == 3


def test_what_a_recipe_knows():
    none, pipeline = Recipe(), Recipe.parse("wanda:2:4+rtn:4")
    assert not none
    assert none == Recipe.parse("none")
    assert none.pattern is None
    assert pipeline
    assert str(pipeline.pattern) == "2:4"
    assert str(pipeline.unstructured()) == "wanda:0.5+rtn:4"
    assert Recipe.parse("wanda:0.5").pattern is None
    assert len({Recipe.parse("wanda:.5"), Recipe.parse("wanda:0.50")}) == 1

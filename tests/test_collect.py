"""The bundled suites' files and names, and the order of tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from capcheck import collect
from capcheck.errors import UsageError
from capcheck.recipe import Recipe

NAMES = {"factual_qa", "knowledge_nm", "long_context", "perplexity", "retrieval", "summarization"}


def test_the_suites_are_those_that_are_promised():
    assert set(collect.suites()) >= NAMES
    assert all(path.is_file() for path in collect.suites().values())


def test_wanted():
    every = list(collect.suites().values())
    assert collect.wanted((), paths_given=False) == every
    assert collect.wanted((), paths_given=True) == []
    assert collect.wanted(("none",), paths_given=False) == []
    assert collect.wanted(("none", "none"), paths_given=False) == []
    one = collect.suites()["retrieval"]
    assert collect.wanted(("retrieval", "retrieval"), paths_given=True) == [one]
    with pytest.raises(UsageError, match=r"no bundled suite .*did you mean 'retrieval'"):
        collect.wanted(("retreival",), paths_given=False)
    with pytest.raises(UsageError, match="stands alone"):
        collect.wanted(("none", "retrieval"), paths_given=False)


def test_ids_become_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = collect.folder() / "test_perplexity.py"
    located = collect.located
    assert located("capcheck/suites/test_perplexity.py") == str(file)
    assert located("capcheck/suites/test_perplexity.py::a[b::c]") == f"{file}::a[b::c]"
    assert located("capcheck/suites/test_nothing.py::a") == "capcheck/suites/test_nothing.py::a"
    assert located("tests/test_it.py::a") == "tests/test_it.py::a"


def test_a_file_that_is_there_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "capcheck" / "suites"
    own.mkdir(parents=True)
    (own / "test_perplexity.py").write_text("")
    name = "capcheck/suites/test_perplexity.py::a"
    assert collect.located(name) == name


def item(name, recipe=None):
    """Return what `grouped` needs of a test."""

    def ours():
        pass

    ours.__module__ = "capcheck.plugin"
    definition = SimpleNamespace(func=ours, argnames=("request",))
    info = SimpleNamespace(name2fixturedefs={"capability": [definition]} if recipe else {})
    params = {"capability": Recipe.parse(recipe)} if recipe else {}
    return SimpleNamespace(
        name=name, _fixtureinfo=info, callspec=SimpleNamespace(params=params) if recipe else None
    )


def test_grouped():
    mixed = [
        item("a", "wanda:0.5"), item("unit"), item("b", "none"), item("c", "rtn:4"),
        item("d", "wanda:0.5"), item("e", "none"),
    ]  # fmt: skip
    recipes = [Recipe.parse(text) for text in ("wanda:0.5", "rtn:4", "none")]
    assert [i.name for i in collect.grouped(mixed, recipes)] == ["unit", "b", "e", "a", "d", "c"]


def test_a_check_that_is_asked_for_by_name_alone_comes_with_the_others():
    lost = item("lost", "none")
    lost.callspec = None
    found = collect.grouped([item("a", "rtn:4"), lost], [Recipe.parse("rtn:4")])
    assert {i.name for i in found} == {"a", "lost"}

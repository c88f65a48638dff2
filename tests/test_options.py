"""The table of options: how each value is read, and that its parts agree."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from capcheck.errors import UsageError
from capcheck.options import OPTION, OPTIONS
from capcheck.settings import Settings


def read(name, text):
    return OPTION[name].read(text, "here")


def test_options_and_settings_have_the_same_names():
    names = [field.name for field in fields(Settings)]
    # How many checks there are is counted, not chosen.
    assert names == [*(option.name for option in OPTIONS), "gates"]


def test_names_follow_one_rule():
    option = OPTION["batch_tokens"]
    assert option.flag == "--capcheck-batch-tokens"
    assert option.env == "CAPCHECK_BATCH_TOKENS"
    assert option.ini == "capcheck_batch_tokens"
    assert all(option.metavar and option.default and option.help for option in OPTIONS)
    assert [option.name for option in OPTIONS if option.short] == ["model", "compress", "suite"]
    written = {"json", "records", "save", "save_baseline", "save_known_losses"}
    read = {"data", "store", "baseline", "known_losses"}
    assert {o.name for o in OPTIONS if o.path} == written | read


@pytest.mark.parametrize(
    "name",
    [
        o.name
        for o in OPTIONS
        if o.default.split()[0] not in ("none", "none:", "the", "all", "download")
    ],
)
def test_the_default_that_the_help_states_is_the_default(name):
    if OPTION[name].many:
        return
    assert read(name, OPTION[name].default) == getattr(Settings(), name)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("store_limit", "500", 500),
        ("store_limit", "20k", 20480),
        ("store_limit", "2G", 2**31),
        ("items", "auto", "auto"),
        ("batch_tokens", "auto", "auto"),
        ("batch_tokens", "64", 64),
        ("items", "all", "all"),
        ("items", "12", 12),
        ("device", "cuda:1", "cuda:1"),
        ("trust_remote_code", "Yes", True),
        ("trust_remote_code", "0", False),
        ("confidence", "0.99", 0.99),
        ("time_budget", "1e3", 1000.0),
        ("seed", "0", 0),
        ("perplexity", "wikitext", "wikitext"),
        ("model", "reference", "reference"),
    ],
)
def test_values(name, text, value):
    assert read(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("store_limit", "1X", "here=1X: must be a number of bytes, like 500M or 2G"),
        ("store_limit", "", "must be a number of bytes"),
        ("store_limit", "1.5G", "must be a number of bytes"),
        ("items", "0", "must be auto, all, or the most items to ask"),
        ("items", "some", "must be auto, all"),
        ("device", "gpu", "must be auto, cpu, cuda, cuda:N or mps"),
        ("device", "cuda:", "must be auto"),
        ("dtype", "float31", r"must be one of auto, float32.*did you mean 'float32'"),
        ("trust_remote_code", "maybe", "must be true or false"),
        ("confidence", "1", "must be between 0.5 and 1"),
        ("confidence", "nan", "must be between 0.5 and 1"),
        ("confidence", "high", "must be between 0.5 and 1"),
        ("time_budget", "0", "must be a number of seconds above 0"),
        ("time_budget", "inf", "must be a number of seconds above 0"),
        ("perplexity_tolerance", "1", "must be a ratio above 1"),
        ("seed", "-1", "must be an integer, at least 0"),
        ("seed", "²", "must be an integer, at least 0"),
        ("batch_tokens", "0", "must be auto, or the most tokens of a batch"),
        ("batch_tokens", "all", "must be auto, or the most tokens of a batch"),
        ("undecided", "hodl", "must be one of hold, fail.*did you mean 'hold'"),
        ("model", " ", "must not be empty"),
        ("data", "/nowhere/at/all", "there is no such folder"),
        ("perplexity", "nowhere.txt", "there is no such file"),
        ("compress", "wnada:0.5", "^here: recipe 'wnada:0.5': no method is named"),
    ],
)
def test_what_cannot_be_read(name, text, says):
    with pytest.raises(UsageError, match=says):
        read(name, text)


def test_a_file_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("json", "out.json") == tmp_path / "out.json"
    (tmp_path / "out.json").write_text("old")
    assert read("json", "out.json") == tmp_path / "out.json"
    for text, says in [("a/out.json", "there is no folder"), (".", "this is a folder")]:
        with pytest.raises(UsageError, match=says):
            read("json", text)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert read("data", "~") == tmp_path
    assert read("store", "~/kept") == tmp_path / "kept"
    (tmp_path / "a.txt").write_text("text")
    assert read("perplexity", "~/a.txt") == str(tmp_path / "a.txt")


def test_the_budget_is_none_without_one():
    assert Settings().time_budget == math.inf

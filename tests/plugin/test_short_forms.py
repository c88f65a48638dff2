"""--model, --compress and --suite are left to whoever else owns them."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import CONFTEST

OWN = """
def pytest_addoption(parser):
    parser.{where}addoption("--model", default="theirs", help="a project's own")

@pytest.fixture
def owned(request):
    return request.config.getoption("--model")
"""

TESTS = """
def test_owned(owned):
    assert owned == "car"

def test_qa(capability):
    assert capability(QA).retention >= 0.9
"""


@pytest.fixture(params=["", 'getgroup("theirs").'])
def project(folder, request):
    """A project whose conftest has a --model of its own, with a group and without."""
    own = "import pytest\n" + OWN.format(where=request.param)
    folder.pytester.makeconftest(CONFTEST + own)
    folder.write(TESTS)
    return folder


def test_the_projects_option_works_without_ours(project):
    result = project.run("--model=car", model=False)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["capcheck: --model belongs to this project*--capcheck-model*"])


def test_ours_works_beside_it(project):
    for more in [(), ("-n2",)]:
        result = project.run(
            "--model=car",
            "--capcheck-model=scripted",
            "--compress=rtn:8",
            "--suite=none",
            "test_team.py",
            *more,
            model=False,
        )
        result.assert_outcomes(passed=2)


def test_the_message_names_the_form_that_is_ours(project):
    result = project.run("--compress=rtn:8", model=False)
    assert result.ret == 4


def test_another_plugins_compress_and_suite(folder):
    folder.pytester.makepyfile(
        other="""
        def pytest_addoption(parser):
            parser.addoption("--compress", action="store_true")
            parser.addoption("--suite", action="append", dest="theirs")
        """
    )
    folder.pytester.syspathinsert()
    result = folder.run("-p", "other", "--compress", "--suite=a", model=False)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        ["capcheck: --compress belongs*", "capcheck: --suite belongs*--capcheck-suite*"]
    )
    result = folder.run(
        *("-p", "other", "--compress", "--model=scripted"),
        *("--capcheck-compress=rtn:8", "--capcheck-suite=none"),
        model=False,
    )
    result.assert_outcomes(passed=2, deselected=1)


def test_no_notice_where_nobody_owns_them(folder):
    assert "belongs" not in folder.run(model=False).stdout.str()

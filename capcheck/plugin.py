"""The pytest plugin: options, the `capability` fixture, and hooks. No torch, and no mathematics."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

from capcheck import collect
from capcheck.errors import CapcheckError, OutOfTimeError, UsageError, VacuousError
from capcheck.options import OPTIONS, Option
from capcheck.settings import Given, Settings, resolve

if TYPE_CHECKING:
    from capcheck.capability import Capability
    from capcheck.run import Run

_RUN: pytest.StashKey[Run] = pytest.StashKey()
_TAKEN: pytest.StashKey[list[str]] = pytest.StashKey()
_SKIP = "a capability check: give the model with --model=NAME and the recipe with --compress=RECIPE"
_MARKER = (
    "capcheck(confidence, items, undecided, vacuous): stricter settings for one capability check"
)


# Options


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make the hooks of `capcheck.hookspec` known."""
    from capcheck import hookspec

    pluginmanager.add_hookspecs(hookspec)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the long forms and the ini keys; they carry a prefix that is ours alone."""
    group = parser.getgroup("capcheck", "capcheck: capability checks for compressed models")
    for option in OPTIONS:
        _add(group, option.flag, option)
        kind: Literal["args", "string"] = "args" if option.many else "string"
        parser.addini(option.ini, f"{option.help} (default: {option.default})", kind, default=None)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser
) -> Generator[None, None, None]:
    """Add the short forms last, each only where no conftest and no other plugin owns its name."""
    yield
    group = parser.getgroup("capcheck")
    groups = [*parser._groups, parser._anonymous]  # the latter holds what conftests add
    owned = {name for g in groups for option in g.options for name in option.names()}
    taken = early_config.stash.setdefault(_TAKEN, [])
    for option in OPTIONS:
        flag = f"--{option.name}"
        if option.short and flag in owned:
            taken.append(flag)
        elif option.short:
            _add(group, flag, option)


def _add(group: pytest.OptionGroup, flag: str, option: Option) -> None:
    text = f"{option.help} (default: {option.default})".replace("%", "%%")
    bare: dict[str, Any] = {"nargs": "?", "const": "true"} if option.bare else {}
    group.addoption(
        flag,
        dest=option.ini,
        metavar=option.metavar,
        action="append" if option.many else "store",
        default=None,
        help=text if flag == option.flag else f"short for {option.flag}",
        **bare,
    )


def _given(config: pytest.Config) -> dict[str, Given]:
    """Return what the user gave, each option from the strongest source that names it."""
    found: dict[str, Given] = {}
    for option in OPTIONS:
        line = config.getoption(option.ini)
        env = os.environ.get(option.env, "")
        ini = config.getini(option.ini)
        if line is not None:
            found[option.name] = Given(
                tuple(line) if option.many else (line,), _flag(config, option)
            )
        elif env:
            found[option.name] = Given(
                tuple(shlex.split(env)) if option.many else (env,), option.env
            )
        elif ini:
            texts = tuple(ini) if option.many else (_from_ini(config, option, ini),)
            found[option.name] = Given(texts, f"{option.ini} in {config.inipath}", standing=True)
    return found


def _flag(config: pytest.Config, option: Option) -> str:
    short = f"--{option.name}"
    typed = any(a == short or a.startswith(short + "=") for a in config.invocation_params.args)
    return short if typed and option.short else option.flag


def _from_ini(config: pytest.Config, option: Option, text: str) -> str:
    """Return a value of the ini file; its relative paths start from the file's folder."""
    if config.inipath is None or text == "none" or text.startswith("~"):
        return text
    place = config.inipath.parent / text
    named = option.name in ("model", "perplexity")  # a path, or a name
    is_path = option.path or (named and (text.startswith(("./", "../")) or place.exists()))
    return str(place) if is_path else text


def _refuse_spaces(config: pytest.Config) -> None:
    """Refuse a path that follows its option after a space, where pytest takes it for a test path.

    Only where no test path is given. pytest looks for its root folder before plugins add options,
    and so among such values: the run changes as soon as the file exists.
    """
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return
    arguments = [str(argument) for argument in config.invocation_params.args]
    flags = {o.flag: o for o in OPTIONS} | {f"--{o.name}": o for o in OPTIONS if o.short}
    for flag, value in itertools.pairwise(arguments):
        option = flags.get(flag)
        if option is not None and (option.path or os.path.exists(value)):
            raise UsageError(
                f"write {flag}={value}, with '=': after a space pytest takes the path for a test "
                "path when it looks for the root folder of the project"
            )


# Configuration


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, find out what can be known before a model is loaded, add the suites."""
    config.addinivalue_line("markers", _MARKER)
    if config.option.help or config.option.version:
        return
    try:
        given = _given(config)
        if "model" not in given:
            _need_model(given)
            return
        if given["model"].standing and "compress" not in given:
            # A project's standing choice of model makes not every run a check.
            for name in ("suite", "plan"):
                if name in given and not given[name].standing:
                    raise UsageError(
                        f"{given[name].where} is given without --compress=RECIPE: say what to "
                        "compare with the dense model, for example --compress=wanda:0.5"
                    )
            return
        settings = resolve(given)
        if not settings.compress:
            raise UsageError(
                "--model is given without --compress: say what to compare with the dense model, "
                "for example --compress wanda:0.5, or --compress none for the control"
            )
        _refuse_spaces(config)
        _add_suites(config, settings)
        config.stash[_RUN] = _run(config, settings)
        config.pluginmanager.register(config.stash[_RUN], "capcheck-run")
    except CapcheckError as error:
        raise pytest.UsageError(str(error)) from None


def _run(config: pytest.Config, settings: Settings) -> Run:
    if settings.plan:
        from capcheck.plan_run import PlanRun

        return PlanRun(config, settings)
    from capcheck.run import Run

    return Run(config, settings)


def _need_model(given: dict[str, Given]) -> None:
    for name in ("compress", "suite", "plan"):
        found = given.get(name)
        if found is not None and not found.standing:
            raise UsageError(f"{found.where} is given without --model=NAME, the model to compress")


def _add_suites(config: pytest.Config, settings: Settings) -> None:
    paths_given = config.args_source is pytest.Config.ArgsSource.ARGS
    config.args[:] = [collect.located(argument) for argument in config.args]
    files = collect.wanted(settings.suite, paths_given=paths_given)
    config.args += [str(file) for file in files]
    collect.note_last_failed(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is checked, and which short forms belong to others."""
    taken = config.stash.get(_TAKEN, [])
    return [
        f"capcheck: {flag} belongs to this project or another plugin; "
        f"write --capcheck-{flag[2:]} for ours"
        for flag in taken
    ]


# Collection


def pytest_pycollect_makemodule(module_path: Any, parent: pytest.Collector) -> pytest.Module | None:
    """Give bundled suites their ids, and find their tests under any project's settings."""
    return collect.module_of(module_path, parent)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make every recipe a column: one parameter of each test that takes `capability`."""
    run = metafunc.config.stash.get(_RUN, None)
    if run is not None and collect.uses_ours(metafunc._arg2fixturedefs):
        recipes = run.settings.compress
        metafunc.parametrize("capability", recipes, indirect=True, ids=list(map(str, recipes)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the checks without a model; with one, leave out other tests and group by recipe."""
    run = config.stash.get(_RUN, None)
    if run is None:
        for item in filter(collect.is_check, items):
            item.add_marker(pytest.mark.skip(reason=_SKIP))
        return
    try:
        for item in filter(collect.is_check, items):
            run.examine(item)
    except CapcheckError as error:
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(str(error)) from None
        # A worker must not fail while it collects: the test itself says what is wrong.
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        others = [item for item in items if not collect.is_check(item)]
        if others:
            config.hook.pytest_deselected(items=others)
            run.left_out = len(others)
            items[:] = [item for item in items if collect.is_check(item)]
    items[:] = collect.grouped(items, run.settings.compress)
    run.collected(sum(map(collect.is_check, items)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send the tests of one recipe to one worker, unless the user chose a distribution."""
    run = config.stash.get(_RUN, None)
    if run is None or config.getvalue("dist") not in ("load", "worksteal"):
        return None
    from capcheck.xdist_scheduler import ByRecipe

    return ByRecipe(config, log, [str(recipe) for recipe in run.settings.compress])


# Running


@pytest.fixture
def capability(request: pytest.FixtureRequest) -> Iterator[Capability]:
    """Ask the dense and the compressed model the same: `capability(task)` gives a comparison."""
    run = request.config.stash.get(_RUN, None)
    if run is None:
        pytest.skip(_SKIP)
    if not hasattr(request, "param"):
        raise UsageError(
            f"{request.node.nodeid}: capability must be an argument of a test function (or of a "
            "fixture that one takes): it cannot be had through getfixturevalue or in a "
            "unittest.TestCase"
        )
    with run.test(request.node, request.param) as found:
        yield found


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a check that is written wrong, before any of its fixtures is set up."""
    run = item.config.stash.get(_RUN, None)
    if run is not None and collect.is_check(item):
        run.examine(item)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Skip, or fail on request, a check that has nothing to lose or no time to find out."""
    try:
        return (yield)
    except (VacuousError, OutOfTimeError) as reason:
        _end(pyfuncitem, reason)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    """Do the same where a fixture asks."""
    try:
        return (yield)
    except (VacuousError, OutOfTimeError) as reason:
        _end(request.node, reason)


def _end(item: pytest.Item, reason: VacuousError | OutOfTimeError) -> NoReturn:
    settings = item.config.stash[_RUN].settings_of(item)
    word = settings.vacuous if isinstance(reason, VacuousError) else settings.undecided
    if word == "fail":
        pytest.fail(str(reason), pytrace=False)
    # With the test's own place, not this one's.
    raise pytest.skip.Exception(str(reason), _use_item_location=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what a test found on its report, which crosses processes under xdist."""
    report = yield
    run = item.config.stash.get(_RUN, None)
    if run is None:
        return report
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, CapcheckError):
        report.longrepr = str(error)
        # Whatever a test expects to fail, it is not this.
        report.outcome = "failed"
        report.__dict__.pop("wasxfail", None)
    run.attach(item, report, error)
    if isinstance(error, CapcheckError) and report.when == "call":
        # What fails before the call is an error to everything that reads reports (terminal, JUnit,
        # others); what fails in it would be a capability that was lost.
        report.when = "setup"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Say an error of ours in one sentence where a module raises it while it is imported."""
    report = yield
    call = getattr(report, "call", None)
    error = call.excinfo.value if call is not None and call.excinfo is not None else None
    while error is not None and not isinstance(error, CapcheckError):
        error = error.__cause__
    if error is not None:
        report.longrepr = report.capcheck_error = str(error)  # type: ignore[attr-defined]
    return report

"""Flags and logs of the whole suite; what runs last, how many tests of each kind ran, and whether one may be skipped."""

import os
from collections import Counter

import pytest
import structlog


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-transcripts", action="store_true", help="write what happens now into tests/scenarios/*.txt; read the diff"
    )
    parser.addoption("--seed", default="0", help="look at one schedule of the simulation")


def pytest_configure() -> None:
    """Plain tracebacks: structlog's own default prints every local variable of every frame, which takes half a minute."""
    processors = structlog.get_config()["processors"]
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*processors[:-1], console])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Containers last: their clusters idle from then on, and the others' timing is not theirs to disturb."""
    items.sort(key=lambda item: kind(item.nodeid) in ("containers", "compose"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where nothing is wanting (continuous integration says so), a skipped test fails the run; the last lines name it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if skips_fail() and reporter is not None and reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def skips_fail() -> bool:
    return bool(os.environ.get("GITQUORUM_TEST_REQUIRE_DOCKER"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a kind, for whoever wants to see that none was left out."""
    for report in terminalreporter.getreports("skipped") if skips_fail() else ():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"skipped, which is a failure here: {report.nodeid}: {reason}", red=True)
    counted: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            counted.setdefault(kind(report.nodeid), Counter())[outcome] += 1
    for name, counts in sorted(counted.items()):
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        terminalreporter.write_line(f"tests of kind {name}: {told}")


def kind(nodeid: str) -> str:
    """The folder under ``tests``; ``compose.yaml`` is a kind of its own."""
    folder, _, file = nodeid.partition("::")[0].removeprefix("tests/").rpartition("/")
    return "compose" if folder == "containers" and file == "test_compose.py" else folder

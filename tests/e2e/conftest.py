"""The suite's options, the release under test, and the report at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from e2e.system import System

OPTIONS = {
    "--kube-context": ("", "the context to run against; must start with kind-"),
    "--kubeconfig": ("", "the kubeconfig; default: kubectl's own"),
    "--namespace": ("kvorum-e2e", "the namespace, made and deleted by the suite"),
    "--release": ("kv", "the Helm release"),
    "--image": ("", "REPOSITORY:TAG, present on the nodes"),
    "--report": ("e2e-report", "the folder for the report, the histories and the diagnostics"),
}
_SYSTEM = pytest.StashKey["System"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("e2e", "Kvorum on Kubernetes")
    for option, (default, help_text) in OPTIONS.items():
        group.addoption(option, default=default, help=help_text)
    group.addoption("--keep", action="store_true", help="leave the release and its data behind")
    group.addoption("--force-context", action="store_true", help="run against a context that is no kind cluster")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: the scenarios that CI runs")


def _option(config: pytest.Config, name: str) -> Any:
    default = OPTIONS.get(name, (False, ""))[0]
    return config.getoption(name, default=default)


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    """Kvorum, installed and settled."""
    from e2e.kube import Kube, Unfit
    from e2e.system import System, prepare

    config = request.config
    context, image = _option(config, "--kube-context"), _option(config, "--image")
    if not context or not image:
        pytest.exit("the e2e suite needs --kube-context and --image; `make e2e` gives both", returncode=4)
    forced = bool(config.getoption("--force-context", default=False))
    try:
        kube = Kube(context, _option(config, "--kubeconfig"), _option(config, "--namespace"), forced)
    except Unfit as error:
        pytest.exit(str(error), returncode=4)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def say(text: str) -> None:
        """Show progress, whatever captures the tests' output."""
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(f"  {text}")

    report = Path(_option(config, "--report"))
    system = System(kube, _option(config, "--release"), image, report, say)
    config.stash[_SYSTEM] = system
    prepare(system)
    yield system
    if not request.session.testsfailed and not config.getoption("--keep", default=False):
        system.uninstall(claims=True)
        kube.delete_namespace()
    kube.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Collect the diagnostics while what failed is still there."""
    report = yield
    system = item.config.stash.get(_SYSTEM, None)
    if call.excinfo is not None and system is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        from e2e.system import collect

        folder = system.report / item.name
        system.say(f"failed; what the cluster says is collected in {folder}")
        collect(system, folder)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    system = config.stash.get(_SYSTEM, None)
    if system is None or not system.rows:
        return
    terminalreporter.section("scenarios")
    heading = f"{'':5}{'scenario':44}{'writes':>8}{'unknown':>8}{'gap':>9}{'recovery':>9}{'whole':>8}{'terms':>6}"
    terminalreporter.write_line(heading)
    for row in system.rows:
        verdict = row.verdict
        cells = (
            f"{'ok' if row.passed else 'FAIL':5}{row.scenario:44}"
            f"{verdict.acknowledged if verdict else '':>8}{verdict.unknown if verdict else '':>8}"
            f"{f'{verdict.gap_ms} ms' if verdict else '':>9}"
            f"{f'{row.recovery_s:.1f} s' if row.recovery_s is not None else '':>9}"
            f"{f'{row.whole_s:.0f} s' if row.whole_s is not None else '':>8}{verdict.terms if verdict else '':>6}"
        )
        terminalreporter.write_line(cells, green=row.passed, red=not row.passed)
        if row.detail:
            terminalreporter.write_line(f"     {row.detail}")
    file = system.report / "report.json"
    file.write_bytes(
        msgspec.json.format(msgspec.json.encode({"image": system.image, "scenarios": system.rows})) + b"\n"
    )
    terminalreporter.write_line(f"report: {file}")

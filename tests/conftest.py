"""Rules for every test: where PROPHET_STRICT_SKIPS=1, a skip that nobody expected fails the run."""

import os
import re

import pytest

# What a machine may honestly lack. Whatever a package could provide is not among them.
EXPECTED_SKIPS = [
    r"no (NVIDIA )?GPU",
    r"no CUDA toolkit",
    r"a real device is in use",
    r"processor (has|lacks|cannot)",
    r"cgroup",
    r"O_DIRECT",
    r"no supplied trace",
    r"no writable /dev/shm",
    r"no vLLM in this environment",  # tests/vllm/run makes one
]


class StrictSkips:
    """Collects skips with reasons that EXPECTED_SKIPS does not know."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not any(re.search(pattern, reason) for pattern in EXPECTED_SKIPS):
                self.unexpected.append(f"{report.nodeid}: {reason}")

    pytest_runtest_logreport = note
    pytest_collectreport = note

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("unexpected skips (PROPHET_STRICT_SKIPS=1)", red=True)
            for line in self.unexpected:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("PROPHET_STRICT_SKIPS") == "1":
        config.pluginmanager.register(StrictSkips(), "strict-skips")

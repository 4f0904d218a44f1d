"""Failures are printed at once: the time of a run on a GPU can end before pytest's summary."""

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.nodeid}\n{report.longreprtext[-4000:]}", flush=True)

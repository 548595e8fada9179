"""A pytest plugin: one line of JSON for each finished test, at once, so that a killed run tells."""

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report):
    if report.when != "call" and report.outcome == "passed":
        return  # a setup or teardown that went well
    skipped = report.outcome == "skipped" and isinstance(report.longrepr, tuple)
    write(
        {
            "test": report.nodeid,
            "outcome": report.outcome if report.when == "call" or skipped else "error",
            "seconds": round(report.duration, 3),
            "message": report.longrepr[2] if skipped else report.longreprtext[-2000:],
        }
    )


def pytest_collectreport(report):
    if report.failed:
        message = str(report.longrepr)[-2000:]
        write({"test": report.nodeid, "outcome": "error", "seconds": 0, "message": message})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid):
    Path(os.environ["GPU_OUTCOMES"]).with_suffix(".running").write_text(nodeid)


def write(outcome):
    with Path(os.environ["GPU_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(outcome) + "\n")

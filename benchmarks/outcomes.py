"""Run pytest and hand on every test's outcome as soon as it is known, so that a run that is killed keeps them.

    python -m benchmarks.outcomes FILE ARGUMENTS...     a JSON line for each, appended to FILE

A line has the `id`, the `outcome` ("passed", "failed" or "skipped") and, of a failed test, the `error`: the lines of
pytest's report that say what was expected, and `times`: how many times the limit a number was that an assertion held
against one. The first line has the ids of all tests `collected`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

Emit = Callable[[dict[str, Any]], None]
ERROR_LENGTH = 500
NUMBER = r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf|nan)"


class Outcomes:
    """A pytest plugin; in the process that hands tests out where pytest-xdist spreads them."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._collected = False
        self._known: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Hand on what will run."""
        self._collect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        """Hand on what will run, as the first of the processes has found it."""
        self._collect(list(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Hand on a module that cannot be imported, or that skips itself."""
        if report.failed or report.skipped:
            self._end(report.nodeid, report.outcome, "" if report.skipped else report.longreprtext, 0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Hand on what became of a test: its first failure at once, else what it was when all is taken down."""
        if report.failed:
            self._end(report.nodeid, "failed", report.longreprtext, report.duration)
        elif report.skipped or report.when == "call":
            self._end(report.nodeid, report.outcome, "", report.duration)

    def _collect(self, ids: list[str]) -> None:
        if not self._collected:
            self._collected = True
            self._emit({"collected": ids})

    def _end(self, name: str, outcome: str, text: str, seconds: float) -> None:
        if name in self._known and outcome != "failed":
            return
        self._known.add(name)
        record: dict[str, Any] = {"id": name, "outcome": outcome, "seconds": round(seconds, 2)}
        if outcome == "failed":
            record["error"] = error_of(text)
            if (times := excess(record["error"])) is not None:
                record["times"] = times
        self._emit(record)


def error_of(text: str) -> str:
    """Return from pytest's report of a failure what says what was expected and what came; else the end of it."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return " | ".join(lines)[:ERROR_LENGTH] if lines else text[-ERROR_LENGTH:]


def excess(error: str) -> float | None:
    """Return how many times its limit a number was, of "assert 0.3 < 2e-05"; None where the error is no such thing."""
    found = re.search(rf"assert ({NUMBER}) <=? ({NUMBER})(?=\s|$)", error)
    if found is None or float(found[2]) == 0:
        return None
    return float(f"{float(found[1]) / float(found[2]):.3g}")


def tally(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the ids of the tests by outcome, "failed" with error and times, and "not_done": collected and no more."""
    found: dict[str, Any] = {"passed": [], "skipped": [], "failed": {}, "not_done": []}
    collected: list[str] = []
    for line in lines:
        if "collected" in line:
            collected = line["collected"]
        elif line["outcome"] == "failed":
            found["failed"][line["id"]] = {key: line[key] for key in ("error", "times") if key in line}
        else:
            found[line["outcome"]].append(line["id"])
    found["passed"] = [name for name in found["passed"] if name not in found["failed"]]  # failed when taken down
    ended = {*found["passed"], *found["skipped"], *found["failed"]}
    found["not_done"] = [name for name in collected if name not in ended]
    return found


def run(arguments: Sequence[str], emit: Emit) -> int:
    """Run pytest in this process and return its exit status; see the module for what is handed on."""
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[Outcomes(emit)]))


def main(arguments: Sequence[str]) -> int:
    """Run pytest and append outcomes to a file."""
    with Path(arguments[0]).open("a") as file:

        def emit(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        return run(arguments[1:], emit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The tests that a CUDA card is asked before anything is timed, and which timings a failure forbids.

A backend's tests run in processes of its own, the Triton kernels' of full covariance in others than the rest: a kernel
that reads where it must not takes the whole process's CUDA with it. A test names a kind of covariance in its id. A
failure forbids timing that kind of that backend, and all kinds where it names none; so does a test that was not done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import outcomes, processes
from benchmarks.processes import ROOT

KINDS = ("full", "tied", "diag", "spherical")
PROCESSES = 8  # of pytest-xdist at most, for what spends its time in a compiler
FAILURES = 20  # of a backend that a record has, at most


def tests_of(backend: str, device: str = "cuda") -> list[list[str]]:
    """Return pytest's arguments for the tests of a backend on a device, a list for each process."""
    files = {"triton": "triton_*.py", "cupy": "test_cu*.py"}.get(backend) if device == "cuda" else None
    paths = [] if files is None else sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob(files))
    shared = ["tests/test_kernels.py", "-k", f"{backend}-{device}"]
    if backend != "triton":  # what needs no GPU is left out
        return [*([path, "-k", "not cpu and not compile"] for path in paths), shared]
    both = [*paths, shared[0]]
    own = f"({' or '.join(['triton-' + device, *(Path(path).stem for path in paths)])}) and not compile"
    return [[*both, "-k", f"{own} and {which}", *spread()] for which in ("not full", "full")]


def around() -> dict[str, list[list[str]]]:
    """Return the tests of no one backend: rows on their way to a card, waiting for it, estimators, and their seeds."""
    some = ["-k", "cuda or gpu"]
    return {
        "staging": [["tests/test_staging.py"]],
        "no waiting": [["tests/test_no_waiting.py"]],
        "the estimators": [["tests/test_arrays.py", *some]],
        "seeds": [["tests/test_seeding.py", *some]],
    }


def spread() -> list[str]:
    """Return pytest's arguments that spread tests over PROCESSES or all cores, where pytest-xdist is installed."""
    return ["-n", str(min(PROCESSES, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []


def run_tests(tests: dict[str, list[list[str]]], seconds: float) -> dict[str, Any]:
    """Run pytest with lists of arguments, all at once; return for each name what `summary` makes of its tests."""
    jobs = [(name, arguments) for name, lists in tests.items() for arguments in lists]
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(lambda job: _pytest(job[1], seconds), jobs))
    return {
        name: summary([result for (other, _), result in zip(jobs, results, strict=True) if other == name])
        for name in tests
    }


def _pytest(arguments: list[str], seconds: float) -> tuple[dict[str, Any], str | None]:
    """Return the tests by outcome, and why pytest failed to run or to end, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "outcomes.jsonl"
        ended = processes.run(processes.module("benchmarks.outcomes", str(written), *arguments), seconds)
        lines = written.read_text().splitlines() if written.exists() else []
    found = outcomes.tally(map(json.loads, lines))
    if ended.status is None:
        return found, f"not done after {seconds:.0f} s"
    if ended.status not in (0, 1, 5):  # 1: a test failed; 5: none was there
        return found, f"pytest {ended.failure()}: {ended.output[-300:]}"
    return found, None


def summary(results: list[tuple[dict[str, Any], str | None]]) -> dict[str, Any]:
    """Return the counts of some runs of pytest, in all and `by_kind`, the first FAILURES, and why any did not end.

    A test that was collected and did not end counts as failed. A run that ended early and has no such test, since it
    collected none, has `failed_to_run`.
    """
    total: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "by_kind": {}, "failures": []}
    for found, reason in results:
        failed = found["failed"] | {name: {"error": reason or "not done"} for name in found["not_done"]}
        for outcome, names in (("passed", found["passed"]), ("failed", failed), ("skipped", found["skipped"])):
            total[outcome] += len(names)
            for name in names:
                kind = total["by_kind"].setdefault(kind_of(name) or "any", {"passed": 0, "failed": 0})
                if outcome in kind:
                    kind[outcome] += 1
        total["failures"] += [{"id": name, **about} for name, about in failed.items()]
        if reason and not found["not_done"]:
            total["failed_to_run"] = "; ".join(filter(None, [total.get("failed_to_run"), reason]))
    total["failures"] = total["failures"][:FAILURES]
    return total


def kind_of(test: str) -> str | None:
    """Return the kind of covariance that a test's id names: in its parameters, else in its name; None where in none."""
    name, _, parameters = test.rpartition("::")[2].partition("[")
    for text in (parameters, name):
        named = {word for word in re.split(r"[^a-z]+", text.lower()) if word in KINDS}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def refusal(tests: dict[str, Any] | None, kind: str | None = None) -> str | None:
    """Say why a backend with these results of its tests is not timed with a kind of covariance; None where it may be.

    kind: None for all that its tests name.
    """
    if tests is None:
        return "it has no tests"
    if "failed_to_run" in tests:
        return f"its tests did not run: {tests['failed_to_run']}"
    if kind is None:
        failed, passed = tests["failed"], tests["passed"]
    else:
        of_kind, of_any = (tests["by_kind"].get(name, {"passed": 0, "failed": 0}) for name in (kind, "any"))
        failed, passed = of_kind["failed"] + of_any["failed"], of_kind["passed"]
    of = "" if kind is None else f" of {kind}"
    if failed:
        return f"{failed} of its tests{of} failed"
    return None if passed else f"no test{of} of it ran"

"""Everything that a CUDA card is asked, in one command and within a time: `python -m benchmarks.run --suite gpu`.

1. The tests that use CUDA, of all backends at once, each in processes of its own: `tests_of`. A backend is timed
   only where they passed, and at least one ran.
2. The card's own rates: copying, and products of matrices in float32, tf32, float16 and bfloat16.
3. `benchmarks.passes` for each backend, in a process of its own that a crash or a hang cannot take the others with.

The plan of the SECONDS in all: up to TEST_SECONDS for tests, some 10 for the rates, and the rest in equal parts for the
backends, what one does not use going to the next. The plain backend has 4 cases and the others 8, of 5 to 10 s each,
most of it compilation, the state from the middle of a fit and the oracle. A backend starts no case after its part and
is stopped GRACE later. What was left out is recorded, case by case, and so is what was never run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.passes import start_of
from benchmarks.timing import copy_bandwidth, matrix_product_rate, short

ROOT = Path(__file__).parent.parent
SECONDS, TEST_SECONDS, GRACE = 460.0, 220.0, 20.0
DTYPES = ("float32", "tf32", "float16", "bfloat16")


def run(cases: list[Case], device: str = "cuda", seconds: float = SECONDS) -> dict[str, Any]:
    """Test and time the cases on a device; return the record's parts: card, rates, tests and cases."""
    deadline = time.monotonic() + seconds
    names = list(dict.fromkeys(case.backend for case in cases))
    tests = {name: tests_of(name) for name in names}
    tests["the estimators"] = [[f"tests/test_{name}.py", "-k", "cuda or gpu"] for name in ("arrays", "estimator")]
    about: dict[str, Any] = {"tests": run_tests(tests, min(TEST_SECONDS, seconds / 2))}
    for name, result in about["tests"].items():
        print(f"tests of {name}: {result}", flush=True)
    about |= rates(torch.device(device))
    about["card"] = card()  # now, so that the clocks are those of a card at work
    print({name: about[name] for name in rates_names(about)}, flush=True)
    records: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        some = [case for case in cases if case.backend == name]
        reason = refusal(about["tests"].get(name))
        if reason is None:
            part = max(0.0, deadline - time.monotonic() - GRACE) / (len(names) - index)
            found = run_backend(some, device, part)
        else:
            found = [start_of(case) | {"refused": reason} for case in some]
        for record in found:
            print(line(complete(record, about, records)), flush=True)
            records.append(record)
    return about | {"cases": records}


def tests_of(backend: str) -> list[list[str]]:
    """Return pytest's arguments for the tests of a backend on a CUDA device, a list for each process."""
    files = {"triton": "triton_*.py", "cupy": "test_cu*.py"}.get(backend)
    paths = [] if files is None else sorted((ROOT / "tests").glob(files))
    own = [[str(path.relative_to(ROOT)), "-k", "not cpu and not compile"] for path in paths]  # what needs no GPU
    return [*own, ["tests/test_kernels.py", "-k", f"{backend}-cuda"]]


def run_tests(tests: dict[str, list[list[str]]], seconds: float) -> dict[str, Any]:
    """Run pytest with lists of arguments, all at once; return what came of each name's: counts, or "failed_to_run"."""
    jobs = [(name, arguments) for name, lists in tests.items() for arguments in lists]
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(lambda job: _pytest(job[1], seconds), jobs))
    total: dict[str, Any] = {}
    for (name, _), result in zip(jobs, results, strict=True):
        before = total.get(name, {})
        total[name] = {key: before.get(key, 0) + value for key, value in result["counts"].items()}
        reasons = [reason for reason in (before.get("failed_to_run"), result.get("failed_to_run")) if reason]
        if reasons:
            total[name]["failed_to_run"] = "; ".join(reasons)
    return total


def _pytest(arguments: list[str], seconds: float) -> dict[str, Any]:
    """Return the counts of one run of pytest, by its JUnit report; where there is no report, why."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"counts": counts, "failed_to_run": f"not done after {seconds:.0f} s"}
        if ended.returncode > 1 and ended.returncode != 5:  # 1: a test failed; 5: none was there
            return {"counts": counts, "failed_to_run": f"pytest ended with {ended.returncode}: {ended.stdout[-300:]}"}
        for suite in ElementTree.parse(report).iter("testsuite"):
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            counts["failed"] += failed
            counts["skipped"] += skipped
            counts["passed"] += int(suite.get("tests", 0)) - failed - skipped
    return {"counts": counts}


def refusal(tests: dict[str, Any] | None) -> str | None:
    """Say why a backend with these results of its tests is not timed; None where it may be."""
    if tests is None:
        return "it has no tests"
    if "failed_to_run" in tests:
        return f"its tests did not run: {tests['failed_to_run']}"
    if tests["failed"]:
        return f"{tests['failed']} of its tests failed"
    return None if tests["passed"] else "no test of it ran"


def rates(device: torch.device) -> dict[str, Any]:
    """Return what a device copies and multiplies: GB/s, and GFLOP/s by dtype; of float32 also under its usual name."""
    side, size = 256, 16 << 20
    if device.type == "cuda":
        side, size = 8192, min(4 << 30, torch.cuda.get_device_properties(device).total_memory // 8)
    found = {dtype: matrix_product_rate(device, dtype, side) for dtype in DTYPES}
    copy = copy_bandwidth(device, size)
    torch.cuda.empty_cache()  # this process holds the card with others
    return {
        "copy_gbytes_per_second": copy,
        "matrix_product_gflop_per_second": found["float32"],
        "matrix_products_gflop_per_second": found,
    }


def rates_names(about: dict[str, Any]) -> list[str]:
    """Return the names under which a record has rates."""
    return [name for name in about if name.endswith("per_second")]


def run_backend(cases: list[Case], device: str, seconds: float) -> list[dict[str, Any]]:
    """Run the cases of one backend in a process of their own; return a record for each, whatever becomes of it."""
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "cases.json", Path(folder) / "records.jsonl"
        given.write_text(json.dumps([asdict(case) for case in cases]))
        command = [sys.executable, "-m", "benchmarks.passes", str(given), str(written)]
        command += ["--device", device, "--seconds", str(seconds)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        try:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds + GRACE
            )
            why = f"its process ended with {ended.returncode}: {ended.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            why = f"its process was stopped, {GRACE:.0f} s after its time"
        lines = written.read_text().splitlines() if written.exists() else []
    records = [json.loads(text) for text in lines]
    return records + [start_of(case) | {"failed": why} for case in cases[len(records) :]]


def complete(record: dict[str, Any], about: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """Add to a record the floor of its case and how many times faster it is than the plain backend, if that ran."""
    if "statistics" not in record:
        return record
    case = Case(**{key: record[key] for key in asdict(Case("", 1, 1, 1, "diag"))})
    median = record["statistics"]["median"]
    rate = max(about["matrix_products_gflop_per_second"].values())
    floor = case.floor_seconds(about["copy_gbytes_per_second"], rate)
    record |= {"floor_seconds": short(floor), "share_of_floor": short(floor / median)}
    problem = ("data", "n", "d", "k", "covariance", "dtype")
    for other in before:
        if other["backend"] == "torch" and "statistics" in other and all(other[key] == record[key] for key in problem):
            record["times_torch"] = short(other["statistics"]["median"] / median)
    return record


def card() -> dict[str, str] | None:
    """Return the first card's name, driver, clocks and power limit as nvidia-smi says; None where it says nothing."""
    fields = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit"]
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(fields, (part.strip() for part in ended.stdout.splitlines()[0].split(",")), strict=False))


def line(record: dict[str, Any]) -> str:
    """Return a case's record in one line."""
    text = f"{record['name']:44}"
    if "errors" in record:
        text += f" error {max(record['errors'].values()):.1e}"
    for why in ("refused", "failed", "left_out"):
        if why in record:
            return f"{text}  {why.replace('_', ' ').upper()}: {record[why]}"
    text += f"  {record['statistics']['median'] * 1e3:.4g} ms, {record['gbytes_per_second']:.4g} GB/s"
    text += f", {record['gflop_per_second'] / 1e3:.3g} TFLOP/s, {record['share_of_floor']:.0%} of the floor"
    if "times_torch" in record:
        text += f", {record['times_torch']:.2f} times torch"
    if "pass" in record:
        text += f"; whole pass {record['pass']['median'] * 1e3:.4g} ms"
    return text if record["repeatable"] else f"{text}  NOT REPEATABLE"

"""Everything that a CUDA card is asked, in one command and within a time: `python -m benchmarks.run --suite gpu`.

1. The tests that use CUDA, of all backends at once, each in processes of its own: `benchmarks.card_tests`. A backend
   is timed with a kind of covariance only where its tests of that kind passed, and at least one ran.
2. The card's own rates: copying, reading, and products of matrices in float64, float32, tf32, float16 and bfloat16.
3. `benchmarks.passes` for each backend, in a process of its own that a crash or a hang cannot take the others with.

The plan of the SECONDS in all: up to TEST_SECONDS for tests, some 10 for the rates, and the rest in equal parts for the
backends, what one does not use going to the next. The plain backend has 4 cases, Triton 8 and CuPy 2, of 5 to 10 s
each, most of it compilation, the state from the middle of a fit and the oracle. A backend starts no case after its
part and is stopped GRACE later. What was left out is recorded, case by case, and so is what was never run.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import card_tests, processes
from benchmarks.card_tests import refusal
from benchmarks.cases import Case
from benchmarks.passes import start_of
from benchmarks.timing import copy_bandwidth, matrix_product_rate, read_bandwidth, short

SECONDS, TEST_SECONDS, GRACE = 460.0, 220.0, 20.0
DTYPES = ("float64", "float32", "tf32", "float16", "bfloat16")


def run(cases: list[Case], device: str = "cuda", seconds: float = SECONDS) -> dict[str, Any]:
    """Test and time the cases on a device; return the record's parts: card, rates, tests and cases."""
    deadline = time.monotonic() + seconds
    names = list(dict.fromkeys(case.backend for case in cases))
    tests = {name: card_tests.tests_of(name) for name in names} | card_tests.around()
    about: dict[str, Any] = {"tests": card_tests.run_tests(tests, min(TEST_SECONDS, seconds / 2))}
    for name, result in about["tests"].items():
        print(f"tests of {name}: {result}", flush=True)
    about |= rates(torch.device(device))
    about["card"] = card()  # now, so that the clocks are those of a card at work
    print({name: about[name] for name in rates_names(about)}, flush=True)
    records: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        some = [case for case in cases if case.backend == name]
        reasons = {case.covariance: refusal(about["tests"].get(name), case.covariance) for case in some}
        found = [start_of(case) | {"refused": why} for case in some if (why := reasons[case.covariance]) is not None]
        good = [case for case in some if reasons[case.covariance] is None]
        if good:
            part = max(0.0, deadline - time.monotonic() - GRACE) / (len(names) - index)
            found += run_backend(good, device, part)
        for record in found:
            print(line(complete(record, about, records)), flush=True)
            records.append(record)
    return about | {"cases": records}


def rates(device: torch.device) -> dict[str, Any]:
    """Return what a device copies, reads and multiplies: GB/s, and GFLOP/s by dtype; and float32's alone."""
    side, size = sizes_on(device)
    found = {dtype: matrix_product_rate(device, dtype, side) for dtype in DTYPES}
    copy, read = copy_bandwidth(device, size), read_bandwidth(device, size)
    torch.cuda.empty_cache()  # this process holds the card with others
    return {
        "copy_gbytes_per_second": copy,
        "read_gbytes_per_second": read,
        "matrix_product_gflop_per_second": found["float32"],
        "matrix_products_gflop_per_second": found,
    }


def sizes_on(device: torch.device) -> tuple[int, int]:
    """Return the side of the matrices and the bytes of the arrays that a device's rates are measured with."""
    if device.type != "cuda":
        return 256, 16 << 20
    return 8192, min(4 << 30, torch.cuda.get_device_properties(device).total_memory // 8)


def rates_names(about: dict[str, Any]) -> list[str]:
    """Return the names under which a record has rates."""
    return [name for name in about if name.endswith("per_second")]


def run_backend(cases: list[Case], device: str, seconds: float) -> list[dict[str, Any]]:
    """Run the cases of one backend in a process of their own; return a record for each, whatever becomes of it."""
    with tempfile.TemporaryDirectory() as folder:
        given, written = Path(folder) / "cases.json", Path(folder) / "records.jsonl"
        given.write_text(json.dumps([asdict(case) for case in cases]))
        command = processes.module("benchmarks.passes", str(given), str(written))
        ended = processes.run([*command, "--device", device, "--seconds", str(seconds)], seconds + GRACE)
        why = f"its process {ended.failure() or 'ended'}: {ended.output[-300:]}"
        lines = written.read_text().splitlines() if written.exists() else []
    records = [json.loads(text) for text in lines]
    return records + [start_of(case) | {"failed": why} for case in cases[len(records) :]]


def complete(record: dict[str, Any], about: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """Add to a record the floors of its case and how many times faster it is than the plain backend, if that ran."""
    if "statistics" not in record:
        return record
    case = Case(**{key: record[key] for key in asdict(Case("", 1, 1, 1, "diag"))})
    median = record["statistics"]["median"]
    record |= shares_of_floors(case, median, about)
    problem = ("data", "n", "d", "k", "covariance", "dtype")
    for other in before:
        if other["backend"] == "torch" and "statistics" in other and all(other[key] == record[key] for key in problem):
            record["times_torch"] = short(other["statistics"]["median"] / median)
    return record


def shares_of_floors(case: Case, seconds: float, about: dict[str, Any]) -> dict[str, float]:
    """Return the floors of a case on a card with these rates, and what share of some seconds each is."""
    products = about["matrix_products_gflop_per_second"]
    bandwidth = max(about[f"{what}_gbytes_per_second"] for what in ("copy", "read"))
    floor = case.floor_seconds(bandwidth, max(products.values()))
    split = case.split_floor_seconds(bandwidth, products)
    return {
        "floor_seconds": short(floor),
        "share_of_floor": short(floor / seconds),
        "split_floor_seconds": short(split),
        "share_of_split_floor": short(split / seconds),
    }


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
    text += f", {record['share_of_split_floor']:.0%} with split products"
    if "times_torch" in record:
        text += f", {record['times_torch']:.2f} times torch"
    if "pass" in record:
        text += f"; whole pass {record['pass']['median'] * 1e3:.4g} ms"
    return text if record["repeatable"] else f"{text}  NOT REPEATABLE"

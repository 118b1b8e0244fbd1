"""Where the time goes: the hardware's counters during a pass, by Nsight Compute, and the launches of a fit, by torch.

python -m benchmarks.first_contact.profiles ARGUMENTS    one pass, of which the profiler sees the kernels
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks import passes, processes
from benchmarks.first_contact.job import Write
from benchmarks.first_contact.speed import case_of
from benchmarks.pairs import make_ours
from benchmarks.timing import short
from fastclust import engine, kernels

SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats", "LaunchStats",
            "Occupancy", "SchedulerStats")  # fmt: skip
WANTED = re.compile(
    r"gpu__time_duration\.sum|pipe_tensor|issue_active|dram__(throughput|bytes)|issue_stalled\w*_per_warp_active|"
    r"average_warps_issue_stalled\w*_per_issue_active|bank_conflicts|registers_per_thread$|shared_mem_per_block\w*|"
    r"warps_active\.avg\.pct|sm__throughput\.avg\.pct|inst_executed\.avg\.per_cycle_elapsed|grid_size|block_size"
)
NCU_SECONDS = 60.0
STARTS = re.compile(r"cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")  # what the host calls, runtime's or driver's
BEFORE, PROFILED = 3, 5  # passes of a fit: the third records the graph that the others start


def counters(write: Write, precision: str, **problem: Any) -> None:
    """Write the counters of each kernel of a pass, where Nsight Compute is there and lets us; else why not."""
    tool = next(iter([shutil.which("ncu"), *map(str, Path("/opt/nvidia/nsight-compute").glob("*/ncu"))]), None)
    if tool is None or problem["device"] != "cuda":
        write({"left_out": "there is no ncu" if tool is None else "ncu looks at CUDA kernels alone"})
        return
    sections = [part for section in SECTIONS for part in ("--section", section)]
    command = [tool, "--clock-control", "none", "--profile-from-start", "off", "--launch-count", "6", *sections]
    command += ["--csv", "--page", "raw", *processes.module(__name__, json.dumps(problem | {"precision": precision}))]
    log = Path(problem["scratch"]) / "ncu.csv"
    log.unlink(missing_ok=True)  # another job's
    command[1:1] = ["--log-file", str(log)]
    try:  # in this process's group, which is killed at the end of the job's time
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=NCU_SECONDS)
        said = f"it ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
    except (OSError, subprocess.SubprocessError) as error:
        said = f"{type(error).__name__}: {error}"
    text = log.read_text(errors="replace") if log.exists() else ""
    found = list(kernels_of(text))
    for kernel in found:
        write(kernel)
    if not found:
        write({"failed": f"no kernel in what ncu wrote; {said[:300]} ... {(said + text)[-300:]}"})


def kernels_of(text: str) -> Iterable[dict[str, Any]]:
    """Return the wanted counters of each kernel, from what `ncu --csv --page raw` writes: names, units, then values."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return
    rows = csv.DictReader(lines[start:])
    units = next(rows, {})
    for row in rows:
        wanted = {name: f"{value} {units.get(name) or ''}".strip() for name, value in row.items()
                  if name and WANTED.search(name) and value}  # fmt: skip
        yield {"kernel": row.get("Kernel Name", "")[:80], "counters": wanted}


def main(arguments: list[str]) -> int:
    """Make a pass of which the profiler sees the kernels over rows alone, after one that compiles them."""
    given = json.loads(arguments[0])
    device = torch.device(given["device"])
    case = case_of(given["kind"], given["stored"], given["backend"], given["rows"], given["precision"], given["device"])
    problem = passes.problem_of(case, device, Path(given["scratch"]))
    module = kernels.usable(given["backend"], device)
    coefficients = engine.coefficients(problem.posterior)
    for profiled in (False, True):
        plan = module.prepare(coefficients, problem.frame, torch.float32, given["precision"])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            if profiled:
                torch.cuda.profiler.start()  # type: ignore[no-untyped-call,unused-ignore]
        plan.add(problem.rows)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call,unused-ignore]
        plan.result()
    return 0


def fit(write: Write, device: str, rows: int, kind: Any, stored: str, backend: str, scratch: str) -> None:
    """Write a pass of a fit: launches by the host, kernels on the device, milliseconds, and the share without any.

    A graph is one launch, whatever is in it; on a CPU every operation is one.
    """
    there = torch.device(device)
    case = case_of(kind, stored, backend, rows, device=device)
    reason = passes.why_left_out(case, there)
    if reason is not None:
        write({"left_out": reason})
        return
    data = passes.problem_of(case, there, Path(scratch)).rows
    cuda = there.type == "cuda"
    profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])

    def on_pass(number: int, *more: object) -> None:
        if number == BEFORE:
            profiler.start()
        if number == BEFORE + PROFILED:
            if cuda:
                torch.cuda.synchronize(there)
            profiler.stop()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        make_ours(case, BEFORE + PROFILED + 1, device).fit(data, on_pass=on_pass)
    events: list[Any] = list(profiler.events() or [])  # type: ignore[no-untyped-call]
    spans = [(event.time_range.start, event.time_range.end, event.name) for event in events
             if event.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU)]  # fmt: skip
    every = [(event.time_range.start, event.time_range.end) for event in events]
    if not spans:
        write({"failed": "the profiler saw nothing on the device"})
        return
    whole = max(end for _, end in every) - min(start for start, _ in every)
    most: Counter[str] = Counter()
    for start, end, name in spans:
        most[name[:60]] += end - start
    launches = sum(bool(STARTS.match(event.name)) for event in events) if cuda else len(spans)
    write({
        "case": f"{kind} {stored} high", "backend": backend, "launches": short(launches / PROFILED),
        "kernels": short(len(spans) / PROFILED),
        "ms": short(whole / PROFILED / 1e3), "idle": short(1 - _covered(spans) / whole),
        "most": {name: short(taken / PROFILED / 1e3) for name, taken in most.most_common(8)},
    })  # fmt: skip


def _covered(spans: list[tuple[float, float, str]]) -> float:
    """Return how much of the time is in at least one span."""
    total, until = 0.0, float("-inf")
    for start, end, _ in sorted(spans):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Whether things are there and right: the card, what imports, each kernel once, and the tests."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import outcomes
from benchmarks.first_contact.job import Write

MODULES = ("torch", "triton", "cupy", "numpy", "numba", "sklearn", "h5py", "torchvision", "PIL", "pytest", "xdist",
           "hypothesis", "fastclust", "fastclust.kernels", "benchmarks.passes")  # fmt: skip
CARD = ("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "clocks.mem",
        "power.limit", "power.draw", "temperature.gpu", "compute_mode", "mig.mode.current")  # fmt: skip
LIMITS = {"high": 2e-5, "fast": 1e-3}  # as tests/test_kernels.py and tests/triton_cases.py have them
SHOWN = 40  # failing tests that are written one by one
PROGRESS_SECONDS = 5.0


def card(write: Write) -> None:
    """Write what the card and the machine are, and which tools there are."""
    folder = Path("/opt/nvidia/nsight-compute")
    write({
        "python": sys.version, "cores": os.cpu_count(), "disk_gbytes": shutil.disk_usage("/tmp").free / 1e9,
        "tools": {name: shutil.which(name) for name in ("ncu", "compute-sanitizer", "nvcc", "cuobjdump", "ptxas")},
        "nsight": [str(path) for path in folder.glob("*/ncu")],
    })  # fmt: skip
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        write({"left_out": f"nvidia-smi: {error}"})
        return
    if ended.returncode:
        write({"left_out": f"nvidia-smi ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-300:]}"})
        return
    first = ended.stdout.splitlines()[0].split(",")
    write({"card": dict(zip(CARD, (part.strip() for part in first), strict=False))})


def imports(write: Write, device: str) -> None:
    """Import what the other stages do, and write the version of each, or why it cannot be; then which backends run."""
    for name in MODULES:
        began = time.perf_counter()
        try:
            module = importlib.import_module(name)
        except BaseException as error:  # pytest.skip's, or whatever a broken library raises
            write({"module": name, "failed": f"{type(error).__name__}: {error}"[:300]})
            continue
        version = getattr(module, "__version__", None)
        write({"module": name, "version": version, "seconds": round(time.perf_counter() - began, 2)})
    import torch

    from fastclust import kernels

    there = torch.device(device)
    if there.type == "cuda":
        about = torch.cuda.get_device_properties(there)
        write({"cuda": torch.version.cuda, "name": about.name, "multiprocessors": about.multi_processor_count,
               "memory": about.total_memory, "capability": [about.major, about.minor]})  # fmt: skip
    write({"backends": kernels.available(there)})


def smoke(
    write: Write, device: str, backend: str, kind: Any, stored: str, precision: Any, what: str, large: bool
) -> None:
    """Run one kernel on 640 rows of 64 features, or 512 where large, and write its errors against the oracle's."""
    import torch

    from benchmarks.first_contact.problem import apart, errors, on, small
    from fastclust import kernels
    from fastclust.kernels import Frame, reference

    there, frame = torch.device(device), Frame()
    try:
        module = kernels.usable(backend, there)
    except (ValueError, RuntimeError) as error:
        write({"left_out": f"{error}"})
        return
    reason = kernels.left(module, kind, torch.float32, [getattr(torch, stored)])
    if precision not in module.PRECISIONS:
        reason = f"{backend} has no precision {precision!r}"
    if reason is not None:
        write({"left_out": reason})
        return
    d, k = (512, 200) if large else (64, 50)
    rows, coefficients = small(640, d, k, kind)
    rows = rows.to(getattr(torch, stored))
    expected, own = reference.responsibilities(rows, coefficients, frame, torch.float64), on(there, coefficients)
    began = time.perf_counter()
    if what == "moments":
        given = (rows.to(there), expected.to(there), kind, own.means, frame, torch.float32)
        found = module.moments(*given)
        worst = errors(found, reference.moments(rows, expected, kind, coefficients.means, frame, torch.float64))
    else:
        plan = module.prepare(own, frame, torch.float32, precision)
        if what == "statistics":
            plan.add(rows.to(there))
            worst = errors(plan.result(), reference.statistics(rows, coefficients, frame, torch.float64))
        elif what == "responsibilities":
            worst = {"responsibilities": apart(plan.responsibilities(rows.to(there)).cpu(), expected)}
        else:
            labels, density = (part.cpu() for part in plan.assign(rows.to(there)))
            _, known = reference.assign(rows, coefficients, frame, torch.float64)
            lost = expected.max(1).values - expected.gather(1, labels.long()[:, None])[:, 0]
            worst = {"lost": float(lost.max()), "density": apart(density, known) / float(known.abs().max())}
    limit = LIMITS[precision] * (1 if what in ("statistics", "moments") else 10)  # of what is no sum
    largest = max(worst.values())
    sureness = float(expected.max(1).values.mean())  # near 1 / K or 1, the problem shows little
    write({"errors": worst, "error": largest, "limit": limit, "right": largest < limit, "sureness": sureness,
           "seconds": round(time.perf_counter() - began, 2)})  # fmt: skip


def tests(write: Write, arguments: list[str]) -> None:
    """Run pytest and write each test that fails as soon as it does, then how many did what."""
    lines: list[dict[str, Any]] = []
    failing: set[str] = set()
    last = time.monotonic()

    def emit(line: dict[str, Any]) -> None:
        nonlocal last
        lines.append(line)
        if line.get("outcome") == "failed" and line["id"] not in failing:
            failing.add(line["id"])
            if len(failing) <= SHOWN:
                write({"failing": line["id"], **{key: line[key] for key in ("error", "times") if key in line}})
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            write({"so_far": _counts(lines)})

    status = outcomes.run(arguments, emit)
    found = outcomes.tally(lines)
    write({"counts": _counts(lines), "pytest": status, "not_done": found["not_done"][:SHOWN],
           "slowest": sorted(((line["seconds"], line["id"]) for line in lines if "seconds" in line), reverse=True)[:3]
           })  # fmt: skip


def _counts(lines: list[dict[str, Any]]) -> dict[str, int]:
    return {outcome: len(ids) for outcome, ids in outcomes.tally(lines).items()}

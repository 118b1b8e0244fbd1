"""Verify one backend's pass on one device, then time it: `benchmarks.gpu` runs this in a process for each backend.

    python -m benchmarks.passes CASES.json RECORDS.jsonl [--device cuda] [--seconds S]

Of each case, on rows that are made on the device:
1. A state from the middle of a fit: a few passes of the plain backend on the CPU over VERIFIED_ROWS of the rows.
2. The statistics of those rows are held against the float64 oracle, on the device, on the scales and to the tolerance
   of `benchmarks.verify`; of all rows, the sum of nk against N. Beyond the tolerance nothing is timed.
3. Two passes over all rows, bit by bit: `repeatable` says whether they agree.
4. `statistics`: E-step and sums over all rows, in CUDA events, the median of some after WARM_UP that are not counted.
   This is what bytes, flop and the floor are of. `peak_memory_bytes` is beyond the rows, of torch's allocator.
5. `pass`: a whole pass as the estimator makes it, with M-step and bound, on the host's clock; of float32 rows, in high
   precision.

One line of RECORDS is written as soon as a case ends, so that a process that dies or is stopped leaves what it had. No
case is started after S seconds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning

from benchmarks.cases import Case
from benchmarks.data import relu_on
from benchmarks.pairs import make_ours, own_passes
from benchmarks.timing import seconds_on, short, spread
from benchmarks.verify import TOLERANCE, beyond_tolerance, judge
from fastclust import engine, kernels
from fastclust.kernels import Frame, Statistics
from fastclust.variational import Posterior

VERIFIED_ROWS = 50_000
TOLERANCES = {"high": TOLERANCE, "fast": 1e-2}
WARM_UP = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the cases of a file, all of one backend."""
    parser = argparse.ArgumentParser(prog="benchmarks.passes", description="Verify and time passes on a device.")
    parser.add_argument("cases", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    with options.records.open("a") as records:
        for fields in json.loads(options.cases.read_text()):
            case = Case(**fields)
            spent = time.monotonic() - begun
            if spent > options.seconds:
                record = start_of(case) | {"left_out": f"no time: {spent:.0f} s of {options.seconds:.0f} were spent"}
            else:
                record = run_case(case, torch.device(options.device))
            records.write(json.dumps(record) + "\n")
            records.flush()
    return 0


def start_of(case: Case) -> dict[str, Any]:
    """Return what the record of a case begins with."""
    return {"name": case.name, **asdict(case)}


def run_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Return the record of a case: its times, or "left_out", "refused" or "failed" with the reason."""
    began = time.monotonic()
    record = start_of(case)
    try:
        record |= _measured(case, device)
    except Exception as error:  # a kernel that fails is a result: the cases after it are run all the same
        record["failed"] = f"{type(error).__name__}: {error}"[:500]
    return record | {"seconds_in_all": short(time.monotonic() - began)}


def _measured(case: Case, device: torch.device) -> dict[str, Any]:
    dtype = getattr(torch, case.arithmetic)
    try:
        _, backend, _ = kernels.select(case.backend, device)
    except (ValueError, RuntimeError) as error:
        return {"left_out": f"{error}"}
    named: dict[str, Any] = {}
    if "precision" in inspect.signature(backend.statistics).parameters:
        named["precision"] = case.precision
    elif case.precision != "high":
        return {"left_out": f"backend {case.backend} has no precision {case.precision!r}"}
    if hasattr(backend, "why_not"):  # what the backend leaves to the plain one is no measurement of it
        asked = {"covariance_type": case.covariance, "dtype": dtype, "stored": getattr(torch, case.dtype)}
        reason = backend.why_not(**{name: asked[name] for name in inspect.signature(backend.why_not).parameters})
        if reason is not None:
            return {"left_out": reason}
    rows = relu_on(device, case.n, case.d, case.dtype, case.seed)
    some = rows[:: -(-case.n // VERIFIED_ROWS)].contiguous()
    posterior, frame = state_of(case, some, device)
    coefficients = engine.coefficients(posterior)

    def statistics(of: torch.Tensor) -> Statistics:
        return backend.statistics(of, coefficients, frame, dtype, **named)

    record: dict[str, Any] = judge(statistics(some), [some], frame, posterior)
    whole, again = statistics(rows), statistics(rows)
    record["errors"]["all rows"] = abs(float(whole.nk.sum()) / case.n - 1)
    record["tolerance"] = TOLERANCES[case.precision]
    wrong = beyond_tolerance(record["errors"], record["tolerance"])
    if wrong:
        return record | {"refused": f"error against the oracle above {record['tolerance']}: {', '.join(wrong)}"}
    record["repeatable"] = all(
        one is None or torch.equal(one, other)
        for one, other in zip(vars(whole).values(), vars(again).values(), strict=True)
    )
    held = reset_peak(device)
    found = seconds_on(device, lambda: statistics(rows), case.repeats, WARM_UP)
    record |= {
        "statistics": spread(found),
        "gbytes_per_second": short(case.bytes / spread(found)["median"] / 1e9),
        "gflop_per_second": short(case.flop / spread(found)["median"] / 1e9),
        "peak_memory_bytes": None if held is None else torch.cuda.max_memory_allocated(device) - held,
    }
    if case.precision == "high" and case.dtype == "float32":
        record["pass"] = spread(own_passes(make_ours(case, 1, str(device)), rows, case.fit_passes))
    return record


def reset_peak(device: torch.device) -> int | None:
    """Start the peak of torch's memory on a CUDA device anew and return what is held, in bytes; elsewhere None."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def state_of(case: Case, some: torch.Tensor, device: torch.device) -> tuple[Posterior, Frame]:
    """Return the posterior in the middle of the plain backend's fit to rows (n, D), and the frame they are seen in."""
    model = make_ours(replace(case, backend="torch"), case.burn_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(some.cpu())
    _, rows = model._rows_of(some.cpu())
    posterior = model._posterior(rows)
    there: dict[str, Any] = {
        name: part.to(device) for name, part in vars(posterior).items() if isinstance(part, torch.Tensor)
    }
    return replace(posterior, **there), rows.frame.to(device)


if __name__ == "__main__":
    sys.exit(main())

"""Verify one backend's pass on one device, then time it: `benchmarks.gpu` runs this in a process for each backend.

    python -m benchmarks.passes CASES.json RECORDS.jsonl [--device cuda] [--seconds S]

Of each case, on rows that are made on the device:
1. A state from the middle of a fit: a few passes of the plain backend on the CPU over VERIFIED_ROWS of the rows.
2. The statistics of those rows are held against the float64 oracle, on the device, on the scales and to the tolerance
   of `benchmarks.verify`; of all rows, the sum of nk against N. Beyond the tolerance nothing is timed.
3. Two passes over all rows, bit by bit: `repeatable` says whether they agree.
4. `statistics`: a plan, E-step and sums over all rows, in CUDA events, the median of some after WARM_UP that are not
   counted. This is what bytes, flop and floors are of. `peak_memory_bytes` is beyond the rows, of torch's allocator.
5. `assign`: labels and densities of all rows by a plan that is there, likewise.
6. `pass`: a whole pass as the estimator makes it, with M-step and bound, on the host's clock; of float32 rows, in high
   precision.

One line of RECORDS is written as soon as a case ends, so that a process that dies or is stopped leaves what it had. No
case is started after S seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
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


def run_case(case: Case, device: torch.device, refuse: bool = True, kept: Path | None = None) -> dict[str, Any]:
    """Return the record of a case: its times, or "left_out", "refused" or "failed" with the reason.

    refuse: whether what is beyond the tolerance is not timed, and what was timed before a failure is not told. kept: a
    folder where states are kept for other processes.
    """
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        _measure(found, case, device, refuse, kept)
    except Exception as error:  # a kernel that fails is a result: the cases after it are run all the same
        found = ({} if refuse else found) | {"failed": f"{type(error).__name__}: {error}"[:500]}
    return start_of(case) | found | {"seconds_in_all": short(time.monotonic() - began)}


@dataclass(frozen=True)
class Problem:
    """The rows (N, D) of a case on a device, some of them, and a state from the middle of a fit to those."""

    rows: torch.Tensor
    some: torch.Tensor
    posterior: Posterior
    frame: Frame


def problem_of(case: Case, device: torch.device, kept: Path | None = None) -> Problem:
    """Return the problem of a case; cases that differ in backend, precision and repeats have one, made once in turn."""
    return _problem(Case(case.data, case.n, case.d, case.k, case.covariance, case.dtype, "torch",
                         burn_in=case.burn_in, seed=case.seed), device, kept)  # fmt: skip


@lru_cache(maxsize=1)
def _problem(case: Case, device: torch.device, kept: Path | None) -> Problem:
    rows = relu_on(device, case.n, case.d, case.dtype, case.seed)
    some = rows[:: -(-case.n // VERIFIED_ROWS)].contiguous()
    return Problem(rows, some, *state_of(case, some, device, kept))


def why_left_out(case: Case, device: torch.device) -> str | None:
    """Say why a backend is not measured in a case: it cannot run, has no such precision, or leaves it to the plain one.

    What it leaves to another is no measurement of it.
    """
    try:
        backend = kernels.usable(case.backend, device)
    except (ValueError, RuntimeError) as error:
        return f"{error}"
    if case.precision not in backend.PRECISIONS:
        return f"backend {case.backend} has no precision {case.precision!r}"
    return kernels.left(backend, case.covariance, getattr(torch, case.arithmetic), [getattr(torch, case.dtype)])


def _measure(record: dict[str, Any], case: Case, device: torch.device, refuse: bool, kept: Path | None) -> None:
    """Add to a record what is found, as soon as it is."""
    reason = why_left_out(case, device)
    if reason is not None:
        record["left_out"] = reason
        return
    backend = kernels.usable(case.backend, device)
    problem = problem_of(case, device, kept)
    rows, some, posterior, frame = problem.rows, problem.some, problem.posterior, problem.frame
    given = (engine.coefficients(posterior), frame, getattr(torch, case.arithmetic))
    precision: Any = case.precision

    def statistics(of: torch.Tensor) -> Statistics:
        return kernels.statistics(backend, of, *given, precision=precision)

    record |= judge(statistics(some), [some], frame, posterior)
    whole, again = statistics(rows), statistics(rows)
    record["errors"]["all rows"] = abs(float(whole.nk.sum()) / case.n - 1)
    record["tolerance"] = TOLERANCES[case.precision]
    wrong = beyond_tolerance(record["errors"], record["tolerance"])
    if wrong:
        record["refused"] = f"error against the oracle above {record['tolerance']}: {', '.join(wrong)}"
        if refuse:
            return
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
    plan = backend.prepare(*given, precision)
    record["assign"] = spread(seconds_on(device, lambda: plan.assign(rows), case.repeats, WARM_UP))
    if case.precision == "high" and case.dtype == "float32":
        record["pass"] = spread(own_passes(make_ours(case, 1, str(device)), rows, case.fit_passes))


def reset_peak(device: torch.device) -> int | None:
    """Start the peak of torch's memory on a CUDA device anew and return what is held, in bytes; elsewhere None."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def state_of(case: Case, some: torch.Tensor, device: torch.device, kept: Path | None = None) -> tuple[Posterior, Frame]:
    """Return the posterior in the middle of the plain backend's fit to rows (n, D), and the frame they are seen in.

    kept: a folder from which a state of this case is taken where it is there, and where it is left for others.
    """
    file = None if kept is None else kept / f"{case.name}-{case.burn_in}.pt"
    if file is not None and file.exists():
        posterior, frame = torch.load(file, weights_only=False)
    else:
        model = make_ours(replace(case, backend="torch"), case.burn_in)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(some.cpu())
        _, rows = model._rows_of(some.cpu())
        posterior, frame = model._posterior(rows), rows.frame
        if file is not None:
            half = file.with_suffix(f".{os.getpid()}")
            torch.save((posterior, frame), half)
            half.replace(file)
    there: dict[str, Any] = {
        name: part.to(device) for name, part in vars(posterior).items() if isinstance(part, torch.Tensor)
    }
    return replace(posterior, **there), frame.to(device)


if __name__ == "__main__":
    sys.exit(main())

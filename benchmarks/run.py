"""Verify, then time: fastclust against scikit-learn's BayesianGaussianMixture, in one process on the same rows.

    python -m benchmarks.run [--suite cpu|quick] [--out FILE] [--only NAME]

Of each case:
1. Both sides get one state: the posterior that ours reaches in a few passes from `init_params="random_from_data"`.
2. One pass of our backend is held against the float64 oracle (`benchmarks.verify`). Beyond the tolerance, nothing of
   the case is timed, and the record says so.
3. Passes (E-step, M-step and bound) go on from that state, ours and theirs in turns of GROUP passes one after the
   other; each turn gives the median of its passes but the first, which finds the other's data in the caches. This is
   what a pass costs in the middle of a fit.
4. A whole short fit is timed from the start, in turn: validation, first responsibilities, a fixed number of passes and
   the final E-step. Early passes cost scikit-learn more, since there exp() gives many denormal numbers.

Before each timing there is a rest, for a library's threads still spin for some milliseconds after their last work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from benchmarks.cases import FORMULAE, Case, suite
from benchmarks.data import SOURCES
from benchmarks.verify import TOLERANCE, beyond_tolerance, check
from fastclust import DPGMM, machine
from fastclust.variational import IllDefinedCovarianceError

RESULTS = Path(__file__).parent / "results"
CLEAR_REFS = Path("/proc/self/clear_refs")
REST = 0.1  # seconds
GROUP = 5  # passes in one turn


def main(arguments: list[str] | None = None) -> int:
    """Run a suite, print a line a case, write the record; return 1 where a case was refused or failed, else 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Verify, then time, against scikit-learn.")
    parser.add_argument("--suite", choices=["cpu", "quick"], default="cpu")
    parser.add_argument("--out", type=Path, help="the record; without it, a whole cpu suite goes to benchmarks/results")
    parser.add_argument("--only", default="", metavar="NAME", help="run the cases whose name contains this")
    options = parser.parse_args(arguments)
    cases = [case for case in suite(options.suite) if options.only in case.name]
    if not cases:
        parser.error(f"no case of {options.suite} has {options.only!r} in its name")
    out: Path | None = options.out
    about = describe(options.suite)
    if out is None and options.suite != "quick" and not options.only:
        slug = re.sub(r"[^a-z0-9]+", "-", about["machine"]["cpu"].lower()).strip("-")
        out = RESULTS / f"{options.suite}-{slug}.json"
    rate, copy = about["matrix_product_gflop_per_second"], about["copy_gbytes_per_second"]
    print(f"{about['machine']['cpu']}: matrix product {rate} GFLOP/s, copy {copy} GB/s")
    records = []
    for case in cases:
        record = run_case(case)
        if "pass" in record:
            seconds = record["pass"]["ours"]["median"]
            floor = max(case.bytes / copy, case.flop / rate) * 1e-9
            record["pass"] |= {"floor_seconds": _short(floor), "share_of_floor": _short(floor / seconds)}
        records.append(record)
        print(line(record), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(about | {"cases": records}, indent=1) + "\n")
        print(f"wrote {out}")
    return int(any("refused" in record or "failed" in record for record in records))


def describe(suite_name: str) -> dict[str, Any]:
    """Return what is the same for all cases of a record: date, commit, machine, its two rates, and the formulae."""
    about = machine.describe()
    return {
        "format": 1,
        "suite": suite_name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": about.pop("commit"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "matrix_product_gflop_per_second": matrix_product_rate(),
        "copy_gbytes_per_second": copy_bandwidth(),
        "tolerance": TOLERANCE,
        "formulae": FORMULAE,
        "machine": about,
    }


def matrix_product_rate(size: int = 2048) -> float:
    """Return the GFLOP/s of torch's float32 product of two square matrices, the best of ten."""
    a = torch.rand(size, size)
    return _short(2 * size**3 / min(_seconds(lambda: a @ a) for _ in range(10)) / 1e9)


def copy_bandwidth(size: int = 256 << 20) -> float:
    """Return the GB/s, read and written, of torch's copy of an array that no cache holds, the best of ten."""
    a, b = torch.zeros(size // 4), torch.zeros(size // 4)
    return _short(2 * size / min(_seconds(lambda: b.copy_(a)) for _ in range(10)) / 1e9)


def run_case(case: Case) -> dict[str, Any]:
    """Verify a case and time it; return its record, which has "refused" in place of times where it is not verified."""
    X = SOURCES[case.data](case.n, case.d, case.seed)
    record: dict[str, Any] = {"name": case.name, **asdict(case), "dtype": "float32"}
    ours = make_ours(case, max_iter=case.burn_in)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # passes are counted here, not waited for
            ours.fit(X)
            record["backend"] = ours.backend_
            _, rows = ours._rows_of(X)
            record |= check(rows, ours._posterior(rows), X)
            wrong = beyond_tolerance(record["errors"])
            if wrong:
                return record | {"refused": f"error against the oracle above {TOLERANCE}: {', '.join(wrong)}"}
            record["pass"] = time_passes(case, X, ours)
            record["fit"] = time_fits(case, X)
    except IllDefinedCovarianceError as error:
        record["failed"] = f"fastclust: {error}"
    except ValueError as error:  # scikit-learn's for the same, which float32 can bring about
        record["failed"] = f"scikit-learn: {error}"
    return record


def make_ours(case: Case, max_iter: int) -> DPGMM:
    """Return our mixture of a case, which makes max_iter passes."""
    return DPGMM(
        case.k,
        covariance_type=case.covariance,
        weight_concentration_prior=0.2,
        tol=0.0,
        max_iter=max_iter,
        init_params="random_from_data",
        random_state=case.seed,
        device="cpu",
    )


def make_theirs(case: Case, max_iter: int) -> BayesianGaussianMixture:
    """Return scikit-learn's mixture of a case, which makes max_iter passes."""
    return BayesianGaussianMixture(
        n_components=case.k,
        covariance_type=case.covariance,
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=0.2,
        tol=0.0,
        max_iter=max_iter,
        init_params="random_from_data",
        random_state=case.seed,
    )


def time_passes(case: Case, X: np.ndarray, ours: DPGMM) -> dict[str, Any]:
    """Time single passes in turn, both going on from the posterior of ours."""
    theirs = make_theirs(case, max_iter=1)
    theirs._check_parameters(X)
    pair = ours.weight_concentration_
    theirs._set_parameters(
        (
            (pair[0].copy(), pair[1].copy()),
            ours.mean_precision_.copy(),
            ours.means_.copy(),
            ours.degrees_of_freedom_.copy(),
            ours.covariances_.copy(),
            ours.precisions_cholesky_.copy(),
        )
    )
    our_seconds, their_seconds, differences = [], [], []
    turn, bounds = list[float](), list[float]()
    began = 0.0

    def their_turn() -> list[float]:
        seconds = []
        for bound in bounds:
            start = time.perf_counter()
            log_prob_norm, log_resp = theirs._e_step(X)
            theirs._m_step(X, log_resp)
            their_bound = theirs._compute_lower_bound(log_resp, log_prob_norm)
            seconds.append(time.perf_counter() - start)
            differences.append(bound - np.asarray(their_bound).item() / len(X))
            del log_resp
        return seconds

    def after_ours(n_pass: int, bound: float, change: float) -> None:
        nonlocal began
        turn.append(time.perf_counter() - began)
        bounds.append(bound)
        if len(turn) == GROUP:
            our_seconds.append(statistics.median(turn[1:]))
            time.sleep(REST)
            their_seconds.append(statistics.median(their_turn()[1:]))
            turn.clear()
            bounds.clear()
            time.sleep(REST)
        began = time.perf_counter()

    began = time.perf_counter()
    ours.set_params(warm_start=True, max_iter=case.repeats * GROUP)
    ours.fit(X, on_pass=after_ours)
    record = compare(our_seconds, their_seconds)
    seconds = record["ours"]["median"]
    return record | {
        "gbytes_per_second": _short(case.bytes / seconds / 1e9),
        "gflop_per_second": _short(case.flop / seconds / 1e9),
        "largest_bound_difference_per_row": _short(max(map(abs, differences))),
    }


def time_fits(case: Case, X: np.ndarray) -> dict[str, Any]:
    """Time whole short fits in turn, both from the same start, and measure the memory that each needs beyond X."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    memory: dict[str, int | None] = {}
    bounds = {}
    for _ in range(case.fit_repeats):
        for side, make in (("ours", make_ours), ("theirs", make_theirs)):
            model = make(case, max_iter=case.fit_passes)
            time.sleep(REST)
            before = reset_peak_memory()
            seconds[side].append(_seconds(lambda model=model: model.fit(X)))
            if side not in memory:
                memory[side] = None if before is None else machine.peak_memory() - before
            bounds[side] = np.asarray(model.lower_bound_).item() / (1 if side == "ours" else len(X))
    return compare(seconds["ours"], seconds["theirs"]) | {
        "peak_memory_bytes": memory,
        "bound_difference_per_row": _short(bounds["ours"] - bounds["theirs"]),
    }


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Return the median and spread of both sides' seconds, and of their ratio pair by pair: how many times faster."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {
        side: {"median": _short(statistics.median(some)), "min": _short(min(some)), "max": _short(max(some))}
        for side, some in (("ours", ours), ("theirs", theirs), ("ratio", ratios))
    }


def reset_peak_memory() -> int | None:
    """Start the peak of this process's memory anew and return it, in bytes; None where that cannot be done."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return None
    return machine.peak_memory()


def line(record: dict[str, Any]) -> str:
    """Return a case's record in one line."""
    worst = max(record.get("errors", {"none": float("nan")}).values())
    text = f"{record['name']:32} error {worst:.1e}"
    if "refused" in record:
        return f"{text}  REFUSED: {record['refused']}"
    for part in ("pass", "fit"):
        if part in record:
            ours, theirs, ratio = (record[part][side]["median"] for side in ("ours", "theirs", "ratio"))
            spread = f"{record[part]['ratio']['min']:.1f}-{record[part]['ratio']['max']:.1f}"
            text += f"  {part} {theirs * 1e3:.4g} / {ours * 1e3:.4g} ms = {ratio:.1f} ({spread})"
    return f"{text}  FAILED: {record['failed']}" if "failed" in record else text


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _short(value: float) -> float:
    """Return a measured number to four digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    sys.exit(main())

"""Verify, then time: fastclust against scikit-learn's BayesianGaussianMixture, in one process on the same rows.

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
scikit-learn knows no float16: of such rows it gets float32 copies, made before anything is timed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from benchmarks.cases import Case
from benchmarks.data import SOURCES
from benchmarks.timing import seconds, short, spread
from benchmarks.verify import TOLERANCE, beyond_tolerance, check
from fastclust import DPGMM, machine
from fastclust.variational import IllDefinedCovarianceError

CLEAR_REFS = Path("/proc/self/clear_refs")
REST = 0.1  # seconds
GROUP = 5  # passes in one turn


def run_case(case: Case) -> dict[str, Any]:
    """Verify a case and time it; return its record, which has "refused" in place of times where it is not verified."""
    X = SOURCES[case.data](case.n, case.d, case.seed).astype(case.dtype, copy=False)
    theirs = X.astype(np.float32) if case.dtype == "float16" else X
    record: dict[str, Any] = {"name": case.name, **asdict(case)}
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
            record["pass"] = time_passes(case, X, theirs, ours)
            record["fit"] = time_fits(case, X, theirs)
    except IllDefinedCovarianceError as error:
        record["failed"] = f"fastclust: {error}"
    except ValueError as error:  # scikit-learn's for the same, which float32 can bring about
        record["failed"] = f"scikit-learn: {error}"
    return record


def make_ours(case: Case, max_iter: int, device: str = "cpu") -> DPGMM:
    """Return our mixture of a case, which makes max_iter passes."""
    return DPGMM(
        case.k,
        covariance_type=case.covariance,
        weight_concentration_prior=0.2,
        tol=0.0,
        max_iter=max_iter,
        init_params="random_from_data",
        random_state=case.seed,
        device=device,
        backend=case.backend,
        dtype=case.arithmetic,
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


def their_passes(case: Case, X: np.ndarray, ours: DPGMM) -> Callable[[], float]:
    """Return a function that makes one pass of scikit-learn's and returns its bound, from the posterior of ours on."""
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

    def one_pass() -> float:
        log_prob_norm, log_resp = theirs._e_step(X)
        theirs._m_step(X, log_resp)
        return float(np.asarray(theirs._compute_lower_bound(log_resp, log_prob_norm)).item())

    return one_pass


def time_passes(case: Case, X: np.ndarray, their_rows: np.ndarray, ours: DPGMM) -> dict[str, Any]:
    """Time single passes in turn, both going on from the posterior of ours."""
    one_pass = their_passes(case, their_rows, ours)
    our_seconds, their_seconds, differences = [], [], []
    turn, bounds = list[float](), list[float]()
    began = 0.0

    def their_turn() -> list[float]:
        found = []
        for bound in bounds:
            start = time.perf_counter()
            their_bound = one_pass()
            found.append(time.perf_counter() - start)
            differences.append(bound - their_bound / len(X))
        return found

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
    median = record["ours"]["median"]
    return record | {
        "gbytes_per_second": short(case.bytes / median / 1e9),
        "gflop_per_second": short(case.flop / median / 1e9),
        "largest_bound_difference_per_row": short(max(map(abs, differences))),
    }


def own_passes(model: DPGMM, X: Any, passes: int) -> list[float]:
    """Return the seconds of each of some passes of a fit of ours to X (N, D); one more, the first, is not counted."""
    stamps: list[float] = []
    model.set_params(max_iter=passes + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, on_pass=lambda *_: stamps.append(time.perf_counter()))
    return [end - start for start, end in pairwise(stamps)]


def time_fits(case: Case, X: np.ndarray, their_rows: np.ndarray) -> dict[str, Any]:
    """Time whole short fits in turn, both from the same start, and measure the memory that each needs beyond X."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    memory: dict[str, int | None] = {}
    bounds = {}
    for _ in range(case.fit_repeats):
        for side, make, rows in (("ours", make_ours, X), ("theirs", make_theirs, their_rows)):
            model = make(case, max_iter=case.fit_passes)
            time.sleep(REST)
            before = reset_peak_memory()
            found[side].append(seconds(partial(model.fit, rows)))
            if side not in memory:
                memory[side] = None if before is None else machine.peak_memory() - before
            bounds[side] = np.asarray(model.lower_bound_).item() / (1 if side == "ours" else len(X))
    return compare(found["ours"], found["theirs"]) | {
        "peak_memory_bytes": memory,
        "bound_difference_per_row": short(bounds["ours"] - bounds["theirs"]),
    }


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Return the median and spread of both sides' seconds, and of their ratio pair by pair: how many times faster."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {"ours": spread(ours), "theirs": spread(theirs), "ratio": spread(ratios)}


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
            some = f"{record[part]['ratio']['min']:.1f}-{record[part]['ratio']['max']:.1f}"
            text += f"  {part} {theirs * 1e3:.4g} / {ours * 1e3:.4g} ms = {ratio:.1f} ({some})"
    return f"{text}  FAILED: {record['failed']}" if "failed" in record else text

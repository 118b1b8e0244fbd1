"""How fast: the card's own rates, passes of each backend beside their floors, and passes of other tiles."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, passes
from benchmarks.cases import Case
from benchmarks.first_contact.job import Write
from benchmarks.timing import copy_bandwidth, matrix_product_rate, read_bandwidth, seconds_on, short, spread
from fastclust import engine, kernels
from fastclust.kernels import Statistics
from fastclust.kernels.table import Backend

FEATURES, COMPONENTS = 64, 50
BURN_IN = 5
REPEATS = 20
RATES = ("tf32", "bfloat16", "float16", "float64", "float32")


def ceilings(write: Write, device: str) -> None:
    """Write what a device copies, reads and multiplies, each as soon as it is known, and its clock just after."""
    there = torch.device(device)
    side, size = gpu.sizes_on(there)
    write({"rate": "copy", "gbytes_per_second": copy_bandwidth(there, size)})
    write({"rate": "read", "gbytes_per_second": read_bandwidth(there, size)})
    for dtype in RATES:
        write({"rate": dtype, "gflop_per_second": matrix_product_rate(there, dtype, side)})
        write({"clock_after": dtype, "card": gpu.card()})


def case_of(kind: Any, stored: str, backend: str, rows: int, precision: str = "high", device: str = "cuda") -> Case:
    """Return what a pass is of: rows like those after a ReLU, 64 features, 50 components."""
    repeats = REPEATS if device == "cuda" else 3
    return Case(
        "relu", rows, FEATURES, COMPONENTS, kind, stored, backend, precision, BURN_IN, repeats, fit_passes=5
    )  # fmt: skip


def headline(
    write: Write, device: str, rows: int, kind: Any, backend: str, precisions: list[str], scratch: str
) -> None:
    """Write the record of each dtype and precision of a backend: errors, ms, and what the plain one takes in float64.

    What is wrong is timed, too, and says so.
    """
    there = torch.device(device)
    for stored in ("float32", "float16"):
        for precision in precisions if backend == "triton" else ["high"]:
            case = case_of(kind, stored, backend, rows, precision, device)
            record = passes.run_case(case, there, refuse=False, kept=Path(scratch))
            floors = {"bytes": case.bytes, "flop": case.flop, "split_flop": case.split_flop}
            write({"case": f"{kind} {stored} {precision}", **record, **floors})
    if backend == "torch":
        problem = passes.problem_of(case_of(kind, "float32", backend, rows, device=device), there, Path(scratch))
        given = (engine.coefficients(problem.posterior), problem.frame, torch.float64)
        module = kernels.usable(backend, there)
        found = seconds_on(there, lambda: kernels.statistics(module, problem.rows, *given), 3, warm_up=1)
        write({"case": f"{kind} float32 in float64", "backend": backend, "statistics": spread(found)})


def variant_of(
    module: Backend, problem: passes.Problem, precision: str, tuning: dict[str, int] | None
) -> Callable[[torch.Tensor], Statistics] | str:
    """Return a pass over rows with tiles cut so, None for the formula's; or why the backend has no such thing."""
    options: dict[str, Any] = {"precision": precision}
    if precision not in module.PRECISIONS:
        return f"no precision {precision!r}"
    if tuning is not None:
        if "tuning" not in inspect.signature(module.prepare).parameters:
            return "the backend's tiles cannot be chosen: its `prepare` has no `tuning`"
        from fastclust.kernels.triton import shapes

        options["tuning"] = shapes.Tuning(**tuning)
    coefficients = engine.coefficients(problem.posterior)

    def a_pass(rows: torch.Tensor) -> Statistics:
        plan = module.prepare(coefficients, problem.frame, torch.float32, **options)
        plan.add(rows)
        return plan.result()

    return a_pass


def opened(
    write: Write, device: str, rows: int, kind: Any, stored: str, backend: str, scratch: str
) -> tuple[Backend, passes.Problem] | None:
    """Return a backend and what its passes are of, see `Options.problem`; None where it cannot run, and write why."""
    there = torch.device(device)
    try:
        module = kernels.usable(backend, there)
    except (ValueError, RuntimeError) as error:
        write({"left_out": f"{error}"})
        return None
    return module, passes.problem_of(case_of(kind, stored, backend, rows, device=device), there, Path(scratch))


def try_variants(
    write: Write,
    module: Backend,
    problem: passes.Problem,
    name: str,
    precisions: list[str],
    variants: list[dict[str, int]],
    measure: Callable[[str, Callable[[torch.Tensor], Statistics]], dict[str, Any]],
) -> None:
    """Write what is measured, given a precision and a pass, with the formula's tiles and with each variant, or why not.

    name: kind of covariance and dtype of the rows.
    """
    for precision in precisions:
        for tuning in (None, *variants):
            about: dict[str, Any] = {"case": f"{name} {precision}", "variant": tuning or "formula"}
            try:
                a_pass = variant_of(module, problem, precision, tuning)
                found = {"left_out": a_pass} if isinstance(a_pass, str) else measure(precision, a_pass)
            except Exception as error:  # one that does not compile, or asks for too much
                found = {"failed": f"{type(error).__name__}: {error}"[:300]}
            write(about | found)


def ablations(write: Write, precisions: list[str], variants: list[dict[str, int]], **asked: Any) -> None:
    """Write what a pass takes with the formula's tiles and with each variant, and how far its nk are from those."""
    found = opened(write, **asked)
    if found is None:
        return
    module, problem = found
    usual: dict[str, torch.Tensor] = {}  # nk, by precision

    def measure(precision: str, a_pass: Callable[[torch.Tensor], Statistics]) -> dict[str, Any]:
        began = time.perf_counter()
        nk = a_pass(problem.rows).nk
        first = float(nk.sum()) and time.perf_counter() - began
        away = float(((nk - usual.setdefault(precision, nk)).abs() / usual[precision].clamp(min=1)).max())
        taken = seconds_on(problem.rows.device, lambda: a_pass(problem.rows), REPEATS // 2, warm_up=2)
        least = {"ms": short(spread(taken)["median"] * 1e3), "ms_least": short(min(taken) * 1e3)}
        return least | {"nk_away": away, "first_seconds": short(first)}

    try_variants(write, module, problem, f"{asked['kind']} {asked['stored']}", precisions, variants, measure)

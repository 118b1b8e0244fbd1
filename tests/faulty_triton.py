"""The Triton kernels with a fault in their source, in the interpreter; tests/test_proof.py runs this file.

A function that the kernels share is replaced, by its name, in all modules that use it, and whatever its parameters are.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton.language as tl
from proof_problems import at_random
from test_kernels import problem

from fastclust.kernels import Frame, constructed, proof
from fastclust.kernels import triton as backend
from fastclust.kernels.triton.shapes import Tuning

FRAME = Frame(torch.linspace(-1, 1, 5).double(), torch.full((5,), 0.75).double())
FUSED, TILED = (150, 5, 3), (80, 5, 130)
FULL = (100, 5, 3)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    """The interpreter takes milliseconds for each operation on a tile: there are three, in two blocks."""
    monkeypatch.setattr(constructed, "ROWS", (135, 135))


def plant(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace a function of the kernels by what change makes of it."""
    modules = [
        importlib.import_module(one.name) for one in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}.")
    ]
    original = next(vars(module)[name] for module in modules if name in vars(module))
    changed = change(original)
    for module in modules:
        if vars(module).get(name) is original:
            monkeypatch.setattr(module, name, changed)


def changed(function: Any, name: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function that is another, but for a change of one of its parameters."""
    place = function.arg_names.index(name)

    def broken(*given: Any, **more: Any) -> Any:
        return function(*given[:place], change(given[place]), *given[place + 1 :], **more)

    return broken


def only_high(split: Callable[..., Any]) -> Callable[..., Any]:
    """The low term of what a kernel splits is dropped."""

    def broken(*given: Any, **more: Any) -> Any:
        high, low = split(*given, **more)
        return high, low * 0

    return broken


def twice(product: Callable[..., Any]) -> Callable[..., Any]:
    """The first operand's low term is added twice."""
    return changed(product, "a_low", lambda low: low + low)


def one_twice(read_rows: Callable[..., Any]) -> Callable[..., Any]:
    """Every sixteenth row of a tile is read as the one before it."""
    return changed(read_rows, "row", lambda row: row - (row % 16 == 15).to(tl.int64))


def one_column_less(read_rows: Callable[..., Any]) -> Callable[..., Any]:
    """The mask of columns ends one too early."""
    return changed(read_rows, "n_features", lambda n: n - 1)


def cut_short(softmax: Callable[..., Any]) -> Callable[..., Any]:
    """The sum of a row's shares is that of too few components."""

    def broken(*given: Any, **more: Any) -> Any:
        peak, total, *rest = softmax(*given, **more)
        return peak, total * 1.001, *rest

    return broken


def last_only(flush: Callable[..., Any]) -> Callable[..., Any]:
    """What is in the slots is written over: sums of all tiles but the last are lost."""
    return changed(flush, "held", lambda held: held * 0)


CASES = [
    ("split", only_high, kind, FUSED if kind != "full" else FULL, operation, precision)
    for kind in ("diag", "spherical", "full")
    for operation in ("statistics", "assign", "responsibilities")
    for precision in ("high", "fast")
]
CASES += [("split", only_high, kind, FUSED, "moments", "high") for kind in ("diag", "spherical")]
CASES += [("split", only_high, "diag", TILED, operation, "high") for operation in ("statistics", "assign")]
CASES += [("product", twice, kind, FUSED, "statistics", "high") for kind in ("diag", "spherical", "full")]
CASES += [
    (name, fault, kind, FUSED, operation, "high")
    for name, fault in (("read_rows", one_twice), ("read_rows", one_column_less))
    for kind in ("diag", "spherical", "full")
    for operation in ("statistics", "assign", "responsibilities", "moments")
]
CASES += [
    ("softmax", cut_short, kind, FUSED, operation, "high")
    for kind in ("diag", "spherical")
    for operation in ("statistics", "assign")
]
CASES += [("flush", last_only, kind, FUSED, "statistics", "high") for kind in ("diag", "spherical")]


ONE_TILE = SimpleNamespace(**vars(backend) | {"prepare": partial(backend.prepare, tuning=Tuning(flush=1))})


def found(kind: str, shape: tuple[int, int, int], operation: Any, precision: Any) -> proof.Proof:
    rows, coefficients = problem(*shape, kind)
    weights = torch.arange(len(rows)).double() % 3
    return proof.prove(ONE_TILE, operation, rows.float(), coefficients, FRAME, torch.float32, precision, weights)


@pytest.mark.parametrize(("name", "fault", "kind", "shape", "operation", "precision"), CASES)
def test_a_fault_in_the_source_is_found(name, fault, kind, shape, operation, precision, monkeypatch):
    if name == "flush":
        monkeypatch.setattr("fastclust.kernels.triton.shapes.INTERPRETED_PROGRAMS", 1)  # which takes two tiles
    plant(monkeypatch, name, fault)
    proved = found(kind, shape, operation, precision)
    assert not proved.passed, f"{proved.errors}"


@pytest.mark.parametrize("kind", ["diag", "spherical", "full"])
def test_a_renewed_plan_that_keeps_its_table_is_found(kind, monkeypatch):
    monkeypatch.setattr(backend.Kernels, "renew", lambda plan, coefficients: plan.clear())
    assert not found(kind, FUSED, "statistics", "high").passed


@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("kind", ["diag", "spherical", "full"])
def test_without_a_fault_all_pass(kind, precision):
    for operation in proof.OPERATIONS:
        assert (proved := found(kind, FUSED, operation, precision)).passed, proved.failures()
    if kind == "diag":
        assert (proved := found(kind, TILED, "statistics", precision)).passed, proved.failures()


@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("kind", ["diag", "spherical", "full"])
def test_problems_at_random_are_never_refused(kind, precision):
    for seed in range(4):
        rows, coefficients, frame, weights = at_random(seed + 100 * (precision == "fast"), kind)
        few = replace(
            coefficients,
            offset=coefficients.offset[:3],
            means=coefficients.means[:3],
            precision=coefficients.precision[:3],
        )
        operation = ("statistics", "assign", "statistics", "moments")[seed]
        proved = proof.prove(backend, operation, rows, few, frame, torch.float32, precision, weights)
        assert proved.passed, f"problem {seed}: {proved.failures()}"

"""What is asked of a card, stage by stage, job by job; nothing here imports torch, which may not even load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from benchmarks import card_tests

HERE = "benchmarks.first_contact"


@dataclass(frozen=True)
class Options:
    """What the command line says of the problems and the variants.

    rows: of diag; full covariance has a tenth. scratch: a folder for what processes leave to each other.
    precisions: how products are split, three terms of tf32 (high) or of bfloat16 (fast). flush: tiles that float32
    sums hold. tile_rows, columns, warps: of the kernels' tiles. Each but the first is tried alone, the formula's choice
    for the rest.
    """

    device: str = "cuda"
    rows: int = 10_000_000
    scratch: str = ""
    precisions: tuple[str, ...] = ("high", "fast")
    flush: tuple[int, ...] = (4, 8, 16, 32)
    tile_rows: tuple[int, ...] = (32, 64, 128)
    columns: tuple[int, ...] = (32, 64)
    warps: tuple[int, ...] = (4, 8)

    def problem(self, kind: str, stored: str, backend: str = "triton") -> dict[str, Any]:
        """Return the arguments that say what passes are of."""
        rows = self.rows if kind == "diag" else max(self.rows // 10, 1)
        return {
            "device": self.device,
            "rows": rows,
            "kind": kind,
            "stored": stored,
            "backend": backend,
            "scratch": self.scratch,
        }

    @property
    def fused(self) -> str:
        """The backend that is looked at closest: Triton on a card, the plain one elsewhere."""
        return "triton" if self.device == "cuda" else "torch"


@dataclass(frozen=True)
class Job:
    """A process: its name, what it runs as module:function, with which arguments, and its part of the stage's time."""

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class Stage:
    """Jobs that belong together. seconds: of 500, its share. side_by_side: how many jobs run at once."""

    name: str
    seconds: float
    jobs: Callable[[Options], list[Job]]
    side_by_side: int = 1


def about(options: Options) -> list[Job]:
    return [
        Job("card", f"{HERE}.checks:card"),
        Job("imports", f"{HERE}.checks:imports", {"device": options.device}, weight=3),
    ]


def smoke(options: Options) -> list[Job]:
    """Return a job for each kernel of each backend, and dtype and precision that it is compiled for."""
    return [
        Job(f"{backend} {kind} {stored} {precision} {what}{' large' * large}", f"{HERE}.checks:smoke", {
            "device": options.device, "backend": backend, "kind": kind, "stored": stored,
            "precision": precision, "what": what, "large": large,
        })
        for backend, kind, stored, precision, what, large in _kernels(options.device)
    ]  # fmt: skip


def _kernels(device: str) -> Iterator[tuple[str, str, str, str, str, bool]]:
    if device != "cuda":
        yield from (("numba", kind, "float32", "high", "statistics", False) for kind in ("diag", "full"))
    for kind, stored, precision in product(("diag", "full"), ("float32", "float16"), ("high", "fast")):
        yield "triton", kind, stored, precision, "statistics", False
    yield "triton", "spherical", "float32", "high", "statistics", False
    for kind, what in product(("diag", "full"), ("assign", "responsibilities", "moments")):
        yield "triton", kind, "float32", "high", what, False
    for what in ("statistics", "assign"):
        yield "triton", "diag", "float32", "high", what, True
    for kind, stored in (("diag", "float32"), ("diag", "float16"), ("spherical", "float32")):
        yield "cupy", kind, stored, "high", "statistics", False
    yield "cupy", "diag", "float32", "high", "assign", False
    yield "cupy", "diag", "float32", "high", "statistics", True
    for kind in ("diag", "full", "tied"):
        yield "torch", kind, "float32", "high", "statistics", False


def tests(options: Options) -> list[Job]:
    """Return a job for each run of pytest."""
    lists = {name: card_tests.tests_of(name, options.device) for name in ("triton", "cupy", "torch")}
    lists |= card_tests.around()
    return [
        Job(name if len(some) == 1 else f"{name} {index + 1}", f"{HERE}.checks:tests", {"arguments": arguments})
        for name, some in lists.items()
        for index, arguments in enumerate(some)
    ]


def ceilings(options: Options) -> list[Job]:
    return [Job("rates", f"{HERE}.speed:ceilings", {"device": options.device})]


def headline(options: Options) -> list[Job]:
    """Return a job for each backend and kind, the ones that matter most first."""
    some = [("triton", "diag", 4.0), ("triton", "full", 4.0), ("cupy", "diag", 2.0), ("torch", "diag", 2.5)]
    return [
        Job(f"{backend} {kind}", f"{HERE}.speed:headline", {
            "device": options.device, "rows": options.problem(kind, "")["rows"], "kind": kind, "backend": backend,
            "precisions": options.precisions, "scratch": options.scratch,
        }, weight)
        for backend, kind, weight in [*some, ("torch", "full", 1.5)]
    ]  # fmt: skip


def sums(options: Options) -> list[Job]:
    more = {"precisions": options.precisions, "flush": options.flush}
    return [
        Job(f"{backend} {kind} {stored}", f"{HERE}.sums:sums", options.problem(kind, stored, backend) | more)
        for backend, kind, stored in (
            (options.fused, "diag", "float32"),
            (options.fused, "diag", "float16"),
            (options.fused, "full", "float32"),
            ("cupy", "diag", "float32"),
        )
    ]


def ablations(options: Options) -> list[Job]:
    """Return a job for each kind of covariance and dtype; the variants that say most come first."""
    own = {"flush": options.flush, "rows": options.tile_rows, "columns": options.columns, "warps": options.warps}
    each = [{name: value} for name in ("rows", "warps", "flush", "columns") for value in own[name]]
    both = [{"rows": rows, "warps": warps} for rows, warps in product(options.tile_rows, options.warps)]
    jobs = [
        ("diag", "float32", each, 3.0),
        ("full", "float32", [{"columns": 32, "warps": 4}, *each], 3.0),
        ("diag", "float16", both, 2.0),
    ]
    return [
        Job(f"{kind} {stored}", f"{HERE}.speed:ablations", options.problem(kind, stored, options.fused) | {
            "precisions": options.precisions, "variants": variants,
        }, weight)
        for kind, stored, variants, weight in jobs
    ]  # fmt: skip


def ncu(options: Options) -> list[Job]:
    """Return a job for each kernel that is looked into; of a tenth of the rows, for it is run many times."""
    fewer = Options(**{**vars(options), "rows": max(options.rows // 10, 1)})
    some = [("diag", "float32", "high"), ("full", "float32", "high")]
    return [
        Job(f"{kind} {stored} {precision}", f"{HERE}.profiles:counters",
            fewer.problem(kind, stored, options.fused) | {"precision": precision})
        for kind, stored, precision in some
    ]  # fmt: skip


def profile(options: Options) -> list[Job]:
    return [
        Job(f"{backend} {kind}", f"{HERE}.profiles:fit", options.problem(kind, "float32", backend))
        for backend, kind in (("triton", "diag"), ("triton", "full"), ("torch", "diag"))
    ]


def hosts(options: Options) -> list[Job]:
    few = {"device": options.device, "images": 1024 if options.device == "cuda" else 8}
    rows = options.problem("diag", "float16", options.fused)
    return [
        Job("rows", f"{HERE}.hosts:rows", rows),
        Job("network", f"{HERE}.hosts:network", few),
        Job("decoding", f"{HERE}.hosts:decoding", few),
    ]


STAGES = (
    Stage("about", 25, about),
    Stage("smoke", 35, smoke, side_by_side=12),
    Stage("tests", 75, tests, side_by_side=12),
    Stage("ceilings", 20, ceilings),
    Stage("headline", 110, headline),
    Stage("sums", 40, sums),
    Stage("ablations", 80, ablations),
    Stage("ncu", 40, ncu),
    Stage("profile", 30, profile),
    Stage("hosts", 45, hosts),
)

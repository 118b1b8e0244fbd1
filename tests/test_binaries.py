"""Launches on a card that is not here: which are the same, what becomes of bad ones, and what is counted."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from binaries import binary_of, compiled, instructions_of
from launches import CARDS, Everywhere, Launch, Pointer, as_on, launches_of
from test_kernels import errors, problem

from fastclust import kernels
from fastclust.kernels import Frame, reference
from fastclust.kernels import triton as backend

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
LIST = list(CARDS.values())


@triton.jit
def good(x, n, B: tl.constexpr):
    at = tl.arange(0, B)
    tl.store(x + at, at, mask=at < n)


@triton.jit
def refused(x, n, B: tl.constexpr):
    tl.static_assert(B == 1, "this is never compiled")
    tl.store(x, n)


@triton.constexpr_function
def abort(value, end=os.abort):
    end()


@triton.jit
def deadly(x, n, B: tl.constexpr):
    tl.store(x, abort(B))


def started(kernel: Any, *given: Any, card: int = 90) -> list[Launch]:
    """Return what starting one of these kernels is on a card."""
    launches: dict[Launch, None] = {}
    with as_on(CARDS[card], launches):
        kernel[(1,)](*given, B=16)
    return list(launches)


def test_triton_tells_launches_apart_and_equal_ones_are_one():
    x = torch.zeros(64, dtype=torch.int32)
    (first,) = started(good, x, 5)
    assert started(good, torch.zeros(9, dtype=torch.int32), 7) == [first]
    others = [(x, 1), (x, 32), (x, 1 << 40), (x.long(), 5), (x[1:], 5)]
    assert len({first, *(started(good, *given)[0] for given in others)}) == 1 + len(others)
    assert started(good, x[4:], 5) == [first]  # 16 bytes further
    assert {launch.capability for card in CARDS for launch in started(good, x, 5, card=card)} == set(CARDS)


def test_a_launch_that_does_not_compile_leaves_the_others_alone():
    x = torch.zeros(64, dtype=torch.int32)
    launches = [started(kernel, x, 5)[0] for kernel in (deadly, good, refused, good, deadly)]
    found = list(compiled(launches))
    assert {launch for launch, _ in found} == set(launches)
    assert len(found) == len(launches)
    for launch, binary in found:
        assert binary.kernel == launch.kernel
        assert binary.constants == {"B": 16}
        assert (binary.registers > 0) == (launch.kernel == "good")
        reason = {"good": "", "refused": "this is never compiled", "deadly": "the compiler ended with -6"}[
            launch.kernel
        ]
        assert reason in binary.failure
        assert bool(binary.failure) == (launch.kernel != "good")


def test_more_shared_memory_than_a_card_has_is_a_failure(monkeypatch):
    rows, coefficients = problem(40, 16, 3, "full")
    call = partial(kernels.statistics, backend, rows.float(), coefficients, Frame(), torch.float32)
    launch = next(one for one in launches_of(call, [CARDS[90]]) if one.kernel == "full_log_rho")
    assert binary_of(launch, counted=False).failure == ""
    monkeypatch.setitem(CARDS, 90, replace(CARDS[90], shared_memory_per_block_optin=1024))
    assert "bytes of shared memory, and a program has 1024" in binary_of(launch, counted=False).failure


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_whoever_calls_gets_numbers_and_every_card_its_launches(kind):
    rows, coefficients = problem(150, 7, 4, kind)
    expected = reference.statistics(rows, coefficients, Frame(), torch.float64)
    everywhere = Everywhere(LIST)
    with everywhere.instead():
        name, chosen, _ = kernels.select("triton", torch.device("cpu"))
        found = kernels.statistics(chosen, rows.float(), coefficients, Frame(), torch.float32)
    assert name == "triton"
    assert max(errors(found, expected).values()) < 2e-5
    names = {card: {one.kernel for one in everywhere.launches if one.capability == card} for card in CARDS}
    assert names[80] == names[89] == names[90] != set()
    assert backend.unavailable(torch.device("cpu")) is not None


@pytest.mark.parametrize(("kind", "d"), [("diag", 64), ("spherical", 64), ("diag", 200), ("full", 64)])
def test_a_ragged_block_compiles_nothing_new(kind, d):
    """Blocks of 640 rows and, last, of 37 or of 1; of weights that begin anywhere."""
    rows, coefficients = problem(1400, d, 5, kind)
    rows, weights = rows.float(), torch.ones(1400)

    def passed(sizes: list[int]) -> None:
        plan = backend.prepare(coefficients, Frame(), torch.float32)
        for high, size in zip(torch.tensor(sizes).cumsum(0).tolist(), sizes, strict=True):
            plan.add(rows[high - size : high], weights[high - size : high])
            plan.assign(rows[high - size : high])

    whole = set(launches_of(partial(passed, [640, 640]), [CARDS[90]]))
    assert {one.kernel for one in whole} >= {"fused_statistics"} or kind == "full" or d == 200
    assert set(launches_of(partial(passed, [640, 640, 37, 1]), [CARDS[90]])) == whole


def test_a_card_with_less_shared_memory_gets_other_constants():
    rows, coefficients = problem(640, 64, 50, "diag")
    call = partial(kernels.statistics, backend, rows.float(), coefficients, Frame(), torch.float32)
    columns = {
        one.capability: value
        for one in launches_of(call, LIST)
        for (place,), value in one.constants.items()
        if list(one.signature)[place] == "C"
    }
    assert columns[89] < columns[90] == columns[80] == 64


def test_where_a_view_begins_is_where_the_card_has_it():
    x = torch.zeros(64, dtype=torch.float16)
    assert [Pointer(x[n:]).data_ptr() % 16 for n in (0, 1, 8)] == [0, 2, 0]


CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   MOV R2, R1 ;
.L_x_1:
        /*0020*/                   XMMA.16816 R4, R4, R6, R4 ;
        /*0030*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/               @P1 BRA `(.L_x_2) ;
.L_x_0:
        /*0060*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0070*/               @P2 BRA `(.L_x_0) ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
.L_x_3:
        /*0090*/                   EXIT ;
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda code: code, (10, 3)),
        (lambda code: code.replace("MOV R2, R1", "HMMA R2, R1"), (10, 5)),  # more products in the outer loop
        (lambda code: code.replace("XMMA.16816", "FFMA"), (10, 0)),
        (lambda code: "", (0, 0)),
    ],
)
def test_the_loop_over_tiles_is_the_shortest_with_most_products(change: Callable[[str], str], expected):
    assert tuple(instructions_of(change(CODE)).values()) == expected

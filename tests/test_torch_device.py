"""The forms that an accelerator gets, which look at no value, against the oracle: here their arithmetic, on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_kernels import KINDS, SHAPES, TOLERANCE, _on_origin, _variance, errors, problem

from fastclust.kernels import Coefficients, Frame, reference
from fastclust.kernels import torch as plain
from fastclust.kernels.threads import over_parts
from fastclust.kernels.torch import device
from fastclust.kernels.torch.forms import Linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k", "why"), SHAPES, ids=[shape[3] for shape in SHAPES])
def test_a_pass_agrees_with_the_oracle(n, d, k, why, kind, dtype):
    rows, coefficients = problem(n, d, k, kind)
    rows = rows.to(dtype)
    expected = reference.statistics(rows, coefficients, Frame(), torch.float64)
    found = plain.statistics_of(device.form_of(coefficients, dtype), rows, Frame(), block_rows=1000)
    assert max(errors(_on_origin(found), _on_origin(expected)).values()) < TOLERANCE[dtype]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("room", "sizes"), [(1, [1] * 5), (200 * 6 * device.WIDE * 2, [2, 2, 1]), (1 << 30, [5])], ids=str
)
def test_how_many_components_are_taken_at_once_does_not_matter(room, sizes, weighted):
    rows, coefficients = problem(200, 6, 5, "full")
    weights = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) if weighted else None
    form = device.form_of(coefficients, torch.float64)
    form.room = room
    assert [len(range(5)[some]) for some in device._groups(rows, 5, room)] == sizes
    expected = reference.statistics(rows, coefficients, Frame(), torch.float64, weights)
    found = plain.statistics_of(form, rows, Frame(), weights)
    assert max(errors(found, expected).values()) < TOLERANCE[torch.float64]
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    sx, sxx = device.scatter(rows, r.T, coefficients.means, room)
    given = reference.moments(rows, r, "full", coefficients.means, Frame(), torch.float64)
    torch.testing.assert_close(sx, given.sx, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sxx, given.sxx, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_component_tight_far_from_the_origin_does_not_cancel(kind):
    random = torch.Generator().manual_seed(0)
    rows = (torch.randn(500, 4, generator=random, dtype=torch.float64) * 1e-3 + 8).float()
    means = torch.tensor([[0.0] * 4, [8.0] * 4, [8.0005] * 4], dtype=torch.float64)
    tight = torch.tensor([1.0, 1e6, 1e6], dtype=torch.float64)
    precision = tight[:, None].expand(3, 4) if kind == "diag" else tight
    coefficients = Coefficients(kind, torch.zeros(3, dtype=torch.float64), means, precision)
    expected = reference.statistics(rows, coefficients, Frame(), torch.float64)
    found = plain.statistics_of(device.form_of(coefficients, torch.float32), rows, Frame())
    assert max(errors(found, expected).values()) < TOLERANCE[torch.float32]
    np.testing.assert_allclose(_variance(found)[1:], _variance(expected)[1:], rtol=1e-6)


def test_the_device_says_which_form():
    _, coefficients = problem(10, 3, 2, "full")
    _, linear = problem(10, 3, 2, "diag")
    assert type(device.form_on(CPU, coefficients, torch.float32)).__module__.endswith("torch.forms")
    assert isinstance(device.form_on(CUDA, coefficients, torch.float32), device.Full)
    tight = replace(linear, precision=linear.precision * 1e9)
    form = device.form_on(CUDA, tight, torch.float32)
    assert isinstance(form, Linear)
    assert form.dtype == torch.float64
    assert form.tight is None


@pytest.fixture(params=["none", "ieee", "tf32"])
def asked(request):
    """What a process asked of CUDA's float32 products."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield request.param
    torch.backends.cuda.matmul.fp32_precision = before


def test_products_on_cuda_are_float32_whatever_the_process_asked_for(asked):
    seen = over_parts(5, CUDA, lambda start, stop: (start, stop, torch.backends.cuda.matmul.fp32_precision))
    assert seen == [(0, 5, "ieee")]
    assert torch.backends.cuda.matmul.fp32_precision == asked
    with pytest.raises(ZeroDivisionError):
        over_parts(5, CUDA, lambda start, stop: 1 // 0)
    assert torch.backends.cuda.matmul.fp32_precision == asked

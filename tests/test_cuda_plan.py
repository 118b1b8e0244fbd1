"""A plan of the CUDA kernels from one block of rows to the next, and from one E-step to the next."""

import logging
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_cuda import KINDS, LIMIT, apart, on_cpu, oracle, passed, there, where_kernels_run
from test_kernels import error, errors, problem

from fastclust.kernels import Frame, handover, reference
from fastclust.kernels import cuda as backend
from fastclust.kernels.cuda import launch

__all__ = ["where_kernels_run"]  # the fixture `place`


@pytest.mark.parametrize(("n", "d", "k"), [(400, 17, 5), (300, 70, 130)], ids=["once", "in rounds"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_add_up_to_one_pass(kind, n, d, k, place):
    """Of one tile and of several, fewer than the blocks of threads and more, with weights and without."""
    rows, coefficients = problem(n, d, k, kind)
    weights = torch.from_numpy(np.random.default_rng(0).integers(1, 3, size=n)).double()
    weights[: n // 2] = 1.0
    plan = backend.prepare(there(coefficients, place), Frame(), torch.float32)
    bounds = [0, 1, 60, n // 2, n // 2, n]
    for low, high in pairwise(bounds):
        given = None if high <= n // 2 else weights[low:high].to(place)
        plan.add(rows[low:high].float().to(place), given)
    expected = oracle(rows.float(), coefficients, weights=weights)
    assert apart(on_cpu(plan.result()), expected) < LIMIT
    whole = passed(rows.float(), coefficients, place, weights=weights.to(place))
    assert max(errors(on_cpu(plan.result()), whole).values()) < 1e-6  # float32 sums are of other rows


@pytest.mark.parametrize(("n", "d", "k"), [(10, 3, 2), (70, 70, 130)], ids=["once", "in rounds"])
def test_more_blocks_of_threads_than_tiles_add_nothing(n, d, k, place, monkeypatch):
    if place.type == "cuda":
        pytest.skip("a device has what it has, and more than a tile")
    rows, coefficients = problem(n, d, k, "diag")
    few, limits = passed(rows.float(), coefficients, place), launch.limits_of(place)
    monkeypatch.setattr(launch, "limits_of", lambda device: replace(limits, multiprocessors=9))
    plan = backend.prepare(coefficients, Frame(), torch.float32)
    plan.add(rows.float())
    assert len(plan._slots) > launch.tiles_of(n)
    for name, value in vars(plan.result()).items():
        assert torch.equal(value, getattr(few, name)) or n > launch.ROWS, name
    plan.add(rows.float())
    assert apart(plan.result(), oracle(torch.cat([rows, rows]).float(), coefficients)) < LIMIT


@pytest.mark.parametrize(("d", "k"), [(17, 5), (70, 130)], ids=["once", "in rounds"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_that_is_renewed_is_a_new_one_to_the_bit(kind, d, k, place):
    rows, first = problem(200, d, k, kind, seed=1)
    _, second = problem(200, d, k, kind, seed=2)
    rows = rows.float().to(place)
    new = backend.prepare(there(second, place), Frame(), torch.float32)
    new.add(rows)
    plan = backend.prepare(there(first, place), Frame(), torch.float32)
    plan.add(rows)
    before, places = plan.result(), [part.data_ptr() for part in (plan._table, plan._slots)]
    plan.renew(there(second, place))
    with pytest.raises(ValueError, match="no rows were added"):
        plan.result()
    plan.add(rows)
    assert places == [part.data_ptr() for part in (plan._table, plan._slots)]
    for name, value in vars(plan.result()).items():
        assert torch.equal(value, getattr(new.result(), name)), name
        assert not torch.equal(value, getattr(before, name)), name
    for one, other in zip(plan.assign(rows), new.assign(rows), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plan.responsibilities(rows), new.responsibilities(rows))
    plan.clear()
    plan.add(rows)
    assert torch.equal(plan.result().sx, new.result().sx)


def test_a_plan_is_renewed_with_what_is_of_its_kind_and_shape(place):
    coefficients = there(problem(5, 3, 2, "diag")[1], place)
    plan = backend.prepare(coefficients, Frame(), torch.float32)
    with pytest.raises(ValueError, match="no rows were added"):
        plan.result()
    for other in (problem(5, 3, 4, "diag")[1], problem(5, 3, 2, "spherical")[1]):
        with pytest.raises(ValueError, match=r"the plan is for diag covariance, K = 2 and D = 3.*prepare another"):
            plan.renew(there(other, place))


@pytest.mark.parametrize(("blocks_before", "fails"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
def test_where_memory_runs_out_none_of_a_blocks_rows_are_added(blocks_before, fails, place, monkeypatch):
    """fails: which allocation: of the slots, before the first rows, and of what K above 64 needs of each row."""
    rows, coefficients = problem(100, 5, 70, "diag")
    rows = rows.float().to(place)
    plan = backend.prepare(there(coefficients, place), Frame(), torch.float32)
    for _ in range(blocks_before):
        plan.add(rows)
    empty, calls = launch.empty, iter(range(9))

    def short(*size, **what):
        if next(calls) == fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*size, **what)

    monkeypatch.setattr(launch, "empty", short)
    with pytest.raises(torch.OutOfMemoryError):
        plan.add(rows)
    plan.add(rows[:40])
    plan.add(rows[40:])
    expected = oracle(torch.cat([rows.cpu()] * (1 + blocks_before)), coefficients)
    assert apart(on_cpu(plan.result()), expected) < LIMIT


def test_rows_that_kernels_cannot_read_and_responsibilities_go_to_torch_and_are_told(place, caplog):
    caplog.set_level(logging.INFO, "fastclust")
    handover.tell.cache_clear()
    rows, coefficients = problem(150, 5, 4, "diag")
    rows[:70] = rows[:70].float()
    plan = backend.prepare(there(coefficients, place), Frame(), torch.float32)
    assert "leaves" not in caplog.text
    plan.add(rows[70:].to(place))
    told = "backend cupy leaves this to the torch backend: rows are torch.float64, and the CUDA kernels read"
    assert caplog.text.count(told) == 1
    wide = plan.result()
    assert error(wide.nk, oracle(rows[70:], coefficients).nk) < LIMIT
    plan.add(rows[:70].float().to(place))
    assert apart(on_cpu(plan.result()), oracle(rows, coefficients)) < LIMIT
    plan.clear()
    plan.add(rows[:70].float().to(place))
    assert apart(on_cpu(plan.result()), oracle(rows[:70], coefficients)) < LIMIT
    expected = reference.assign(rows, coefficients, Frame(), torch.float32)[0]
    assert torch.equal(plan.assign(rows.to(place))[0].cpu(), expected)
    assert "responsibilities" not in caplog.text
    r = plan.responsibilities(rows.float().to(place)).cpu()
    torch.testing.assert_close(r.double(), reference.responsibilities(rows, coefficients, Frame(), torch.float64))
    assert "backend cupy leaves this to the torch backend: responsibilities have no CUDA kernel" in caplog.text

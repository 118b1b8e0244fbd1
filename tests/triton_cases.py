"""The Triton kernels against the oracle; tests/test_triton.py runs this file, in the interpreter or on a GPU."""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import test_graph
import torch
from conftest import relu_features
from tape import Tape
from test_kernels import SHAPES, TOLERANCE, _variance, error, errors, problem

from fastclust import DPGMM, graph, kernels
from fastclust.kernels import Coefficients, Frame, Statistics, handover, reference
from fastclust.kernels import triton as backend
from fastclust.kernels.triton import diag, full, launch, linear, scratch, shapes

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not launch.INTERPRETED else "cpu")
LIMIT = TOLERANCE[torch.float32]
LINEAR = ["diag", "spherical"]
KINDS = ["full", *LINEAR]
MORE_SHAPES = [
    (65, 33, 50, "a padded block of columns and one row more than a tile"),
    (70, 128, 128, "the largest that is fused"),
    (70, 65, 130, "tiled for its components"),
    (129, 130, 3, "tiled for its features"),
    (257, 16, 16, "nothing is padded"),
]
FULL = [  # the interpreter takes 10 ms for each component, block of columns and tile
    (1, 3, 2, "one row"),
    (2, 1, 1, "one feature, one component"),
    (41, 65, 2, "one column more than a block"),
    (20, 513, 1, "wide"),
    (127, 17, 3, "one below a tile of rows"),
    (129, 16, 2, "one above; nothing is padded"),
    (40, 64, 2, "one block of columns for ln rho, two for moments"),
    (31, 130, 3, "three blocks of columns for both"),
    (33, 7, 50, "few rows each"),
]
CASES = [(*shape, kind) for kind in LINEAR for shape in SHAPES[:-1] + MORE_SHAPES]
CASES += [(*shape, "full") for shape in FULL]
ORDERS = [(kind, shape) for kind in LINEAR for shape in ((131, 17, 5), (131, 20, 130))]  # fused, tiled
ORDERS += [("full", shape) for shape in ((131, 17, 3), (90, 40, 2), (50, 65, 2))]  # blocks of columns: 1, 2, 3


@pytest.fixture(autouse=True)
def _outputs_hold_no_number_before_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        nothing = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
        return torch.full(size, nothing, dtype=dtype, device=device)

    for module in (diag, full, linear, scratch):
        monkeypatch.setattr(module, "empty", filled)


def there(coefficients: Coefficients) -> Coefficients:
    c = coefficients
    return Coefficients(c.covariance_type, c.offset.to(DEVICE), c.means.to(DEVICE), c.precision.to(DEVICE))


def on_host(statistics: Statistics) -> Statistics:
    return Statistics(*(part if part is None else part.cpu() for part in vars(statistics).values()))


def passed(rows: torch.Tensor, coefficients: Coefficients, frame: Frame = Frame(), **more: object) -> Statistics:  # noqa: B008
    return on_host(
        kernels.statistics(backend, rows.to(DEVICE), there(coefficients), frame.to(DEVICE), torch.float32, **more)
    )


def in_blocks(rows: torch.Tensor, coefficients: Coefficients, size: int, **more: object) -> Statistics:
    """Return the statistics of rows that a plan is given `size` at a time."""
    plan = backend.prepare(there(coefficients), Frame(), torch.float32, **more)
    for block in torch.split(rows.to(DEVICE), size):
        plan.add(block)
    return on_host(plan.result())


def oracle(rows: torch.Tensor, coefficients: Coefficients, frame: Frame = Frame(), **more: object) -> Statistics:  # noqa: B008
    return reference.statistics(rows, coefficients, frame, torch.float64, **more)


@pytest.mark.parametrize(("n", "d", "k", "why", "kind"), CASES, ids=lambda part: str(part))
def test_a_pass_agrees_with_the_oracle(n, d, k, why, kind):
    rows, coefficients = problem(n, d, k, kind)
    rows = rows.float()
    assert max(errors(passed(rows, coefficients), oracle(rows, coefficients)).values()) < LIMIT
    plan = backend.prepare(there(coefficients), Frame(), torch.float32)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    labels, density = (part.cpu() for part in plan.assign(rows.to(DEVICE)))
    _, expected_density = reference.assign(rows, coefficients, Frame(), torch.float64)
    assert labels.dtype == torch.int32
    assert density.dtype == torch.float32
    np.testing.assert_allclose(density, expected_density, rtol=LIMIT, atol=LIMIT * 10)
    lost = r.max(1).values - r.gather(1, labels.long()[:, None])[:, 0]
    assert float(lost.max()) < LIMIT * 10
    np.testing.assert_allclose(plan.responsibilities(rows.to(DEVICE)).cpu(), r, atol=LIMIT * 10)
    about = coefficients.means
    moments = backend.moments(rows.to(DEVICE), r.to(DEVICE), kind, about.to(DEVICE), Frame(), torch.float32)
    expected = reference.moments(rows, r, kind, about, Frame(), torch.float64)
    assert max(errors(on_host(moments), expected).values()) < LIMIT


@pytest.mark.parametrize(("kind", "shape"), ORDERS, ids=str)
def test_rows_as_stored_in_any_order_with_weights(kind, shape):
    rows, coefficients = problem(*shape, kind)
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.integers(0, 3, size=2 * len(rows)).astype(float))[::2]
    shift = torch.linspace(-1, 1, rows.shape[1]).double()
    for stored in (rows.half(), rows.bfloat16(), rows.float()):
        every_second = torch.stack([stored, stored], 1)[:, 0]
        columns_first = stored.T.contiguous().T
        for view, frame in ((every_second, Frame()), (columns_first, Frame(shift, 1 + shift**2))):
            assert not view.is_contiguous()
            found = passed(view, coefficients, frame, weights=weights.to(DEVICE), block_rows=100)
            assert max(errors(found, oracle(stored, coefficients, frame, weights=weights)).values()) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_the_origin(kind):
    rows, coefficients = problem(200, 6, 4, kind, far=1e4)
    rows = rows.float()
    shift = rows.mean(0).double()
    moved = replace(coefficients, means=coefficients.means - shift)
    assert max(errors(passed(rows, moved, Frame(shift)), oracle(rows, moved, Frame(shift))).values()) < LIMIT


@pytest.mark.parametrize("d", [4, 130], ids=["fused", "tiled"])
@pytest.mark.parametrize("kind", LINEAR)
def test_tight_components_do_not_cancel(kind, d):
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(90, d)), 8 + 1e-3 * random.normal(size=(110, d))])
    means = torch.tensor([0.0, 8.0, 8.0005], dtype=torch.float64)[:, None].repeat(1, d)
    means[2] += 1e-4 * torch.arange(d).double() / d
    tight = torch.tensor([1.0, 1e6 / d, 1e6 / d], dtype=torch.float64)
    rows = torch.from_numpy(rows).float()
    precision = tight[:, None].repeat(1, d) if kind == "diag" else tight
    coefficients = Coefficients(kind, torch.zeros(3, dtype=torch.float64), means, precision)
    found, expected = passed(rows, coefficients), oracle(rows, coefficients)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    assert 0.05 < float(r[90:, 1].mean()) < 0.95
    assert max(errors(found, expected).values()) < LIMIT
    np.testing.assert_allclose(_variance(found), _variance(expected), rtol=1e-4)


def whitened(statistics: Statistics, coefficients: Coefficients) -> torch.Tensor:
    """Return R_k S_k R_k^T / n_k (K, D, D), the scatter about m_k in units of the coefficients' covariance."""
    root = coefficients.precision
    return root @ (statistics.sxx / statistics.nk[:, None, None]) @ root.mT


def near_singular(rows: torch.Tensor, k: int) -> Coefficients:
    """Return coefficients that k groups of rows, mixed at random, would have, with 1e-6 on the diagonal."""
    random = np.random.default_rng(0)
    d = rows.shape[1]
    r = torch.from_numpy(random.dirichlet([0.05] * k, size=len(rows)))
    sums = reference.moments(rows, r, "full", torch.zeros(k, d).double(), Frame(), torch.float64)
    means = sums.sx / sums.nk[:, None]
    covariance = sums.sxx / sums.nk[:, None, None] - means[:, :, None] * means[:, None, :] + 1e-6 * torch.eye(d)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(k)
    return Coefficients("full", half_log_det, means, root)


def test_a_component_tight_far_from_the_origin_keeps_its_scatter():
    random = np.random.default_rng(0)
    rows = torch.from_numpy(np.concatenate([random.normal(size=(90, 40)), 8 + 1e-3 * random.normal(size=(110, 40))]))
    rows = rows.float()
    means = torch.tensor([0.0, 8.0, 8.0001]).double()[:, None].repeat(1, 40)
    root = torch.tensor([1.0, 1e3, 1e3]).double()[:, None, None] * torch.eye(40).double().tril(0)
    root[1:] += 300 * torch.ones(40, 40).double().tril(-1) / 40
    coefficients = Coefficients("full", torch.zeros(3).double(), means, root)
    found, expected = passed(rows, coefficients), oracle(rows, coefficients)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    assert 0.05 < float(r[90:, 1].mean()) < 0.95
    assert max(errors(found, expected).values()) < LIMIT
    assert float((whitened(found, coefficients) - whitened(expected, coefficients)).abs().max()) < 1e-3


def test_features_after_a_relu_and_what_they_hardly_vary_in():
    rows = torch.from_numpy(relu_features(400, 16)).float()
    assert bool((rows[:, 3] == 0).all())
    coefficients = near_singular(rows, 12)
    assert float(coefficients.precision.max()) == pytest.approx(1e3)
    found, expected = passed(rows, coefficients), oracle(rows, coefficients)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    assert 1.5 / 12 < float(r.max(1).values.mean()) < 0.99
    assert max(errors(found, expected).values()) < LIMIT
    coarse = passed(rows, coefficients, precision="fast")
    assert max(errors(coarse, expected).values()) < 1e-3
    there_ = whitened(expected, coefficients)
    assert float((whitened(found, coefficients) - there_).abs().max()) < 1e-3 * float(there_.abs().max())
    assert max(errors(coarse, expected).values()) > max(errors(found, expected).values()), "it was not fast"


@pytest.mark.parametrize("kind", LINEAR)
def test_features_after_a_relu(kind):
    rows = torch.from_numpy(relu_features(400, 16)).float()
    assert bool((rows[:, 3] == 0).all())
    random = np.random.default_rng(0)
    r = torch.from_numpy(random.dirichlet([0.05] * 12, size=len(rows)))
    sums = reference.moments(rows, r, kind, torch.zeros(12, 16).double(), Frame(), torch.float64)
    means = sums.sx / sums.nk[:, None]
    if kind == "diag":
        variance = sums.sxx / sums.nk[:, None] - means**2 + 1e-6
    else:
        variance = (sums.sxx / sums.nk - (means**2).sum(1)) / 16 + 1e-6
    offset = 0.5 * (-variance.log()).sum(1) if kind == "diag" else -8 * variance.log()
    coefficients = Coefficients(kind, offset, means, 1 / variance)
    found, expected = passed(rows, coefficients), oracle(rows, coefficients)
    assert max(errors(found, expected).values()) < LIMIT
    np.testing.assert_allclose(_variance(found), _variance(expected), rtol=1e-3, atol=1e-9)
    coarse = passed(rows, coefficients, precision="fast")
    assert max(errors(coarse, expected).values()) < 1e-3
    with pytest.raises(ValueError, match="'high' or 'fast'"):
        passed(rows, coefficients, precision="low")


def test_a_fit_that_is_fast_first_ends_where_a_high_one_does():
    rows = torch.from_numpy(relu_features(150, 8)).float().to(DEVICE)
    tol = 1e-4
    high, mixed = (
        DPGMM(4, backend="triton", precision=precision, init_params="random_from_data", random_state=0, tol=tol)
        for precision in ("high", "mixed")
    )
    high.fit(rows)
    mixed.fit(rows)
    assert high.converged_
    assert mixed.converged_
    assert 5 < high.n_iter_ < mixed.n_iter_
    assert mixed.lower_bounds_[3] != high.lower_bounds_[3], "the early passes were not fast"
    assert abs(mixed.lower_bound_ - high.lower_bound_) < tol


@pytest.mark.parametrize("shape", [(1031, 5, 31), (500, 5, 130)], ids=["fused", "tiled"])
def test_sums_are_flushed_often_and_are_the_same_bits_again(shape):
    rows, coefficients = problem(*shape, "diag")
    rows = rows.float()
    one, two = (
        in_blocks(rows, coefficients, 500, block_rows=300, tuning=shapes.Tuning(flush=flush)) for flush in (2, 2)
    )
    assert max(errors(one, oracle(rows, coefficients)).values()) < LIMIT
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(("kind", "d"), [("full", 5), ("full", 65)])
def test_rows_are_listed_by_the_chunk_and_sums_are_the_same_bits_again(kind, d, monkeypatch):
    monkeypatch.setattr(full, "CHUNK", 64)
    rows, coefficients = problem(300, d, 3, kind)
    rows = rows.float()
    one, two = (passed(rows, coefficients, block_rows=191) for _ in range(2))
    assert max(errors(one, oracle(rows, coefficients)).values()) < LIMIT
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        mine, again = getattr(one, name), getattr(two, name)
        assert mine is again is None or torch.equal(mine, again)
    if kind == "full":
        assert torch.equal(one.sxx, one.sxx.mT)


def test_a_responsibility_that_is_no_number_is_not_lost():
    rows, coefficients = problem(70, 3, 2, "full")
    r = torch.zeros(70, 2)
    r[40, 1] = torch.nan
    found = backend.moments(rows.float().to(DEVICE), r.to(DEVICE), "full", there(coefficients).means, Frame(), r.dtype)
    assert found.nk.isnan().tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [6, 130])
def test_blocks_add_up_and_a_plan_takes_other_coefficients_in_place(kind, d):
    """Blocks of float32, then float16 rows; more programs than tiles; and, after others, the bits of a new plan."""
    rows, coefficients = problem(150, d, 4, kind)
    _, others = problem(150, d, 4, kind, seed=1)
    rows, weights = rows.float(), torch.linspace(0, 2, 150, dtype=torch.float64)
    blocks = [rows[:70], rows[70:71], rows[71:].half()]
    plan, new = (backend.prepare(there(one), Frame(), torch.float32, block_rows=40) for one in (others, coefficients))
    with pytest.raises(ValueError, match="no rows were added"):
        plan.result()
    plan.add(rows.to(DEVICE))
    plan.add(rows.half().to(DEVICE))
    old = plan.result()
    kept = on_host(old)
    plan.renew(there(coefficients))
    for one in (plan, new):
        low = 0
        for block in blocks:
            one.add(block.to(DEVICE), weights[low : low + len(block)].to(DEVICE))
            low += len(block)
    found, expected = on_host(plan.result()), on_host(new.result())
    seen = torch.cat([block.double() for block in blocks])
    assert max(errors(found, oracle(seen, coefficients, weights=weights)).values()) < LIMIT
    for name in ("nk", "sx", "sxx", "log_norm", "entropy", "about"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert torch.equal(getattr(on_host(old), name), getattr(kept, name)), "what was returned has changed"
    labels = backend.prepare(there(coefficients), Frame(), torch.float32).assign(rows.to(DEVICE))[0]
    assert torch.equal(plan.assign(rows.to(DEVICE))[0], labels)
    plan.clear()
    with pytest.raises(ValueError, match="no rows were added"):
        plan.result()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_none(kind, precision):
    """0x7fffffff is what a GPU's arithmetic makes of a NaN: to round it would carry into the sign."""
    rows, coefficients = problem(80, 20, 3, kind)
    rows = rows.float()
    rows.view(torch.int32)[41, 7] = 0x7FFFFFFF
    rows.view(torch.int32)[43, 0] = -1
    plan = backend.prepare(there(coefficients), Frame(), torch.float32, precision)
    _, density = plan.assign(rows.to(DEVICE))
    assert density.isnan().nonzero()[:, 0].tolist() == [41, 43]
    plan.add(rows.to(DEVICE))
    found = plan.result()
    assert bool(found.log_norm.isnan())
    assert bool(found.nk.isnan().any())


@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16], ids=str)
def test_sums_over_all_components_are_sums_over_all_rows(kind, stored, precision):
    """What no error of a responsibility changes, and what shrinks where sums are cut off."""
    rows = torch.from_numpy(relu_features(700, 20)).to(stored)
    _, coefficients = problem(700, 20, 5, kind)
    weights = torch.linspace(0, 3, 700, dtype=torch.float32)
    found = passed(rows, coefficients, weights=weights.to(DEVICE), precision=precision)
    y, w = rows.double(), weights.double()
    limit = 2e-6 if precision == "high" else 1e-4
    sx = (found.sx + found.nk[:, None] * found.about).sum(0)
    assert float(((sx - w @ y).abs() / (w @ y.abs()).clamp(min=1e-3)).max()) < limit
    squares = found.moved(torch.zeros_like(found.about)).sxx
    squares = squares.diagonal(dim1=1, dim2=2) if kind == "full" else squares
    expected = w @ y**2 if kind != "spherical" else (w @ y**2).sum()
    assert float(((squares.sum(0) - expected).abs() / expected.clamp(min=1e-3)).max()) < limit
    assert float(found.nk.sum()) == pytest.approx(float(w.sum()), rel=1e-6)


@pytest.mark.parametrize("kind", LINEAR)
def test_rows_with_few_digits_are_read_as_they_are(kind):
    """float16 has no more digits than a part of tf32, bfloat16 no more than one of either: they are read exactly."""
    rows, coefficients = problem(300, 24, 6, kind)
    for stored, precision, most in (
        (torch.float16, "high", 1e-6),
        (torch.bfloat16, "high", 1e-6),
        (torch.bfloat16, "fast", 1e-4),
    ):
        few = rows.to(stored)
        found = passed(few, coefficients, precision=precision)
        assert max(errors(found, oracle(few, coefficients)).values()) < most
        same = passed(few.float(), coefficients, precision=precision)
        assert max(errors(same, oracle(few, coefficients)).values()) < 10 * most
    scaled = Frame(None, torch.full((24,), 1.7).double())
    found = passed(rows.half(), coefficients, scaled)
    assert max(errors(found, oracle(rows.half(), coefficients, scaled)).values()) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_float64_rows_are_moved_before_they_are_rounded(kind):
    rows, coefficients = problem(120, 6, 3, kind, far=1e7)
    shift = rows.mean(0).float().double()
    moved = replace(coefficients, means=coefficients.means - shift)
    found, expected = passed(rows, moved, Frame(shift)), oracle(rows, moved, Frame(shift))
    assert max(errors(found, expected).values()) < LIMIT
    assert max(errors(passed(rows.float(), moved, Frame(shift)), expected).values()) > 10 * LIMIT


def test_ties_go_to_the_first_component():
    """Rows of small integers, and powers of two: every product and sum is exact, in any order."""
    rows = torch.arange(70 * 3).remainder(5).view(70, 3).double()
    for kind, k in (("diag", 3), ("diag", 200), ("full", 130)):
        means = torch.ones(k, 3).double()
        precision = torch.eye(3).double().expand(k, 3, 3) if kind == "full" else torch.ones(k, 3).double()
        same = Coefficients(kind, torch.zeros(k).double(), means, precision)
        labels, _ = backend.prepare(there(same), Frame(), torch.float32).assign(rows.float().to(DEVICE))
        assert bool((labels == 0).all())


@pytest.mark.parametrize(("kind", "floor"), [("full", 40), ("diag", 87)])
def test_responsibilities_below_the_floor_are_zero(kind, floor):
    """Full covariance lists the rows that count; elsewhere the floor is float32's least normal number."""
    one = {"full": torch.ones(3, 1, 1), "diag": torch.ones(3, 1)}[kind].double()
    offset = torch.tensor([0.0, 1.0 - floor, -1.0 - floor]).double()
    nk = passed(torch.zeros(1, 1), Coefficients(kind, offset, torch.zeros(3, 1).double(), one)).nk
    assert float(nk[1]) == pytest.approx(np.exp(1.0 - floor), rel=1e-4)
    assert float(nk[2]) == 0.0


def test_float64_goes_to_torch_and_is_told(caplog):
    caplog.set_level(logging.INFO, "fastclust")
    handover.tell.cache_clear()
    rows, coefficients = problem(40, 3, 2, "full")
    wide = kernels.statistics(backend, rows.to(DEVICE), there(coefficients), Frame().to(DEVICE), torch.float64)
    assert error(wide.nk, oracle(rows, coefficients).nk) < TOLERANCE[torch.float64]
    assert "backend triton leaves this to the torch backend: arithmetic in torch.float64" in caplog.text
    assert "float64" in str(backend.why_not("full", torch.float64, torch.float32))
    assert "tied" in str(backend.why_not("tied", torch.float32, torch.float32))
    assert all(backend.why_not("full", torch.float32, stored) is None for stored in backend.STORED)
    with pytest.raises(TypeError, match=r"read rows of .*float32.*, and these are torch.int32"):
        backend.prepare(there(coefficients), Frame(), torch.float32).add(rows.int().to(DEVICE))


def test_it_runs_where_it_is_asked_for():
    assert kernels.select("triton", DEVICE)[0] == "triton"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("precision", ["high", "mixed"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_fit_in_a_graph_is_the_eager_fit_and_adds_up(kind, precision, dtype, monkeypatch, caplog):
    """On a GPU a CUDA graph; in the interpreter what stands for one."""
    rows = relu_features(300, 8).astype(dtype)
    options = {"covariance_type": kind, "precision": precision, "backend": "triton", "device": str(DEVICE)}
    options |= {"n_components": 4, "init_params": "random_from_data", "tol": 0, "max_iter": 8, "sort_sticks": True}
    graphs, record = [], Tape if DEVICE.type == "cpu" else partial(graph.Graph, DEVICE)
    expected = test_graph.eager(rows, **options)
    monkeypatch.setattr(graph, "recorder", lambda device, kind: lambda work: graphs.append(record(work)) or graphs[-1])
    test_graph.assert_same(test_graph.fit(rows, **options), expected)
    assert len(graphs) == 1
    assert not caplog.records

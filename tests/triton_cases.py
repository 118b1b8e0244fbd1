"""The Triton kernels against the oracle; tests/test_triton.py runs this file, in the interpreter or on a GPU."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import relu_features
from test_kernels import SHAPES, TOLERANCE, _variance, error, errors, problem

from fastclust import DPGMM, kernels
from fastclust.kernels import Coefficients, Frame, Statistics, handover, reference
from fastclust.kernels import triton as backend
from fastclust.kernels import triton_launch as launch

DEVICE = torch.device("cpu" if launch.INTERPRETED else "cuda")
LIMIT = TOLERANCE[torch.float32]
LINEAR = ["diag", "spherical"]
KINDS = ["full", "tied", *LINEAR]
MORE_SHAPES = [
    (65, 33, 50, "a padded block of columns and one row more than a tile"),
    (70, 128, 128, "the largest that is fused"),
    (70, 65, 130, "tiled for its components"),
    (129, 130, 3, "tiled for its features"),
    (257, 16, 16, "nothing is padded"),
]
BOTH = [  # full and tied: the interpreter takes 10 ms for each component, block of columns and tile
    (1, 3, 2, "one row"),
    (2, 1, 1, "one feature, one component"),
    (41, 65, 2, "one column more than a block"),
    (20, 513, 1, "wide"),
]
FULL = [
    (127, 17, 3, "one below a tile of rows"),
    (129, 16, 2, "one above; nothing is padded"),
    (40, 64, 2, "one block of columns for ln rho, two for moments"),
    (31, 130, 3, "three blocks of columns for both"),
    (33, 7, 50, "few rows each"),
]
TIED = [
    (63, 2, 3, "one below a tile of rows"),
    (65, 17, 5, "one above"),
    (67, 5, 31, "more components than features"),
    (35, 3, 130, "several blocks of components"),
]
CASES = [(*shape, kind) for kind in LINEAR for shape in SHAPES[:-1] + MORE_SHAPES]
CASES += [(*shape, kind) for kind, some in (("full", FULL), ("tied", TIED)) for shape in BOTH + some]
ORDERS = [(kind, shape) for kind in LINEAR for shape in ((131, 17, 5), (131, 20, 130))]  # fused, tiled
ORDERS += [("full", (131, 17, 3)), ("full", (50, 65, 2)), ("tied", (131, 65, 3))]  # one block of columns, two


@pytest.fixture(autouse=True)
def _outputs_hold_no_number_before_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        nothing = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
        return torch.full(size, nothing, dtype=dtype, device=device)

    monkeypatch.setattr(launch, "empty", filled)


def there(coefficients: Coefficients) -> Coefficients:
    c = coefficients
    return Coefficients(c.covariance_type, c.offset.to(DEVICE), c.means.to(DEVICE), c.precision.to(DEVICE))


def on_host(statistics: Statistics) -> Statistics:
    return Statistics(*(part if part is None else part.cpu() for part in vars(statistics).values()))


def passed(rows: torch.Tensor, coefficients: Coefficients, frame: Frame = Frame(), **more: object) -> Statistics:  # noqa: B008
    return on_host(backend.statistics(rows.to(DEVICE), there(coefficients), frame.to(DEVICE), torch.float32, **more))


def oracle(rows: torch.Tensor, coefficients: Coefficients, frame: Frame = Frame(), **more: object) -> Statistics:  # noqa: B008
    return reference.statistics(rows, coefficients, frame, torch.float64, **more)


@pytest.mark.parametrize(("n", "d", "k", "why", "kind"), CASES, ids=lambda part: str(part))
def test_a_pass_agrees_with_the_oracle(n, d, k, why, kind):
    rows, coefficients = problem(n, d, k, kind)
    rows = rows.float()
    assert max(errors(passed(rows, coefficients), oracle(rows, coefficients)).values()) < LIMIT
    args = (rows.to(DEVICE), there(coefficients), Frame(), torch.float32)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    labels, density = (part.cpu() for part in backend.assign(*args))
    _, expected_density = reference.assign(rows, coefficients, Frame(), torch.float64)
    assert labels.dtype == torch.int32
    assert density.dtype == torch.float32
    np.testing.assert_allclose(density, expected_density, rtol=LIMIT, atol=LIMIT * 10)
    lost = r.max(1).values - r.gather(1, labels.long()[:, None])[:, 0]
    assert float(lost.max()) < LIMIT * 10
    np.testing.assert_allclose(backend.responsibilities(*args).cpu(), r, atol=LIMIT * 10)
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


def near_singular(rows: torch.Tensor, k: int, kind: str) -> Coefficients:
    """Return coefficients that k groups of rows, mixed at random, would have, with 1e-6 on the diagonal."""
    random = np.random.default_rng(0)
    d = rows.shape[1]
    r = torch.from_numpy(random.dirichlet([0.05] * k, size=len(rows)))
    sums = reference.moments(rows, r, "full", torch.zeros(k, d).double(), Frame(), torch.float64)
    means = sums.sx / sums.nk[:, None]
    covariance = sums.sxx / sums.nk[:, None, None] - means[:, :, None] * means[:, None, :] + 1e-6 * torch.eye(d)
    covariance = covariance if kind == "full" else covariance.mean(0)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(k)
    return Coefficients(kind, half_log_det, means, root)


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
    tied = Coefficients("tied", torch.zeros(3).double(), means, root[1])
    assert max(errors(passed(rows, tied), oracle(rows, tied)).values()) < LIMIT


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_features_after_a_relu_and_what_they_hardly_vary_in(kind):
    rows = torch.from_numpy(relu_features(400, 16)).float()
    assert bool((rows[:, 3] == 0).all())
    coefficients = near_singular(rows, 12, kind)
    assert float(coefficients.precision.max()) == pytest.approx(1e3)
    found, expected = passed(rows, coefficients), oracle(rows, coefficients)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    assert 1.5 / 12 < float(r.max(1).values.mean()) < 0.99
    assert max(errors(found, expected).values()) < LIMIT
    coarse = passed(rows, coefficients, precision="fast")
    assert max(errors(coarse, expected).values()) < 1e-3
    if kind == "full":
        there_ = whitened(expected, coefficients)
        assert float((whitened(found, coefficients) - there_).abs().max()) < 1e-3 * float(there_.abs().max())
        assert max(errors(coarse, expected).values()) > max(errors(found, expected).values()), "it was not fast"
    else:
        assert torch.equal(coarse.sx, found.sx), "tied covariance has one arithmetic"


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
def test_sums_are_flushed_often_and_are_the_same_bits_again(shape, monkeypatch):
    rows, coefficients = problem(*shape, "diag")
    rows = rows.float()
    monkeypatch.setattr(launch, "FLUSH", 2)
    one, two = (passed(rows, coefficients, block_rows=300) for _ in range(2))
    assert max(errors(one, oracle(rows, coefficients)).values()) < LIMIT
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(("kind", "d"), [("full", 5), ("full", 65), ("tied", 5)])
def test_rows_are_listed_by_the_chunk_and_sums_are_the_same_bits_again(kind, d, monkeypatch):
    from fastclust.kernels import triton_full_launch

    monkeypatch.setattr(triton_full_launch, "CHUNK", 64)
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


def test_ties_go_to_the_first_component():
    for kind, k in (("diag", 3), ("diag", 200), ("full", 130), ("tied", 3)):
        rows, coefficients = problem(70, 3, 2, kind)
        index = torch.zeros(k).long()
        precision = coefficients.precision if kind == "tied" else coefficients.precision[index]
        same = Coefficients(kind, coefficients.offset[index], coefficients.means[index], precision)
        labels, _ = backend.assign(rows.float().to(DEVICE), there(same), Frame(), torch.float32)
        assert bool((labels == 0).all())


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_responsibilities_below_the_floor_are_zero(kind):
    one = {"full": torch.ones(3, 1, 1), "tied": torch.ones(1, 1), "diag": torch.ones(3, 1)}[kind].double()
    coefficients = Coefficients(kind, torch.tensor([0.0, -39.0, -41.0]).double(), torch.zeros(3, 1).double(), one)
    nk = passed(torch.zeros(1, 1), coefficients).nk
    assert float(nk[1]) == pytest.approx(np.exp(-39), rel=1e-4)
    assert float(nk[2]) == 0.0


def test_float64_goes_to_torch_and_is_told(caplog):
    caplog.set_level(logging.INFO, "fastclust")
    handover.tell.cache_clear()
    rows, coefficients = problem(40, 3, 2, "full")
    wide = backend.statistics(rows.to(DEVICE), there(coefficients), Frame(), torch.float64)
    assert error(wide.nk, oracle(rows, coefficients).nk) < TOLERANCE[torch.float64]
    assert "backend triton leaves this to the torch backend: arithmetic in torch.float64" in caplog.text
    assert "float64" in str(backend.why_not("full", torch.float64, torch.float32))
    assert "float64" in str(backend.why_not("full", torch.float32, torch.float64))
    assert backend.why_not("full", torch.float32, torch.bfloat16) is None


def test_it_runs_where_it_is_asked_for_and_is_not_chosen():
    assert kernels.select("triton", DEVICE)[0] == "triton"
    assert kernels.select("auto", DEVICE)[0] in ("numba", "torch")

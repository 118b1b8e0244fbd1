"""What the CPU kernels leave out has no part in the rows: with it and without it, the statistics are the same."""

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features

from fastclust import DPGMM, engine, kernels
from fastclust.kernels import Coefficients, Frame, Statistics, reference
from fastclust.kernels import numba as compiled
from fastclust.kernels import torch as plain
from fastclust.kernels.numba import diag as numba_diag
from fastclust.kernels.numba import full as numba_full

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
SUMS = ("nk", "sx", "sxx", "log_norm", "entropy")


def problem(X: np.ndarray, kind: str, dtype: torch.dtype, k: int = 20, passes: int = 6):
    """Return rows, the E-step of a mixture that was fitted to them, and the frame."""
    rows = torch.from_numpy(X).to(dtype)
    model = DPGMM(k, covariance_type=kind, max_iter=passes, init_params="random_from_data", random_state=0, tol=0)
    with pytest.warns(match="did not converge"):
        model.fit(rows.numpy())
    _, bound = model._rows_of(rows.numpy())
    return rows, engine.coefficients(model._posterior(bound)), bound.frame


def clusters(n: int, d: int) -> np.ndarray:
    """Return rows of twenty clusters, half zeros, with a dead channel."""
    rows = np.maximum(3 * blobs(n, d, 20), 0)
    rows[:, 3] = 0
    return rows


def check(found: Statistics, expected: Statistics, tolerance: float, n: int) -> None:
    there = expected.moved(found.about)
    for name in SUMS:
        one, other = getattr(found, name), getattr(there, name)
        scale = max(float(other.abs().max()), 0.01 * n)
        assert float((one - other).abs().max()) < tolerance * scale, name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("kind", "d"), [("diag", 64), ("diag", 131), ("spherical", 70), ("full", 33), ("full", 48)])
def test_statistics_are_those_of_a_backend_that_leaves_nothing_out(kind, d, dtype):
    rows, coefficients, frame = problem(clusters(2001, d), kind, dtype)
    weights = torch.from_numpy(np.random.default_rng(0).uniform(0, 3, size=len(rows)))
    for w in (None, weights):
        found = kernels.statistics(compiled, rows, coefficients, frame, dtype, w)
        check(found, kernels.statistics(plain, rows, coefficients, frame, dtype, w), 10 * TOLERANCE[dtype], len(rows))
        check(found, reference.statistics(rows, coefficients, frame, dtype, w), 10 * TOLERANCE[dtype], len(rows))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("data", [clusters, relu_features])
def test_diag_gives_the_same_sums_with_every_distance_computed(data, dtype, monkeypatch):
    rows, coefficients, frame = problem(data(3000, 96), "diag", dtype)
    found = kernels.statistics(compiled, rows, coefficients, frame, dtype)
    labels, density = compiled.prepare(coefficients, frame, dtype).assign(rows)
    room = numba_diag._space

    def whole(*arguments):
        space = room(*arguments)
        space[0][0] = 1 << 40  # strips that are still to be computed whole
        return space

    monkeypatch.setattr(numba_diag, "_space", whole)
    check(found, kernels.statistics(compiled, rows, coefficients, frame, dtype), TOLERANCE[dtype], len(rows))
    there, dense = compiled.prepare(coefficients, frame, dtype).assign(rows)
    assert (labels == there).all()
    torch.testing.assert_close(density, dense, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0.0)


@pytest.mark.parametrize("n_clusters", [20, 2])
def test_full_computes_few_distances_of_separate_clusters_and_all_that_count_of_others(n_clusters):
    rows, coefficients, frame = problem(blobs(2000, 40, n_clusters), "full", torch.float32)
    given = numba_full.tables(coefficients, torch.float32)
    reach = numba_diag.reach_of(len(rows), torch.float32)
    ((_, y),) = numba_full._chunks(rows, 20, frame, torch.float32)
    (row, component, r), _ = numba_full._pairs(rows, y, None, frame, given, reach, None, 0, len(rows))
    exact = reference.responsibilities(rows, coefficients, frame, torch.float64).numpy()
    found = np.zeros_like(exact)
    found[row, component] = r
    left_out = found == 0
    assert exact[left_out].max() < 1.1 * np.exp(-reach / 2)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert left_out.mean() > (0.9 if n_clusters == 20 else 0.1)


@pytest.mark.parametrize("kind", ["spherical", "diag", "full"])
@pytest.mark.parametrize("d", [3, 70])
def test_a_row_too_far_away_for_float32_is_someones_all_the_same(kind, d):
    rows, coefficients, _ = problem(blobs(300, d, 3), kind, torch.float32, k=5)
    rows[7] = 1e25
    labels, density = compiled.prepare(coefficients, Frame(), torch.float32).assign(rows)
    assert 0 <= labels[7] < 5
    assert density[7] == -torch.inf
    assert torch.isfinite(density[torch.arange(300) != 7]).all()
    found = kernels.statistics(compiled, rows, coefficients, Frame(), torch.float32)
    assert float(found.nk.sum()) == pytest.approx(300)
    others = kernels.statistics(compiled, rows[torch.arange(300) != 7], coefficients, Frame(), torch.float32)
    assert float((found.nk - others.nk).abs().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["spherical", "diag", "full"])
def test_a_row_too_far_away_for_float32_is_not_for_float64(kind):
    rows, coefficients, _ = problem(blobs(300, 20, 3), kind, torch.float64, k=5)
    rows[7] = 1e25
    labels, density = compiled.prepare(coefficients, Frame(), torch.float64).assign(rows)
    expected, dense = reference.assign(rows, coefficients, Frame(), torch.float64)
    assert (labels == expected).all()
    torch.testing.assert_close(density, dense, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_equal_components_share_a_label_and_the_first_has_it(kind):
    rows, coefficients, _ = problem(blobs(500, 70, 4), kind, torch.float32, k=6)
    twice = Coefficients(kind, *(part.repeat(2, *[1] * (part.ndim - 1)) for part in vars_of(coefficients)))
    assert (compiled.prepare(twice, Frame(), torch.float32).assign(rows)[0] < 6).all()


def vars_of(coefficients: Coefficients) -> tuple[torch.Tensor, ...]:
    return coefficients.offset, coefficients.means, coefficients.precision

"""Full covariance on the CPU leaves distances out that cannot count: the statistics are the same to rounding."""

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features

from fastclust import DPGMM, engine
from fastclust.kernels import Frame, numba_full, reference
from fastclust.kernels import numba as compiled
from fastclust.kernels import torch as plain
from fastclust.kernels.torch_forms import Space


def problem(X: np.ndarray, passes: int = 6) -> tuple[torch.Tensor, object, Frame]:
    """Return rows, the E-step of a mixture that was fitted to them, and the frame."""
    rows = X.astype(np.float32)
    model = DPGMM(20, covariance_type="full", max_iter=passes, init_params="random_from_data", random_state=0, tol=0)
    with pytest.warns(match="did not converge"):
        model.fit(rows)
    _, bound = model._rows_of(rows)
    return torch.from_numpy(rows), engine.coefficients(model._posterior(bound)), bound.frame


def check(rows: torch.Tensor, coefficients: object, frame: Frame, **more: torch.Tensor) -> None:
    found = compiled.statistics(rows, coefficients, frame, torch.float32, **more)
    same = plain.statistics(rows, coefficients, frame, torch.float32, **more)
    exact = reference.statistics(rows, coefficients, frame, torch.float64, **more)
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        one, other, truth = (getattr(statistics, name) for statistics in (found, same, exact))
        scale = max(float(truth.abs().max()), 0.01 * len(rows))
        assert float((one - other).abs().max()) < 1e-5 * scale, name
        assert float((one - truth).abs().max()) < 1e-4 * scale, name


def clusters(n: int, d: int) -> np.ndarray:
    """Return rows of twenty clusters, half zeros, with a dead channel."""
    rows = np.maximum(3 * blobs(n, d, 20), 0)
    rows[:, 3] = 0
    return rows


@pytest.mark.parametrize("d", [24, 31, 40])
def test_what_is_left_out_does_not_count(d):
    rows, coefficients, frame = problem(clusters(3001, d))
    form = numba_full.Pruned(coefficients, rows, frame)
    assert form.worth_it
    y = frame.read(rows, torch.empty(rows.shape))
    logits = form.log_rho(y, Space(form, len(rows), torch.float32, rows.device))
    exact = reference.log_rho(rows, coefficients, frame)
    near = exact > exact.amax(1, keepdim=True) + plain.FLOOR[torch.float32] + 0.1
    assert torch.isfinite(logits.T[near]).all()
    assert torch.isinf(logits).float().mean() > 0.5
    torch.testing.assert_close(logits.T[near].double(), exact[near], rtol=1e-4, atol=0.05)
    check(rows, coefficients, frame)


def test_weights_and_a_frame_go_with_it():
    rows, coefficients, frame = problem(clusters(2000, 30))
    assert numba_full.Pruned(coefficients, rows, frame).worth_it
    check(rows, coefficients, frame, weights=torch.from_numpy(np.random.default_rng(0).uniform(0, 3, size=2000)))
    rows, coefficients, frame = problem(clusters(2000, 30) + 900.0)
    assert frame.shift is not None
    assert numba_full.Pruned(coefficients, rows, frame).worth_it
    check(rows, coefficients, frame)


def test_where_components_overlap_every_distance_is_computed():
    rows, coefficients, frame = problem(blobs(2000, 20, 2), passes=2)
    assert not numba_full.Pruned(coefficients, rows, frame).worth_it
    check(rows, coefficients, frame)


@pytest.mark.parametrize(("n", "d"), [(100, 40), (3000, 16)])
def test_few_rows_and_few_features_are_not_worth_it(n, d):
    rows, coefficients, frame = problem(relu_features(n, d))
    assert not numba_full.Pruned(coefficients, rows, frame).worth_it
    check(rows, coefficients, frame)

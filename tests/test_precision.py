"""The precision of a fit: which passes are fast, what the last ones are, and a backend that has one arithmetic."""

import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import relu_features
from sklearn.exceptions import ConvergenceWarning

import fastclust
from fastclust import DPGMM, BayesianGaussianMixture
from fastclust.kernels import torch as plain
from fastclust.kernels.torch.forms import form_of

PARAMETERS = {"n_components": 6, "init_params": "random_from_data", "random_state": 0, "tol": 1e-6, "max_iter": 300}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Put a backend in place whose fast arithmetic sees rows in 11 bits; return what it is asked for, and how."""
    seen = []

    class Plan(plain.Plan):
        precision: str

        def add(self, rows, weights=None):
            seen.append(("pass", self.precision))
            super().add(rows.half() if self.precision == "fast" else rows, weights)

        def assign(self, rows):
            seen.append(("labels", self.precision))
            return super().assign(rows)

        def responsibilities(self, rows):
            seen.append(("probabilities", self.precision))
            return super().responsibilities(rows)

    def prepare(coefficients, frame, dtype, precision="high", block_rows=None):
        plan = Plan(form_of(coefficients, dtype), frame, dtype, coefficients.means.device, block_rows)
        plan.precision = precision
        return plan

    backend = SimpleNamespace(**vars(plain) | {"PRECISIONS": ("high", "fast"), "prepare": prepare})
    monkeypatch.setattr("fastclust.fitted.kernels.select", lambda name, device: ("watched", backend, {}))
    return seen


def rows() -> np.ndarray:
    return relu_features(1500, 8).astype(np.float32)


def fit(**parameters: object) -> DPGMM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DPGMM(**PARAMETERS | parameters).fit(rows())


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_mixed_is_fast_first_and_ends_where_high_ends(kind, asked):
    high = fit(covariance_type=kind)
    assert {how for _, how in asked} == {"high"}
    asked.clear()
    mixed = fit(covariance_type=kind, precision="mixed")
    passes = [how for what, how in asked if what == "pass"]
    fast = passes.count("fast")
    assert passes == ["fast"] * fast + ["high"] * (len(passes) - fast)
    assert fast > len(passes) / 2
    assert len(passes) - fast >= 2
    assert ("labels", "high") in asked
    assert ("labels", "fast") not in asked
    assert mixed.converged_
    assert high.converged_
    assert mixed.lower_bounds_[:5] != high.lower_bounds_[:5], "the fast passes were not fast"
    assert mixed.lower_bound_ == pytest.approx(high.lower_bound_, abs=1e-5)
    np.testing.assert_allclose(np.sort(mixed.weights_), np.sort(high.weights_), atol=1e-3)


def test_fast_is_fast_to_the_end(asked):
    model = fit(precision="fast")
    model.predict_proba(rows())
    assert {how for what, how in asked if what != "labels"} == {"fast"}
    assert asked[-2:] == [("labels", "fast"), ("probabilities", "fast")]


@pytest.mark.parametrize("max_iter", [1, 3])
def test_the_last_pass_of_mixed_is_high_where_passes_run_out(max_iter, asked):
    model = fit(precision="mixed", max_iter=max_iter)
    assert [how for what, how in asked if what == "pass"] == ["fast"] * (max_iter - 1) + ["high"]
    assert not model.converged_


def test_a_batch_of_mixed_is_a_high_pass(asked):
    DPGMM(**PARAMETERS, precision="mixed").partial_fit(rows())
    assert ("pass", "high") in asked
    assert ("pass", "fast") not in asked


@pytest.mark.parametrize("backend", ["torch", "numba", "reference"])
def test_a_backend_with_one_arithmetic_says_so_and_changes_nothing(backend, caplog):
    caplog.set_level(logging.INFO, "fastclust")
    some = {"backend": backend, "max_iter": 4, "n_components": 3}
    high = fit(**some)
    assert "one arithmetic" not in caplog.text
    for precision in ("fast", "mixed"):
        caplog.clear()
        other = fit(**some, precision=precision)
        assert caplog.text.count(f"backend {backend} has one arithmetic: precision '{precision}' changes nothing") == 1
        assert other.lower_bounds_ == high.lower_bounds_


def test_precision_is_a_parameter_like_the_others(tmp_path):
    with pytest.raises(ValueError, match="precision"):
        BayesianGaussianMixture(precision="low").fit(rows())
    for kind in (DPGMM, BayesianGaussianMixture):
        model = kind(n_components=2, precision="mixed", random_state=0).fit(rows())
        model.save(tmp_path / "model.h5")
        assert fastclust.load(tmp_path / "model.h5").precision == "mixed"
    state = model.__getstate__()
    del state["precision"]
    older = BayesianGaussianMixture.__new__(BayesianGaussianMixture)
    older.__setstate__(state)
    assert older.precision == "high"
    assert torch.equal(torch.from_numpy(older.predict(rows())), torch.from_numpy(model.predict(rows())))

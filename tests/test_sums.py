"""A pass whose sums are not those of the rows is an error with numbers; one of sound kernels never is."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning

from fastclust import DPGMM, engine
from fastclust.kernels import torch as plain
from fastclust.kernels.chosen import Chosen
from fastclust.kernels.contract import Totals
from fastclust.kernels.duplicates import Parts
from fastclust.kernels.torch.device import form_of
from fastclust.summary import summarise
from fastclust.sums import TOLERANCE, ColumnSums, WrongSumsError, checked, column_sums

KINDS = ("full", "tied", "diag", "spherical")
OWN = {"n_components": 6, "device": "cpu", "backend": "torch", "random_state": 0, "tol": 1e-4, "max_iter": 25}


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    """Have the CPU's passes checked, as those of other devices are."""
    monkeypatch.setattr("fastclust.fitting.checked", lambda device: True)


@pytest.fixture
def seen(monkeypatch) -> list[float]:
    """Return the largest error of each pass that is judged."""
    worst = []
    judge = ColumnSums.judge

    def watched(sums, error, *given):
        worst.append(error)
        judge(sums, error, *given)

    monkeypatch.setattr(ColumnSums, "judge", watched)
    return worst


def fit(X, weights=None, **parameters: object) -> DPGMM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DPGMM(**OWN | parameters).fit(X, sample_weight=weights)


def test_the_cpu_is_not_checked_and_other_devices_are():
    assert not checked(torch.device("cpu"))
    assert checked(torch.device("cuda:1"))
    assert checked(torch.device("xpu"))


def far(dtype: type = np.float32) -> np.ndarray:
    """Rows whose columns lie 1e4 of their deviations from zero, on either side, beside one that is not far."""
    X = blobs(900, 5, 5)
    X[:, :4] += np.array([1e4, -1e4, 3e4, -1e4]) * X[:, :4].std(0)
    return X.astype(dtype)


def constants() -> np.ndarray:
    """Columns that hardly vary, or not at all, at a number that float32 does not hold."""
    X = blobs(900, 5, 5)
    X[:, 0], X[:, 1], X[:, 2] = 0.1, -1e5 / 3, 1 / 3 + 1e-12 * X[:, 2]
    return X


def heavy() -> np.ndarray:
    """One row that is larger than all others together, and a column that is zero but there."""
    X = relu_features(900, 5)
    X[:, 1] = 0
    X[17] = 300
    return X


ROWS = {
    "blobs": lambda: blobs(900, 5, 5),
    "relu": lambda: relu_features(900, 16),
    "float32": lambda: relu_features(900, 16).astype(np.float32),
    "float16": lambda: relu_features(900, 16).astype(np.float16),
    "bfloat16": lambda: torch.from_numpy(relu_features(900, 16)).bfloat16(),
    "bytes": lambda: (25 * relu_features(900, 16)).astype(np.uint8),
    "far": far,
    "far, float64": lambda: far(np.float64),
    "constants": constants,
    "heavy": heavy,
    "alike": lambda: np.repeat(np.float32([[0.1, 1 / 3, 5.7]]), 5000, 0) + np.float32(blobs(5000, 3, 2) > 2),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_sound_passes_are_never_refused(kind, name, dtype, seen, monkeypatch):
    """Of an accelerator's forms, which take the sums of diag and spherical in float64 whatever the arithmetic."""
    monkeypatch.setattr(plain, "form_on", lambda device, coefficients, dtype: form_of(coefficients, dtype))
    model = fit(ROWS[name](), covariance_type=kind, dtype=dtype, init_params="random_from_data", max_iter=8)
    assert len(seen) == model.n_iter_ > 1
    assert max(seen) < TOLERANCE["high"] / 10


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("alike", "heavy")])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_sums_of_512_rows_in_float32_are_near_enough(kind, name, seen):
    """What the CPU does here is what kernels on a GPU may: float32 sums of a few tiles, added up in float64.

    Not of rows that are all but alike: there the roundings of a sum of 512 are of one sign, and reach 4e-6.
    """
    fit(ROWS[name](), covariance_type=kind, dtype="float32", init_params="random_from_data", max_iter=8)
    assert 1e-9 < max(seen) < TOLERANCE["high"] / 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_maps_and_priors_far_away_are_no_fault(kind, seen):
    """A map to a range rounds the frame's shift in float32; means far from a dead column cancel there."""
    X = relu_features(900, 8).astype(np.float32)
    weights = np.random.default_rng(3).uniform(0, 2, len(X))
    weights[:300] = 0
    X[:200] = 1e3  # which count for nothing
    fit(X, weights, covariance_type=kind, feature_range=(0, 10), mean_prior=np.full(8, 100.0))
    for low in (1e2, 1e4):
        fit(X[200:] + np.float32(low), covariance_type=kind, feature_range=(0, 10))
    assert len(seen) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_components_that_are_merged_add_up(kind, monkeypatch):
    """Components that are equal but for their weight are read as one on the CPU, and taken apart."""
    merged, apart = [], Parts.apart
    monkeypatch.setattr(Parts, "apart", lambda one, found: merged.append(one) or apart(one, found))
    monkeypatch.setattr("fastclust.rows.MERGED_FROM", 0)
    X = relu_features(900, 8)
    model = fit(X, covariance_type=kind, max_iter=3)
    _, bound = model._rows_of(X)
    given = engine.coefficients(model._posterior(bound))
    index = torch.tensor([0, 1, 2, 3, 1, 1])
    precision = given.precision if kind == "tied" else given.precision[index]
    same = replace(given, means=given.means[index], precision=precision)
    sums = column_sums(summarise(bound.blocks, outer=kind in ("full", "tied")), bound, kind, "torch")
    sums.check(bound.statistics(same), 1)
    assert merged


def test_batches_are_checked_too(seen, monkeypatch):
    X = blobs(900, 5, 5)
    model = DPGMM(**OWN)
    for part in (X[:500], X[500:], X[:500]):
        model.partial_fit(part)
    assert len(seen) == 3
    assert max(seen) < TOLERANCE["high"]
    monkeypatch.setattr(plain.Plan, "result", lambda plan: shrunk(Totals.result(plan), 1 - 1e-5))
    with pytest.raises(WrongSumsError, match="pass 4 of backend torch"):
        model.partial_fit(X[500:])


def shrunk(found, by: float):
    return replace(found, sx=found.sx * by, sxx=None if found.sxx is None else found.sxx * by)


def without_a_sum(found):
    sx = found.sx.clone()
    sx[1] = 0
    return replace(found, sx=sx)


def swapped(found):
    """Second moments of two columns, in one component."""
    sxx = found.sxx.clone()
    sxx[0, 0], sxx[0, 1] = found.sxx[0, 1], found.sxx[0, 0]
    return replace(found, sxx=sxx)


def infinite(found):
    return replace(found, nk=found.nk * torch.nan)


BREAKS = {
    "lost": (without_a_sum, KINDS),
    # Of tied covariance sx is all there is, and far away its sum is near zero, shrunk or not.
    "shrunk": (lambda found: shrunk(found, 1 - 1e-5), ("full", "diag", "spherical")),
    "number": (lambda found: replace(found, nk=found.nk * (1 + 1e-5)), KINDS),
    "swapped": (swapped, ("full", "diag")),
    "NaN": (infinite, KINDS),
}


@pytest.mark.parametrize("name", ["relu", "far", "float16"])
@pytest.mark.parametrize(("broken", "kind"), [(name, kind) for name, (_, kinds) in BREAKS.items() for kind in kinds])
def test_broken_sums_are_found(broken, kind, name, monkeypatch):
    passes = []

    def result(plan):
        passes.append(plan)
        found = Totals.result(plan)
        return BREAKS[broken][0](found) if len(passes) == 3 else found

    monkeypatch.setattr(plain.Plan, "result", result)
    with pytest.raises(WrongSumsError, match=r"pass 3 of backend torch .* on cpu does not add up"):
        fit(ROWS[name](), covariance_type=kind, init_params="random_from_data", tol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("twice", [slice(640, 704), slice(899, 900)], ids=["tile", "row"])
def test_rows_that_are_counted_twice_are_found(twice, kind, monkeypatch):
    add = plain.Plan.add

    def more(plan, rows, weights=None):
        add(plan, rows, weights)
        add(plan, rows[twice], None)

    monkeypatch.setattr(plain.Plan, "add", more)
    with pytest.raises(WrongSumsError, match=r"pass 1 of backend torch .* does not add up"):
        fit(relu_features(900, 8), covariance_type=kind, init_params="random_from_data")


def test_fast_products_may_err_by_more_and_no_more_than_that(monkeypatch):
    """Each precision has its tolerance; a backend that has one arithmetic is held to the stricter."""
    X = relu_features(900, 8)
    error = [3e-5]

    def result(plan):
        return shrunk(Totals.result(plan), 1 - error[0])

    monkeypatch.setattr(plain.Plan, "result", result)
    with pytest.raises(WrongSumsError, match="precision high"):
        fit(X, precision="fast")
    two = SimpleNamespace(**vars(plain) | {"PRECISIONS": ("high", "fast")})
    monkeypatch.setattr("fastclust.fitted.kernels.select", lambda name, device: ("triton", two, {}))
    with pytest.raises(WrongSumsError, match="precision high"):
        fit(X, precision="high")
    assert fit(X, precision="fast").n_iter_ > 1
    with pytest.raises(WrongSumsError, match=r"precision high.* 2e-06 is allowed"):
        fit(X, precision="mixed")  # where its own precision begins
    error[0] = 3e-4
    with pytest.raises(WrongSumsError, match=r"backend triton \(precision fast\).* 2e-04 is allowed.*backend='torch'"):
        fit(X, precision="fast")


def test_the_error_says_which_sum_by_how_much_and_what_to_do(monkeypatch):
    X = blobs(900, 3, 5)
    X[:, 1] += 2

    def result(plan):
        found = Totals.result(plan)
        sx = found.sx.clone()
        sx[:, 1] *= 0.99
        return replace(found, sx=sx)

    monkeypatch.setattr(plain.Plan, "result", result)
    with pytest.raises(WrongSumsError) as caught:
        fit(X)
    text = str(caught.value)
    whole = X[:, 1].sum()
    assert "pass 1 of backend torch (precision high) on cpu" in text
    assert "the sum of column 1 (counted from 0" in text
    assert f"is {0.99 * whole:.6g}"[:9] in text
    assert f"over the rows {whole:.9g}" in text
    assert "`fastclust doctor --prove`" in text
    assert "fit with device='cpu' meanwhile" in text


def test_a_fit_that_is_not_checked_goes_on(monkeypatch):
    monkeypatch.setattr("fastclust.fitting.checked", checked)
    monkeypatch.setattr(plain.Plan, "result", lambda plan: shrunk(Totals.result(plan), 1 - 1e-5))
    assert fit(blobs(900, 5, 5)).n_iter_ > 1


def test_no_more_is_fetched_than_one_tensor_a_pass(monkeypatch):
    told = []
    fetched = engine.fetched
    monkeypatch.setattr(engine, "fetched", lambda tensor: told.append(tensor) or fetched(tensor))
    model = fit(blobs(900, 5, 5))
    assert [tuple(tensor.shape) for tensor in told] == [(2,)] * model.n_iter_


def test_sums_are_held_to_the_arithmetic_of_the_backend_that_passed_over_the_rows():
    """Of several that may, one has fast products; the one that did has not."""
    sums = ColumnSums("triton", "fast", torch.ones(3), torch.ones(3))
    assert sums.tolerance == TOLERANCE["fast"]
    one, both = SimpleNamespace(PRECISIONS=("high",)), SimpleNamespace(PRECISIONS=("high", "fast"))
    backend = Chosen(torch.device("cuda"), {"triton": both, "cupy": one}, {})
    sums = replace(sums, module=backend)
    assert sums.tolerance == TOLERANCE["fast"]
    backend.ran = "cupy"
    assert sums.tolerance == TOLERANCE["high"]
    assert replace(sums, module=one).tolerance == TOLERANCE["high"]

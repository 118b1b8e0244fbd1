"""Every backend against the oracle: one test over covariance types, dtypes and awkward shapes."""

import os
import sys
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from hypothesis import given, settings
from hypothesis import strategies as st

from fastclust import DPGMM, kernels
from fastclust.kernels import Coefficients, Frame, Statistics, reference
from fastclust.kernels import torch as plain
from fastclust.kernels.duplicates import merge
from fastclust.kernels.table import ROOMS

KINDS = ("full", "tied", "diag", "spherical")
CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()
PLACES = [  # tests/test_triton.py has the interpreted kernels: these shapes would take it minutes
    (name, device)
    for device in DEVICES
    for name, reason in kernels.available(device).items()
    if reason is None and name != "reference" and not (name == "triton" and "TRITON_INTERPRET" in os.environ)
]
# Largest error, relative to the scale of each quantity; nothing loosens these.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
SHAPES = [  # rows, features, components, and why
    (1, 3, 2, "one row"),
    (2, 1, 1, "one feature, one component"),
    (63, 17, 3, "below the smallest tile of a thread"),
    (64, 17, 3, "at it"),
    (131, 17, 5, "a prime, two threads"),
    (1031, 5, 31, "more components than features"),
    (40, 513, 4, "wide"),
    (4099, 7, 50, "several tiles, the last one short"),
]


def problem(n: int, d: int, k: int, kind: str, seed: int = 0, far: float = 0.0) -> tuple[torch.Tensor, Coefficients]:
    """Return rows (n, d) and coefficients whose responsibilities are neither uniform nor all 0 or 1."""
    random = np.random.default_rng(seed)
    both = np.concatenate([blobs(n + 50, d, 4, seed), relu_features(n + 50, max(d, 4), seed)[:, :d]])
    rows = both[random.permutation(len(both))[:n]]
    means = rows[random.integers(n, size=k)] + random.normal(size=(k, d)) * 0.5
    wide = 3.0 * d**0.5  # deviations that let neighbours share rows in any number of features
    if kind == "diag":
        precision = random.lognormal(sigma=0.5, size=(k, d)) / wide
    elif kind == "spherical":
        precision = random.lognormal(sigma=0.5, size=k) / wide
    else:
        root = np.tril(random.normal(size=(k, d, d)) * 0.3 / d**0.5 + np.eye(d)) / wide**0.5
        precision = root if kind == "full" else root[0]
    offset = torch.from_numpy(random.normal(size=k))
    coefficients = Coefficients(kind, offset, torch.from_numpy(means + far), torch.from_numpy(precision))
    return torch.from_numpy(rows + far), coefficients


def error(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    """Return the largest difference relative to the largest expected value (0 where both are absent)."""
    if found is None or expected is None:
        assert found is expected
        return 0.0
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    scale = float(expected.abs().max()) or 1.0
    return float((found.cpu() - expected.cpu()).abs().max()) / scale


def errors(found: Statistics, expected: Statistics) -> dict[str, float]:
    return {name: error(getattr(found, name), getattr(expected, name)) for name in ("nk", "sx", "sxx", "log_norm")} | {
        # Of a quantity that is near zero for well separated rows, per row.
        "entropy": float((found.entropy - expected.entropy).abs()) / max(float(expected.nk.sum()), 1.0)
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k", "why"), SHAPES, ids=[shape[3] for shape in SHAPES])
@pytest.mark.parametrize(("name", "device"), PLACES, ids=lambda part: str(part))
def test_a_pass_agrees_with_the_oracle(name, n, d, k, why, kind, dtype, device):
    backend = kernels.usable(name, device)
    rows, coefficients = problem(n, d, k, kind)
    rows = rows.to(dtype)  # the oracle gets the rounded rows too: arithmetic is what is compared
    expected = reference.statistics(rows, coefficients, Frame(), torch.float64)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    if n > 60 and k > 2:
        assert 0.05 < float(r.max(1).values.mean()) < 0.999, "the test's inputs do not discriminate"
    moved = [
        torch.Tensor.to(part, device) for part in (coefficients.offset, coefficients.means, coefficients.precision)
    ]
    there = Coefficients(kind, *moved)
    plan = backend.prepare(there, Frame(), dtype)
    plan.add(rows.to(device))
    found = plan.result()
    assert max(errors(_on_origin(found), _on_origin(expected)).values()) < TOLERANCE[dtype]
    labels, density = plan.assign(rows.to(device))
    expected_labels, expected_density = reference.assign(rows, coefficients, Frame(), torch.float64)
    assert labels.dtype == torch.int32
    np.testing.assert_allclose(
        density.cpu().double(), expected_density, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 10
    )
    # Ties are judged by the score: the component found is as probable as the best one.
    lost = r.max(1).values - r.gather(1, labels.cpu().long()[:, None])[:, 0]
    assert float(lost.max()) < TOLERANCE[dtype] * 10
    assert bool((labels.cpu() == expected_labels).float().mean() > 0.99)
    found_r = plan.responsibilities(rows.to(device)).cpu().double()
    np.testing.assert_allclose(found_r, r, atol=TOLERANCE[dtype] * 10)


def _on_origin(statistics: Statistics) -> Statistics:
    """Return statistics about the frame's origin, whatever they were about: reference points differ by rounding."""
    return statistics.moved(torch.zeros_like(statistics.about))


@pytest.mark.parametrize("kind", KINDS)
def test_given_responsibilities_give_the_oracles_sums(kind):
    rows, coefficients = problem(300, 7, 5, kind)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    for dtype in TOLERANCE:
        found = plain.moments(rows, r, kind, coefficients.means, Frame(), dtype)
        expected = reference.moments(rows, r, kind, coefficients.means, Frame(), dtype)
        assert max(errors(_on_origin(found), _on_origin(expected)).values()) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_strided_and_of_any_float_dtype(kind):
    rows, coefficients = problem(500, 9, 4, kind)
    for stored in (rows.half(), rows.bfloat16(), rows.float(), rows):
        wide = torch.stack([stored, stored], 1)[:, 0]  # every second row of another array
        across = stored.T.contiguous().T  # columns contiguous
        expected = reference.statistics(stored, coefficients, Frame(), torch.float64)
        for view in (wide, across):
            assert not view.is_contiguous()
            found = kernels.statistics(plain, view, coefficients, Frame(), torch.float32)
            assert max(errors(_on_origin(found), _on_origin(expected)).values()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_the_origin_the_frame_keeps_float32_exact(kind):
    rows, coefficients = problem(400, 6, 4, kind, far=1e4)
    rows = rows.float()  # 1e4 deviations away, float32 holds a row to a thousandth of a deviation
    shift = rows.mean(0).double()
    moved = replace(coefficients, means=coefficients.means - shift)
    expected = reference.statistics(rows, moved, Frame(shift), torch.float64)
    found = kernels.statistics(plain, rows, moved, Frame(shift), torch.float32)
    assert max(errors(_on_origin(found), _on_origin(expected)).values()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("kind", ["diag", "spherical", "tied"])
def test_a_component_tight_far_from_the_origin_does_not_cancel(kind):
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(500, 4)), 8 + 1e-3 * random.normal(size=(500, 4))])
    means = torch.tensor([[0.0] * 4, [8.0] * 4, [8.0005] * 4], dtype=torch.float64)
    tight = torch.tensor([1.0, 1e6, 1e6], dtype=torch.float64)
    precision = {"diag": tight[:, None].expand(3, 4), "spherical": tight, "tied": 1e3 * torch.eye(4).double()}[kind]
    rows = torch.from_numpy(rows).float()
    coefficients = Coefficients(kind, torch.zeros(3, dtype=torch.float64), means, precision)
    expected = reference.statistics(rows, coefficients, Frame(), torch.float64)
    found = kernels.statistics(plain, rows, coefficients, Frame(), torch.float32)
    assert max(errors(found, expected).values()) < TOLERANCE[torch.float32]
    np.testing.assert_allclose(_variance(found), _variance(expected), rtol=1e-3)


def _variance(statistics: Statistics) -> np.ndarray:
    if statistics.sxx is None:
        return np.zeros(0)
    sxx = statistics.sxx if statistics.sxx.ndim == 2 else statistics.sxx[:, None]
    mean = statistics.sx / statistics.nk[:, None]
    square = mean**2 if statistics.sxx.ndim == 2 else (mean**2).sum(1, keepdim=True)
    return (sxx / statistics.nk[:, None] - square).numpy()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    d=st.integers(1, 12),
    k=st.integers(1, 12),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    cut=st.floats(0, 1),
    block_rows=st.integers(1, 400),
)
def test_properties(n, d, k, kind, seed, cut, block_rows):
    rows, coefficients = problem(n, d, k, kind, seed)
    random = np.random.default_rng(seed)
    whole = kernels.statistics(plain, rows, coefficients, Frame(), torch.float64)
    assert float(whole.nk.sum()) == pytest.approx(n, rel=1e-12)
    assert -1e-9 <= float(whole.entropy) <= n * np.log(k) + 1e-9
    # How rows are split into blocks does not matter.
    at = int(cut * n)
    parts = [part for part in (rows[:at], rows[at:]) if len(part)]
    summed = reduce(
        add,
        (
            kernels.statistics(plain, part, coefficients, Frame(), torch.float64, block_rows=block_rows)
            for part in parts
        ),
    )
    assert max(errors(summed, whole).values()) < 1e-11
    # Permuting components permutes statistics.
    order = torch.from_numpy(random.permutation(k))
    precision = coefficients.precision if kind == "tied" else coefficients.precision[order]
    permuted = Coefficients(kind, coefficients.offset[order], coefficients.means[order], precision)
    turned = kernels.statistics(plain, rows, permuted, Frame(), torch.float64)
    assert error(turned.nk, whole.nk[order]) < 1e-11
    assert error(turned.sx, whole.sx[order]) < 1e-11
    # A weight of two is the row twice, a weight of zero its absence.
    weights = torch.from_numpy(random.integers(0, 3, size=n)).double()
    if weights.sum() > 0:
        repeated = rows.repeat_interleave(weights.long(), dim=0)
        weighted = kernels.statistics(plain, rows, coefficients, Frame(), torch.float64, weights=weights)
        assert (
            max(errors(weighted, kernels.statistics(plain, repeated, coefficients, Frame(), torch.float64)).values())
            < 1e-11
        )


def test_results_are_the_same_bits_again_and_threads_are_left_as_they_were():
    rows, coefficients = problem(5000, 12, 20, "diag")
    before = torch.get_num_threads()
    one, two = (kernels.statistics(plain, rows.float(), coefficients, Frame(), torch.float32) for _ in range(2))
    assert torch.equal(one.sx, two.sx)
    assert torch.equal(one.entropy, two.entropy)
    assert torch.get_num_threads() == before


def test_a_frame_moves_and_scales():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float16)
    frame = Frame(torch.tensor([1.0, 0.0]).double(), torch.tensor([2.0, 10.0]).double())
    read = frame.read(rows, torch.full((2, 2), torch.nan))
    assert read.tolist() == [[0.0, 20.0], [4.0, 40.0]]


def test_a_backend_that_cannot_run_says_why_and_what_can(monkeypatch):
    monkeypatch.setattr(plain, "unavailable", lambda device: "it is Monday")
    with pytest.raises(RuntimeError, match=r"'torch' cannot run on cpu: it is Monday; numba, reference can"):
        kernels.select("torch", CPU)
    assert kernels.select("auto", CPU)[0] == "numba"
    monkeypatch.setitem(sys.modules, "fastclust.kernels.numba", None)  # as where numba is not installed
    assert "numba" in kernels.available(CPU)["numba"]
    with pytest.raises(RuntimeError, match="it is Monday"):
        kernels.select("auto", CPU)
    with pytest.raises(ValueError, match="numba, torch, triton, cupy, reference"):
        kernels.select("jax", CPU)


@pytest.mark.parametrize("name", kernels.BACKENDS)
def test_a_backend_says_what_it_leaves_to_torch(name):
    backend = pytest.importorskip(f"fastclust.kernels.{ROOMS.get(name, name)}")
    reasons = {
        (kind, dtype): kernels.left(backend, kind, dtype, [torch.float32, torch.float64])
        for kind in KINDS
        for dtype in TOLERANCE
    }
    assert all(reason is None or isinstance(reason, str) for reason in reasons.values())
    if name in ("torch", "reference"):
        assert set(reasons.values()) == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_components_that_are_the_same_cost_one_and_count_as_many(kind):
    """Seven components, of which three are one and two are another, in any order, with weights of their own."""
    rows, one = problem(200, 4, 4, kind)
    which = torch.tensor([1, 0, 1, 2, 3, 0, 1])
    offset = one.offset[which] + torch.tensor([0.0, -1.0, 0.5, 0.0, 0.0, 2.0, -800.0], dtype=torch.float64)
    precision = one.precision if kind == "tied" else one.precision[which]
    many = Coefficients(kind, offset, one.means[which], precision)
    merged, parts = merge(many)
    assert merged.n_components == 4
    assert merge(merged) is None
    expected = reference.statistics(rows, many, Frame(), torch.float64)
    found = parts.apart(reference.statistics(rows, merged, Frame(), torch.float64))
    for name in ("nk", "sx", "sxx", "log_norm", "entropy", "about"):
        if getattr(expected, name) is not None:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_ends_with_few_components_passes_over_few(kind, monkeypatch):
    seen, whole_add = [], plain.Plan.add

    def add_seen(plan, *given):
        seen.append(plan.form.n_components)
        whole_add(plan, *given)

    monkeypatch.setattr(plain.Plan, "add", add_seen)
    monkeypatch.setattr("fastclust.rows.MERGED_FROM", 1)
    monkeypatch.setattr("fastclust.fitted.kernels.select", lambda name, device: ("watched", plain, {}))
    random = np.random.default_rng(0)
    X = 12 * np.eye(4)[random.integers(4, size=800)] + random.normal(size=(800, 4))
    parameters = {"n_components": 30, "covariance_type": kind, "random_state": 0, "tol": 1e-7, "max_iter": 200}
    model = DPGMM(init_params="random_from_data", **parameters).fit(X)
    assert seen[-1] < 20 < 30 == max(seen)
    monkeypatch.setattr("fastclust.rows.merge", lambda coefficients: None)
    whole = DPGMM(init_params="random_from_data", **parameters).fit(X)
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-6)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-5, atol=1e-5)

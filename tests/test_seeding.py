"""k-means++ seeds: scikit-learn's, row for row, and on an accelerator without a wait."""

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.cluster import kmeans_plusplus
from test_no_waiting import NoWaiting, fake
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclust import DPGMM, initialise, seeding

DATA = {
    "blobs": lambda seed: blobs(700, 5, 6, seed),
    "after a ReLU": lambda seed: relu_features(900, 12, seed),
    "one feature": lambda seed: np.random.default_rng(seed).standard_cauchy(size=(300, 1)),
    "far away": lambda seed: blobs(400, 3, 4, seed) + 1e3,
    "each row thrice": lambda seed: np.repeat(blobs(100, 4, 3, seed), 3, axis=0),
    "wide": lambda seed: np.random.default_rng(seed).normal(size=(90, 513)),
}

# Two rows that nothing else is near leave one potential, whichever becomes a seed, and so do rows that are equal.
TIES = {"one feature", "each row thrice", "wide"}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("n_components", [1, 2, 7, 50])
@pytest.mark.parametrize("name", DATA)
def test_seeds_are_scikit_learns(name, n_components, weighted):
    ties = 0
    for seed in range(5):
        X = np.ascontiguousarray(DATA[name](seed))
        w = np.random.default_rng(seed).integers(0, 4, size=len(X)).astype(float) if weighted else None
        ours, theirs = np.random.RandomState(seed), np.random.RandomState(seed)
        _, expected = kmeans_plusplus(X, n_components, sample_weight=w, random_state=theirs)
        weights = None if w is None else torch.from_numpy(w)
        found = seeding.plus_plus(torch.from_numpy(X), n_components, weights, ours)
        assert ours.uniform() == theirs.uniform()  # as many numbers were drawn
        differ = np.flatnonzero(found.numpy() != expected)
        if len(differ):  # at the first that differs the two leave the same potential, and rounding decided
            at = differ[0]
            one, other = (potential(X, w, [*expected[:at], row]) for row in (int(found[at]), expected[at]))
            assert one == pytest.approx(other, rel=1e-13)
            ties += 1
    assert ties == 0 or name in TIES


def potential(X: np.ndarray, w: np.ndarray | None, seeds: list[int]) -> float:
    distances = np.square(X[:, None] - X[seeds]).sum(2).min(1)
    return float(distances.sum() if w is None else distances @ w)


def test_rows_that_do_not_count_are_never_seeds_and_rows_that_are_all_equal_can_be():
    X = torch.from_numpy(blobs(300, 3, 4))
    w = (torch.arange(300) % 3 == 0).double()
    found = seeding.plus_plus(X, 40, w, np.random.RandomState(0))
    assert found.dtype == torch.int64
    assert bool((w[found] == 1).all())
    assert len(found.unique()) == 40
    same = seeding.plus_plus(torch.ones(9, 2), 3, None, np.random.RandomState(0))
    assert same.shape == (3,)
    with pytest.raises(ValueError, match="4 seeds were asked for, and there are 3 rows"):
        seeding.plus_plus(torch.ones(3, 2), 4, None, np.random.RandomState(0))


def test_float32_rows_are_spread_as_well():
    X = blobs(2000, 4, 8).astype(np.float32)
    left = []
    for choose in (
        lambda seed: X[seeding.plus_plus(torch.from_numpy(X), 8, None, np.random.RandomState(seed)).numpy()],
        lambda seed: kmeans_plusplus(X, 8, random_state=seed)[0],
    ):
        seeds = [choose(seed) for seed in range(10)]
        left.append([np.square(X[:, None] - one).sum(2).min(1).sum() for one in seeds])
    np.testing.assert_allclose(*left, rtol=1e-3)


def test_choosing_waits_for_nothing():
    with FakeTensorMode(), NoWaiting():
        first, shares = fake(1, dtype=torch.int64), fake(19, 4)
        found = seeding.chosen(fake(500, 7), fake(500), first, shares)
    assert (found.shape, found.dtype, found.device) == ((20,), torch.int64, first.device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_seeds_on_a_gpu_are_those_on_the_host():
    X = torch.from_numpy(blobs(3000, 5, 6))
    model = DPGMM(12, random_state=0, dtype="float64", backend="torch").fit(X.numpy())
    found = []
    for place in ("cpu", "cuda"):
        _, rows = model.set_params(device=place)._rows_of(X.to(place))
        found.append(initialise._seeds(rows, 12, np.random.RandomState(3))[0].cpu())
    torch.testing.assert_close(*found)

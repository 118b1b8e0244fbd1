"""Palettes: like clusters get like colours, clusters in use can be told apart, and nothing depends on their order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from skimage.color import deltaE_ciede2000, rgb2lab

from fastclust import colours as module
from fastclust.colours import UNUSED, palette


def differences(colours: np.ndarray) -> np.ndarray:
    """CIEDE2000 of every pair of colours, as numpy.triu_indices orders them."""
    lab = rgb2lab(colours[None] / 255)[0]
    rows, columns = np.triu_indices(len(colours), 1)
    return deltaE_ciede2000(lab[rows], lab[columns])


def relu_means(k: int, d: int, seed: int = 0) -> np.ndarray:
    """Means as layers have them: heavy tails, many zeros, channels of very unlike size, one of them dead."""
    random = np.random.default_rng(seed)
    means = np.maximum(random.standard_t(3, size=(k, d)), 0) * random.lognormal(sigma=2, size=d)
    means[:, 0] = 0
    return means


@pytest.mark.parametrize("seed", range(4))
def test_colours_follow_distances_where_three_dimensions_can(seed: int) -> None:
    means = np.random.default_rng(seed).normal(size=(20, 3))
    means /= means.std(axis=0)
    rows, columns = np.triu_indices(20, 1)
    distances = np.linalg.norm(means[rows] - means[columns], axis=1)
    assert spearmanr(differences(palette(means, np.ones(20))), distances)[0] > 0.75


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_like_clusters_have_like_colours(seed: int) -> None:
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(4), 5)
    means = 10 * random.normal(size=(4, 16))[group] + random.normal(size=(20, 16))
    rows, columns = np.triu_indices(20, 1)
    apart, within = differences(palette(means, np.ones(20))), group[rows] == group[columns]
    assert np.median(apart[within]) < 0.5 * np.median(apart[~within])


@pytest.mark.parametrize("d", [1, 2, 3])
def test_colours_of_points_on_a_line_follow_the_line(d: int) -> None:
    means = np.linspace(0, 1, 12)[:, None] * np.ones(d)
    rows, columns = np.triu_indices(12, 1)
    assert spearmanr(differences(palette(means, np.ones(12))), columns - rows)[0] > 0.7


@pytest.mark.parametrize(("k", "least"), [(2, 20), (3, 16), (8, 12), (50, 10), (100, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_colours_in_use_are_apart(k: int, least: float, seed: int) -> None:
    weights = np.random.default_rng(seed).dirichlet(np.full(k, 0.3)) + 1e-12
    assert differences(palette(relu_means(k, 64, seed), weights)).min() >= least


@pytest.mark.parametrize("shape", [(8, 1), (8, 64), (50, 7)])
def test_equal_means_still_get_colours_apart(shape: tuple[int, int]) -> None:
    assert differences(palette(np.full(shape, 0.1), np.ones(shape[0]))).min() >= 10


def test_many_components_get_distinct_colours() -> None:
    colours = palette(relu_means(256, 16), np.arange(1, 257))
    assert len(np.unique(colours, axis=0)) == 256


def test_more_components_than_colours_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, lab, places, between = module._candidates()
    few = slice(None, None, 100)
    monkeypatch.setattr(module, "_candidates", lambda: (rgb[few], lab[few], places[few], between[few, few]))
    assert len(rgb[few]) < 40
    assert not (palette(relu_means(40, 8), np.ones(40)) == UNUSED).all(axis=1).any()


@pytest.mark.parametrize("like", range(4))
def test_a_component_that_hardly_matters_still_resembles_its_like(like: int) -> None:
    means = np.array([[0.0, 0], [0, 5], [5, 0], [9, 9]])
    colours = palette(np.vstack([means, means[like] + 0.5]), [1, 1, 1, 1, 1e-12])
    apart = [differences(colours[[k, 4]])[0] for k in range(4)]
    assert np.argmin(apart) == like


@settings(max_examples=30, deadline=None)
@given(data=st.data(), k=st.integers(1, 12), d=st.integers(1, 5))
def test_permuting_components_permutes_colours(data: st.DataObject, k: int, d: int) -> None:
    means = data.draw(arrays(np.float64, (k, d), elements=st.floats(-1e6, 1e6, width=32)))
    weights = np.array(data.draw(st.permutations(range(k))), dtype=float)  # distinct, and one of them not in use
    covariances = data.draw(arrays(np.float64, (k, d), elements=st.floats(0, 1e6, width=32)))
    order = data.draw(st.permutations(range(k)))
    one = palette(means, weights, covariances)
    other = palette(means[order], weights[order], covariances[order])
    np.testing.assert_array_equal(other, one[order])
    assert one.shape == (k, 3)
    assert one.dtype == np.uint8


def test_units_do_not_matter() -> None:
    means, weights = relu_means(12, 8), np.arange(1, 13)
    colours = palette(means, weights)
    np.testing.assert_array_equal(palette(means * 2.0 ** np.arange(-4, 4), weights), colours)  # a power of 2 is exact
    np.testing.assert_array_equal(palette(means, weights * 1024), colours)


@pytest.mark.parametrize("size", [1e-300, 1e-12, 1e12, 1e300])
def test_extreme_means_are_as_good(size: float) -> None:
    assert differences(palette(relu_means(10, 4) * size, np.ones(10))).min() >= 10


def test_unused_components_are_grey_and_have_no_say() -> None:
    means, weights = relu_means(20, 8), np.ones(20)
    weights[5:] = 0
    colours = palette(means, weights)
    np.testing.assert_array_equal(colours[:5], palette(means[:5], weights[:5]))
    assert (colours[5:] == UNUSED).all()
    assert differences(np.vstack([colours[:5], colours[5:6]])).min() >= 10
    assert (palette(means, np.zeros(20)) == UNUSED).all()


def test_the_cluster_that_covers_most_is_calm() -> None:
    for seed in range(5):
        lab = rgb2lab(palette(relu_means(20, 32, seed), np.array([200] + [1] * 19))[None] / 255)[0]
        chroma = np.hypot(lab[:, 1], lab[:, 2])
        assert chroma[0] < 0.5 * np.median(chroma)


def test_covariances_of_every_type_with_the_same_variances_agree() -> None:
    means, variance = relu_means(6, 4), 2.0
    spherical = palette(means, np.ones(6), np.full(6, variance))
    for covariances in (np.full((6, 4), variance), variance * np.eye(4), np.tile(variance * np.eye(4), (6, 1, 1))):
        np.testing.assert_array_equal(palette(means, np.ones(6), covariances), spherical)


def test_a_tied_covariance_is_known_where_there_are_as_many_components_as_channels() -> None:
    means = relu_means(5, 5)
    one = palette(means, np.ones(5), np.diag([1.0, 2, 3, 4, 5]))
    np.testing.assert_array_equal(one, palette(means, np.ones(5), np.tile([1.0, 2, 3, 4, 5], (5, 1))))


@pytest.mark.parametrize(
    ("means", "weights", "covariances"),
    [
        (np.ones(3), np.ones(3), None),
        (np.ones((3, 2)), np.ones(2), None),
        (np.full((3, 2), np.nan), np.ones(3), None),
        (np.ones((3, 2)), [1, -1, 1], None),
        (np.ones((3, 2)), np.ones(3), np.ones((2, 3))),
        (np.ones((3, 2)), np.ones(3), np.full(3, np.inf)),
    ],
    ids=["flat means", "too few weights", "nan", "negative weight", "covariance shape", "infinite covariance"],
)
def test_what_does_not_fit_is_refused(means: np.ndarray, weights: np.ndarray, covariances: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match=r"expected|must be"):
        palette(means, weights, covariances)

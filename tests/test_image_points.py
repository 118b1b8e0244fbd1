"""Images as points: pooling as NumPy's on the maps, the rule for principal components, and clusters of them."""

import numpy as np
import pytest
import torch
from command_line import NETWORK, call, photographs
from conftest import blobs, relu_features
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from fastclust import DPGMM
from fastclust.parts import is_mapped
from fastclust.store import open_store
from fastclust.views import points
from fastclust.views.points import cluster_images, image_points, pooled, principal_components, project

pytestmark = pytest.mark.usefixtures("one_thread")
PARAMETERS = {"n_components": 3, "feature_range": (0.0, 10.0), "random_state": 0, "max_iter": 20}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """Eight images of a network with random weights at a convolutional and a dense layer."""
    folder = tmp_path_factory.mktemp("points")
    photographs(folder / "images", 8)
    layers = ("--layer", "features.3.cat", "--layer", "flatten", "--size", "64")
    assert call("extract", folder / "images", *NETWORK, *layers, "--out", folder / "x.h5").status == 0
    return open_store(folder / "x.h5")


@pytest.mark.parametrize("values", [7, 500, 10**6])
def test_pooling_is_numpys_over_the_places_of_each_map(store, monkeypatch, values):
    monkeypatch.setattr(points, "VALUES", values)
    maps = [store.image_rows("features.3.cat", index).astype(np.float64) for index in range(8)]
    assert maps[0].shape[0] > 1
    mean, largest = (image_points(store, "features.3.cat", pool) for pool in ("mean", "max"))
    assert mean == pytest.approx(np.stack([one.mean(axis=(0, 1)) for one in maps]), rel=1e-6)
    assert (largest == np.stack([one.max(axis=(0, 1)) for one in maps])).all()


def test_points_of_a_dense_layer_are_its_rows_and_none_is_held_in_memory(store):
    rows = image_points(store, "flatten", None)
    assert (rows == np.stack([store.image_rows("flatten", index)[0, 0] for index in range(8)])).all()
    assert is_mapped(rows)
    assert is_mapped(image_points(store, "features.3.cat", "mean"))


def test_points_of_unfinished_images_are_left_out(store, monkeypatch):
    finished = np.array([0, 1, 4, 6])
    monkeypatch.setitem(store.__dict__, "finished", finished)
    rows = image_points(store, "flatten", None)
    assert (rows == np.stack([store.image_rows("flatten", index)[0, 0] for index in finished])).all()
    assert len(image_points(store, "features.3.cat", "max")) == 4


def test_relu_zeros_dead_channels_one_place_and_large_values():
    rows = relu_features(30, 16).astype(np.float16)
    one = rows.reshape(5, 6, 16)
    assert pooled(one, "max")[3] == pooled(one, "mean")[3] == 0
    assert (pooled(rows[:1].reshape(1, 1, 16), "mean") == rows[0]).all()
    assert (pooled(-one, "max") == -one.reshape(-1, 16).astype(float).min(axis=0)).all()
    large = np.full((40, 40, 2), 60_000, dtype=np.float16)
    assert (pooled(large, "mean") == np.float16(60_000)).all(), "sums beyond float16 are summed in float64"


@pytest.mark.parametrize(("pool", "words"), [(None, "--pool mean or --pool max"), ("median", "not 'median'")])
def test_a_map_needs_a_pool(store, pool, words):
    with pytest.raises(ValueError, match=words):
        image_points(store, "features.3.cat", pool)


def test_a_dense_layer_needs_none(store):
    with pytest.raises(ValueError, match="flatten is dense, a row an image: --pool is for convolutional layers"):
        image_points(store, "flatten", "mean")


def test_principal_components_are_scikit_learns_whole_or_in_blocks(monkeypatch):
    rows = blobs(300, 12, 4).astype(np.float32)
    exact = PCA(3).fit(rows)
    projection, projected = project(rows, 3)
    assert np.abs(projection.components) == pytest.approx(np.abs(exact.components_), abs=1e-4)
    assert projection.share == pytest.approx(exact.explained_variance_ratio_.sum(), rel=1e-4)
    assert np.abs(projected) == pytest.approx(np.abs(exact.transform(rows)), abs=1e-3)
    monkeypatch.setattr(points, "VALUES", 900)  # 75 rows
    parts, seen = project(rows, 3)
    assert parts.share == pytest.approx(exact.explained_variance_ratio_.sum(), rel=0.02)
    assert np.var(seen, axis=0).sum() == pytest.approx(np.var(projected, axis=0).sum(), rel=0.02)
    monkeypatch.setattr(points, "VALUES", 1)
    assert project(rows[:7], 3)[1].shape == (7, 3), "no block has fewer rows than components"


@pytest.mark.parametrize(
    ("images", "features", "kept"),
    [(600, 1000, 4), (165, 4096, 2), (1, 10, 0), (2, 10, 1), (50_000, 512, 44), (10**6, 64, 64)],
)
def test_as_many_components_are_kept_as_images_can_bear(images, features, kept):
    assert principal_components(images, features) == kept


def test_the_price_of_dimensions_is_what_the_rule_says():
    """E[ln det] of a Wishart of D + n degrees of freedom, against that of its scale: D^2 / 4n where n is large."""
    n, d = 60, 4
    i = torch.arange(1, d + 1, dtype=torch.float64)
    price = 0.5 * (np.log((n + d) / 2) - torch.special.digamma((n + i) / 2)).sum()
    assert float(price) == pytest.approx(d**2 / (4 * n), rel=0.35)


@pytest.mark.parametrize(("wrong", "n", "d"), [(0, 20, 8), (9, 20, 8), (9, 9, 20)])
def test_more_components_than_there_can_be_are_refused(wrong, n, d):
    with pytest.raises(ValueError, match=r"--pca can be at most 8; 0 is for the features themselves"):
        project(blobs(n, d, 2), wrong)


def test_points_that_are_all_the_same_have_no_variance_to_share():
    rows = np.zeros((9, 5), dtype=np.float16)
    projection, projected = project(rows, 2)
    assert projection.share == 0
    assert (projected == 0).all()


def test_projecting_what_is_not_finite_is_refused():
    rows = blobs(20, 8, 2)
    rows[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        project(rows, 2)


def test_images_are_clustered_as_a_mixture_of_their_points_does(store):
    found = cluster_images(store, "flatten", None, PARAMETERS, pca=0)
    rows = np.asarray(image_points(store, "flatten", None))
    with pytest.warns(ConvergenceWarning):
        model = DPGMM(**PARAMETERS).fit(rows)
    assert found.projection is None
    assert (found.clusters == model.predict(rows)).all()
    assert found.log_density == pytest.approx(model.score_samples(rows))
    assert found.log_own == pytest.approx(
        found.log_density + np.log(model.predict_proba(rows)[np.arange(8), found.clusters])
    )
    assert found.sizes.sum() == 8
    assert found.model.source_["node"] == "flatten"


def test_what_a_model_saw_is_said_in_it_so_that_no_pixels_are_labelled_by_it(store, tmp_path):
    found = cluster_images(store, "features.3.cat", "mean", PARAMETERS)
    assert found.projection is not None
    assert found.model.source_["node"] == "features.3.cat, mean over places, 2 components"
    plain = cluster_images(store, "features.3.cat", "mean", PARAMETERS, pca=0)
    plain.model.save(tmp_path / "m.h5")
    words = ("--layer", "features.3.cat", "--model", tmp_path / "m.h5", "--out", tmp_path / "out")
    refused = call("label", store.path, *words)
    assert refused.status == 1
    assert "the model was fitted to features.3.cat (features.3.cat, mean over places)" in refused.err


def test_components_are_as_many_as_images_unless_more_are_asked_for(store):
    found = cluster_images(store, "flatten", None, PARAMETERS | {"n_components": None})
    assert found.model.n_components == 8
    with pytest.raises(ValueError, match=r"flatten has 8 images, each a point, and the mixture 9 components: .* 8\)"):
        cluster_images(store, "flatten", None, PARAMETERS | {"n_components": 9})


def test_clusters_in_a_few_of_many_dimensions_are_found(store, monkeypatch):
    """With all features the prior outweighs 300 points in 200 dimensions; in their components it does not."""
    random = np.random.default_rng(0)
    planted = np.repeat(np.arange(4), 75)
    centres = 4 * np.eye(4)[:, :3]
    inside = centres[planted] + 0.5 * random.normal(size=(300, 3))
    turned = np.linalg.qr(random.normal(size=(200, 200)))[0][:3]
    rows = (inside @ turned + 0.4 * random.normal(size=(300, 200))).astype(np.float32)
    monkeypatch.setattr(points, "image_points", lambda *arguments: rows)
    monkeypatch.setitem(store.__dict__, "finished", np.arange(300))
    parameters = PARAMETERS | {"n_components": 20, "max_iter": 100, "weight_concentration_prior": 0.1}
    found = cluster_images(store, "flatten", None, parameters)
    assert adjusted_rand_score(planted, found.clusters) > 0.95
    assert np.count_nonzero(cluster_images(store, "flatten", None, parameters, pca=0).sizes) == 1

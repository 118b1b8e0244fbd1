"""The atlas: which layers it takes, that its counts are those of the labels, and what it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import NETWORK, call, photographs
from PIL import Image

import fastclust
from fastclust.networks import Network, random_state
from fastclust.store import open_store
from fastclust.views.atlas import covered, weight_layers
from fastclust.views.plots import plot_clusters_in_use

SMALL = (*NETWORK, "--components", "4", "--max-iter", "8", "--seeds", "2")


def test_weight_layers_have_the_fields_names_and_stand_in_order():
    names = weight_layers("vgg16")
    assert len(names) == 16
    assert names[:3] == ["relu1_1", "relu1_2", "relu2_1"]
    assert names[12:] == ["relu5_3", "relu6", "relu7", "fc8"]
    resnet = weight_layers("resnet18")
    assert len(resnet) == 21
    numbers = [str(number) for number in range(1, 22)]
    assert list(Network("resnet18", resnet).nodes.values()) == list(Network("resnet18", numbers).nodes.values())


def test_layers_end_where_the_weights_do(tmp_path: Path):
    whole = random_state("squeezenet1_1", 0)
    part = {name: value for name, value in whole.items() if not name.startswith(("features.6", "features.12"))}
    names = weight_layers("squeezenet1_1")
    torch.save(part, tmp_path / "part.pth")
    found = covered("squeezenet1_1", names, tmp_path / "part.pth", 0, 64)
    assert found == names[: len(found)]
    assert len(found) == 1 + 3 * 2  # conv1 and two fire modules of three convolutions
    needed = Network("squeezenet1_1", found).needed
    assert set(needed) <= part.keys()
    assert not set(Network("squeezenet1_1", names[: len(found) + 1]).needed) <= part.keys()
    torch.save(whole, tmp_path / "whole.pth")
    assert covered("squeezenet1_1", names, tmp_path / "whole.pth", 0, 64) == names
    torch.save({"classifier.1.weight": whole["classifier.1.weight"]}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"covers no weight layer of squeezenet1_1: it misses features\.0\.weight"):
        covered("squeezenet1_1", names, tmp_path / "none.pth", 0, 64)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    done = call("atlas", photographs(folder / "images", 3), *SMALL, "--out", folder / "out")
    assert done.status == 0, done.err
    assert "features.1: " in done.out
    assert "weights: RANDOM (seed 0)" in done.out
    return folder / "out"


def test_counts_are_those_of_the_labels(drawn: Path):
    atlas, store = json.loads((drawn / "atlas.json").read_text()), open_store(drawn / "features.h5")
    assert [layer["name"] for layer in atlas["layers"]] == weight_layers("squeezenet1_1")
    for layer in atlas["layers"]:
        name, first = layer["name"], layer["fits"][0]
        labels = [np.asarray(Image.open(drawn / name / "labels" / f"{n}.png")) for n in range(3)]
        assert first["clusters_in_image"] == [len(np.unique(one)) for one in labels]
        assert first["clusters_in_use"] == len(np.unique(np.concatenate([one.ravel() for one in labels])))
        assert [fit["seed"] for fit in layer["fits"]] == [0, 1]
        assert layer["components"] == min(4, sum(len(part) for part in store.rows(name)))
    name, second = atlas["layers"][1]["name"], atlas["layers"][1]["fits"][1]
    model = fastclust.load(drawn / name / "model.h5")
    again = fastclust.DPGMM(**model.get_params()).set_params(random_state=1).fit(np.concatenate(store.rows(name)))
    assert again.lower_bound_ == pytest.approx(second["lower_bound_per_row"], rel=1e-9)
    present = [np.unique(again.predict(store.image_rows(name, n).reshape(-1, model.n_features_in_))) for n in range(3)]
    assert second["clusters_in_image"] == [len(one) for one in present]


def test_a_layer_with_fewer_rows_than_components_gets_fewer(drawn: Path):
    atlas = json.loads((drawn / "atlas.json").read_text())
    assert {layer["kind"] for layer in atlas["layers"]} == {"conv"}
    assert all(layer["components"] == 4 for layer in atlas["layers"])


def test_dense_layers_have_a_point_an_image_and_their_own_concentration(tmp_path: Path):
    images = photographs(tmp_path / "images", 3)
    words = ("--model", "resnet18", "--weights", "random", "--size", "64", "--components", "5", "--seeds", "1")
    done = call("atlas", images, *words, "--layer", "relu", "--layer", "fc", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "fc: " in done.out
    atlas = json.loads((tmp_path / "out" / "atlas.json").read_text())
    assert [layer["components"] for layer in atlas["layers"]] == [5, 3]
    models = [fastclust.load(tmp_path / "out" / name / "model.h5") for name in ("relu", "fc")]
    assert [model.weight_concentration_prior for model in models] == [0.2, 0.1]
    assert (tmp_path / "out" / "fc" / "labels.csv").is_file()


def test_a_layer_of_one_row_is_passed_over_and_refused_where_it_is_named(tmp_path: Path):
    images = photographs(tmp_path / "images", 1)
    words = ("--model", "resnet18", "--weights", "random", "--size", "64", "--components", "3", "--seeds", "1")
    command = ("atlas", images, *words, "--max-iter", "2", "--out", tmp_path / "out")
    refused = call(*command, "--layer", "relu", "--layer", "fc")
    assert (refused.status, refused.out) == (1, "")
    assert "one row has no clusters, and there is no more of fc: give more images" in refused.err
    assert not (tmp_path / "out").exists()
    assert "no more of relu, fc" in call(*command, "--layer", "relu", "--layer", "fc", "--rows", "1").err
    done = call(*command)
    assert done.status == 0, done.err
    assert "passed over, since one row has no clusters: fc\n" in done.out
    atlas = json.loads((tmp_path / "out" / "atlas.json").read_text())
    assert atlas["layers_of_one_row"] == ["fc"]
    assert [layer["name"] for layer in atlas["layers"]] == weight_layers("resnet18")[:-1]
    assert (tmp_path / "out" / "atlas.png").is_file()
    assert "not ended" not in call("inspect", tmp_path / "out").out
    reported = call("report", tmp_path / "out")
    assert reported.status == 0, reported.err
    assert "Not shown, since one point has no clusters: fc." in (tmp_path / "out" / "report.html").read_text()


def test_the_folder_is_one_that_a_report_reads(drawn: Path):
    done = call("report", drawn)
    assert done.status == 0, done.err
    assert "3 images shown" in done.out
    page = (drawn / "report.html").read_text()
    assert "26 layers from <bdi>features.1</bdi>" in page


def test_the_plot_has_every_layer_and_seed(drawn: Path, tmp_path: Path):
    atlas = json.loads((drawn / "atlas.json").read_text())
    axes = plot_clusters_in_use(atlas)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [layer["name"] for layer in atlas["layers"]]
    assert "random weights" in axes.get_title()
    line = next(line for line in axes.lines if line.get_label() == "in all images, median of seeds")
    medians = [np.median([fit["clusters_in_use"] for fit in layer["fits"]]) for layer in atlas["layers"]]
    np.testing.assert_array_equal(line.get_ydata(), medians)
    assert len(axes.collections[-1].get_offsets()) == 2 * len(atlas["layers"])


def test_what_is_there_is_kept_or_replaced_whole(drawn: Path, tmp_path: Path):
    images = photographs(tmp_path / "images", 2)
    refused = call("atlas", images, *SMALL, "--out", drawn)
    assert refused.status == 1
    assert "--overwrite replaces" in refused.err
    assert call("atlas", images, *SMALL, "--out", tmp_path / "out", "--layer", "1", "--layer", "2").status == 0
    done = call("atlas", images, *SMALL, "--out", tmp_path / "out", "--layer", "2", "--overwrite")
    assert done.status == 0, done.err
    assert not (tmp_path / "out" / "1").exists()
    assert (tmp_path / "out" / "2" / "model.h5").is_file()
    pictured = call("atlas", images, *SMALL, "--out", tmp_path / "p", "--layer", "1", "--plot", tmp_path / "depth.svg")
    assert pictured.status == 0
    assert (tmp_path / "depth.svg").read_text().lstrip().startswith("<?xml")
    bad = call("atlas", images, *SMALL, "--out", tmp_path / "q", "--layer", "1", "--plot", tmp_path / "depth.txt")
    assert bad.status == 1
    assert ".png, .svg, .pdf" in bad.err
    assert not (tmp_path / "q").exists()

"""Centres of clusters: where they are in input and file, the rule that tells foreground, what the command writes."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import MIXTURE, NETWORK, call, photographs
from PIL import Image
from scipy import ndimage
from skimage.measure import label as connected
from skimage.measure import regionprops
from test_images import photograph

import fastclust
from fastclust.labels import label_image
from fastclust.networks import Network
from fastclust.reader import placement, read_image
from fastclust.receptive import Axis, Field, receptive_fields
from fastclust.store import ImageRecord, open_store
from fastclust.views import centres as views
from fastclust.views.markers import marked
from fastclust.views.regions import Centre, centres, foreground, groups, numbered, roundness

LAYER = "features.4"
COLOURS = np.array([[200, 30, 40], [30, 160, 60], [40, 60, 200]], dtype=np.uint8)


def field(height: int, width: int, jump: float = 1, start: float = 0, size: float = 1) -> Field:
    """Fields of a map of height x width units, `jump` pixels apart."""
    rows, columns = (
        Axis(size, jump, start, (start + jump * np.arange(n)).astype(int), (start + jump * np.arange(n)).astype(int))
        for n in (height, width)
    )
    return Field(rows, columns)


def discs(height: int = 120, width: int = 150, radius: float = 6, step: int = 30) -> np.ndarray:
    """True inside of discs on a grid."""
    row, column = np.ogrid[:height, :width]
    return (row % step - step / 2 + 0.5) ** 2 + (column % step - step / 2 + 0.5) ** 2 <= radius**2


def mixture(*means: tuple[float, ...]) -> Any:
    """What the rule sees of a mixture with these means and one small variance, of clusters of one weight."""
    k, d = len(means), len(means[0])
    return SimpleNamespace(
        means_=np.array(means),
        weights_=np.full(k, 1 / k),
        covariances_=np.full((k, d), 0.01),
        covariance_type="diag",
        counts_=np.full(k, 100),
    )


def test_roundness_is_one_for_a_disc_and_less_for_what_is_long_or_hollow() -> None:
    row, column = np.ogrid[:101, :101]
    away = np.hypot(row - 50, column - 50)
    for shape, expected, within in (
        (away <= 40, 1.0, 0.01),
        (np.ones((40, 40), dtype=bool), 3 / np.pi, 1e-12),
        (np.ones((1, 1), dtype=bool), 3 / np.pi, 1e-12),
        (((row - 50) / 22) ** 2 + ((column - 50) / 48.4) ** 2 <= 1, 2 / (2.2 + 1 / 2.2), 0.01),
        ((away <= 40) & (away > 30), (1600 - 900) / (1600 + 900), 0.01),
        (np.ones((1, 60), dtype=bool), 60 / (2 * np.pi * (60**2 / 12 + 1 / 12)), 1e-12),
    ):
        units, found = roundness(shape.astype(np.int64))
        assert units.tolist() == [shape.sum()]
        assert found[0] == pytest.approx(expected, abs=within)


def test_roundness_is_what_scikit_images_moments_say() -> None:
    random = np.random.default_rng(0)
    regions = numbered(random.integers(3, size=(60, 70)), [0, 2])
    units, found = roundness(regions)
    for number, region in enumerate(regionprops(regions)):
        moments = region.moments_central
        spread = (moments[2, 0] + moments[0, 2]) / moments[0, 0]
        assert units[number] == region.area
        assert found[number] == pytest.approx(region.area / (2 * np.pi * (spread + 1 / 6)))


def test_regions_are_of_all_foreground_clusters_together_and_not_diagonal() -> None:
    labels = np.array([[1, 2, 0, 1], [0, 0, 1, 0], [3, 3, 0, 2]])
    assert numbered(labels, [1, 2]).tolist() == [[1, 1, 0, 2], [0, 0, 3, 0], [0, 0, 0, 4]]
    assert numbered(labels, [7]).tolist() == np.zeros((3, 4)).tolist()
    assert numbered(labels, []).max() == 0


def test_a_centre_is_the_mean_of_receptive_field_centres_and_not_a_ratio_of_sizes() -> None:
    labels = np.zeros((10, 12), dtype=np.uint8)
    labels[2:5, 3:8], labels[2, 3] = 1, 2
    labels[8, 8] = 1
    seen = field(10, 12, jump=4, start=-5, size=11)  # centres at 4 i
    one, single = centres(labels, [1, 2], seen, min_area=0)
    assert (one.cluster, one.area, one.row, one.column) == (1, 15, 12.0, 20.0)
    assert (single.cluster, single.area, single.row, single.column) == (1, 1, 32.0, 32.0)
    assert centres(labels, [1, 2], seen, min_area=16) == [one, single]
    assert centres(labels, [1, 2], seen, min_area=16.5) == [one]
    assert centres(labels, [1, 2], seen, min_area=15 * 16 + 1) == []
    assert centres(labels, [], seen, min_area=0) == []
    assert centres(labels, [9], seen, min_area=0) == []
    assert centres(np.ones((1, 1), dtype=np.uint8), [1], field(1, 1, jump=8), 0) == [Centre(1, 1, 0.0, 0.0)]


def test_centres_are_those_of_scikit_image() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(5, size=(40, 30)).astype(np.uint8)
    seen = field(40, 30, jump=2, start=-1, size=4)
    expected = []
    for region in regionprops(connected(np.isin(labels, [1, 3, 4]), connectivity=1)):
        if region.area * 4 >= 12:
            here = np.bincount(labels[tuple(region.coords.T)])
            expected.append((here.argmax(), region.area, *(2 * np.array(region.centroid) - 1 + 1.5)))
    found = [(one.cluster, one.area, one.row, one.column) for one in centres(labels, [1, 3, 4], seen, 12)]
    assert len(found) > 10
    assert np.allclose(found, expected)


def test_the_rule_takes_discs_of_two_clusters_from_a_background_of_two() -> None:
    model = mixture((6, 4, 0), (0, 0, 5), (3, 9, 9), (6, 4.6, 0), (0, 0.5, 5))
    own = np.array([1, 4, 0, 3, 2])
    random = np.random.default_rng(0)
    background = np.where(random.random((120, 150)) < 0.5, own[0], own[1])
    labels = np.where(discs(), own[2], background)
    labels[discs(radius=3)] = own[3]  # a nucleus within: rings and cores are one object
    labels[::30] = own[4]  # thin lines
    assert foreground(model, [labels], [1], 25) == sorted(own[[2, 3]].tolist())
    assert foreground(model, [labels, np.full((5, 5), own[0])], [1, 16], 25) == sorted(own[[2, 3]].tolist())
    found = centres(labels, foreground(model, [labels], [1], 25), field(120, 150), 25)
    assert len(found) == 20
    assert all(abs(one.row % 30 - 14.5) < 1e-9 and abs(one.column % 30 - 14.5) < 1e-9 for one in found)


def test_the_rule_finds_nothing_where_nothing_can_be_an_object() -> None:
    model, one, other = mixture((0, 0), (5, 5), (9, 1)), 2, 0
    plain = np.full((64, 64), one)
    assert foreground(model, [plain], [1], 25) == []
    assert foreground(model, [np.full((1, 1), one)], [1024], 0) == [], "a unit that is the whole image is none"
    specks = plain.copy()
    specks[::4, ::4] = other
    assert foreground(model, [specks], [1], 25) == []
    assert foreground(model, [specks], [25], 25) == [other], "units that are large enough"
    stripes = plain.copy()
    stripes[::8] = other
    assert foreground(model, [stripes], [1], 25) == []


def test_the_tree_has_single_clusters_first_and_all_at_its_root() -> None:
    model, (a, b, c, d) = mixture((0, 0), (5, 5), (9, 0), (0.3, 0), (5, 5.3)), (0, 3, 1, 4)
    labels = np.array([[a, b, c, d]])
    found = groups(model, [labels])
    assert found[:4] == sorted([[k] for k in (a, b, c, d)])
    assert sorted(found[4:6]) == sorted([sorted([a, b]), sorted([c, d])])
    assert found[6] == sorted([a, b, c, d])
    assert groups(model, [labels[:, :1]]) == [[a]]


@pytest.mark.parametrize("size", [(90, 70), (70, 90), (64, 64), (333, 100)])
@pytest.mark.parametrize(("resize", "crop"), [(73, 64), (None, None), (256, 224)])
def test_places_in_the_input_and_in_the_file_are_the_same_place(
    tmp_path: Path, size: tuple[int, int], resize: int | None, crop: int | None
) -> None:
    transform = {"resize": resize, "crop": crop, "interpolation": "bilinear", "antialias": True}
    row, column = np.mgrid[: size[0], : size[1]]
    middle = np.array([size[0] * 0.55, size[1] * 0.47])
    spot = 255 * np.exp(-((row - middle[0]) ** 2 + (column - middle[1]) ** 2) / (2 * 4**2))
    Image.fromarray(spot.round().astype(np.uint8)).save(tmp_path / "spot.png")
    seen = read_image(str(tmp_path / "spot.png"), transform)[..., 0]
    record = ImageRecord("spot.png", "spot", "", "", size, seen.shape)
    found = views.original(Centre(0, 1, *ndimage.center_of_mass(seen.astype(float))), record, transform)
    assert np.allclose(found, middle, atol=0.15)
    resized, (top, left) = placement(size, transform)
    assert top >= 0 and left >= 0 and (resize is None or min(resized) == resize)


def test_markers_are_seen_on_black_and_on_white() -> None:
    for ground in (0, 255):
        pixels = np.full((40, 60, 3), ground, dtype=np.uint8)
        at = Centre(1, 5, 10.0, 20.0)
        drawn = marked(pixels, [at], COLOURS, 3)
        assert drawn.shape == (120, 180, 3)
        assert drawn[31, 61].tolist() == COLOURS[1].tolist()
        ring = drawn[31, 61 - 4 : 61 + 5].astype(int).sum(axis=1)
        assert ring.max() > 700 and ring.min() < 120, "a white ring and a black one"
        changed = np.argwhere((drawn != ground).any(axis=2))
        assert np.allclose(changed.mean(axis=0), (31, 61), atol=1)
        assert np.array_equal(pixels, np.full((40, 60, 3), ground))
    edge = marked(pixels, [Centre(0, 1, -4.0, 0.0), Centre(2, 1, 39.0, 62.5)], COLOURS, 1)
    assert edge.shape == pixels.shape


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, one of an odd name, and a run of two layers on them (out)."""
    folder = tmp_path_factory.mktemp("centres")
    photographs(folder / "images", 3)
    (folder / "images" / "2.png").rename(folder / "images" / "a cell, & more.png")
    layers = ("--layer", LAYER, "--layer", "classifier.1", "--layer", "flatten")
    assert call("run", folder / "images", *NETWORK, *MIXTURE, *layers, "--out", folder / "out").status == 0
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_what_it_says(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    named = ("--layer", LAYER, "--clusters", "0, 2", "--min-area", "20")
    result = call("centres", made / "out", *named, "--out", out)
    assert (result.status, result.err) == (0, "")
    rows = table(out / "centres.csv")
    assert result.out == f"{out}: {LAYER}, 3 images: {len(rows)} centres of clusters 0, 2, named\n"
    store, model = open_store(made / "out" / "features.h5"), fastclust.load(made / "out" / LAYER / "model.h5")
    seen = receptive_fields(Network("squeezenet1_1", [LAYER]), 64, 64)[LAYER]
    expected = []
    for index, record in enumerate(store.images):
        labels = label_image(store, store.layer(LAYER), index, model)
        for one in centres(labels, [0, 2], seen, 20):
            back = views.original(one, record, store.provenance["transform"])
            expected.append([record.name, str(one.cluster), str(one.area)])
            expected[-1] += [f"{place:.3f}" for place in (one.row, one.column, *back)]
    assert [list(row.values()) for row in rows] == expected
    assert list(rows[0]) == ["image", "cluster", "area", "row", "column", "original_row", "original_column"]
    names = {path.name for path in (out / "centres").iterdir()}
    assert names == {"0.png", "1.png", "a_cell____more.png"}
    assert Image.open(out / "centres" / "0.png").size == (448, 448)
    assert Image.open(out / "centres.png").mode == "RGB"
    assert not (out / "detection.json").exists()

    steps = ("--model", made / "out" / LAYER / "model.h5", *named, "--out", tmp_path / "steps")
    assert call("centres", made / "out" / "features.h5", *steps).status == 0
    assert (tmp_path / "steps" / "centres.csv").read_bytes() == (out / "centres.csv").read_bytes()

    (out / "centres" / "old.png").write_bytes(b"")
    again = call("centres", made / "out", *named, "--out", out)
    assert (again.status, again.err) == (
        1,
        f"fastclust: {out / 'centres'} exists: --overwrite replaces it; or name another folder\n",
    )
    assert call("centres", made / "out", "--layer", LAYER, "--out", out, "--overwrite").status == 0
    assert not (out / "centres" / "old.png").exists()


def masks(folder: Path, images: list[Path]) -> Path:
    """Masks of 90 x 70 images with two cells each; that of the second image is of another size."""
    folder.mkdir()
    for number, image in enumerate(images):
        mask = np.zeros((70, 90), dtype=np.uint8)
        mask[10:30, 20:40], mask[40:60, 50:70] = 7, 200
        Image.fromarray(mask if number != 1 else mask[:60]).save(folder / f"{image.stem}_mask.png")
    return folder


def test_with_masks_it_says_how_well_cells_are_found(made: Path, tmp_path: Path) -> None:
    images = sorted((made / "images").iterdir())
    held = ("--masks", masks(tmp_path / "masks", images), "--distance", "20")
    plot = tmp_path / "plot.svg"
    out = tmp_path / "found"
    words = ("--layer", LAYER, "--clusters", "0,1,2", "--min-area", "0", "--out", out, "--plot", plot)
    result = call("centres", made / "out", *words, *held)
    assert result.status == 3
    assert result.err == f"left out: {images[1]}: its mask is 90 x 60 and the image 90 x 70: expected one as large" + (
        " as the image\n"
    )
    about: dict[str, Any] = json.loads((out / "detection.json").read_text())
    assert [one["image"] for one in about["images"]] == ["0", "a_cell____more"]
    assert about["all"]["cells"] == 4
    # All clusters are foreground: one region, the whole image, whose centre is no cell's.
    assert [one["centres"] for one in about["images"]] == [1, 1]
    assert about["left_out"] == [{"path": str(images[1]), "reason": result.err.partition(".png: ")[2].strip()}]
    assert result.out.splitlines()[1].startswith("0: 1 centres, 2 cells, ")
    assert result.out.splitlines()[-1] == f"{plot}: precision, recall and F1 by image"
    assert "<svg" in plot.read_text()


def test_an_image_may_be_called_all_and_be_very_long(tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", 1)
    Image.fromarray(photograph(8, 3000, 0)).save(images / "all.png")
    (tmp_path / "masks").mkdir()
    for name, size in (("0", (70, 90)), ("all", (8, 3000))):
        Image.fromarray(np.ones(size, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}_mask.png")
    words = (*NETWORK, "--size", "full", *MIXTURE, "--layer", "1", "--out", tmp_path / "out")
    assert call("run", images, *words).status == 0
    result = call("centres", tmp_path / "out", "--masks", tmp_path / "masks", "--out", tmp_path / "found")
    assert (result.status, result.err) == (0, "")
    assert [line.split(": ")[0] for line in result.out.splitlines()[1:]] == ["0", "all", "all"]
    sizes = [Image.open(tmp_path / "found" / "centres" / f"{name}.png").size for name in ("0", "all")]
    assert sizes == [(630, 490), (3000, 8)]


BAD: dict[str, tuple[str, str]] = {
    "no store": ("{}/nowhere.h5 --out $out", "{}/nowhere.h5 does not exist: expected a feature store"),
    "no run": ("{}/images --out $out", "{}/images has no features.h5: expected a store"),
    "layer": ("{}/out --out $out", "has 3 layers: choose one with --layer, of features.4, classifier.1, flatten"),
    "other layer": ("{}/out --layer featurs.4 --out $out", "did you mean features.4"),
    "dense": ("{}/out --layer flatten --out $out", "flatten is a dense layer, which has no places"),
    "no model": ("{}/out/features.h5 --layer features.4 --out $out", "name a model that `fit` wrote with --model"),
    "model": (
        "{}/out --layer features.4 --model {}/out/classifier.1/model.h5 --out $out",
        "features.4 has 128 features and the model was fitted to 1000",
    ),
    "model is a store": ("{}/out --layer features.4 --model {}/out/features.h5 --out $out", "features.h5"),
    "cluster": ("{}/out --layer features.4 --clusters 3 --out $out", "there is no cluster 3: the model's clusters are"),
    "clusters": ("{}/out --layer features.4 --clusters one --out $out", "expected clusters' numbers such as 3 or 3,7"),
    "area": ("{}/out --layer features.4 --min-area -1 --out $out", "expected 0 or a number above it, got -1"),
    "distance": ("{}/out --layer features.4 --distance nan --out $out", "expected 0 or a number above it, got nan"),
    "out is a file": ("{}/out --layer features.4 --out {}/out/features.h5", "features.h5 is a file: name a folder"),
    "no masks": ("{}/out --layer features.4 --masks {}/nowhere --out $out", "{}/nowhere is not a folder"),
    "masks of others": (
        "{}/out --layer features.4 --masks {}/out --out $out",
        "{}/out has no mask of any image: expected 0_mask.png, 0_mask.txt.gz, 0.png, 0.txt.gz and so on",
    ),
    "images are no masks": ("{}/out --layer features.4 --masks {}/images --out $out", "has no mask of any image"),
    "plot alone": ("{}/out --layer features.4 --plot p.png --out $out", "name the masks with --masks"),
    "plot": ("{}/out --layer features.4 --masks {}/out --plot p.txt --out $out", "expected a plot's file to end in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_writes_nothing(made: Path, tmp_path: Path, name: str) -> None:
    words, message = (text.replace("{}", str(made)) for text in BAD[name])
    result = call("centres", *(word.replace("$out", str(tmp_path / "new")) for word in words.split()))
    assert result.status in (1, 2)
    flat = " ".join(result.err.replace("│", " ").split())
    assert message in flat
    if result.status == 1:
        assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_gone_or_changed_is_named(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    photographs(folder / "images", 1)
    run = ("run", folder / "images", "--layer", LAYER, *NETWORK, *MIXTURE, "--out", folder / "out")
    assert call(*run).status == 0
    (folder / "images" / "0.png").rename(folder / "0.png")
    result = call("centres", folder / "out", "--out", tmp_path / "new")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert str(folder / "images" / "0.png") in result.err

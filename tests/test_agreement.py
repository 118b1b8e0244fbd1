"""Agreement of label images: indices against scikit-learn's and scikit-image's, matched colours, and the command."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from PIL import Image
from skimage.metrics import variation_of_information
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fastclust.picture import enlarge, label_png, paint
from fastclust.views import agreement
from fastclust.views.plots import plot_agreement, save

COLOURS = np.random.default_rng(0).permutation(256 * 3).reshape(256, 3).astype(np.uint8)


def labels(shape: tuple[int, int] = (9, 7), clusters: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(clusters, size=shape, dtype=np.uint8)


def noisy(one: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """The same labels, of which a share is drawn anew."""
    random = np.random.default_rng(seed)
    return np.where(random.random(one.shape) < share, random.integers(one.max() + 1, size=one.shape), one)


PAIRS = {
    "independent": (labels(), labels(seed=1)),
    "alike": (labels((40, 30)), noisy(labels((40, 30)), 0.3)),
    "the same": (labels(), labels()),
    "renamed": (labels(), 200 - labels()),
    "finer": (labels() // 2, labels()),
    "one cluster each": (np.zeros((4, 4), int), np.full((4, 4), 3)),
    "one cluster in one": (np.zeros((9, 7), int), labels()),
    "one pixel": (np.array([[7]]), np.array([[2]])),
    "all their own": (np.arange(12).reshape(3, 4), np.arange(12).reshape(3, 4)),
    "two pixels": (np.array([[0, 0]]), np.array([[0, 1]])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_indices_are_the_libraries(name: str) -> None:
    one, other = PAIRS[name]
    found = agreement.indices(agreement.contingency(one, other, (256, 256)))
    assert found.adjusted_rand == pytest.approx(adjusted_rand_score(one.ravel(), other.ravel()), abs=1e-12)
    mutual = normalized_mutual_info_score(one.ravel(), other.ravel())
    assert found.normalised_mutual_information == pytest.approx(mutual, abs=1e-9)
    y_given_x, x_given_y = variation_of_information(one.astype(int), other.astype(int))
    assert (found.x_given_y, found.y_given_x) == pytest.approx((x_given_y, y_given_x), abs=1e-9)
    assert found.variation_of_information == pytest.approx(x_given_y + y_given_x, abs=1e-9)
    assert (found.pixels, found.clusters_x, found.clusters_y) == (
        one.size,
        len(np.unique(one)),
        len(np.unique(other)),
    )


def test_what_is_told_apart_within_the_other_is_in_bits() -> None:
    found = agreement.indices(agreement.contingency(np.zeros((2, 4), int), np.arange(8).reshape(2, 4) // 2, (1, 4)))
    assert (found.x_given_y, found.y_given_x) == pytest.approx((0, 2))


def test_counts_of_billions_do_not_overflow() -> None:
    table = np.array([[6, 1], [2, 7]], dtype=np.int64)
    found, large = agreement.indices(table * 1000), agreement.indices(table * 10**15)
    assert large.adjusted_rand == pytest.approx(found.adjusted_rand, abs=1e-3)
    assert large.normalised_mutual_information == pytest.approx(found.normalised_mutual_information)


def test_tables_add_up_to_that_of_all_pixels(tmp_path: Path) -> None:
    sides = [[labels((5, 6 + i), seed=i) for i in range(4)], [labels((5, 6 + i), seed=i + 9) for i in range(4)]]
    x, y = (write(tmp_path / name, images) for name, images in zip("xy", sides, strict=True))
    found = agreement.agree(x, y)
    one, other = (np.concatenate([image.ravel() for image in images]) for images in sides)
    assert found.whole.adjusted_rand == pytest.approx(adjusted_rand_score(one, other))
    assert list(found.images) == ["0", "1", "2", "3"]
    alone = adjusted_rand_score(sides[0][2].ravel(), sides[1][2].ravel())
    assert found.images["2"].adjusted_rand == pytest.approx(alone)


def write(folder: Path, images: list[np.ndarray], names: list[str] | None = None) -> Path:
    """Write label images as `fastclust label` does."""
    (folder / "labels").mkdir(parents=True)
    for name, image in zip(names or [str(i) for i in range(len(images))], images, strict=True):
        label_png(folder / "labels" / f"{name}.png", image, COLOURS[:200])
    return folder


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (1, 4)])
def test_the_matching_has_the_most_pixels_in_both(shape: tuple[int, int]) -> None:
    for seed in range(20):
        table = np.random.default_rng(seed).integers(0, 5, size=shape)
        found = agreement.match(table)
        small, large = sorted(shape)
        wide = table if shape[0] == small else table.T
        most = max(sum(wide[i, p[i]] for i in range(small)) for p in itertools.permutations(range(large), small))
        assert sum(table[k, own] for own, k in found.items()) == most
        assert len(set(found.values())) == len(found)
        assert all(table[k, own] > 0 for own, k in found.items())


def test_renamed_clusters_get_their_colours_back(tmp_path: Path) -> None:
    one = labels((12, 10), 6)
    renamed = np.array([40, 3, 0, 5, 199, 1], dtype=np.uint8)
    x, y = write(tmp_path / "x", [one]), write(tmp_path / "y", [renamed[one]])
    found = agreement.agree(x, y)
    assert found.matched == 1
    assert found.partner == {int(new): old for old, new in enumerate(renamed)}
    ((name, left, right, same),) = agreement.pictures(found)
    assert name == "0"
    assert np.array_equal(left, paint(one, COLOURS))
    assert np.array_equal(right, left)
    assert (same == agreement.AGREE).all()


def test_a_cluster_without_a_partner_is_grey(tmp_path: Path) -> None:
    one = np.zeros((4, 6), dtype=np.uint8)
    other = np.repeat(np.array([0, 0, 0, 1, 1, 2], dtype=np.uint8)[None], 4, axis=0)
    found = agreement.agree(write(tmp_path / "x", [one]), write(tmp_path / "y", [other]))
    assert found.partner == {0: 0}
    assert found.matched == 0.5
    ((_, _, right, same),) = agreement.pictures(found)
    assert (right[:, :3] == COLOURS[0]).all()
    greys = right[:, 3:].reshape(-1, 3)
    assert (greys == greys[:, :1]).all()
    assert len(np.unique(greys)) == 2, "and no two alike"
    assert ((same == agreement.AGREE) == (other == 0)[..., None]).all()


def test_images_of_two_sizes_are_compared_on_the_finer_grid(tmp_path: Path) -> None:
    coarse = labels((3, 8))
    x, y = write(tmp_path / "x", [coarse]), write(tmp_path / "y", [enlarge(coarse, (12, 4))])
    found = agreement.agree(x, y)
    assert found.whole.pixels == 12 * 8
    one, other = enlarge(coarse, (12, 8)), enlarge(enlarge(coarse, (12, 4)), (12, 8))
    assert found.whole.adjusted_rand == pytest.approx(adjusted_rand_score(one.ravel(), other.ravel()))


def test_names_in_one_folder_alone_are_told(tmp_path: Path) -> None:
    odd = ["ünï code", "a.b", "only x"]
    x = write(tmp_path / "x", [labels(seed=i) for i in range(3)], odd)
    y = write(tmp_path / "y", [labels(seed=i) for i in range(3)], [*odd[:2], "only y"])
    (x / "labels" / ".half.png").write_text("a hidden file")
    found = agreement.agree(x, y / "labels")
    assert list(found.images) == ["a.b", "ünï code"]
    assert (found.only_x, found.only_y) == (["only x.png"], ["only y.png"])
    result = call("agree", x, y)
    assert result.status == 0
    assert "1 images are in" in result.err


def test_many_images_are_one_table_and_a_median(tmp_path: Path) -> None:
    images = [labels((4, 4), 3, seed) for seed in range(30)]
    found = agreement.agree(write(tmp_path / "x", images), write(tmp_path / "y", images[::-1]))
    assert len(found.shown) == agreement.SHOWN
    assert [line.split("  ")[0] for line in agreement.lines(found)[1:]] == ["", "all images", "median image"]


def test_a_picture_of_images_of_all_sizes(tmp_path: Path) -> None:
    sizes = [(1, 1), (40, 3), (5, 90)]
    x = write(
        tmp_path / "x", [labels(size, seed=1) for size in sizes], ["a name that is far too long to be drawn", "b", "c"]
    )
    y = write(
        tmp_path / "y", [labels(size, seed=2) for size in sizes], ["a name that is far too long to be drawn", "b", "c"]
    )
    ax = plot_agreement(agreement.pictures(agreement.agree(x, y)))
    assert np.asarray(ax.images[0].get_array()).shape[1] > 3 * 90
    assert len(ax.get_yticklabels()[0].get_text()) <= 18
    save(ax, tmp_path / "picture.png")
    with pytest.raises(ValueError, match="no images to draw"):
        plot_agreement([])


def test_pictures_of_large_images_are_reduced_alike() -> None:
    noise = np.random.default_rng(0).integers(256, size=(1200, 1600, 3), dtype=np.uint8)
    page = np.asarray(
        plot_agreement([("large", noise, noise, noise), ("thin", *[noise[:1]] * 3)]).images[0].get_array()
    )
    assert page.shape[0] < 400 and page.shape[1] < 1400
    left = page[:336, :448].astype(int)
    assert (left == page[:336, -448:]).all()
    assert set(map(tuple, left.reshape(-1, 3))) <= set(map(tuple, noise.reshape(-1, 3))), "no colours are mixed"


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    one = labels((20, 20), 4)
    x, y = write(tmp_path / "x", [one, one]), write(tmp_path / "y", [noisy(one, 0.2), one])
    out = tmp_path / "new" / "out"
    result = call("agree", x, y, "--out", out)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("2 images, 4 and 4 clusters: ")
    assert [line.split()[0] for line in lines[2:5]] == ["all", "0", "1"]
    assert "1.000" in lines[4]
    said: dict[str, Any] = json.loads((out / "agreement.json").read_text())
    assert said["images"]["1"]["adjusted_rand"] == 1
    assert said["all"]["variation_of_information"] == pytest.approx(said["all"]["x_given_y"] + said["all"]["y_given_x"])
    assert Image.open(out / "matched.png").width > 500
    assert "--overwrite replaces it" in call("agree", x, y, "--out", out).err
    assert call("agree", x, y, "--out", out, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{x}", "{folder}/none"], "none does not exist: expected a folder of label images"),
        (["{x}", "{file}"], "is a file: expected a folder of label images"),
        (["{x}", "{empty}"], "has no label images: expected IMAGE.png"),
        (["{x}", "{other}"], "have no image name in common: the first has 0.png, the second z.png"),
        (["{x}", "{rgb}"], "is no label image with a palette (its mode is RGB)"),
        (["{x}", "{broken}"], "0.png cannot be read"),
        (["{x}", "{folder}/runs"], "is the folder of a run: name a layer's in it, of relu1_2"),
        (["{x}", "{x}", "--out", "{file}"], "is a file: name a folder with --out"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(words: list[str], reason: str, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("x", "other", "rgb", "broken", "file", "empty")} | {"folder": tmp_path}
    write(places["x"], [labels()])
    write(places["other"], [labels()], ["z"])
    write(tmp_path / "runs" / "relu1_2", [labels()])
    for name in ("rgb", "broken", "empty"):
        places[name].mkdir()
    Image.new("RGB", (4, 4)).save(places["rgb"] / "0.png")
    (places["broken"] / "0.png").write_text("no picture")
    places["file"].write_text("")
    result = call("agree", *[word.format(**places) for word in words])
    assert result.status == 1
    assert len(result.err.strip().splitlines()) == 1
    assert reason in result.err

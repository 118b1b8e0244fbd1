"""Centres against masks: matching against brute force, masks as the network's input is, and what is refused."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.measure import regionprops

from fastclust.reader import read_image
from fastclust.store import ImageRecord
from fastclust.views.detection import (
    Score,
    centroids,
    find_mask,
    find_masks,
    input_mask,
    mask_as_input,
    match,
    read_mask,
    score,
    total,
)
from fastclust.views.plots import plot_detection, save

WHOLE = {"resize": None, "crop": None, "interpolation": "bilinear", "antialias": True}


def record(path: Path | str, size: tuple[int, int] = (4, 5)) -> ImageRecord:
    return ImageRecord(str(path), "name", "", "", size, size)


def by_brute_force(one: np.ndarray, other: np.ndarray, distance: float) -> tuple[int, float]:
    """The most pairs that there can be, and the least sum of distances of so many."""
    apart = np.linalg.norm(one[:, None] - other[None], axis=2)
    best = (0, 0.0)
    for chosen in itertools.product([*range(len(other)), None], repeat=len(one)):
        taken = [j for j in chosen if j is not None]
        pairs = [(i, j) for i, j in enumerate(chosen) if j is not None]
        if len(set(taken)) == len(taken) and all(apart[pair] <= distance for pair in pairs):
            cost = sum(apart[pair] for pair in pairs)
            if len(pairs) > best[0] or (len(pairs) == best[0] and cost < best[1]):
                best = len(pairs), cost
    return best


@pytest.mark.parametrize("seed", range(12))
def test_matchings_are_those_of_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (random.uniform(0, 10, size=(random.integers(1, 6), 2)) for _ in range(2))
    distance = random.uniform(1, 6)
    pairs = match(one, other, distance)
    apart = np.linalg.norm(one[pairs[:, 0]] - other[pairs[:, 1]], axis=1)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (apart <= distance).all()
    most, least = by_brute_force(one, other, distance)
    assert len(pairs) == most
    assert apart.sum() == pytest.approx(least)


def test_as_many_pairs_as_there_can_be_come_before_the_nearest() -> None:
    one, other = np.array([[0.0, 0.0], [0.0, 4.0]]), np.array([[0.0, 3.0], [0.0, 8.0]])
    assert match(one, other, 4.0).tolist() == [[0, 0], [1, 1]], "7 apart in all, and not the one pair that is 1 apart"
    assert match(one, other, 3.9).tolist() == [[1, 0]]
    assert match(one, other, 0.5).tolist() == []
    assert match(one[:0], other, 4.0).shape == (0, 2)
    assert match(one, other[:0], 4.0).shape == (0, 2)


def test_scores_are_of_counts() -> None:
    mask = np.zeros((30, 30), dtype=np.int64)
    mask[2:5, 2:5], mask[10:21, 10:21], mask[25:28, 1:4] = 3, 9, 40
    found = np.array([[3.0, 3.4], [15.0, 15.0], [11.0, 11.0], [3.0, 20.0], [-2.0, 3.0]])
    one = score(found, mask, 2.0)
    assert one == Score(centres=5, cells=3, matches=2, inside=3)
    assert one.as_dict() == {
        "centres": 5,
        "cells": 3,
        "matches": 2,
        "precision": 2 / 5,
        "recall": 2 / 3,
        "f1": 4 / 8,
        "inside": 3 / 5,
    }
    both = total([one, Score(1, 5, 1, 1)])
    assert both == Score(6, 8, 3, 4)
    assert both.as_dict()["f1"] == 2 * 3 / 14, "of counts that are added, not a mean of shares"


def test_of_nothing_no_share_is_known() -> None:
    nothing = score(np.zeros((0, 2)), np.zeros((4, 4), dtype=np.int64), 6.0)
    assert nothing == Score(0, 0, 0, 0)
    assert {nothing.as_dict()[key] for key in ("precision", "recall", "f1", "inside")} == {None}
    assert nothing.in_words() == "0 centres, 0 cells, 0 matched: precision -, recall -, F1 -, inside a cell -"
    missed = score(np.zeros((0, 2)), np.ones((4, 4), dtype=np.int64), 6.0).as_dict()
    assert (missed["precision"], missed["recall"], missed["f1"]) == (None, 0.0, 0.0)
    assert total([]) == Score(0, 0, 0, 0)


def test_centroids_are_by_cell_and_not_by_region() -> None:
    mask = np.zeros((9, 9), dtype=np.int64)
    mask[0, 0] = mask[0, 8] = 5
    mask[4:6, 4:6] = 2
    assert centroids(mask).tolist() == [[4.5, 4.5], [0.0, 4.0]]
    assert centroids(np.zeros((3, 3), dtype=np.int64)).shape == (0, 2)


def test_a_mask_lies_on_the_input_as_its_image_does(tmp_path: Path) -> None:
    transform = {"resize": 40, "crop": 32, "interpolation": "bilinear", "antialias": True}
    mask = np.zeros((100, 130), dtype=np.int64)
    mask[30:60, 40:80], mask[62:80, 90:110] = 70_000, 12
    mask[0:4, 0:4] = 99  # is cropped
    Image.fromarray(np.repeat((mask[..., None] > 0) * np.uint8(255), 3, axis=2)).save(tmp_path / "image.png")
    seen = read_image(str(tmp_path / "image.png"), transform)[..., 0]
    own = mask_as_input(mask, record("image.png", (100, 130)), transform)
    assert own.shape == seen.shape == (32, 32)
    sure = (seen < 30) | (seen > 225)
    assert sure.mean() > 0.8
    assert np.array_equal(own[sure] > 0, seen[sure] > 127)
    assert len(regionprops(own)) == 2
    whole = mask_as_input(mask, record("image.png", (100, 130)), WHOLE)
    assert np.array_equal(whole > 0, mask > 0)
    assert np.unique(mask_as_input(np.full((4, 5), 2**40), record("image.png"), WHOLE)).tolist() == [1]
    with pytest.raises(ValueError, match="its mask is 130 x 100 and the image 130 x 101"):
        mask_as_input(mask, record("image.png", (101, 130)), WHOLE)


def test_masks_are_read_from_png_and_from_text(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 1, 0, 300], [0, 0, 2, 2, 2]])
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray((mask % 256).astype(np.uint8)).save(tmp_path / "eight.png")
    palette = Image.fromarray((mask % 256).astype(np.uint8), mode="L").convert("P")
    palette.putdata((mask % 256).ravel().tolist())
    palette.save(tmp_path / "palette.png")
    with gzip.open(tmp_path / "text.txt.gz", "wt") as file:
        file.write("5 2\n" + "\n".join(" ".join(map(str, row)) for row in mask))
    assert np.array_equal(read_mask(tmp_path / "sixteen.png"), mask)
    assert np.array_equal(read_mask(tmp_path / "eight.png"), mask % 256)
    assert np.array_equal(read_mask(tmp_path / "palette.png"), mask % 256)
    assert np.array_equal(read_mask(tmp_path / "text.txt.gz"), mask)


@pytest.mark.parametrize(
    "text", ["", "5", "5 2 1 2 3", "5 2 " + "x " * 10, "2 1 0 -4", "5 -1 0 0 0 0 0", "0 0", "a b 1"]
)
def test_broken_masks_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write(text)
    with pytest.raises(ValueError, match=r"broken\.txt\.gz is not a mask that can be read"):
        read_mask(path)


def test_files_that_are_no_masks_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "plain.txt.gz").write_text("1 1 0")
    with gzip.open(tmp_path / "whole.txt.gz", "wt") as file:
        file.write("100 100 " + "123 " * 10_000)
    (tmp_path / "cut.txt.gz").write_bytes((tmp_path / "whole.txt.gz").read_bytes()[:60])
    damaged = bytearray((tmp_path / "whole.txt.gz").read_bytes())
    damaged[20:60] = b"\xff" * 40
    (tmp_path / "damaged.txt.gz").write_bytes(damaged)
    (tmp_path / "binary.txt.gz").write_bytes(gzip.compress(b"\xff\xfe\x00"))
    for name, why in (
        ("colour.png", "pixels of mode RGB"),
        ("text.png", "not a mask"),
        ("plain.txt.gz", "not a mask"),
        ("cut.txt.gz", "not a mask"),
        ("damaged.txt.gz", "not a mask"),
        ("binary.txt.gz", "not a mask"),
    ):
        with pytest.raises(ValueError, match=why) as raised:
            read_mask(tmp_path / name)
        assert name in str(raised.value)


def test_a_mask_is_found_by_the_stem_and_is_never_the_image(tmp_path: Path) -> None:
    image = tmp_path / "a.b.png"
    Image.new("RGB", (5, 4)).save(image)
    assert find_mask(tmp_path, record(image)) is None
    (tmp_path / "a.b.txt.gz").touch()
    assert find_mask(tmp_path, record(image)) == tmp_path / "a.b.txt.gz"
    (tmp_path / "a.b_mask.png").touch()
    assert find_mask(tmp_path, record(image)) == tmp_path / "a.b_mask.png"
    other = tmp_path / "masks"
    other.mkdir()
    (other / "a.b.png").touch()
    assert find_mask(other, record(image)) == other / "a.b.png"
    assert find_mask(other, record(tmp_path / "gone" / "a.b.jpg")) == other / "a.b.png"


def test_one_mask_is_not_that_of_two_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    images = {0: record("x/a.jpg"), 2: record("x/b.jpg")}
    assert find_masks(tmp_path, images) == {0: tmp_path / "a.png"}
    with pytest.raises(ValueError, match=r"a\.png would be the mask of x/a\.jpg and of y/a\.jpg"):
        find_masks(tmp_path, images | {5: record("y/a.jpg")})
    with pytest.raises(ValueError, match=r"has no mask of any image: expected b_mask\.png"):
        find_masks(tmp_path, {2: images[2]})
    with pytest.raises(NotADirectoryError, match=r"a\.png is not a folder"):
        find_masks(tmp_path / "a.png", images)
    with pytest.raises(ValueError, match="it has no mask"):
        input_mask(None, images[2], WHOLE)


def test_a_plot_shows_medians_and_ranges_of_what_is_known(tmp_path: Path) -> None:
    none = {"precision": None, "recall": 0.0, "f1": 0.0}
    seeds = [{"precision": p, "recall": 0.5, "f1": 0.6} for p in (0.2, 0.8, 0.9)]
    ax = plot_detection({"relu1_1": [*seeds, none], "relu1_2": [none]})
    precision, recall, f1 = ax.get_lines()
    assert precision.get_ydata().tolist() == [0.8]
    assert recall.get_ydata().tolist() == [0.5, 0.0]
    assert np.allclose(f1.get_ydata(), [0.6, 0.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["relu1_1", "relu1_2"]
    first = ax.collections[0].get_segments()[0]
    assert np.allclose(first[:, 1], (0.2, 0.9))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["precision", "recall", "F1"]
    save(ax, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500
    assert plot_detection({}, ax=None).get_lines()[0].get_ydata().tolist() == []

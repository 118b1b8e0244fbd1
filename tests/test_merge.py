"""Merging: several stores become the one that a single extraction would have made, or nothing is written."""

import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command_line import MIXTURE, NETWORK, call, photographs
from test_store import features, layers
from test_verify import flip

from fastclust.merge import merge
from fastclust.store import LEFT_OUT, PENDING, ImageRecord, LayerRecord, open_store
from fastclust.verify import verify
from fastclust.writer import create_store

EXTRACT = (*NETWORK, "--layer", "1", "--layer", "classifier.1", "--batch-size", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with images in a and b, of the same names, their stores a.h5 and b.h5, and that of all (both.h5)."""
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "a", 3)
    photographs(folder / "b", 2)
    (folder / "b" / "text.png").write_text("no image")
    for images, name in ((["a"], "a.h5"), (["b"], "b.h5"), (["a", "b"], "both.h5")):
        result = call("extract", *[folder / one for one in images], *EXTRACT, "--out", folder / name)
        assert result.status == (0 if name == "a.h5" else 3)
    return folder


def test_the_merged_store_is_that_of_one_extraction(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.h5"
    result = call("merge", made / "a.h5", made / "b.h5", "--out", out)
    assert (result.status, result.err) == (0, "")
    assert result.out == f"{out}: 5 images and 1 left out, of 2 stores\n"
    merged, both = open_store(out), open_store(made / "both.h5")
    assert merged.provenance.pop("merged_from") == ["a.h5", "b.h5"]
    assert merged.provenance == both.provenance
    assert merged.images == both.images
    assert {image.name for image in merged.images} == {"a_0", "a_1", "b_0", "b_1", "2", "text"}
    for layer in both.layers:
        assert np.array_equal(np.concatenate(merged.rows(layer)), np.concatenate(both.rows(layer)))
        assert np.array_equal(merged.checksums[layer], both.checksums[layer])
        assert len(merged.rows(layer)) == 1, "one unbroken, mapped run"
    assert [path.name for path in tmp_path.iterdir()] == ["all.h5"]


def test_a_merged_store_serves_every_command(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.h5"
    assert call("merge", made / "a.h5", made / "b.h5", "--out", out).status == 0
    assert "5 images as they were written (0 pending, 1 left out)" in call("verify", out).out
    inspected = call("inspect", out).out
    assert "merged    from a.h5, b.h5" in inspected
    assert "checksums of each image's rows" in inspected
    for store, name in ((out, "merged"), (made / "both.h5", "both")):
        assert call("fit", store, "--layer", "1", *MIXTURE, "--out", tmp_path / f"{name}-model.h5").status == 0
        command = ("label", store, "--layer", "1", "--model", tmp_path / f"{name}-model.h5")
        assert call(*command, "--out", tmp_path / name).status == 0
    for png in (tmp_path / "both" / "labels").iterdir():
        assert (tmp_path / "merged" / "labels" / png.name).read_bytes() == png.read_bytes()
    before = out.read_bytes()
    flip(out, open_store(out).span("1", 4)[0])
    result = call("extract", made / "a", made / "b", *EXTRACT, "--resume", "--out", out)
    assert (result.status, verify(out).damaged) == (3, {})
    assert out.read_bytes() == before
    result = call("extract", made / "b", made / "a", *EXTRACT, "--resume", "--out", out)
    assert result.status == 1
    assert "cannot be resumed: its images or labels differ" in result.err


def store(path: Path, numbers: list[int], done: list[int], left_out: list[int], **more: Any) -> Path:
    """Write a store of the shapes of test_store's, of images /NUMBER.png with the features of those numbers."""
    about = {
        "model": "vgg16",
        "weights": "file",
        "weights_sha256": "12",
        "seed": 0,
        "layers": ["relu1_2", "a.fc"],
        "size": 8,
        "transform": {"crop": 8},
        **more,
    }
    dtype = about.setdefault("dtype", "float32")
    shapes = np.array([layers()[0].shapes[number] for number in numbers])
    table = [
        LayerRecord("relu1_2", about.pop("node", "features.3"), "conv", 7, shapes),
        LayerRecord("a.fc", "fc", "dense", 5, np.minimum(shapes, 1)),
    ]
    images = [ImageRecord(f"/{n}.png", f"{n}", f"label {n}", "g", (9, 9), (8, 8)) for n in numbers]
    images = [
        replace(image, state=LEFT_OUT, reason="not an image") if n in left_out else image
        for n, image in zip(numbers, images, strict=True)
    ]
    with create_store(path, images, table, dtype, about) as writer:
        for number in done:
            writer.write(numbers.index(number), features(number))
    return path


def test_pending_images_stay_behind_and_it_says_how_many(tmp_path: Path) -> None:
    one = store(tmp_path / "1.h5", [0, 1, 2], [1], [2])
    two = store(tmp_path / "2.h5", [4, 0, 3], [4, 0], [])  # 0 is pending in the first
    out = tmp_path / "all.h5"
    result = call("merge", one, two, "--out", out)
    assert result.out == f"{out}: 3 images and 1 left out, of 2 stores; 2 that are not extracted yet stayed behind\n"
    merged = open_store(out)
    assert [image.path for image in merged.images] == ["/1.png", "/2.png", "/4.png", "/0.png"]
    assert merged.images[1].reason == "not an image"
    assert [image.label for image in merged.images] == ["label 1", "label 2", "label 4", "label 0"]
    for place, number in ((0, 1), (2, 4), (3, 0)):
        for layer, value in features(number).items():
            assert np.array_equal(merged.image_rows(layer, place).ravel(), value.ravel())
    assert verify(out).damaged == {}
    with pytest.raises(ValueError, match="is extracted yet: nothing to merge"):
        merge([store(tmp_path / "3.h5", [0], [], []), store(tmp_path / "4.h5", [1], [], [])], tmp_path / "no.h5")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": "vgg19"}, "their model is 'vgg16' and 'vgg19'"),
        ({"weights_sha256": "34"}, "their weights_sha256 is '12' and '34'"),
        ({"layers": ["relu1_2"]}, r"their layers is \['relu1_2', 'a.fc'\] and \['relu1_2'\]"),
        ({"node": "features.4"}, r"their layer table is .*features\.3.*features\.4"),
        ({"size": 9}, "their size is 8 and 9"),
        ({"transform": {"crop": 9}}, r"their transform is \{'crop': 8\} and \{'crop': 9\}"),
        ({"dtype": "float16"}, "their dtype is 'float32' and 'float16'"),
        ({"weights": "random", "weights_sha256": ""}, "their weights_sha256 is '12' and ''"),
    ],
)
def test_stores_that_differ_are_refused_and_named(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    one, two = store(tmp_path / "1.h5", [0, 1], [0, 1], []), store(tmp_path / "2.h5", [3, 4], [3, 4], [], **more)
    with pytest.raises(ValueError, match=rf"1\.h5 and .*2\.h5 cannot be merged: {words}"):
        merge([one, two], tmp_path / "out.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.h5", "2.h5"]


def test_random_weights_of_another_seed_are_refused(tmp_path: Path) -> None:
    random = {"weights": "random", "weights_sha256": ""}
    one, two, three = (
        store(tmp_path / f"{n}.h5", [n], [n], [], seed=seed, **random) for n, seed in ((0, 1), (1, 1), (3, 2))
    )
    assert merge([one, two], tmp_path / "out.h5").done == 2
    with pytest.raises(ValueError, match="their seed is 1 and 2"):
        merge([one, two, three], tmp_path / "other.h5")


def test_what_cannot_be_merged_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    one, two = store(tmp_path / "1.h5", [0, 1], [0, 1], []), store(tmp_path / "2.h5", [3, 4], [3, 4], [])
    twice = store(tmp_path / "twice.h5", [4, 1], [4], [1])
    damaged = Path(shutil.copy(two, tmp_path / "damaged.h5"))
    flip(damaged, open_store(damaged).span("relu1_2", 1)[0] + 9)
    cut = Path(shutil.copy(two, tmp_path / "cut.h5"))
    os.truncate(cut, cut.stat().st_size - 1)
    (tmp_path / "text.h5").write_text("text")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    out = tmp_path / "out.h5"
    for words, stores, *more in (
        ("expected at least two stores to merge, got 1", [one]),
        (f"the image /1.png is in both {one} and {twice}", [one, twice]),
        (f"the image /0.png is in both {one} and {one}", [one, one]),
        (f"{damaged}: the rows of image /4.png at relu1_2 are not as they were written", [one, damaged]),
        (f"{cut} is cut short", [one, cut]),
        (f"{tmp_path / 'text.h5'} is not an HDF5 file", [one, tmp_path / "text.h5"]),
        (f"{tmp_path / 'no.h5'} does not exist", [one, tmp_path / "no.h5"]),
        (f"{two} is one of the stores to merge", [one, two], "--out", two, "--overwrite"),
        (f"{twice} exists", [one, two], "--out", twice),
        ("a file that fastclust did not write", [one, two], "--out", tmp_path / "text.h5", "--overwrite"),
        ("create it first", [one, two], "--out", tmp_path / "no" / "out.h5"),
        ("is a folder: name a file in it", [one, two], "--out", tmp_path),
    ):
        result = call("merge", *stores, *(more or ["--out", out]))
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1), result
        assert words in result.err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert call("merge", one, two, "--out", twice, "--overwrite").status == 0
    assert len(open_store(twice).finished) == 4
    with h5py.File(two, "r+") as file:
        file["images/state"][:] = PENDING
    assert merge([one, two], out).pending == 2


def test_large_stores_are_merged_with_flat_memory(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        layer = LayerRecord("1", "features.1", "conv", 100, np.array([[300, 200]]))
        image = ImageRecord(f"/{number}.png", f"{number}", "", "", (300, 200), (300, 200))
        paths.append(tmp_path / f"{number}.h5")
        with create_store(paths[-1], [image], [layer], "float32", {"layers": ["1"], "weights_sha256": "1"}) as writer:
            writer.write(0, {"1": np.full((300, 200, 100), number, dtype=np.float32)})
    tracemalloc.start()
    try:
        merge(paths, tmp_path / "all.h5")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000
    found = verify(tmp_path / "all.h5")
    assert (found.n_bytes, found.damaged) == (48_000_000, {})

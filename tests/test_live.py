"""Features that are computed on every pass: the bits of a store's, whatever the images, in any order of asking."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import SMALL, call, contents
from PIL import Image
from test_extract import photographs
from test_images import broken, photograph
from torchvision import models

from fastclust import decode, live
from fastclust.extract import extract
from fastclust.layer_fit import fit_layer
from fastclust.live import LiveStore, open_live
from fastclust.pipeline import run
from fastclust.store import DONE, LEFT_OUT, open_store

TWO: dict[str, Any] = {
    "model": "squeezenet1_1",
    "weights": "random",
    "layers": ["2", "12"],
    "size": 64,
    "batch_size": 3,
}
MIXTURE: dict[str, Any] = {"n_components": 6, "random_state": 0, "max_iter": 4, "tol": 0}


def cut_short(path: Path) -> None:
    """Write a photograph whose size can be read, and its pixels cannot."""
    Image.fromarray(photograph(70, 90, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photographs of three sizes, turn and turn about, one more that breaks off, and one that is none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(7):
        height, width = [(70, 90), (50, 40), (64, 64)][number % 3]
        Image.fromarray(photograph(height, width, number)).save(folder / f"{number}.png")
    cut_short(folder / "35.jpg")
    (folder / "5-no-image.png").write_text("no image")
    return folder


@pytest.mark.parametrize("size", [64, "full"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_fits_and_records_are_those_of_a_store(
    images: Path, tmp_path: Path, dtype: str, size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclust.blocks.READ_BYTES", 20_000)
    monkeypatch.setattr(live, "READ_BYTES", 20_000)
    options = {**TWO, "dtype": dtype, "size": size}
    extract([images], out=tmp_path / "f.h5", **options)
    store = open_store(tmp_path / "f.h5")
    with open_live([images], **options) as alive:
        assert alive.images == store.images
        assert [image.state for image in alive.images].count(LEFT_OUT) == 2
        assert alive.provenance == store.provenance
        for layer in TWO["layers"]:
            stored, computed = store.rows(layer), alive.rows(layer)
            assert [part.shape for part in stored] == [part.shape for part in computed]
            assert len(stored) == 2, "an image with rows in the file was left out"
            for one, other in zip(stored, computed, strict=True):
                assert other.dtype == dtype
                assert np.array_equal(one, other[: len(one)].numpy())
                for low, high in ((0, 0), (5, 5), (0, 1), (len(one) - 3, len(one)), (len(one) // 3, len(one) // 2)):
                    assert np.array_equal(one[low:high], other[low:high].numpy())
            for index in store.finished:
                assert np.array_equal(alive.image_rows(layer, index), store.image_rows(layer, index))
            (a, _), (b, _) = fit_layer([store], layer, MIXTURE), fit_layer([alive], layer, MIXTURE)
            assert a.source_ | {"rows": b.source_["rows"]} == b.source_
            assert (a.source_["rows"], b.source_["rows"]) == (store.fingerprint(layer), alive.fingerprint(layer))
            assert np.array_equal(a.means_, b.means_) and np.array_equal(a.covariances_, b.covariances_)
            assert a.lower_bounds_ == b.lower_bounds_
            assert np.array_equal(a.counts_, b.counts_)
        left = next(index for index, image in enumerate(alive.images) if image.state == LEFT_OUT)
        with pytest.raises(ValueError, match=r"35\.jpg was left out"):
            alive.image_rows("2", left)


def opened(folder: Path, **options: Any) -> LiveStore:
    return open_live([folder], **{**TWO, **options})


def test_a_pass_computes_each_batch_once_and_labelling_too(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 7)
    with opened(folder) as alive:
        assert alive.report.streamed == 0, "nothing is computed before it is asked for"
        (part,) = alive.rows("2")
        for low, high in zip(part.bounds[:-1], part.bounds[1:], strict=True):
            part[low:high]
        assert alive.report.streamed == 7
        for index in alive.finished:
            alive.image_rows("2", index)
        assert alive.report.streamed == 14, "a batch is computed once for all of its images"
        assert set(alive._features["2"]._computed) == {2}, "and then let go"
        assert alive.report.shares["model"] > 0 and alive.report.rates["images_per_second"] > 0


def test_batches_to_come_are_decoded_ahead_round_and_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEPT_BYTES", 0)
    with opened(photographs(tmp_path / "a", 5), batch_size=1) as alive:
        asked = list[str]()
        submit = alive._decoder.submit
        monkeypatch.setattr(alive._decoder, "submit", lambda image: asked.append(image.name) or submit(image))
        (part,) = alive.rows("12")
        n = len(part) // 5
        part[0:n]
        assert asked == ["02"], "0 and 1 were asked for when the last was opened"
        part[n : 2 * n]
        part[4 * n : 5 * n]
        assert asked == ["02", "03", "04", "00", "01"]
        part[0:n]
        assert asked[5:] == ["02"]


def test_rows_between_bounds_are_a_part_with_a_fingerprint_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "READ_BYTES", 10_000)
    with opened(photographs(tmp_path / "a", 5)) as alive:
        (part,) = alive.rows("2")
        low, high = int(part.bounds[1]), int(part.bounds[-2])
        assert 0 < low < high < len(part)
        some = part.between(low, high)
        assert np.array_equal(some.bounds, part.bounds[1:-1] - low)
        assert torch.equal(some[: len(some)], part[low:high])
        assert torch.equal(some[3:9], part[low + 3 : low + 9])
        assert some.fingerprint != part.fingerprint
        assert (
            some.between(0, int(some.bounds[1])).fingerprint == part.between(low, low + int(some.bounds[1])).fingerprint
        )
        with pytest.raises(ValueError, match="step 1, got 2"):
            part[::2]


def test_the_fingerprint_tells_images_weights_and_layers(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 3)

    def prints(**options: Any) -> list[str]:
        with opened(folder, **options) as alive:
            return [alive.rows(layer)[0].fingerprint for layer in alive.layers]

    first = prints()
    assert prints() == first
    others = [*first, *prints(seed=1), *prints(dtype="float32"), *prints(batch_size=2), *prints(size=65)]
    os.utime(folder / "01.png", (1, 1))
    others += prints()
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(models.squeezenet1_1(weights=None).state_dict(), tmp_path / f"{seed}.pth")
        others += prints(weights=tmp_path / f"{seed}.pth")
    assert len(set(others)) == len(others) == 16


@pytest.mark.parametrize("change", ["removed", "broken", "other"])
def test_an_image_that_changes_meanwhile_is_named(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEPT_BYTES", 0)
    monkeypatch.setattr(decode, "AHEAD", 0)
    folder = photographs(tmp_path / "a", 4)
    with opened(folder) as alive:
        path = folder / "03.png"
        if change == "removed":
            path.unlink()
        elif change == "broken":
            path.write_bytes(path.read_bytes()[:200])
        else:
            Image.fromarray(photograph(70, 90, 9)).save(path)
        with pytest.raises(RuntimeError, match=r"03\.png is not what it was when this began: .*store the features"):
            fit_layer([alive], "2", MIXTURE)


def test_values_that_the_dtype_cannot_hold_are_named(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 2)
    torch.manual_seed(0)
    state = models.squeezenet1_1(weights=None).state_dict()
    state["features.0.weight"] *= 1e6
    torch.save(state, tmp_path / "w.pth")
    options = {"weights": tmp_path / "w.pth", "layers": ["1"]}
    with opened(folder, **options) as alive, pytest.raises(ValueError, match=r"layer 1, image .*png.*--dtype float32"):
        alive.image_rows("1", 0)
    with opened(folder, dtype="float32", **options) as alive:
        assert alive.image_rows("1", 0).max() > 65504


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    cut_short(tmp_path / "00.jpg")
    with pytest.raises(ValueError, match=r"none of the 1 images could be used; .*00\.jpg: image file is truncated"):
        opened(tmp_path)


def test_a_run_without_a_store_gives_what_a_run_gives(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", 5)
    broken(folder)
    cut_short(folder / "35.jpg")
    command = ["run", folder, *SMALL, "--layer", "features.12", "--batch-size", "2"]
    stored = call(*command, "--out", tmp_path / "stored")
    bare = call(*command, "--out", tmp_path / "bare", "--no-store")
    assert (stored.status, bare.status) == (3, 3)
    assert stored.err == bare.err
    assert bare.out.endswith("montage.png; no features are stored\n")
    assert bare.out.splitlines()[:-1] == stored.out.splitlines()[:-1]
    with_store, without = contents(tmp_path / "stored"), contents(tmp_path / "bare")
    assert set(with_store) - set(without) == {"features.h5"}
    assert without.keys() <= with_store.keys()
    for name, content in without.items():
        if name.endswith(".png"):
            assert content == with_store[name], name
    a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("stored", "bare"))
    assert (a.pop("stored"), b.pop("stored")) == (True, False)
    assert b["shares_of_extraction"]["disk"] == 0 and b["rates_of_extraction"]["images_per_second"] > 0
    for one in (a, b):
        for name in ("seconds", "seconds_of_extraction", "rates_of_extraction", "shares_of_extraction"):
            assert all(value >= 0 for value in one.pop(name).values())
        for layer in one["layers"].values():
            layer.pop("seconds")
        one.pop("peak_memory_bytes"), one.pop("machine")
    assert a == b
    refused = call(*command, "--out", tmp_path / "bare", "--no-store", "--resume")
    assert refused.status == 1 and "--resume goes on with a store, and --no-store keeps none" in refused.err
    replaced = call(*command[:-2], "--out", tmp_path / "stored", "--no-store", "--overwrite")
    assert replaced.status == 3
    assert not (tmp_path / "stored" / "features.h5").exists()
    single = call("run", folder, *SMALL, "--out", tmp_path / "bare", "--no-store", "--overwrite")
    assert single.status == 3
    assert not (tmp_path / "bare" / "features.12").exists(), "layers of the earlier run go"


def test_memory_of_images_that_alternate_is_bounded(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(images, size="full") as alive:
        expected = [alive.image_rows("2", index) for index in alive.finished]
    monkeypatch.setattr(live, "OPEN_BYTES", 1)
    with opened(images, size="full") as alive:
        for index, rows in zip(alive.finished, expected, strict=True):
            assert np.array_equal(alive.image_rows("2", index), rows)
            assert len(alive._features["2"]._computed) == 1


def test_a_run_refuses_both_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        run([], out=tmp_path, layers=["1"], extraction={}, mixture={}, resume=True, no_store=True)
    assert DONE != LEFT_OUT

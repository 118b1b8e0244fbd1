"""Extraction: images to rows, whatever the images are; stopped at any moment and resumed; refused before it harms."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_images import broken, photograph
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from fastclust.extract import extract, input_image
from fastclust.store import DONE, LEFT_OUT, open_store

DATA = os.environ.get("FASTCLUST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="FASTCLUST_DATA names no folder of real weights and images")
SQUEEZE: dict[str, Any] = {"model": "squeezenet1_1", "weights": "random", "layers": ["2", "classifier.1"], "size": 64}


def photographs(folder: Path, count: int = 5, height: int = 70, width: int = 90) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photograph(height, width, number)).save(folder / f"{number:02}.png")
    return folder


def test_rows_are_the_networks_values_pixel_by_pixel(tmp_path: Path) -> None:
    folder, out = photographs(tmp_path / "tissue"), tmp_path / "f.h5"
    seen: list[tuple[int, int]] = []
    layers = ["layer1.0.conv1", "2", "layer2", "flatten"]
    report = extract(
        [folder],
        out=out,
        model="resnet18",
        weights="random",
        layers=layers,
        size=64,
        dtype="float32",
        batch_size=2,
        seed=4,
        progress=lambda done, total, rate: seen.append((done, total)),
    )
    assert (report.done, report.resumed, report.left_out) == (5, 0, [])
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert all(seconds > 0 for seconds in report.seconds.values())
    store = open_store(out)
    assert [(image.name, image.label, image.size, image.input_size) for image in store.images[:1]] == [
        ("00", "tissue", (70, 90), (64, 64))
    ]
    assert list(store.layers) == layers
    assert [layer.kind for layer in store.layers.values()] == ["conv", "conv", "conv", "dense"]
    torch.manual_seed(4)
    whole = models.resnet18(weights=None).eval()
    nodes = {"layer1.0.bn1": "conv", "layer1.0.relu": "2", "layer2.1.relu_1": "layer2", "flatten": "flatten"}
    extractor = create_feature_extractor(whole, nodes, suppress_diff_warning=True)
    for index, image in enumerate(store.images):
        pixels = torch.from_numpy(input_image(image, store.provenance)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(store.provenance["transform"][key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            expected = extractor(((pixels - mean) / std)[None])
        for layer in ("2", "layer2"):
            rows = store.image_rows(layer, index)
            assert np.allclose(rows, expected[layer][0].permute(1, 2, 0), atol=1e-4)
        assert np.allclose(store.image_rows("flatten", index).ravel(), expected["flatten"][0], atol=1e-4)
        assert store.image_rows("layer1.0.conv1", index).min() < 0, "taken before the activation in place"
    assert store.rows("layer2")[0].shape == (5 * 8 * 8, 128)
    assert store.provenance["weights"] == "random"
    assert store.provenance["versions"]["torch"]


def test_full_size_gives_each_image_its_own_shape(tmp_path: Path) -> None:
    photographs(tmp_path / "a", 3, 70, 90)
    photographs(tmp_path / "b", 2, 50, 40)
    photographs(tmp_path / "c", 1, 4, 4)
    found = [tmp_path / name for name in ("a/00.png", "b/00.png", "a/01.png", "c/00.png", "b/01.png", "a/02.png")]
    options = {**SQUEEZE, "size": "full", "layers": ["1", "12"], "dtype": "float32"}
    report = extract(found, out=tmp_path / "f.h5", batch_size=2, **options)
    assert report.done == 5
    ((path, reason),) = report.left_out
    assert path.endswith("c/00.png")
    assert "squeezenet1_1 cannot take 4 x 4 pixels" in reason
    store = open_store(tmp_path / "f.h5")
    assert [tuple(shape) for shape in store.layers["1"].shapes] == [
        (34, 44),
        (24, 19),
        (34, 44),
        (0, 0),
        (24, 19),
        (34, 44),
    ]
    assert store.images[1].input_size == (50, 40)
    assert store.images[3].state == LEFT_OUT
    for index in (0, 1, 2, 4, 5):
        extract([found[index]], out=tmp_path / "one.h5", overwrite=True, **options)
        alone = open_store(tmp_path / "one.h5")
        for layer in store.layers:
            assert np.allclose(store.image_rows(layer, index), alone.image_rows(layer, 0), atol=1e-5)


def test_a_network_of_one_input_size_says_so(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 1)
    vit: dict[str, Any] = {"model": "vit_b_32", "weights": "random", "layers": ["conv_proj", "getitem_5"]}
    with pytest.raises(ValueError, match=r"none of the 1 images can be used; .*00.png: vit_b_32 cannot take 70 x 90"):
        extract([folder], out=tmp_path / "f.h5", size="full", **vit)
    extract([folder], out=tmp_path / "f.h5", size=64, **vit)
    assert open_store(tmp_path / "f.h5").layers["conv_proj"].shapes.tolist() == [[2, 2]]


def test_images_that_are_broken_are_left_out_and_named(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 3)
    bad = [str(path) for path in broken(folder) if path.stem in ("cut", "text", "empty")]
    report = extract([folder], out=tmp_path / "f.h5", **SQUEEZE)
    assert report.done == 3
    assert [path for path, _ in report.left_out] == sorted(bad)
    assert all(reason and "\n" not in reason for _, reason in report.left_out)
    store = open_store(tmp_path / "f.h5")
    assert [image.state for image in store.images] == [DONE] * 3 + [LEFT_OUT] * 4
    assert [(image.path, image.reason) for image in store.images if image.state == LEFT_OUT] == report.left_out
    extract([folder / f"0{n}.png" for n in range(3)], out=tmp_path / "good.h5", **SQUEEZE)
    good = open_store(tmp_path / "good.h5")
    assert np.array_equal(np.concatenate(store.rows("2")), np.concatenate(good.rows("2")))


def test_only_broken_images_are_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    bad = broken(tmp_path / "a")
    for images in ([path for path in bad if path.stem == "text"], [path for path in bad if path.stem == "cut"]):
        with pytest.raises(ValueError, match=r"none of the \d images (can|could) be used; .*(text|cut)\."):
            extract(images, out=tmp_path / "f.h5", **SQUEEZE)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_ctrl_c_keeps_what_is_done_and_resuming_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 7)
    options: dict[str, Any] = {**SQUEEZE, "dtype": "float32", "batch_size": 2}

    def interrupt(done: int, total: int, rate: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    extract([folder], out=tmp_path / "whole.h5", **options)
    with pytest.raises(KeyboardInterrupt):
        extract([folder], out=tmp_path / "f.h5", progress=interrupt, **options)
    assert len(open_store(tmp_path / "f.h5").finished) == 4
    report = extract([folder], out=tmp_path / "f.h5", resume=True, **options)
    assert (report.done, report.resumed) == (7, 4)
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    again = extract([folder], out=tmp_path / "f.h5", resume=True, **options)
    assert (again.done, again.resumed, again.seconds["forward"]) == (7, 7, 0)


def test_resuming_refuses_what_differs_and_changes_nothing(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 3)
    out = tmp_path / "f.h5"
    extract([folder], out=out, **SQUEEZE)
    before = out.read_bytes()
    other: list[tuple[dict[str, Any], str]] = [
        ({"model": "squeezenet1_0", "layers": ["2"]}, "its model is 'squeezenet1_1', now 'squeezenet1_0'"),
        ({"layers": ["3", "classifier.1"]}, "its layers is .*'2'.*, now .*'3'"),
        ({"size": 65}, "its size is 64, now 65"),
        ({"size": "full"}, "its size is 64, now 'full'"),
        ({"dtype": "float32"}, "its dtype is 'float16', now 'float32'"),
        ({"seed": 1}, "its seed is 0, now 1"),
        ({"batch_size": 2}, "its batch_size is 8, now 2"),
    ]
    for options, words in other:
        with pytest.raises(ValueError, match=f"cannot be resumed: {words}"):
            extract([folder], out=out, resume=True, **{**SQUEEZE, **options})
    photographs(folder, 4)
    with pytest.raises(ValueError, match=r"images or labels differ: 3 images are now 4"):
        extract([folder], out=out, resume=True, **SQUEEZE)
    with pytest.raises(ValueError, match=r"images or labels differ: .*00\.png.* is now .*01\.png"):
        extract([folder / "01.png"], out=out, resume=True, **SQUEEZE)
    assert out.read_bytes() == before


def test_another_file_of_weights_is_not_resumed(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 1)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(models.squeezenet1_1(weights=None).state_dict(), tmp_path / f"{seed}.pth")
    extract([folder], out=tmp_path / "f.h5", **{**SQUEEZE, "weights": tmp_path / "0.pth"})
    with pytest.raises(ValueError, match="its weights_sha256 is"):
        extract([folder], out=tmp_path / "f.h5", resume=True, **{**SQUEEZE, "weights": tmp_path / "1.pth"})
    shutil.copy(tmp_path / "0.pth", tmp_path / "copy.pth")
    extract([folder], out=tmp_path / "f.h5", resume=True, **{**SQUEEZE, "weights": tmp_path / "copy.pth"})


def test_bad_input_leaves_an_existing_store_as_it_was(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 1)
    out = tmp_path / "f.h5"
    extract([folder], out=out, **SQUEEZE)
    before = out.read_bytes()
    (tmp_path / "bad.pth").write_text("no weights")
    (tmp_path / "empty").mkdir()
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"overwrite": False}, FileExistsError, "--resume continues it, --overwrite replaces it"),
        ({"resume": True}, ValueError, "give one of them"),
        ({"layers": ["relu9"]}, ValueError, "has no layer 'relu9'"),
        ({"layers": []}, ValueError, "at least one layer"),
        ({"layers": "2"}, ValueError, "expected a list"),
        ({"model": "squeeze"}, ValueError, "did you mean squeezenet"),
        ({"weights": tmp_path / "bad.pth"}, ValueError, "not a file of plain weights"),
        ({"weights": "nowhere.pth"}, FileNotFoundError, "nowhere.pth is not a file"),
        ({"images": [tmp_path / "nowhere"]}, FileNotFoundError, "nowhere does not exist"),
        ({"images": [tmp_path / "empty"]}, ValueError, "no image in"),
        ({"labels": tmp_path / "none.csv"}, FileNotFoundError, "columns path, label"),
        ({"size": 0}, ValueError, "size 0: expected a number of pixels, or full"),
        ({"size": "large"}, ValueError, "size 'large'"),
        ({"size": 4}, ValueError, "cannot take 4 x 4 pixels"),
        ({"dtype": "bfloat16"}, ValueError, "expected float16 or float32"),
        ({"batch_size": 0}, ValueError, "batch size 0"),
        ({"device": "meta"}, ValueError, "device 'meta' cannot be used here"),
        ({"device": "quantum"}, ValueError, "device 'quantum' cannot be used here"),
        ({"out": tmp_path}, IsADirectoryError, "is a folder"),
        ({"out": tmp_path / "no" / "f.h5"}, FileNotFoundError, "create it first"),
    ]
    for options, error, words in bad:
        with pytest.raises(error, match=words) as caught:
            extract(**{"images": [folder], "out": out, "overwrite": True, **SQUEEZE, **options})
        assert "\n" not in str(caught.value)
        assert out.read_bytes() == before, options
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bad.pth", "empty", "f.h5"]
    extract([folder], out=out, overwrite=True, **{**SQUEEZE, "seed": 1})
    assert open_store(out).provenance["seed"] == 1


def test_features_beyond_float16_stop_with_the_layer_and_the_image(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "a", 3)
    torch.manual_seed(0)
    state = models.squeezenet1_1(weights=None).state_dict()
    state["features.0.weight"] *= 1e6
    torch.save(state, tmp_path / "w.pth")
    options = {**SQUEEZE, "weights": tmp_path / "w.pth", "layers": ["1"]}
    with pytest.raises(ValueError, match=r"layer 1, image .*00\.png: a feature is .*--dtype float32"):
        extract([folder], out=tmp_path / "f.h5", **options)
    assert len(open_store(tmp_path / "f.h5").finished) == 0
    report = extract([folder], out=tmp_path / "f.h5", overwrite=True, **{**options, "dtype": "float32"})
    assert report.done == 3


def test_labels_and_names_reach_the_store(tmp_path: Path) -> None:
    photographs(tmp_path / "a", 1)
    photographs(tmp_path / "b", 1)
    (tmp_path / "l.csv").write_text("path,label,group\na/00.png,benign,p1\nb/00.png,malign,p2\n")
    extract([tmp_path / "a", tmp_path / "b"], out=tmp_path / "f.h5", labels=tmp_path / "l.csv", **SQUEEZE)
    images = open_store(tmp_path / "f.h5").images
    assert [(image.name, image.label, image.group) for image in images] == [
        ("a_00", "benign", "p1"),
        ("b_00", "malign", "p2"),
    ]


def test_grey_colour_and_alpha_in_one_batch(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for mode in ("L", "RGBA", "P", "RGB"):
        Image.fromarray(photograph()).convert("L").convert(mode).save(folder / f"{mode}.png")
    Image.fromarray(np.array(Image.open(folder / "L.png")).astype(np.uint16) * 257).save(folder / "I16.png")
    assert extract([folder], out=tmp_path / "f.h5", **SQUEEZE).done == 5
    store = open_store(tmp_path / "f.h5")
    first = store.image_rows("2", 0)
    for index in range(1, 5):
        assert np.array_equal(store.image_rows("2", index), first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_killed_at_twenty_moments_the_store_opens_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    photographs(tmp_path / "images", 14)
    broken(tmp_path / "images")
    script = Path(__file__).parent / "kill_extraction.py"
    run = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    done = json.loads(run.stdout)
    assert len(done) == 20
    assert sum(0 < images < 14 for images in done) >= 6, f"too few kills came in the middle: {done}"


@needs_data
def test_real_weights_that_cover_a_part_of_the_model(tmp_path: Path) -> None:
    data = Path(str(DATA))
    weights = data / "weights" / "vgg19_conv1_1-conv3_1.pth"
    tiles = [data / "images" / "histology" / f"image{number}.png" for number in ("01", "08")]
    options: dict[str, Any] = {"model": "vgg19", "weights": weights, "size": 96}
    extract(tiles, out=tmp_path / "f.h5", layers=["conv1_2", "relu1_2", "relu2_2", "conv3_1"], **options)
    store = open_store(tmp_path / "f.h5")
    before, after = (np.concatenate(store.rows(layer)) for layer in ("conv1_2", "relu1_2"))
    assert before.min() < 0
    assert np.array_equal(np.maximum(before, 0), after)
    assert 0.1 < (after == 0).mean() < 0.9
    assert store.provenance["weights_sha256"].startswith("dc37389c")
    with pytest.raises(ValueError, match=r"misses 2 of the 12 tensors .*features\.12\.weight, features\.12\.bias"):
        extract(tiles, out=tmp_path / "g.h5", layers=["relu3_2"], **options)
    cifar = data / "weights" / "cifar10_resnet20.pth"
    with pytest.raises(ValueError, match=r"another model: conv1\.weight is \(16, 3, 3, 3\)"):
        extract(tiles, out=tmp_path / "g.h5", model="resnet18", weights=cifar, layers=["2"])
    assert not (tmp_path / "g.h5").exists()

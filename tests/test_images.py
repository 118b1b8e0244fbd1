"""Image files: every kind becomes upright RGB, names cannot escape or clash, labels come from where they are said."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import models, transforms

from fastclust.images import (
    NAME_BYTES,
    RESERVED,
    find_images,
    read_labels,
    safe_names,
)
from fastclust.plan import make_transform
from fastclust.reader import UNREADABLE, fit, image_size, read_image

FULL: dict[str, Any] = {"resize": None, "crop": None}


def photograph(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photograph()).convert(mode)
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    image.save(path)
    read = read_image(path, FULL)
    assert (read.shape, read.dtype) == ((40, 60, 3), np.uint8)
    tolerance = 5 if path.suffix == ".jpg" else 0
    assert np.abs(read.astype(int) - np.array(image.convert("RGB")).astype(int)).mean() <= tolerance


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, kind: str) -> None:
    values = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    path = tmp_path / f"x.{kind}"
    Image.fromarray(values).save(path)
    read = read_image(path, FULL)
    assert np.array_equal(read[..., 0], np.round(values / 257).astype(np.uint8))
    assert len(np.unique(read)) == 256


def test_values_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 10**6, dtype=np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        with pytest.raises(ValueError, match="expected 8 or 16 bits a channel"):
            read_image(tmp_path / name, FULL)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(photograph())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    read = read_image(tmp_path / "x.png", FULL)
    assert read.shape[:2] == image_size(tmp_path / "x.png") == ((60, 40) if orientation > 4 else (40, 60))
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation](photograph())
    assert np.array_equal(read, turned)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 60), (61, 40), (7, 100), (300, 19), (10, 160), (10, 161), (5000, 1), (3, 700)])
def test_pixels_are_torchvisions_and_no_more_are_made_than_are_kept(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8))
    made, resize = list[int](), Image.Image.resize

    def watched(image: Image.Image, to: tuple[int, int], *given: Any) -> Image.Image:
        made.append(to[0] * to[1])
        return resize(image, to, *given)

    for side, crop in ((73, 64), (64, 64)):
        monkeypatch.setattr(Image.Image, "resize", watched)
        found = np.asarray(fit(noise, {"resize": side, "crop": crop}, interpolation)).astype(int)
        monkeypatch.undo()
        how = transforms.InterpolationMode(interpolation)
        whole = transforms.Compose([transforms.Resize(side, how), transforms.CenterCrop(crop)])(noise)
        off = np.abs(found - np.asarray(whole)).max()
        assert off == 0 if max(size) <= 16 * min(size) else off <= 2
    assert max(made) <= max(73 * 73 * 17, 73 * max(size))


def broken(folder: Path) -> list[Path]:
    """Files that are no images, in several ways."""
    Image.fromarray(photograph(200, 200)).save(folder / "whole.jpg")
    Image.fromarray(photograph(200, 200)).save(folder / "whole.png")
    for kind in ("jpg", "png"):
        whole = (folder / f"whole.{kind}").read_bytes()
        (folder / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
        (folder / f"whole.{kind}").unlink()
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    return sorted(folder.iterdir())


def test_broken_files_raise_what_is_caught(tmp_path: Path) -> None:
    for path in broken(tmp_path):
        with pytest.raises(UNREADABLE):
            read_image(path, FULL)


@pytest.mark.parametrize(("model", "size"), [("vgg16", 224), ("resnet50", 224), ("efficientnet_b0", 96), ("vgg16", 64)])
def test_the_transform_is_the_weights_own(tmp_path: Path, model: str, size: int) -> None:
    Image.fromarray(photograph(300, 401)).save(tmp_path / "x.png")
    transform = make_transform(model, size)
    own = models.get_model_weights(model).DEFAULT.transforms()
    if size != own.crop_size[0]:
        own = type(own)(
            crop_size=size,
            resize_size=round(size * own.resize_size[0] / own.crop_size[0]),
            interpolation=own.interpolation,
        )
    expected = own(Image.open(tmp_path / "x.png"))
    read = transforms.functional.to_tensor(read_image(tmp_path / "x.png", transform))
    normalised = transforms.functional.normalize(read, transform["mean"], transform["std"])
    assert np.allclose(normalised, expected, atol=1e-6)


def test_images_are_found_sorted_once_and_by_suffix(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a/deep/x.tiff", "a/notes.txt", ".hidden/y.png", "._z.png", "raw.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_images([tmp_path, tmp_path / "b", tmp_path / "raw.dat"])]
    assert names == ["a/deep/x.tiff", "b/1.JPG", "b/2.png", "raw.dat"]
    with pytest.raises(FileNotFoundError, match=r"missing does not exist"):
        find_images([tmp_path / "b", tmp_path / "missing"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*none: expected files that end in \.bmp"):
        find_images([tmp_path / "none"])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/a/x.png", "/d/b/x.png", "/d/b/y.png"], ["a_x", "b_x", "y"]),
        (["/d/a/x.png", "/d/a/x.jpg", "/d/a/X.gif"], ["a_x", "a_x-2", "a_X-3"]),
        (["/d/q/../x.png"], ["x"]),
        (["/d/new\nline.png", "/d/.hidden.png", "/d/-rf.png"], ["new_line", "hidden", "rf"]),
        (["/d/con.png", "/d/COM1.x.png"], ["_con", "_COM1.x"]),
        (["/d/....png", "/d/ä ö.png"], ["image", "ä_ö"]),
        (["/d/a/x.png", "/d/b/x.png", "/d/c/a_x.png"], ["a_x", "b_x", "a_x-2"]),
        (["/e/s/x.png", "/f/s/x.png", "/d/t/s_x-2.png"], ["s_x", "s_x-3", "s_x-2"]),
    ],
)
def test_names_are_safe_and_do_not_clash(paths: list[str], names: list[str]) -> None:
    assert safe_names(paths) == names


@given(st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=12))
def test_any_path_gives_a_safe_unique_name(stems: list[str]) -> None:
    paths = [f"/{stem}.png" for stem in stems] + [f"/other/{stem}.jpg" for stem in stems]
    paths = [path.replace("\0", "") for path in paths]
    names = safe_names(paths)
    assert names == safe_names(paths)
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name not in ("", ".", "..")
        assert len(name.encode()) <= NAME_BYTES + 8
        assert name[0] not in ".-"
        assert name[-1] not in ". "
        assert not set(name) & set('/\\:*?"<>|\n\r\t')
        assert all(ord(sign) >= 32 for sign in name)
        assert name.split(".")[0].lower() not in RESERVED


def test_labels_are_folders_or_rows_of_a_table(tmp_path: Path) -> None:
    images = [tmp_path / "cat" / "1.png", tmp_path / "dog" / "1.png"]
    assert read_labels(images, None) == [("cat", ""), ("dog", "")]
    table = tmp_path / "labels.csv"
    table.write_text("\ufefflabel,path,group\nfeline,cat/1.png,g1\ncanine," + str(images[1]) + ",\nother,9.png,\n")
    assert read_labels(images, table) == [("feline", "g1"), ("canine", "")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\ncat/1.png,a\n", r"no row for 1 of 2 images: .*dog/1\.png"),
        ("path,label\n1.png,a\n", r"the row 1\.png fits .*cat/1\.png and .*dog/1\.png"),
        ("path,label\n1.png,a\n1.png,b\n", "two different labels"),
        ("file,label\n1.png,a\n", "has the columns file, label: expected path, label"),
        ("", "expected path, label"),
        (b"\xff\xfe\x00path", "not a CSV file in UTF-8"),
    ],
)
def test_tables_that_do_not_say_are_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        read_labels([tmp_path / "cat" / "1.png", tmp_path / "dog" / "1.png"], tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match="columns path, label"):
        read_labels([], tmp_path / "none.csv")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are a Unix matter")
def test_a_name_that_is_not_utf8_is_safe(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    Image.fromarray(photograph()).save(path)
    (found,) = find_images([tmp_path])
    (name,) = safe_names([found])
    name.encode("utf-8")
    assert read_image(found, FULL).shape == (40, 60, 3)

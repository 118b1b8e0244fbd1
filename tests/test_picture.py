"""Label images that read back as what was written, and montages that no size or name can break."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from fastclust import picture
from fastclust.picture import Column, enlarge, label_png, montage, paint

HOSTILE = [
    "a\nb\tc\x00\x1b[31m",
    "\u202eexe.gnp",
    "x" * 300,
    "<script>alert('1')</script>",
    "组织切片 تصوير 🙂",
    "Zoë\u2013Müller",
    "",
    " ",
    "\u0301" * 50,
]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, 17, 50, 255, 256])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_pixels_of_a_label_png_are_the_labels(k: int, dtype: type, tmp_path: Path) -> None:
    labels = np.random.default_rng(k).integers(0, k, size=(13, 17)).astype(dtype)
    colours = noise(k, 3)
    label_png(tmp_path / "one.png", labels, colours)
    with Image.open(tmp_path / "one.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), paint(labels, colours))


def test_a_label_png_of_more_than_256_colours_is_plain(tmp_path: Path) -> None:
    labels, colours = np.arange(300).reshape(15, 20), noise(300, 3)
    label_png(tmp_path / "one.png", labels, colours)
    with Image.open(tmp_path / "one.png") as image:
        np.testing.assert_array_equal(np.asarray(image), colours[labels])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("n" * 250 + ".png")
    label_png(path, np.zeros((2, 2), int), noise(1, 3))
    old = path.read_bytes()

    def fail(self: Image.Image, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        label_png(path, np.ones((2, 2), int), noise(2, 3))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("labels", "colours"),
    [
        (np.array([[-1]]), noise(2, 3)),
        (np.array([[2]]), noise(2, 3)),
        (np.array([[0.5]]), noise(2, 3)),
        (np.array([0]), noise(2, 3)),
        (np.zeros((0, 3), int), noise(2, 3)),
        (np.array([[0]]), noise(2, 4)),
        (np.array([[0]]), np.ones((2, 3))),
    ],
    ids=["negative", "no colour", "fraction", "flat", "empty", "four channels", "float colours"],
)
def test_labels_that_cannot_be_painted_are_refused(labels: np.ndarray, colours: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        paint(labels, colours)
    with pytest.raises(ValueError, match="expected"):
        label_png(tmp_path / "one.png", labels, colours)
    assert not list(tmp_path.iterdir())


@given(h=st.integers(1, 9), w=st.integers(1, 9), n=st.integers(1, 7), m=st.integers(1, 7))
def test_enlarging_by_whole_numbers_repeats_pixels(h: int, w: int, n: int, m: int) -> None:
    labels = np.arange(h * w).reshape(h, w)
    np.testing.assert_array_equal(enlarge(labels, (n * h, m * w)), labels.repeat(n, axis=0).repeat(m, axis=1))


@given(h=st.integers(1, 40), to=st.integers(1, 90))
def test_enlarging_takes_the_pixel_under_the_centre(h: int, to: int) -> None:
    got = enlarge(np.arange(h)[:, None], (to, 1))[:, 0]
    centres = (np.arange(to) + 0.5) * h / to
    assert (np.abs(got + 0.5 - centres) <= 0.5 + 1e-9).all()
    if to >= h:
        assert set(got) == set(range(h))
    np.testing.assert_array_equal(enlarge(np.arange(h)[:, None], (h, 1))[:, 0], np.arange(h))


def test_enlarging_refuses_an_empty_size() -> None:
    with pytest.raises(ValueError, match="at least"):
        enlarge(np.zeros((2, 2), int), (0, 4))


def find(page: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """Where an image stands on a page; it must stand there once and untouched."""
    h, w = image.shape[:2]
    corners = np.argwhere((page[: page.shape[0] - h + 1, : page.shape[1] - w + 1] == image[0, 0]).all(axis=-1))
    places = [(y, x) for y, x in corners if np.array_equal(page[y : y + h, x : x + w], image)]
    assert len(places) == 1
    return int(places[0][0]), int(places[0][1])


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_reaches_an_image(name: str) -> None:
    inputs = [noise(224, 224, 3, seed=seed) for seed in range(2)]
    columns = [Column(name, [noise(224, 224, 3, seed=10 + seed) for seed in range(2)], name, [name, name])] * 2
    columns[1] = Column(name, [noise(224, 224, 3, seed=20 + seed) for seed in range(2)], name)
    page = np.asarray(montage(inputs, columns, title=name, note=name, row_names=[name, name]))
    places = np.array([[find(page, one.images[row]) for one in (Column("", inputs), *columns)] for row in range(2)])
    assert (places[:, :, 0] == places[:, :1, 0]).all()  # aligned across
    assert (places[:, :, 1] == places[:1, :, 1]).all()  # and down
    assert page.shape[0] < 2 * 224 + 480
    assert page.shape[1] < 3 * 224 + 260
    margin = np.concatenate([page[:20].ravel(), page[-20:].ravel(), page[:, :20].ravel(), page[:, -20:].ravel()])
    assert (margin == 255).all()


def ink(page: Image.Image) -> int:
    return int((np.asarray(page.convert("L")) < 128).sum())


def test_every_text_is_drawn() -> None:
    blank = np.full((100, 80, 3), 255, np.uint8)
    bare = montage([blank], [Column("", [blank])], row_names=[""])
    assert ink(bare) > 0  # "input"
    for columns, words in (
        ([Column("relu1_2", [blank])], {}),
        ([Column("", [blank], "37 clusters in use")], {}),
        ([Column("", [blank], "", ["12 here"])], {}),
        ([Column("", [blank])], {"title": "VGG-19"}),
        ([Column("", [blank])], {"note": "weights: random (seed 0)"}),
        ([Column("", [blank])], {"row_names": ["image01.png"]}),
    ):
        assert ink(montage([blank], columns, **{"row_names": [""], **words})) > ink(bare)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60) | st.sampled_from(HOSTILE), size=st.sampled_from([14, 26]), width=st.integers(64, 300))
def test_text_keeps_to_its_room_and_is_whole(text: str, size: int, width: int) -> None:
    block = picture.text_block(text, size, width, 3, "#000000")
    assert block.width <= width
    assert block.height <= 3 * round(size * 1.35)
    plain = picture._plain(text)
    assert set(plain) <= set(map(chr, range(32, 127)))
    for line in picture._wrap(plain, picture._font(size), width):
        left, top, right, bottom = ImageDraw.Draw(block).textbbox((0, 0), line, picture._font(size))
        assert left >= -1
        assert top >= 0
        assert right <= width + 2
        assert bottom <= round(size * 1.35)


def test_a_long_name_keeps_its_ends() -> None:
    font = picture._font(14)
    lines = picture._shorten("slide_" + "x" * 300 + "_0042.png", font, 132, 3)
    assert len(lines) == 3
    assert "".join(lines).startswith("slide_")
    assert "".join(lines).endswith("_0042.png")
    assert "…" in "".join(lines)


def test_accents_fall_off_and_the_rest_is_marked() -> None:
    assert picture._plain("Zoë\u2013Müller\n\u202e组 .png") == "Zoe-Muller ? .png"


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (32, 32), (321, 481), (481, 321)])
def test_inputs_of_any_size_fit(size: tuple[int, int]) -> None:
    page = montage([noise(*size, 3), noise(64, 64, 3)], [Column("a", [noise(7, 7, 3)] * 2)], row_names=["one", "two"])
    assert page.width <= 900
    assert page.height <= 700


def test_many_images_make_smaller_cells_and_too_many_are_refused() -> None:
    one = noise(8, 8, 3)
    page = montage([one] * 150, [Column("a", [one] * 150)] * 3)
    assert page.width * page.height <= 50_000_000
    assert page.height <= 17_000
    with pytest.raises(ValueError, match=r"give at most \d+ images"):
        montage([one] * 5000, [Column("a", [one] * 5000)])


@pytest.mark.parametrize(
    ("inputs", "columns", "words"),
    [
        ([], [], {}),
        ([noise(4, 4, 3)], [Column("a", [])], {}),
        ([noise(4, 4, 3)], [Column("a", [noise(4, 4, 3)], "", ["x", "y"])], {}),
        ([noise(4, 4, 3)], [], {"row_names": ["x", "y"]}),
        ([noise(4, 4)], [], {}),
        ([noise(4, 4, 3).astype(float)], [], {}),
        ([noise(0, 4, 3)], [], {}),
    ],
    ids=["no inputs", "no images", "notes", "row names", "grey", "float", "empty"],
)
def test_a_montage_that_does_not_fit_together_is_refused(inputs: list, columns: list, words: dict) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        montage(inputs, columns, **words)

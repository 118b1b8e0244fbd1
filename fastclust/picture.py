"""Clusters made visible: label images, and a montage of them beside their inputs."""

import functools
import math
import os
import re
import unicodedata
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fastclust.atomic import written_aside
from fastclust.colours import palette

__all__ = ["Column", "enlarge", "label_png", "montage", "paint", "palette", "text_block"]

Bytes = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def paint(labels: npt.ArrayLike, colours: npt.ArrayLike) -> Bytes:
    """Colour a label image.

    Args:
        labels: (h, w) integers from 0 to K - 1.
        colours: (K, 3) uint8, sRGB.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ValueError: another shape or type, or a label without a colour.
    """
    labels, colours = _labels(labels, colours)
    return np.asarray(colours[labels])


def _labels(labels: npt.ArrayLike, colours: npt.ArrayLike) -> tuple[npt.NDArray[np.integer], Bytes]:
    labels, colours = np.asarray(labels), np.asarray(colours)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels (h, w) of integers expected, got {labels.shape} of {labels.dtype}")
    if colours.ndim != 2 or colours.shape[1] != 3 or colours.dtype != np.uint8:
        raise ValueError(f"colours (K, 3) of uint8 expected, got {colours.shape} of {colours.dtype}")
    if labels.min() < 0 or labels.max() >= len(colours):
        raise ValueError(f"labels from 0 to {len(colours) - 1} expected, got {labels.min()} to {labels.max()}")
    return labels, colours


def enlarge(labels: npt.NDArray[np.integer], size: tuple[int, int]) -> npt.NDArray[np.integer]:
    """Resample a label image (h, w) to size (H, W) by nearest neighbour.

    Pixel i of H takes source pixel floor((i + 1/2) h / H): outer edges are aligned, and H = n h repeats each n times.

    Raises:
        ValueError: labels are not (h, w), or a side is below 1.
    """
    if labels.ndim != 2 or labels.size == 0 or min(size) < 1:
        raise ValueError(f"labels (h, w) and a size (H, W) of at least (1, 1) expected, got {labels.shape} and {size}")
    rows, columns = ((2 * np.arange(to) + 1) * side // (2 * to) for to, side in zip(size, labels.shape, strict=True))
    return np.asarray(labels[rows[:, None], columns])


def label_png(path: str | os.PathLike[str], labels: npt.ArrayLike, colours: npt.ArrayLike) -> None:
    """Write a label image as a PNG whose pixel values are the labels and whose palette the colours.

    Beyond 256 colours PNG has no palette, so the file is plain RGB. It is written aside and renamed: a reader sees
    the old file or the whole new one.

    Args:
        path: the file, in a folder that exists.
        labels: (h, w) integers from 0 to K - 1.
        colours: (K, 3) uint8, sRGB.

    Raises:
        ValueError: another shape or type, or a label without a colour.
        OSError: the file cannot be written.
    """
    labels, colours = _labels(labels, colours)
    if len(colours) <= 256:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(colours.tobytes())
    else:
        image = Image.fromarray(colours[labels])
    with written_aside(path, flush=False) as aside:
        image.save(aside, format="PNG")


@dataclass(frozen=True)
class Column:
    """One column of a montage.

    name: what it shows, such as a layer. images: (h, w, 3) uint8, one a row. caption: a line under the name, such as
    "37 clusters in use". notes: a line under each image, one a row, or none.
    """

    name: str
    images: Sequence[Bytes]
    caption: str = ""
    notes: Sequence[str] = ()


PAPER, INK, FAINT, WARNING, WASH = "#ffffff", "#1a1a1a", "#666666", "#8a1c00", "#fdeee6"
MARGIN, GUTTER, NAMES = 28, 12, 132
CELL, SMALLEST, SIDE, AREA = 224, 64, 16_000, 40_000_000
ASCII = {"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "x"}


def montage(
    inputs: Sequence[Bytes],
    columns: Sequence[Column],
    *,
    title: str | None = None,
    note: str | None = None,
    row_names: Sequence[str] | None = None,
) -> Image.Image:
    """Draw inputs and, to their right, columns of images of the same things.

    All images of a row fill the same rectangle, in the input's proportions, so that a place in one is that place in
    all; columns are resampled by nearest neighbour. The longer side of a rectangle is 224 pixels, and less, down to 64,
    where there are many. Text is cut to the characters of the built-in font, wrapped, and shortened in the middle.

    Args:
        inputs: (H, W, 3) uint8 each; sizes may differ.
        columns: each with as many images as there are inputs.
        title: a heading.
        note: a line that must not be missed, above all images.
        row_names: a name for each input.

    Raises:
        ValueError: counts or shapes that do not fit, no inputs, or more images than can be drawn legibly.
    """
    _check(inputs, columns, row_names)
    cell = _cell(len(inputs), len(columns) + 1)
    sizes = [_inside(image, cell) for image in inputs]
    step = max(SMALLEST, *(width for width, _ in sizes)) + GUTTER
    labels = [text_block(name, 14, NAMES, 3, INK) for name in row_names or ()]
    left = MARGIN + (max(block.width for block in labels) + GUTTER if labels else 0)
    width = max(left + step * (len(columns) + 1) - GUTTER + MARGIN, 2 * MARGIN + 320)

    pieces: list[tuple[int, int, Image.Image]] = []  # left, top, what
    y = MARGIN
    for text, size, ink, paper in ((title, 26, INK, PAPER), (note, 17, WARNING, WASH)):
        if text:
            block = text_block(text, size, width - 2 * MARGIN, 3, ink, paper)
            pieces.append((MARGIN, y, block))
            y += block.height + GUTTER
    heads = [Column("input", inputs), *columns]
    names = [text_block(head.name, 17, step - GUTTER, 3, INK) for head in heads]
    captions = [text_block(head.caption, 14, step - GUTTER, 3, FAINT) for head in heads]
    floor = y + max(block.height for block in names)
    pieces += [(left + i * step, floor - block.height, block) for i, block in enumerate(names)]
    pieces += [(left + i * step, floor, block) for i, block in enumerate(captions)]
    y = floor + max(block.height for block in captions) + GUTTER // 2
    for row, (across, down) in enumerate(sizes):
        below = 0
        for i, head in enumerate(heads):
            how = Image.Resampling.NEAREST if i else Image.Resampling.LANCZOS
            pieces.append((left + i * step, y, Image.fromarray(head.images[row]).resize((across, down), how)))
            if head.notes:
                block = text_block(head.notes[row], 14, step - GUTTER, 1, FAINT)
                pieces.append((left + i * step, y + down + 2, block))
                below = max(below, block.height + 2)
        if labels:
            pieces.append((MARGIN, y + max(0, (down - labels[row].height) // 2), labels[row]))
            below = max(below, labels[row].height - down)
        y += down + below + GUTTER
    page = Image.new("RGB", (width, y - GUTTER + MARGIN), PAPER)
    for x, top, piece in pieces:
        page.paste(piece, (x, top))
    return page


def _check(inputs: Sequence[Bytes], columns: Sequence[Column], row_names: Sequence[str] | None) -> None:
    if not len(inputs):
        raise ValueError("a montage needs at least one input image")
    if row_names is not None and len(row_names) != len(inputs):
        raise ValueError(f"{len(inputs)} row names expected, got {len(row_names)}")
    for column in columns:
        if len(column.images) != len(inputs) or len(column.notes) not in (0, len(inputs)):
            got = f"{len(column.images)} images and {len(column.notes)} notes"
            raise ValueError(f"column {column.name!r}: {len(inputs)} images, one for each input, expected, got {got}")
    for image in (image for images in (inputs, *(column.images for column in columns)) for image in images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"images (H, W, 3) of uint8 expected, got {image.shape} of {image.dtype}")


def _cell(rows: int, across: int) -> int:
    """The side of the largest cell with which a montage of so many keeps within its bounds."""

    def fits(count: int, cell: int) -> bool:
        height, width = count * (cell + GUTTER + 20), across * (cell + GUTTER)  # 20: a note
        return height <= SIDE and width <= SIDE and height * width <= AREA

    for cell in range(CELL, SMALLEST - 1, -8):
        if fits(rows, cell):
            return cell
    most = max((count for count in range(rows) if fits(count, SMALLEST)), default=0)
    raise ValueError(f"{rows} images in {across} columns are too many to be legible: give at most {most} images")


def _inside(image: Bytes, cell: int) -> tuple[int, int]:
    """Width and height of the largest rectangle in a cell that has the image's proportions."""
    height, width = image.shape[:2]
    longer = max(height, width)
    return max(1, round(width * cell / longer)), max(1, round(height * cell / longer))


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def text_block(text: str, size: int, width: int, most: int, ink: str, paper: str = PAPER) -> Image.Image:
    """Draw text as an image no wider than `width` pixels, in at most so many lines; on coloured paper, a band so wide.

    It is cut to the characters of the built-in font, wrapped, and shortened in the middle; size is that of the font.
    """
    font = _font(size)
    pad = 0 if paper == PAPER else size // 2
    leading = round(size * 1.35)
    lines = _shorten(_plain(text), font, width - 2 * pad, most)
    if lines == [""]:
        return Image.new("RGB", (1, 1), paper)
    wide = width if pad else min(width, int(max(font.getlength(line) for line in lines)) + 2)
    image = Image.new("RGB", (wide, len(lines) * leading + 2 * pad), paper)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((pad, pad + i * leading), line, fill=ink, font=font)
    return image


def _plain(text: str) -> str:
    """One line of what the built-in font can draw: accents and controls dropped, the rest as "?"."""
    text = text if len(text) <= 1000 else f"{text[:500]}…{text[-500:]}"
    kept = []
    for char in unicodedata.normalize("NFKD", text):
        char = ASCII.get(char, char)
        if char.isspace() or " " <= char <= "~":
            kept.append(char)
        elif unicodedata.category(char)[0] not in "CM":
            kept.append("?")
    return " ".join("".join(kept).split())


def _shorten(text: str, font: Font, width: int, most: int) -> list[str]:
    """The lines of a text, without so much of its middle that they are no more than `most`."""

    def lines(keep: int) -> list[str]:
        cut = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
        return _wrap(cut if keep < len(text) else text, font, width)

    keep = len(text)
    if len(lines(keep)) > most:
        keep = bisect(range(1, keep), most, key=lambda keep: len(lines(keep)))
    return lines(keep)


def _head(word: str, font: Font, width: int) -> int:
    """How many characters of a word fit, but at least one."""
    return 1 + bisect(range(2, len(word)), width, key=lambda end: math.ceil(font.getlength(word[:end])))


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than `width`, broken after a space or a separator where there is one, else anywhere."""
    lines = [""]
    for word in re.findall(r"[^\s_./-]*[\s_./-]*", text):
        while word and font.getlength((lines[-1] + word).rstrip()) > width:
            if lines[-1]:
                lines.append("")
                continue
            head = _head(word, font, width)
            lines[-1], word = word[:head], word[head:]
        lines[-1] += word
    return [line.rstrip() for line in lines]

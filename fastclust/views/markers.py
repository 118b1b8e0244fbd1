"""Pictures of centres: markers on an input, and inputs, foreground clusters and centres side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastclust import picture
from fastclust.views.regions import Centre

CELL = 224  # pixels of an image's longer side in a page, at most
RADIUS, PART = 4.5, 0.01  # of a marker: pixels, or this part of the shorter side where that is more
SMALL = 3.5  # pixels, of a marker in a page
BACKGROUND = (226, 226, 226)
FINE = 8  # a disc is drawn so many times as large, and reduced

Bytes = NDArray[np.uint8]
Shown = tuple[Bytes, Bytes, Bytes]
"""An input, its foreground clusters, and the input with its centres: (H, W, 3) each."""


def marked(pixels: Bytes, found: Sequence[Centre], colours: Bytes, scale: float, radius: float = RADIUS) -> Bytes:
    """Return an input (H, W, 3), `scale` times as large, with a marker at each centre.

    A marker is a disc of the cluster's colour in a white ring in a black one: one of them is seen on any ground.
    colours: (K, 3), of the clusters. radius: of a marker at least, in pixels.
    """
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    for one in found:
        disc = _disc(tuple(int(value) for value in colours[one.cluster]), max(radius, PART * min(height, width)))
        x, y = ((at + 0.5) * scale - 0.5 for at in (one.column, one.row))
        image.paste(disc, (round(x - (disc.width - 1) / 2), round(y - (disc.height - 1) / 2)), disc)
    return np.asarray(image)


@functools.cache
def _disc(colour: tuple[int, ...], radius: float) -> Image.Image:
    """Return a marker, transparent around its disc; its side is odd, so that its middle is a pixel's."""
    side = 2 * math.ceil(radius) + 1
    disc = Image.new("RGBA", (side * FINE, side * FINE))
    draw, middle = ImageDraw.Draw(disc), side * FINE / 2
    for part, fill in ((1.0, (0, 0, 0)), (7 / 9, (255, 255, 255)), (5 / 9, colour)):
        reach = radius * part * FINE
        draw.ellipse((middle - reach, middle - reach, middle + reach - 1, middle + reach - 1), fill=fill)
    return disc.resize((side, side), Image.Resampling.BOX)


def side_by_side(
    pixels: Bytes, labels: NDArray[np.integer], clusters: Sequence[int], found: Sequence[Centre], colours: Bytes
) -> Shown:
    """Return what a page shows of an image: its input, label image (background grey) and centres, at most CELL wide."""
    scale = min(1.0, CELL / max(pixels.shape[:2]))
    small = marked(pixels, [], colours, scale)
    kept = np.full_like(colours, BACKGROUND)
    kept[list(clusters)] = colours[list(clusters)]
    painted = picture.paint(picture.enlarge(labels, (small.shape[0], small.shape[1])), kept)
    return small, painted, marked(pixels, found, colours, scale, SMALL)


def page(
    shown: Mapping[str, Shown], layer: str, counts: Sequence[int], *, title: str, note: str, foreground: str
) -> Bytes:
    """Draw images side by side, a row for each by its name.

    counts: of the centres in each. note: a line above all. foreground: a line on the layer's clusters.
    """
    inputs, clusters, centred = zip(*shown.values(), strict=True)
    columns = [
        picture.Column(layer, clusters, foreground),
        picture.Column("centres", centred, "of its regions", [f"{count} here" for count in counts]),
    ]
    return np.asarray(picture.montage(inputs, columns, title=title, note=note or None, row_names=list(shown)))

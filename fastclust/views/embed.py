"""Pictures and label images as text that stands in a page.

Inputs are WebP (JPEG where Pillow has no WebP); patches are WebP too or, where they are small, PNG. Label images are
zlib streams of their labels, not pictures: a picture on a canvas passes through the browser's colour management, and
some browsers add noise to what is read back from one.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from fastclust.extract import shown_image
from fastclust.receptive import Field
from fastclust.store import Store
from fastclust.views.survey import Exemplar, Fields, Layer

PATCH = 72  # pixels of a patch's longer side, at most
SMALL = 16  # pixels of a patch that is kept exactly

Bytes = NDArray[np.uint8]


def packed(labels: NDArray[np.integer], components: int) -> str:
    """Return labels as base64 of a zlib stream of them, row by row: uint8, or uint16 above 256 components.

    Raises ValueError above 65,536 components.
    """
    if components > 2**16:
        raise ValueError(f"{components} components: a report can tell at most {2**16} apart")
    stored = labels.astype("<u1" if components <= 256 else "<u2")
    return base64.b64encode(zlib.compress(stored.tobytes(), 9)).decode()


def pictures(
    store: Store, layers: Sequence[Layer], fields: Fields, places: Sequence[int], most: int, side: int
) -> tuple[dict[int, str], dict[tuple[str, Exemplar], str], list[int]]:
    """Read each input that the page shows or cuts a patch from, once, and return what it shows as data URIs.

    places: of images shown, at most `side` pixels a side. most: patches of a cluster, each what its unit sees.
    Returns inputs by place, patches by the layer's name and exemplar, and the places of those that cannot be read.
    """
    wanted = defaultdict[int, list[tuple[str, Exemplar]]](list)
    for place in places:
        wanted[place] = []
    for layer in layers:
        for kept in layer.exemplars:
            for one in kept[:most]:
                wanted[one.place].append((layer.record.name, one))
    inputs, patches, unreadable = dict[int, str](), dict[tuple[str, Exemplar], str](), []
    for place in sorted(wanted):
        record = store.images[store.finished[place]]
        pixels, readable = shown_image(record, store.provenance)
        if not readable:
            unreadable.append(place)
        if place in places:
            inputs[place] = _uri(_at_most(pixels, side))
        for name, one in wanted[place]:
            patches[name, one] = _uri(_at_most(patch(pixels, fields(*record.input_size)[name], one), PATCH))
    return inputs, patches, unreadable


def patch(pixels: Bytes, seen: Field, one: Exemplar) -> Bytes:
    """Cut what an exemplar's unit sees out of its input (H, W, 3): its receptive field, clipped to the image."""
    top, left, bottom, right = seen.box(one.row, one.column)
    return pixels[top : max(bottom, top + 1), left : max(right, left + 1)]


def _at_most(pixels: Bytes, side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _uri(image: Image.Image) -> str:
    webp = "WEBP" if features.check("webp") else "JPEG"
    form = "PNG" if max(image.size) <= SMALL else webp
    file = io.BytesIO()
    image.save(file, format=form, quality=80)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"

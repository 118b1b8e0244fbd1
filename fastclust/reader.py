"""Read image files as what a network sees, before normalisation.

A transform is a dictionary of what JSON can hold: resize (the shorter side) and crop (a square) in pixels, or null for
both where images keep their size; interpolation and antialias of the resizing; mean and std of the normalisation.

Run as a program, this file is a worker of `fastclust.decode`. It imports nothing of ours and no torch, so a worker
starts in a quarter of a second and not in three.
"""

import pickle
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# What Pillow raises on files that are not images, or are broken ones.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

ELONGATED = 16  # times as long as wide

Decoded = tuple[NDArray[np.uint8] | str, float]
"""An image (H, W, 3), or why there is none, and the seconds that took."""


def image_size(path: str) -> tuple[int, int]:
    """Read (height, width) in pixels as it is shown, EXIF orientation applied, from the header. Raises UNREADABLE."""
    with _open(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: str, transform: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Read an image as RGB, upright, resized and cropped: (H, W, 3) uint8; alpha is dropped. Raises UNREADABLE.

    The pixels are those of torchvision's resize and center_crop of a Pillow image.
    """
    with _open(path) as image:
        upright = _to_rgb(ImageOps.exif_transpose(image))
    if transform["resize"] is not None:
        upright = fit(upright, transform, transform["interpolation"])
    return np.array(upright)


def fit(image: Any, transform: Mapping[str, Any], interpolation: str) -> Any:
    """Resize and crop an upright Pillow image as a transform says; interpolation: that of Pillow's with this name.

    Of a very elongated image only what is kept is resized: one of 1 x 5000 pixels would take a gigabyte. Pillow has
    the edges of that in float32, so a value may then be off by one, or two with bicubic interpolation.
    """
    if transform["resize"] is None:
        return image
    (height, width), (top, left) = placement((image.height, image.width), transform)
    side, how = transform["crop"], Image.Resampling[interpolation.upper()]
    if max(width, height) > ELONGATED * min(width, height):
        across, down = image.width / width, image.height / height
        rows = image.resize((side, image.height), how, (left * across, 0, (left + side) * across, image.height))
        return rows.resize((side, side), how, (0, top * down, side, (top + side) * down))
    if image.size != (width, height):
        image = image.resize((width, height), how)
    return image.crop((left, top, left + side, top + side))


def placement(size: tuple[int, int], transform: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what an image of (height, width) pixels is resized to, and the (top, left) of what is cut out of that.

    The shorter side is resized to what the transform says, and the longer cut to whole pixels, as torchvision cuts it;
    of that the input is the centre square. No weights crop more than they resize to, so it lies inside.
    """
    if transform["resize"] is None:
        return size, (0, 0)
    side, (short, long) = transform["resize"], sorted(size)
    other = int(side * long / short)
    resized = (other, side) if size[1] <= size[0] else (side, other)
    top, left = (round((length - transform["crop"]) / 2) for length in resized)
    return resized, (top, left)


def decode(path: str, size: tuple[int, int], transform: Mapping[str, Any]) -> Decoded:
    """Read an image of a known size (height, width), or say why it cannot be used."""
    start = time.perf_counter()
    image: NDArray[np.uint8] | str
    try:
        image = read_image(path, transform)
        if image.shape[:2] != tuple(size):
            image = f"its size is no longer {tuple(size)}, but {image.shape[:2]}"
    except UNREADABLE as error:
        image = one_line(error, path)
    return image, time.perf_counter() - start


def one_line(error: BaseException, path: str) -> str:
    """Say in one line why a file cannot be used."""
    return str(error).replace(f"'{path}'", "it").strip().split("\n")[0] or type(error).__name__


def serve() -> None:
    """Decode what is asked for on stdin until it ends, and answer on stdout: pickles of `decode`'s, or of an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that asks, whose end closes stdin
    warnings.simplefilter("ignore")
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request = pickle.load(asked)
        except EOFError:
            return
        answer: Decoded | Exception
        try:
            answer = decode(*request)
        except Exception as error:
            answer = error
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _open(path: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error at twice that size remains
        return Image.open(path)


def _to_rgb(image: Any) -> Any:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit values from {values.min()} to {values.max()}: expected 8 or 16 bits a channel")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point values have no stated range: expected 8 or 16 bits a channel")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


if __name__ == "__main__":
    serve()

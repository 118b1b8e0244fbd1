"""Image files: finding, naming and labelling them, and reading them as what a network sees, before normalisation.

A transform is a dictionary of what JSON can hold: resize (the shorter side) and crop (a square) in pixels, or null for
both where images keep their size; interpolation and antialias of the resizing; mean and std of the normalisation.
"""

import csv
import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.transforms.functional as functional
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"])
NAME_BYTES = 120
RESERVED = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))])
# What Pillow raises on files that are not images, or are broken ones.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def find_images(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Find images: files as given, whatever their suffix, and folders searched to any depth for image suffixes.

    Folders are in sorted order, hidden files and folders are passed over, a file named twice counts once.
    Raises FileNotFoundError for a missing path, ValueError where there is no image at all.
    """
    found: dict[str, Path] = {}
    paths = [paths] if isinstance(paths, str | Path) else paths
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: expected an image or a folder of images")
        for file in _search(path) if path.is_dir() else [path]:
            found.setdefault(os.path.abspath(file), file)  # noqa: PTH100 (resolve would follow links)
    if not found:
        where = ", ".join(str(path) for path in paths) or "nothing"
        raise ValueError(f"no image in {where}: expected files that end in {' '.join(sorted(SUFFIXES))}")
    return list(found.values())


def safe_names(paths: Sequence[str | Path]) -> list[str]:
    """Name each image so that the name is a file's stem on any file system, unique there without regard to case.

    The stem, with what is not a letter, digit, dot, dash or underscore replaced by an underscore; where stems clash,
    the folder's name stands before them; where those clash too, a number follows. Equal lists give equal names.
    """
    stems = [_safe(Path(path).stem) for path in paths]
    longer = [_safe(f"{Path(path).absolute().parent.name}_{Path(path).stem}") for path in paths]
    shared = _repeated(stems)
    wanted = [long if _key(stem) in shared else stem for stem, long in zip(stems, longer, strict=True)]
    single = {_key(name) for name in wanted} - _repeated(wanted)
    taken, names = set(single), []
    for name in wanted:
        unique, number = name, 1
        while _key(unique) in taken and _key(name) not in single:
            number += 1
            unique = f"{name}-{number}"
        taken.add(_key(unique))
        names.append(unique)
    return names


def read_labels(paths: Sequence[Path], labels: str | Path | None) -> list[tuple[str, str]]:
    """Give each image's (label, group): the name of its folder and "", or what a CSV file says.

    The CSV has the columns path, label and, if wanted, group. A row is an image's where the row's path is the end of
    the image's absolute path, the longest match counting. Raises ValueError for images without a row, rows that
    contradict each other and rows that match several images, FileNotFoundError for a missing file.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
    if labels is None:
        return [(path.parent.name, "") for path in absolute]
    rows = _read_table(Path(labels))
    found, users, missing = [], dict[tuple[str, ...], Path](), []
    for path in absolute:
        ends = (path.parts[start:] for start in range(len(path.parts)))
        row = next((end for end in ends if end in rows), None)
        if row is None:
            missing.append(str(path))
            continue
        if row in users:
            raise ValueError(f"{labels}: the row {'/'.join(row)} fits {users[row]} and {path}: give more of the path")
        users[row] = path
        found.append(rows[row])
    if missing:
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ValueError(f"{labels} has no row for {len(missing)} of {len(paths)} images: {some}")
    return found


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) in pixels as it is shown, EXIF orientation applied, from the header. Raises UNREADABLE."""
    with _open(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: str | Path, transform: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Read an image as RGB, upright, resized and cropped: (H, W, 3) uint8; alpha is dropped. Raises UNREADABLE."""
    with _open(path) as image:
        upright = _to_rgb(ImageOps.exif_transpose(image))
    if transform["resize"] is not None:
        mode = InterpolationMode(transform["interpolation"])
        upright = functional.resize(upright, [transform["resize"]], mode, antialias=transform["antialias"])
        upright = functional.center_crop(upright, [transform["crop"]])
    return np.array(upright)


def _open(path: str | Path) -> Any:
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


def _search(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _safe(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode())
    text = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in text)
    text = text.encode()[:NAME_BYTES].decode("utf-8", "ignore").lstrip(".-").rstrip(".") or "image"
    return f"_{text}" if text.split(".")[0].lower() in RESERVED else text


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name.casefold())


def _repeated(names: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {key for key in map(_key, names) if key in seen or seen.add(key)}  # type: ignore[func-returns-value]


def _read_table(path: Path) -> dict[tuple[str, ...], tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected a CSV file with the columns path, label and maybe group"
        )
    rows: dict[tuple[str, ...], tuple[str, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise ValueError(f"{path} has the columns {', '.join(columns)}: expected path, label and maybe group")
            for row in reader:
                parts = Path(row["path"] or "").parts
                value = (row["label"] or "", row.get("group") or "")
                if rows.setdefault(parts, value) != value:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {row['path']} has two different labels or groups"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return rows

"""Image files: finding, naming and labelling them."""

import csv
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastclust import glas

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"])
NAME_BYTES = 120
RESERVED = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))])


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


def read_labels(
    paths: Sequence[Path], labels: str | Path | None, names: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """Give each image's (label, group): the name of its folder and "", or what a CSV file says.

    The CSV has the columns path, label and, if wanted, group; or it is Grade.csv of the GlaS images (`fastclust.glas`).
    A row is an image's where the row's path is the end of the image's absolute path, the longest match counting; where
    no row is, the same without the path's suffix; then where it is the image's name in a store, of `names`.
    Raises ValueError for images without a row, rows that contradict each other and rows that match several images,
    FileNotFoundError for a missing file.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
    if labels is None:
        return [(path.parent.name, "") for path in absolute]
    rows = _read_table(Path(labels))
    found, users, missing = [], dict[tuple[str, ...], Path](), []
    for i, path in enumerate(absolute):
        row = next((end for end in _ends(path, names[i] if names else "") if end in rows), None)
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


def _ends(path: Path, name: str) -> Iterator[tuple[str, ...]]:
    """The ends of a path, the longest first, those without its suffix, and a name: what may stand in a table."""
    for whole in (path, path.with_suffix("")):
        for start in range(len(path.parts)):
            yield whole.parts[start:]
    yield (name,)


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
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: expected a CSV file with the columns path, label and maybe group")
    rows: dict[tuple[str, ...], tuple[str, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            grades = glas.is_table(columns)
            if not grades and not {"path", "label"} <= set(columns):
                raise ValueError(f"{path} has the columns {', '.join(columns)}: expected path, label and maybe group")
            for row in map(glas.entry, reader) if grades else reader:
                parts = Path(row["path"] or "").parts
                value = (row["label"] or "", row.get("group") or "")
                if rows.setdefault(parts, value) != value:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {row['path']} has two different labels or groups"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return rows

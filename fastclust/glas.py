"""The Warwick-QU images of colon glands, in the layout of the GlaS challenge: a folder with a table of grades.

    train_N.bmp, testA_N.bmp, testB_N.bmp      the images
    train_N_anno.bmp ...                       segmentations of their glands, which are no photographs
    Grade.csv                                  name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)

The table's names are those of the images without suffix, and its fields begin with blanks. An image's label is its
grade in the challenge, benign or malignant; its group is the patient. After Sirinukunwattana, Snead and Rajpoot 2015
(IEEE Transactions on Medical Imaging 34, 2366) and Sirinukunwattana and others 2017 (Medical Image Analysis 35, 489).
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NAME, PATIENT, GRADE = "name", "patient id", "grade (glas)"
ANNOTATION = "_anno"  # with which the stems of segmentations end


def is_table(columns: Iterable[str]) -> bool:
    """Say whether a table with these columns is one of grades."""
    return {NAME, PATIENT, GRADE} <= {_plain(column) for column in columns}


def entry(row: Mapping[str | None, str | None]) -> dict[str, str]:
    """Return a row of the table of grades as one of path, label, group; a field that is not there is empty."""
    fields = {_plain(column): (value or "").strip() for column, value in row.items() if column is not None}
    return {"path": fields.get(NAME, ""), "label": fields.get(GRADE, ""), "group": fields.get(PATIENT, "")}


def without_annotations(images: Sequence[Path], labels: str | Path | None) -> list[Path]:
    """Return the images but for segmentations, where `labels` is a table of grades; else all of them.

    Raises ValueError where nothing is left.
    """
    if labels is None or not _is_file_of_grades(Path(labels)):
        return list(images)
    kept = [image for image in images if not image.stem.endswith(ANNOTATION)]
    if not kept:
        raise ValueError(f"all {len(images)} images are annotations, such as {images[0]}: expected train_1.bmp ...")
    return kept


def _is_file_of_grades(path: Path) -> bool:
    """Say whether a file's first line names the table's columns; what is no text or not there is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return is_table(next(csv.reader(file), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _plain(column: str) -> str:
    return " ".join(column.split()).lower()

"""The layout of the Warwick-QU (GlaS) images: grades and patients of its table, and no segmentation as an image."""

from pathlib import Path

import numpy as np
import pytest
from command_line import NETWORK, call
from PIL import Image
from test_images import photograph

from fastclust.glas import entry, is_table, without_annotations
from fastclust.images import find_images, read_labels
from fastclust.store import open_store

HEADER = "name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
ROWS = [
    "testA_1, 5, benign, adenomatous",
    "testB_1, 2, malignant, moderately differentiated",
    "train_1, 13, malignant, poorly differentiated",
    "train_10, 5, benign, healthy",
    "train_2, 2, malignant, moderately-to-poorly differentated",
    "train_99, 7, benign, healthy",
]
IMAGES = ("testA_1", "testB_1", "train_1", "train_10", "train_2")


def warwick(folder: Path, header: str = HEADER) -> Path:
    """A folder in the layout of the Warwick-QU images, with five of them; the table has a row more."""
    folder.mkdir()
    for number, name in enumerate(IMAGES):
        Image.fromarray(photograph(60, 90, number)).save(folder / f"{name}.bmp")
        Image.fromarray(np.full((60, 90), number, dtype=np.uint8)).save(folder / f"{name}_anno.bmp")
    (folder / "Grade.csv").write_bytes("\r\n".join([header, *ROWS, ""]).encode())
    return folder


def test_grades_and_patients_come_from_the_table(tmp_path: Path) -> None:
    folder = warwick(tmp_path / "Warwick QU Dataset (Released 2016_07_08)")
    images = without_annotations(find_images(folder), folder / "Grade.csv")
    assert [image.name for image in images] == [f"{name}.bmp" for name in IMAGES]
    assert read_labels(images, folder / "Grade.csv") == [
        ("benign", "5"),
        ("malignant", "2"),
        ("malignant", "13"),
        ("benign", "5"),
        ("malignant", "2"),
    ]


def test_only_a_table_of_grades_leaves_annotations_out(tmp_path: Path) -> None:
    folder = warwick(tmp_path / "x")
    images = find_images(folder)
    assert len(images) == 10
    (folder / "labels.csv").write_text("path,label\n")
    (folder / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.csv").touch()
    for labels in (None, *(folder / name for name in ("labels.csv", "bytes.csv", "empty.csv", "none.csv"))):
        assert without_annotations(images, labels) == images
    with pytest.raises(ValueError, match=r"all 5 images are annotations, such as .*_anno\.bmp"):
        without_annotations([image for image in images if "_anno" in image.name], folder / "Grade.csv")


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (HEADER, True),
        (HEADER.replace(", ", ","), True),
        (HEADER.replace("patient ID", "Patient  id"), True),
        ("name, patient ID", False),
        ("path,label,group", False),
        ("", False),
    ],
)
def test_the_table_is_known_by_its_columns(header: str, known: bool) -> None:
    assert is_table(header.split(",")) == known


def test_a_short_or_long_row_leaves_fields_empty() -> None:
    columns = [part.strip() for part in HEADER.split(",")]
    assert entry({columns[0]: " train_1", columns[1]: None}) == {"path": "train_1", "label": "", "group": ""}
    long: dict[str | None, str | None] = {columns[0]: "a", columns[1]: " 3 ", columns[2]: "benign", None: "more"}
    assert entry(long) == {"path": "a", "label": "benign", "group": "3"}


def test_extraction_reads_the_layout(tmp_path: Path) -> None:
    folder, store = warwick(tmp_path / "Warwick"), tmp_path / "x.h5"
    found = call("extract", folder, *NETWORK, "--layer", "1", "--labels", folder / "Grade.csv", "--out", store)
    assert (found.status, found.err) == (0, "")
    records = open_store(store).images
    assert [(one.name, one.label, one.group) for one in records][:2] == [
        ("testA_1", "benign", "5"),
        ("testB_1", "malignant", "2"),
    ]
    assert len(records) == len(IMAGES)
    again = call(
        "extract", folder, *NETWORK, "--layer", "1", "--labels", folder / "Grade.csv", "--out", store, "--resume"
    )
    assert again.status == 0


def test_an_image_without_a_grade_is_named(tmp_path: Path) -> None:
    folder = warwick(tmp_path / "Warwick")
    Image.fromarray(photograph(60, 90, 9)).save(folder / "train_3.bmp")
    found = call(
        "extract", folder, *NETWORK, "--layer", "1", "--labels", folder / "Grade.csv", "--out", tmp_path / "x.h5"
    )
    assert found.status == 1
    assert "Grade.csv has no row for 1 of 6 images" in found.err
    assert "train_3.bmp" in found.err


def test_rows_may_leave_the_suffix_out_but_fit_one_image(tmp_path: Path) -> None:
    images = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.jpg"]
    table = tmp_path / "t.csv"
    table.write_text("path,label\na/1,short\nb/1.jpg,whole\nb/1,short too\n")
    assert read_labels(images, table) == [("short", ""), ("whole", "")]
    table.write_text("path,label\n1,short\n")
    with pytest.raises(ValueError, match=r"the row 1 fits .*1\.png and .*1\.jpg: give more of the path"):
        read_labels(images, table)


def test_rows_may_name_an_image_as_the_store_does(tmp_path: Path) -> None:
    images = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]
    table = tmp_path / "t.csv"
    table.write_text("path,label\na_1,one\nb_1,other\n")
    assert read_labels(images, table, ["a_1", "b_1"]) == [("one", ""), ("other", "")]
    with pytest.raises(ValueError, match="no row for 2 of 2 images"):
        read_labels(images, table)

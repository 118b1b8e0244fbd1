"""The agreement of two labellings of the same images: indices of contingency tables, and colours matched by overlap.

With n_kl pixels that are of cluster k in X and of l in Y, n of them in all, H the entropy and I the mutual information:

    adjusted Rand index               (sum_kl C(n_kl, 2) - E) / ((sum_k C(n_k., 2) + sum_l C(n_.l, 2)) / 2 - E),
                                      E = sum_k C(n_k., 2) sum_l C(n_.l, 2) / C(n, 2): 1 for the same partition, 0
                                      on average for independent ones
    normalised mutual information     I / ((H(X) + H(Y)) / 2), from 0 to 1, not adjusted for chance
    variation of information          H(X|Y) + H(Y|X), in bits: 0 for the same partition (Meila 2007)

Tables add, so memory holds one of 256 x 256 counts whatever the number of images. Two label images of one image are
brought to one size by nearest neighbour (`fastclust.picture.enlarge`): on each side the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy

from fastclust.labels import Progress, even, quiet
from fastclust.picture import enlarge, paint

LABELS = 256  # that a palette can tell apart
SHOWN = 8  # images in a picture, at most
GREYS = (96, 208)  # of clusters that have no partner, from and to
AGREE, DIFFER = 255, 30  # in the picture of where matched labellings differ

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Indices:
    """How alike two partitions of some pixels are; conditional entropies in bits.

    x_given_y: H(X|Y), what X tells apart within Y's clusters. y_given_x: H(Y|X).
    """

    pixels: int
    clusters_x: int
    clusters_y: int
    adjusted_rand: float
    normalised_mutual_information: float
    x_given_y: float
    y_given_x: float

    @property
    def variation_of_information(self) -> float:
        """H(X|Y) + H(Y|X), in bits."""
        return self.x_given_y + self.y_given_x


@dataclass(frozen=True)
class Agreement:
    """What two folders of label images agree in.

    images: of each image that both have. only_x, only_y: files that one alone has. partner: by cluster of Y, the
    cluster of X that it is matched to. matched: share of all pixels that are in matched clusters of both. shown: label
    images (h, w) of X and Y by name, of at most SHOWN images. colours: X's (256, 3).
    """

    whole: Indices
    images: dict[str, Indices]
    only_x: list[str]
    only_y: list[str]
    partner: dict[int, int]
    matched: float
    colours: Bytes
    shown: dict[str, tuple[NDArray[np.integer], NDArray[np.integer]]] = field(default_factory=dict)


def agree(x: Path, y: Path, progress: Progress = quiet) -> Agreement:
    """Compare two folders of label images; which of their files are compared, the names say.

    x, y: folders with labels/IMAGE.png, as `fastclust label` writes them and `fastclust run` for each layer, or folders
    of such PNGs themselves.
    Raises NotADirectoryError, FileNotFoundError where a folder has no label images, and ValueError where no name is in
    both or a file is no label image of at most 256 clusters.
    """
    files_x, files_y = find_label_images(x), find_label_images(y)
    names = sorted(files_x.keys() & files_y.keys())
    if not names:
        raise ValueError(
            f"{x} and {y} have no image name in common: the first has {_some(files_x)}, the second {_some(files_y)}"
        )
    shown_names = {names[place] for place in even(len(names), SHOWN)}
    total = np.zeros((LABELS, LABELS), dtype=np.int64)
    images, shown = dict[str, Indices](), dict[str, tuple[NDArray[np.integer], NDArray[np.integer]]]()
    for done, name in enumerate(names):
        progress("agree", done, len(names), name)
        one, other = same_size(read_labels(files_x[name]), read_labels(files_y[name]))
        table = contingency(one, other, (LABELS, LABELS))
        images[Path(name).stem] = indices(table)
        total += table
        if name in shown_names:
            shown[Path(name).stem] = one, other
    progress("agree", len(names), len(names), "")
    partner = match(total)
    return Agreement(
        whole=indices(total),
        images=images,
        only_x=sorted(files_x.keys() - files_y.keys()),
        only_y=sorted(files_y.keys() - files_x.keys()),
        partner=partner,
        matched=sum(int(total[k, own]) for own, k in partner.items()) / int(total.sum()),
        colours=_palette(files_x[names[0]]),
        shown=shown,
    )


def find_label_images(folder: Path) -> dict[str, Path]:
    """Return the label images below a folder by file name. Raises NotADirectoryError, FileNotFoundError."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: expected a folder of label images")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: expected a folder of label images, as `fastclust label` writes")
    inside = folder / "labels" if (folder / "labels").is_dir() else folder
    files = {path.name: path for path in inside.iterdir() if path.suffix == ".png" and not path.name.startswith(".")}
    layers = sorted(path.parent.name for path in folder.glob("*/labels") if path.is_dir())
    if layers and inside == folder:
        raise FileNotFoundError(f"{folder} is the folder of a run: name a layer's in it, of {', '.join(layers)}")
    if not files:
        raise FileNotFoundError(
            f"{inside} has no label images: expected IMAGE.png files, as `fastclust label` and `fastclust run` write "
            "(a dense layer has none)"
        )
    return files


def read_labels(path: Path) -> NDArray[np.integer]:
    """Read a label image (h, w) uint8. Raises ValueError for any other picture: its pixel values are no labels."""
    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return np.asarray(image)
            mode = image.mode
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read ({error}): label the images again") from error
    raise ValueError(
        f"{path} is no label image with a palette (its mode is {mode}): expected what `fastclust label` writes for at "
        f"most {LABELS} clusters"
    )


def same_size(one: NDArray[np.integer], other: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Bring two label images to the larger height and the larger width of the two, by nearest neighbour."""
    size = (max(one.shape[0], other.shape[0]), max(one.shape[1], other.shape[1]))
    return enlarge(one, size), enlarge(other, size)


def contingency(one: NDArray[np.integer], other: NDArray[np.integer], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Count the pixels (K, L) that are label k in one image and l in another of the same size."""
    pairs = one.astype(np.int64).ravel() * shape[1] + other.ravel()
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def indices(table: NDArray[np.int64]) -> Indices:
    """Return the indices of a contingency table (K, L) of int64 counts, which is not empty."""
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    n_x, n_y, n = table.sum(axis=1), table.sum(axis=0), int(table.sum())
    pairs, in_x, in_y = (sum(comb(int(count), 2) for count in counts) for counts in (table.ravel(), n_x, n_y))
    # over C(n, 2), in whole numbers: products of counts go beyond float64's
    expected, most = in_x * in_y, (in_x + in_y) * comb(n, 2)
    rand = 1.0 if most == 2 * expected else 2 * (pairs * comb(n, 2) - expected) / (most - 2 * expected)
    h_x, h_y, joint = (float(entropy(counts, base=2)) for counts in (n_x, n_y, table.ravel()))
    x_given_y, y_given_x = max(0.0, joint - h_y), max(0.0, joint - h_x)
    return Indices(
        pixels=n,
        clusters_x=len(n_x),
        clusters_y=len(n_y),
        adjusted_rand=rand,
        normalised_mutual_information=max(0.0, h_x + h_y - joint) / ((h_x + h_y) / 2) if h_x + h_y else 1.0,
        x_given_y=x_given_y,
        y_given_x=y_given_x,
    )


def match(table: NDArray[np.int64]) -> dict[int, int]:
    """Match clusters of Y to clusters of X, one to one, so that the pixels in both are most: {l: k}.

    The Hungarian method on a contingency table (K, L); pairs without a pixel in both are no match.
    """
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {int(own): int(k) for k, own in zip(rows, columns, strict=True) if table[k, own]}


def matched_colours(found: Agreement, clusters: Sequence[int]) -> Bytes:
    """Return a colour (256, 3) for each cluster of Y: that of its partner in X, or a grey where it has none."""
    colours = np.zeros((LABELS, 3), dtype=np.uint8)
    for own, partner in found.partner.items():
        colours[own] = found.colours[partner]
    alone = [cluster for cluster in clusters if cluster not in found.partner]
    for cluster, grey in zip(alone, np.linspace(*GREYS, max(len(alone), 1)), strict=False):
        colours[cluster] = round(float(grey))
    return colours


def pictures(found: Agreement) -> Iterator[tuple[str, Bytes, Bytes, Bytes]]:
    """Yield of each shown image its name, X's labels, Y's in X's colours, and where they differ: (h, w, 3) uint8.

    White is where Y's cluster is the partner of X's.
    """
    clusters = sorted({int(label) for _, y in found.shown.values() for label in np.unique(y)})
    colours = matched_colours(found, clusters)
    partner = np.full(LABELS, -1)
    partner[list(found.partner)] = list(found.partner.values())
    for name, (one, other) in found.shown.items():
        same = np.where(partner[other] == one, AGREE, DIFFER).astype(np.uint8)
        yield name, paint(one, found.colours), paint(other, colours), np.repeat(same[..., None], 3, axis=2)


def lines(found: Agreement, most: int = 20) -> list[str]:
    """Return a table, in lines: all images together, then each where there are at most `most`, else their medians."""
    cells = [("", "adjusted Rand", "normalised mutual information", "variation of information", "H(X|Y) + H(Y|X)")]
    named = {"all images": found.whole}
    if len(found.images) <= most:
        named |= found.images
    for name, one in named.items():
        parts = f"{one.x_given_y:.3f} + {one.y_given_x:.3f}"
        whole = f"{one.variation_of_information:.3f} bits"
        cells.append((name, f"{one.adjusted_rand:.3f}", f"{one.normalised_mutual_information:.3f}", whole, parts))
    if len(found.images) > most:
        each = [(one.adjusted_rand, one.normalised_mutual_information) for one in found.images.values()]
        rand, mutual = np.median(each, axis=0)
        middle = np.median([one.variation_of_information for one in found.images.values()])
        cells.append(("median image", f"{rand:.3f}", f"{mutual:.3f}", f"{middle:.3f} bits", ""))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    table = [
        "  ".join((cell.ljust if at == 0 else cell.rjust)(widths[at]) for at, cell in enumerate(row)).rstrip()
        for row in cells
    ]
    counts = f"{len(found.images)} images, {found.whole.clusters_x} and {found.whole.clusters_y} clusters"
    return [f"{counts}: {found.matched:.1%} of the pixels are in clusters that are matched to each other", *table]


def as_json(x: Path, y: Path, found: Agreement) -> dict[str, Any]:
    """Return what agreement.json holds."""

    def numbers(one: Indices) -> dict[str, Any]:
        return asdict(one) | {"variation_of_information": one.variation_of_information}

    return {
        "x": str(x),
        "y": str(y),
        "units": "conditional entropies and variation of information in bits",
        "all": numbers(found.whole),
        "matched": found.matched,
        "partner_of_y": {str(own): partner for own, partner in sorted(found.partner.items())},
        "images": {name: numbers(one) for name, one in found.images.items()},
        "only_x": found.only_x,
        "only_y": found.only_y,
    }


def _palette(path: Path) -> Bytes:
    with Image.open(path) as image:
        stored = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    colours = np.zeros((LABELS, 3), dtype=np.uint8)
    colours[: len(stored)] = stored
    return colours


def _some(files: dict[str, Path]) -> str:
    names = sorted(files)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

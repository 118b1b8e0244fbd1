"""Plots with matplotlib: each function draws into the Axes that it is given, or into new ones, and returns them.

`save` writes a plot to a file, without a display: PNG, SVG or PDF by its suffix.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclust.arrays import host
from fastclust.atomic import written_aside
from fastclust.console import printable
from fastclust.fitted import FittedMixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from fastclust.views.transfer import Transfer

SUFFIXES = (".png", ".svg", ".pdf")
SIDE = 448  # pixels of a picture's longer side, at most, where pictures stand side by side
GAP = 4  # of a picture's width, in percent, between pictures
Image = npt.NDArray[np.uint8]
INK, SECOND, THIRD = "#1f5fa8", "#b5541c", "#2f7d4f"  # lines, of which no two differ by colour alone


def new_axes(
    ax: Axes | None = None,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    size: tuple[float, float] = (7, 4.2),
) -> Axes:
    """Return axes with title and labels, without the upper and right spine; new ones, `size` inches, where ax is None.

    New ones belong to a Figure of their own, not to pyplot's list, so nothing needs to be closed.
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=size, layout="constrained").add_subplot()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _as_it_is(ax.title, ax.xaxis.label, ax.yaxis.label)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _as_it_is(*texts: Text) -> None:
    """Have texts that hold names drawn as they are: a dollar in the name of a file begins no formula."""
    for text in texts:
        text.set_parse_math(False)


def check_plot(path: Path) -> None:
    """Refuse a file that a plot cannot be written to, before the work. Raises ValueError, FileNotFoundError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a plot's file to end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: create it first")


def save(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Write the figure of these axes to a file, whole or not at all; an SVG's text stays text.

    A sign that the font lacks, as in names in other scripts, is drawn as a box without a warning.
    Raises as `check_plot`, and OSError.
    """
    import matplotlib

    path = Path(path)
    check_plot(path)
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure any more")
    kind = path.suffix[1:].lower()
    with (
        written_aside(path) as aside,
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(aside, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def plot_clusters_in_use(atlas: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Plot clusters in use against depth, one tick a layer: over all images by seed, and in an image.

    atlas: what `fastclust.views.atlas.draw_atlas` returns, and atlas.json holds. The line is the median over seeds,
    the points are the seeds; the band goes from the first to the third quartile over images and seeds.
    """
    layers = atlas["layers"]
    depth = np.arange(1, len(layers) + 1)
    seeds = [[fit["clusters_in_use"] for fit in layer["fits"]] for layer in layers]
    inside = [[n for fit in layer["fits"] for n in fit["clusters_in_image"]] for layer in layers]
    low, middle, high = np.array([np.percentile(counts, (25, 50, 75)) for counts in inside]).T
    weights = "" if atlas["learned_features"] else ", random weights"
    longest = max(len(layer["name"]) for layer in layers)
    size = max(7, 0.35 * len(layers)), 4 + (0.075 * longest if len(layers) > 6 else 0.2)
    ax = new_axes(ax, title=f"{atlas['model']}{weights}", xlabel="weight layer", ylabel="clusters in use", size=size)
    ax.fill_between(depth, low, high, color=SECOND, alpha=0.25, linewidth=0, label="in an image, quartiles")
    ax.plot(depth, middle, color=SECOND, linestyle="--", label="in an image, median")
    ax.plot(depth, [np.median(counts) for counts in seeds], color=INK, label="in all images, median of seeds")
    places = np.repeat(depth, [len(counts) for counts in seeds])
    ax.scatter(places, np.concatenate(seeds), color=INK, s=12, alpha=0.6, label="in all images, each seed")
    ax.step(depth, [layer["components"] for layer in layers], where="mid", color="0.6", linewidth=1, linestyle=":")
    ax.annotate("components", (depth[0], layers[0]["components"]), color="0.4", fontsize=8, va="bottom")
    ax.set_xticks(depth, [layer["name"] for layer in layers], rotation=90 if len(layers) > 6 else 0, fontsize=8)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_bound(model: FittedMixture, ax: Axes | None = None) -> Axes:
    """Plot the lower bound after each pass of a fit, in nats a row for `DPGMM`."""
    bounds = np.asarray(model.lower_bounds_)
    ax = new_axes(ax, title="Lower bound of the fit", xlabel="pass", ylabel="lower bound, nats a row")
    if not getattr(model, "bound_per_row", True):
        ax.set_ylabel("lower bound, nats")
    ax.plot(np.arange(1, len(bounds) + 1), bounds, color=INK, marker="." if len(bounds) < 40 else None)
    return ax


def plot_weights(model: FittedMixture, ax: Axes | None = None) -> Axes:
    """Plot the weights of the components, the largest first, on a logarithmic scale; those in use are filled."""
    weights: npt.NDArray[np.float64] = np.asarray(host(model.weights_), dtype=np.float64)
    order = np.argsort(-weights, kind="stable")
    used = np.asarray(host(model.counts_))[order] > 0
    place = np.arange(1, len(weights) + 1)
    ax = new_axes(
        ax, title=f"Weights: {model.n_active_} clusters in use", xlabel="component, by weight", ylabel="weight"
    )
    ax.plot(place, weights[order], color=INK, linewidth=1, zorder=1)
    ax.scatter(place[used], weights[order][used], color=INK, s=24, zorder=2, label="in use")
    ax.scatter(
        place[~used], weights[order][~used], facecolor="white", edgecolor=INK, s=24, zorder=2, label="not in use"
    )
    ax.set_yscale("log")
    ax.legend(frameon=False)
    return ax


def plot_detection(
    scores: Mapping[str, Sequence[Mapping[str, Any]]], ax: Axes | None = None, *, title: str = "Centres against cells"
) -> Axes:
    """Plot precision, recall and F1 of each of several layers, or images: medians, and lines from least to largest.

    scores: by name, one for each seed, or a single one, with "precision", "recall" and "f1"; None counts for nothing.
    """
    ax = new_axes(ax, title=title, ylabel="precision, recall, F1")
    kinds = (("precision", "^", INK), ("recall", "v", SECOND), ("f1", "o", THIRD))
    for (kind, marker, colour), aside in zip(kinds, (-0.2, 0.0, 0.2), strict=True):
        known = [[one[kind] for one in some if one[kind] is not None] for some in scores.values()]
        places = np.array([place + aside for place, values in enumerate(known) if values])
        middle, low, high = (np.array([of(values) for values in known if values]) for of in (np.median, min, max))
        ax.vlines(places, low, high, color=colour, linewidth=1.5)
        name = "F1" if kind == "f1" else kind
        ax.plot(places, middle, marker, color=colour, markersize=5, label=name, clip_on=False)
    ax.set_xticks(
        range(len(scores)),
        list(scores),
        rotation=45 if len(scores) > 4 else 0,
        ha="right" if len(scores) > 4 else "center",
        parse_math=False,
    )
    ax.set(ylim=(0, 1), xlim=(-0.6, len(scores) - 0.4))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside: points may be anywhere
    return ax


LABELS = 20  # labels that a plot of composition tells apart


def plot_composition(
    counts: npt.ArrayLike, labels: Sequence[str], clusters: Sequence[int] | None = None, ax: Axes | None = None
) -> Axes:
    """Plot what clusters are composed of: a bar a cluster, the largest first, divided by the shares of its labels.

    counts: (K, L) how often each label is in each cluster; clusters without any are left out. labels: names of the L
    labels; where there are more than 20, the most frequent 20 are told apart, and the rest is "other". clusters: (K,)
    their numbers, 0 to K - 1 if not given. The number of a cluster's members stands above its bar.
    Raises ValueError where the shapes do not fit, or no cluster has members.
    """
    table = np.asarray(counts, dtype=np.int64)
    numbers = np.arange(len(table)) if clusters is None else np.asarray(clusters)
    if table.ndim != 2 or table.shape != (len(numbers), len(labels)) or not table.any():
        raise ValueError(
            f"expected counts (K, L) that are not all 0, with {len(numbers)} clusters and {len(labels)} labels, got "
            f"{table.shape}"
        )
    sizes = table.sum(axis=1)
    order = [k for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    kept = np.sort(np.argsort(-table.sum(axis=0), kind="stable")[:LABELS])
    rest = np.setdiff1d(np.arange(len(labels)), kept)
    parts = [(_legend_name(labels[i]), table[order, i]) for i in kept]
    parts += [(f"other ({len(rest)})", table[order][:, rest].sum(axis=1))] if len(rest) else []
    made = ax is None
    ax = new_axes(ax, title="Composition of the clusters", xlabel="cluster, the largest first", ylabel="share")
    if made:
        figure = ax.get_figure(root=True)
        assert figure is not None
        figure.set_size_inches(max(7.0, 3.2 + 0.24 * len(order)), max(4.2, 1.0 + 0.21 * len(parts)))
    place, below = np.arange(len(order)), np.zeros(len(order))
    for i, (name, part) in enumerate(parts):
        share = part / sizes[order]
        shade, other = _shade(i), i >= len(kept)
        ax.bar(
            place,
            share,
            bottom=below,
            width=0.85,
            color="#c9c9c9" if other else shade,
            hatch=".." if other else "//" if i >= LABELS // 2 else None,
            edgecolor="white",
            linewidth=0.4,
            label=name,
        )
        below += share
    for x, size in zip(place, sizes[order], strict=True):
        ax.text(float(x), 1.01, str(size), ha="center", va="bottom", fontsize=7, rotation=90 if len(order) > 12 else 0)
    ax.set_xticks(place, [str(numbers[k]) for k in order], fontsize=7 if len(order) > 25 else 9)
    ax.set(ylim=(0, 1.1), yticks=np.linspace(0, 1, 6), xlim=(-0.7, len(order) - 0.3))
    legend = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, reverse=True)
    _as_it_is(*legend.get_texts())
    return ax


def _legend_name(label: str) -> str:
    """A label as a legend can show it: printable, not too long, and without a first underscore, which would hide it."""
    name = printable(label) or "(none)"
    name = name if len(name) <= 32 else f"{name[:20]}…{name[-11:]}"
    return f" {name}" if name.startswith("_") else name


def _shade(i: int) -> tuple[float, float, float]:
    """The colour of the i-th of 20 labels: ten hues, then the same ones lighter, for bars that are hatched too."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["tab20"](2 * (i % 10) + (i >= 10))
    return float(red), float(green), float(blue)


def plot_transfer(
    found: Sequence[Transfer], names: tuple[str, str] = ("A", "B"), stops: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot, layer by layer, what share of each image's rows is far: of A's held-out images, and of B's.

    Lines are medians of images, bands run from the smallest to the largest; the separation is on the axis to the right.
    stops: the layer at which B stops looking like A, which is marked. names: of A and B.
    """
    ax = new_axes(
        ax,
        title=f"{names[1]} against {names[0]}",
        xlabel="layer, in order of depth",
        ylabel="rows of an image that are far, %",
    )
    at = np.arange(len(found))
    sides = (
        (f"{names[0]}, held out", [one.far_a for one in found], INK, "o", "-"),
        (names[1], [one.far_b for one in found], SECOND, "s", "--"),
    )
    for name, shares, colour, marker, dashes in sides:
        low, middle, high = (100 * np.array([reduce(one) for one in shares]) for reduce in (np.min, np.median, np.max))
        ax.plot(at, middle, color=colour, marker=marker, linestyle=dashes, label=f"{name}: median image")
        ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0, label=f"{name}: all images")
        if len(at) == 1:  # a band of no width
            ax.vlines(at, low, high, color=colour, alpha=0.4)
    if stops is not None:
        where = [one.layer for one in found].index(stops)
        ax.axvline(where, color="#444444", linestyle=":", label=f"stops looking like {names[0]}")
    ax.set_xticks(at, [one.layer for one in found])
    if sum(len(one.layer) for one in found) > 60:
        ax.tick_params(axis="x", rotation=30)
    ax.set_ylim(0, None)
    right = ax.twinx()
    right.spines["top"].set_visible(False)
    right.set(ylim=(0, 1), ylabel="separation of rows (0.5: none)")
    line = right.plot(
        at, [one.separation for one in found], color=THIRD, marker="^", linestyle="-.", label="separation"
    )
    handles, _ = ax.get_legend_handles_labels()
    legend = ax.legend(
        handles=[*handles, *line], frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    _as_it_is(*legend.get_texts())
    ax.set_title(ax.get_title(), pad=44)  # above the legend
    return ax


def plot_agreement(
    rows: Iterable[tuple[str, Image, Image, Image]], names: tuple[str, str] = ("X", "Y"), ax: Axes | None = None
) -> Axes:
    """Draw X's label images, Y's in X's colours, and where they differ, an image a row.

    rows: a name and three pictures (h, w, 3) uint8 of one size each, as `fastclust.views.agreement.pictures` yields
    them; those of more than SIDE pixels a side are reduced to that, by nearest neighbour. names: of X and Y.
    Raises ValueError where there are no rows.
    """
    drawn = [(name, _reduced(one), _reduced(other), _reduced(where)) for name, one, other, where in rows]
    if not drawn:
        raise ValueError("no images to draw: expected at least one")
    gap = GAP * max(pictures[0].shape[1] for _, *pictures in drawn) // 100 + 1
    width = max(pictures[0].shape[1] for _, *pictures in drawn)
    height = sum(pictures[0].shape[0] + gap for _, *pictures in drawn) - gap
    page = np.full((height, 3 * width + 2 * gap, 3), 255, dtype=np.uint8)
    middles, top = [], 0
    for _, *pictures in drawn:
        h, w = pictures[0].shape[:2]
        for column, picture in enumerate(pictures):
            left = column * (width + gap)
            page[top : top + h, left : left + w] = picture
        middles.append(top + (h - 1) / 2)
        top += h + gap
    if ax is None:
        from matplotlib.figure import Figure

        side = 6.3 / page.shape[1]
        ax = Figure(figsize=(8.8, max(1.2, side * height + 0.5)), layout="constrained").add_subplot()
    ax.imshow(page, interpolation="nearest")
    ax.set_yticks(
        middles, [name if len(name) <= 18 else f"{name[:9]}…{name[-8:]}" for name, *_ in drawn], parse_math=False
    )
    heads = (names[0], f"{names[1]}, colours matched", "black where they differ")
    ax.set_xticks([column * (width + gap) + (width - 1) / 2 for column in range(3)], heads, parse_math=False)
    ax.tick_params(length=0, labelsize="small", top=False, bottom=False, labeltop=True, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _reduced(picture: Image) -> Image:
    """Return a picture (h, w, 3) of at most SIDE pixels a side: matplotlib takes forty bytes of memory for a pixel."""
    sides = picture.shape[:2]
    scale = min(1.0, SIDE / max(sides))
    rows, columns = (np.arange(max(1, round(side * scale))) * side // max(1, round(side * scale)) for side in sides)
    return picture if scale == 1 else picture[rows[:, None], columns]

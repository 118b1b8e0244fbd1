"""Plots with matplotlib: each function draws into the Axes that it is given, or into new ones, and returns them.

`save` writes a plot to a file, without a display: PNG, SVG or PDF by its suffix.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastclust.arrays import host
from fastclust.atomic import written_aside
from fastclust.fitted import FittedMixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastclust.views.transfer import Transfer

SUFFIXES = (".png", ".svg", ".pdf")
GAP = 4  # of a picture's width, in percent, between pictures
Image = npt.NDArray[np.uint8]
INK, SECOND, THIRD = "#1f5fa8", "#b5541c", "#2f7d4f"  # lines, of which no two differ by colour alone


def new_axes(ax: Axes | None = None, *, title: str = "", xlabel: str = "", ylabel: str = "") -> Axes:
    """Return axes with title and labels, without the upper and right spine; new ones where ax is None.

    New ones belong to a Figure of their own, not to pyplot's list, so nothing needs to be closed.
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(7, 4.2), layout="constrained").add_subplot()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def check_plot(path: Path) -> None:
    """Refuse a file that a plot cannot be written to, before the work. Raises ValueError, FileNotFoundError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a plot's file to end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: create it first")


def save(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Write the figure of these axes to a file, whole or not at all. Raises as `check_plot`, and OSError."""
    path = Path(path)
    check_plot(path)
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes belong to no figure any more")
    with written_aside(path) as aside:
        figure.savefig(aside, format=path.suffix[1:].lower(), dpi=150)


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
    ax.legend(
        handles=[*handles, *line], frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    ax.set_title(ax.get_title(), pad=44)  # above the legend
    return ax


def plot_agreement(
    rows: Iterable[tuple[str, Image, Image, Image]], names: tuple[str, str] = ("X", "Y"), ax: Axes | None = None
) -> Axes:
    """Draw X's label images, Y's in X's colours, and where they differ, an image a row.

    rows: a name and three pictures (h, w, 3) uint8 of one size each, as `fastclust.views.agreement.pictures` yields
    them. names: of X and Y. Raises ValueError where there are no rows.
    """
    drawn = list(rows)
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
    ax.set_yticks(middles, [name if len(name) <= 18 else f"{name[:9]}…{name[-8:]}" for name, *_ in drawn])
    heads = (names[0], f"{names[1]}, colours matched", "black where they differ")
    ax.set_xticks([column * (width + gap) + (width - 1) / 2 for column in range(3)], heads)
    ax.tick_params(length=0, labelsize="small", top=False, bottom=False, labeltop=True, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax

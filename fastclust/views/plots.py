"""Plots with matplotlib: each function draws into the Axes that it is given, or into new ones, and returns them.

`save` writes a plot to a file, without a display: PNG, SVG or PDF by its suffix.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclust.arrays import host
from fastclust.atomic import written_aside
from fastclust.fitted import FittedMixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
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
    )
    ax.set(ylim=(0, 1), xlim=(-0.6, len(scores) - 0.4))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside: points may be anywhere
    return ax

"""The command `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastclust.console import say


def plot(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model that `fit` or `run` wrote.")],
    bound: Annotated[Path | None, typer.Option(help="File for the lower bound after each pass.")] = None,
    weights: Annotated[Path | None, typer.Option(help="File for the components' weights, by size.")] = None,
) -> None:
    """Plot how a fit went and what it found, to .png, .svg or .pdf files."""
    from fastclust.saved import load
    from fastclust.views.plots import check_plot, plot_bound, plot_weights, save

    asked = {file: draw for file, draw in ((bound, plot_bound), (weights, plot_weights)) if file is not None}
    if not asked:
        raise ValueError("nothing to plot: name files with --bound and --weights")
    for file in asked:
        check_plot(file)
    mixture = load(model)
    for file, draw in asked.items():
        save(draw(mixture), file)
        say(f"{file}: {draw.__name__.removeprefix('plot_')} of {model}")

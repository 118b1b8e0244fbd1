"""The commands `compare` and `agree`: two data sets under one network, and two labellings of the same images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fastclust import options
from fastclust.console import complain, progress_bars, say
from fastclust.options import (
    Alpha,
    Backend,
    Components,
    Covariance,
    CovarianceType,
    Device,
    MaxIter,
    Overwrite,
    Precision,
    Rows,
    Tol,
)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A store that `extract` wrote, or the folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same network, weights and layers.")],
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="A layer, repeatable [default: all that both have].")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Take DIR/LAYER/model.h5, fitted to other images; then all of A's are held out."
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of A's images that are held out; at least one, and not all.")
    ] = 0.5,
    rows: Rows = None,
    components: Components = 50,
    alpha: Alpha = 0.2,
    covariance: CovarianceType = Covariance.diag,
    tol: Tol = 1e-4,
    max_iter: MaxIter = 200,
    seed: Annotated[
        int, typer.Option(min=0, max=options.SEEDS, help="Of the split of the images, and of the start.")
    ] = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder to write compare.json to.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the share of far rows over depth.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Tell how much of B's features looks like A's, layer by layer.

    A mixture is fitted to some of A's images. A row is far where its log-density is below the 1 % quantile of the rows
    of A's other images, so of A itself 1 % is far. The other rows of B fall to A's clusters. Far rows of B are of new
    clusters where they are as probable under a mixture of the far rows of other images of B; the rest are of neither.

    The separation is the probability that a row of B is less probable than a held-out row of A, 0.5 where they are
    alike; the usage is 0 where B's rows are spread over A's clusters as A's are, and 1 where they fall to others.
    """
    from fastclust.atomic import write_json
    from fastclust.layer_fit import check_mixture
    from fastclust.store import open_features
    from fastclust.views import comparison
    from fastclust.views.plots import check_plot, plot_transfer, save
    from fastclust.views.transfer import stops_at

    target = _target(out, "compare.json", overwrite)
    if plot is not None:
        check_plot(plot)
    stores = open_features(a), open_features(b)
    mixture = options.mixture(components, alpha, covariance, None, tol, max_iter, seed, device, backend, Precision.high)
    check_mixture(mixture)
    sizes = [store.provenance["size"] for store in stores]
    if sizes[0] != sizes[1]:
        complain(f"sizes differ, {sizes[0]} and {sizes[1]}: what differs may be the scale alone", style="yellow")
    with progress_bars() as progress:
        found = comparison.compare(
            *stores, mixture, layers=layer or (), models=models, held_out=held_out, sample=rows, progress=progress
        )
    for line in comparison.lines(found):
        say(line)
    for one in found:
        if not one.converged:
            complain(f"the mixture of {one.layer} has not converged (--max-iter {max_iter})", style="yellow")
    stops = stops_at(found)
    where = f"{stops}: the first layer where" if stops else "at no layer has"
    verb = "B's median image has more far rows" if stops else "B's median image more far rows"
    say(f"{where} {verb} than any held-out image of A")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, comparison.as_json(*stores, found, mixture))
        say(f"{target}: {len(found)} layers")
    if plot is not None:
        save(plot_transfer(found, _names(a, b), stops), plot)
        say(str(plot))


def agree(
    x: Annotated[Path, typer.Argument(metavar="X", help="A folder of label images, as `label` writes.")],
    y: Annotated[Path, typer.Argument(metavar="Y", help="Another, of the same images.")],
    out: Annotated[Path | None, typer.Option(help="Folder for agreement.json and matched.png.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Tell how far two labellings of the same images agree: two networks, layers, or seeds.

    X and Y hold labels/IMAGE.png, or are folders of such PNGs; images are those that both have by name, at the larger
    of the two sizes. matched.png has X's label images, Y's in the colours of X's clusters that overlap theirs most
    (grey where there is none), and where the two differ.
    """
    from fastclust.atomic import write_json
    from fastclust.views import agreement
    from fastclust.views.plots import plot_agreement, save

    target = _target(out, "agreement.json", overwrite, "matched.png")
    with progress_bars() as progress:
        found = agreement.agree(x, y, progress)
    for line in agreement.lines(found):
        say(line)
    for folder, names in ((x, found.only_x), (y, found.only_y)):
        if names:
            complain(f"{len(names)} images are in {folder} alone, such as {names[0]}", style="yellow")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, agreement.as_json(x, y, found))
        picture = target.with_name("matched.png")
        save(plot_agreement(agreement.pictures(found), _names(x, y)), picture)
        say(f"{picture}: {len(found.shown)} images shown")


def _target(out: Path | None, name: str, overwrite: bool, *more: str) -> Path | None:
    """Return the file to write in a folder, None where none is named; refuse what is there, before the work."""
    if out is None:
        return None
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file: name a folder with --out")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{above} cannot be written to: name another folder with --out")
    for file in (name, *more):
        if (out / file).exists() and not overwrite:
            raise FileExistsError(f"{out / file} exists: --overwrite replaces it; or name another folder")
    return out / name


def _names(one: Path, other: Path) -> tuple[str, str]:
    """Return what plots call two files or folders: their names, with those of folders above where these are alike."""
    pair = [path.absolute() for path in (one, other)]
    pair = [path.parent if path.name in ("labels", "enlarged", "features.h5") else path for path in pair]
    if pair[0].name == pair[1].name:
        return f"{pair[0].parent.name}/{pair[0].name}", f"{pair[1].parent.name}/{pair[1].name}"
    return pair[0].stem if pair[0].is_file() else pair[0].name, pair[1].stem if pair[1].is_file() else pair[1].name

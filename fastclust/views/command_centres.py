"""The command `centres`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastclust.console import end, progress_bars, say
from fastclust.options import Backend, Device, OneLayer, Overwrite, not_negative


def _clusters(value: str | None) -> str | None:
    if value is not None and not all(part.strip().isdecimal() for part in value.split(",")):
        raise typer.BadParameter(f"expected clusters' numbers such as 3 or 3,7, got {value!r}")
    return value


def centres(
    source: Annotated[
        Path, typer.Argument(metavar="STORE", help="A store that `extract` wrote, or the folder of a run.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for centres/IMAGE.png, centres.csv and centres.png.")],
    model: Annotated[
        Path | None, typer.Option(help="A model that `fit` wrote; not needed where STORE is a run's folder.")
    ] = None,
    layer: OneLayer = None,
    clusters: Annotated[
        str | None,
        typer.Option(callback=_clusters, help="Clusters that are foreground, such as 3,7 [default: chosen by a rule]."),
    ] = None,
    min_area: Annotated[
        float, typer.Option(callback=not_negative, help="Pixels of the network's input that a region covers at least.")
    ] = 25,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with masks of cells, IMAGE_mask.png or IMAGE.png, a number for each cell and 0 for none: "
            "hold the centres against them."
        ),
    ] = None,
    distance: Annotated[
        float,
        typer.Option(
            callback=not_negative,
            help="Pixels of the network's input between a centre and the cell that it finds, at most; 6 is a nucleus's "
            "radius where a pixel is half a micrometre.",
        ),
    ] = 6,
    plot: Annotated[
        Path | None, typer.Option(help="With --masks: plot precision, recall and F1 by image to a .png, .svg or .pdf.")
    ] = None,
    device: Device = "auto",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Find the centres of clusters' regions in the input images, as cells are counted; hold them against masks.

    Neighbouring units of foreground clusters are a region. Without --clusters, foreground is the group of like clusters
    of which the most is in round regions that cover at most a twentieth of an image; masks have no part in that.
    Writes DIR/centres/IMAGE.png with a marker at each centre, DIR/centres.csv with places in the input and in the
    image's file, DIR/centres.png with some images side by side, and with --masks DIR/detection.json.
    """
    from fastclust.layer_fit import check_device
    from fastclust.views import centres as views
    from fastclust.views.detection import total
    from fastclust.views.plots import check_plot, plot_detection, save

    if plot is not None:
        if masks is None:
            raise ValueError("--plot shows how well the centres find cells: name the masks with --masks")
        check_plot(plot)
    check_device(device, backend)
    store, record, mixture = views.open_source(source, model, layer[0] if layer else None)
    mixture.set_params(device=device, backend=backend)
    named = None if clusters is None else sorted({int(part) for part in clusters.split(",")})
    with progress_bars() as progress:
        found = views.find_centres(
            store,
            record,
            mixture,
            out,
            clusters=named,
            min_area=min_area,
            masks=masks,
            distance=distance,
            overwrite=overwrite,
            progress=progress,
        )
    count = sum(len(some) for some in found.centres.values())
    images = "1 image" if len(found.centres) == 1 else f"{len(found.centres)} images"
    how = "chosen by the rule" if found.chosen else "named"
    say(f"{out}: {record.name}, {images}: {count} centres of {views.clusters_in_words(found.clusters)}, {how}")
    if masks is not None:
        for name, score in [*found.scores.items(), ("all", total(list(found.scores.values())))]:
            say(f"{name}: {score.in_words()}")
    if plot is not None:
        save(plot_detection({name: [score.as_dict()] for name, score in found.scores.items()}), plot)
        say(f"{plot}: precision, recall and F1 by image")
    end(found.left_out)

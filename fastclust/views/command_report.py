"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastclust.console import progress_bars, say
from fastclust.options import Backend, Device


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run (its --out).")],
    device: Device = "auto",
    backend: Backend = "auto",
) -> None:
    """Write DIR/report.html: a run's images, label images and clusters in one page, to look around in a browser.

    Pointing at a pixel names its cluster and lights it up in all images, and what overlaps it in the layers on either
    side. Of each cluster it has the share, examples, channels that mark it out and clusters that are near; of each
    layer the weights and the bound. The page needs nothing but itself, and keeps below 10 MB: of many images, and of
    large ones, it shows a part and says so.
    """
    from fastclust.layer_fit import check_device
    from fastclust.views.page import report_run

    check_device(device, backend)
    with progress_bars() as progress:
        found = report_run(folder, progress, device=device, backend=backend)
    say(reported(folder, found))


def reported(folder: Path, found: dict[str, int]) -> str:
    """Say what a report is of and how large it is; found: of `fastclust.views.page.write_report`."""
    shown = "1 image" if found["images"] == 1 else f"{found['images']} images"
    return f"{folder / 'report.html'}: {shown} shown, {found['bytes'] / 1e6:.1f} MB"

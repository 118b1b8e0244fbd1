"""The commands that show what a network has learned, each in a file of its own: pages, pictures, tables and plots."""

import typer

from fastclust.views.command_atlas import atlas
from fastclust.views.command_centres import centres
from fastclust.views.command_compare import agree, compare
from fastclust.views.command_images import figure4, images
from fastclust.views.command_plot import plot
from fastclust.views.command_report import report

app = typer.Typer()
for command in (report, atlas, centres, images, figure4, compare, agree, plot):
    app.command()(command)

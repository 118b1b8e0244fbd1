"""Plots: they show the model's numbers, return their Axes, and go to files that are there whole or not at all."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from conftest import blobs
from matplotlib.figure import Figure
from test_transfer import far

from fastclust import DPGMM
from fastclust.views.plots import (
    new_axes,
    plot_agreement,
    plot_bound,
    plot_composition,
    plot_detection,
    plot_transfer,
    plot_weights,
    save,
)


@pytest.fixture(scope="module")
def model() -> DPGMM:
    return DPGMM(n_components=6, random_state=0, max_iter=300).fit(blobs(600, 3, k=3, seed=1))


def test_the_bounds_curve_is_the_models(model: DPGMM):
    axes = plot_bound(model)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, model.n_iter_ + 1))
    np.testing.assert_array_equal(line.get_ydata(), model.lower_bounds_)
    assert axes.get_ylabel() == "lower bound, nats a row"


def test_weights_go_down_and_those_in_use_are_told_apart(model: DPGMM):
    axes = plot_weights(model)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.sort(model.weights_)[::-1])
    used, unused = (points.get_offsets() for points in axes.collections)
    assert (len(used), len(unused)) == (model.n_active_, model.n_components - model.n_active_)
    np.testing.assert_allclose(np.sort(used[:, 1]), np.sort(model.weights_[model.counts_ > 0]))


def test_axes_that_are_given_are_drawn_into(model: DPGMM):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_bound(model, left) is left
    assert plot_weights(model, right) is right
    assert plot_bound(model).get_figure() is not figure


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        save(new_axes(title="a $ b < c"), tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"expected a plot's file to end in \.png, \.svg, \.pdf"):
        save(new_axes(), tmp_path / "plot.jpeg")
    with pytest.raises(FileNotFoundError, match="is not a folder: create it first"):
        save(new_axes(), tmp_path / "none" / "plot.png")
    before = (tmp_path / "plot.png").read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(OSError, match="broken"):
        save(new_axes(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


ODD = r"x^{$ \foo$ 猫"
PICTURE = np.zeros((4, 5, 3), dtype=np.uint8)
SCORE = {"precision": 0.5, "recall": 0.5, "f1": 0.5}
NAMED = {
    "title": lambda: new_axes(title=ODD),
    "composition": lambda: plot_composition([[3, 1], [0, 2]], [ODD, "b"]),
    "detection": lambda: plot_detection({ODD: [SCORE]}),
    "transfer": lambda: plot_transfer([far("relu1_2", [0.0], [0.5])], (ODD, ODD), "relu1_2"),
    "agreement": lambda: plot_agreement([(ODD, PICTURE, PICTURE, PICTURE)], (ODD, ODD)),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path):
    axes = NAMED[name]()
    for suffix in (".png", ".svg", ".pdf"):
        save(axes, tmp_path / f"plot{suffix}")
    assert ODD in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_numbers_of_a_logarithmic_axis_are_still_formulas(model: DPGMM, tmp_path: Path):
    save(plot_weights(model), tmp_path / "plot.svg")
    assert "$" not in re.sub(r"<!--.*?-->", "", (tmp_path / "plot.svg").read_text())


def test_the_command_plots_what_is_asked_for(model: DPGMM, tmp_path: Path):
    model.save(tmp_path / "model.h5")
    done = call("plot", tmp_path / "model.h5", "--bound", tmp_path / "bound.png", "--weights", tmp_path / "weights.svg")
    assert done.status == 0, done.err
    assert (tmp_path / "bound.png").is_file()
    assert (tmp_path / "weights.svg").is_file()
    nothing = call("plot", tmp_path / "model.h5")
    assert nothing.status == 1
    assert "name files with --bound and --weights" in nothing.err
    wrong = call("plot", tmp_path / "model.h5", "--bound", tmp_path / "bound.doc")
    assert wrong.status == 1
    assert "expected a plot's file to end in" in wrong.err

"""A fit whose K-sized work is one graph is the eager fit, to the last bit; what stands for the graph is `tape.Tape`."""

import logging
import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning
from tape import Tape

from fastclust import DPGMM, engine, graph
from fastclust.checkpoint import Checkpoint
from fastclust.graph import RECORDED, WARM, tensors
from fastclust.kernels import Coefficients, Statistics, reference
from fastclust.kernels import torch as plain
from fastclust.variational import IllDefinedCovarianceError

OWN = {"n_components": 6, "device": "cpu", "random_state": 0, "tol": 1e-6, "max_iter": 40}


class Staying(reference.Plan):
    """A plan whose sums and coefficients stay where they are; its moments are about its own means.

    What it hands out is its own memory: a step that kept it would see the next pass in it.
    """

    renewable = True
    made = 0
    coarse = False  # whether it sees rows in 11 bits

    def add(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        super().add(rows.half() if self.coarse else rows, weights)

    def __init__(self, coefficients: Coefficients, frame, dtype) -> None:
        type(self).made += 1
        self._own = Coefficients(coefficients.covariance_type, *(part.clone() for part in tensors(coefficients)))
        super().__init__(self._own, frame, dtype)
        self._sums: list[torch.Tensor] = []
        self._some = False

    def keep(self, found: Statistics) -> None:
        if not self._sums:
            self._sums = [part.clone() for part in tensors(found)]
        elif self._some:
            for total, part in zip(self._sums[:5], list(tensors(found))[:5], strict=True):
                total.add_(part)
        else:
            torch._foreach_copy_(self._sums[:5], list(tensors(found))[:5])
        self._some = True

    def result(self) -> Statistics:
        if not self._some:
            raise ValueError("no rows were added")
        nk, sx, sxx, log_norm, entropy, _ = self._sums
        return Statistics(nk, sx, sxx, log_norm, entropy, torch.zeros_like(self._own.means))

    def renew(self, coefficients: Coefficients) -> None:
        torch._foreach_copy_(list(tensors(self._own)), list(tensors(coefficients)))
        self.clear()

    def clear(self) -> None:
        self._some = False


class About(Staying):
    """A plan whose moments are about its own means."""

    def result(self) -> Statistics:
        found = super().result()
        c = self._own.means
        step = -c
        added = 2 * found.sx * step + found.nk[:, None] * step**2
        sxx = found.sxx + (added if found.sxx.ndim == 2 else added.sum(1))
        return Statistics(found.nk, found.sx + found.nk[:, None] * step, sxx, found.log_norm, found.entropy, c)


def backend(plan: type, *, renews: bool) -> SimpleNamespace:
    """Return a backend of such plans; where they do not renew, each pass has a new one."""
    made_of = plan if renews else type("Fresh", (plan,), {"renewable": False, "renew": None})

    def prepare(coefficients, frame, dtype, precision="high", block_rows=None):
        made = made_of(coefficients, frame, dtype)
        made.coarse = precision == "fast"
        return made

    return SimpleNamespace(**vars(plain) | {"prepare": prepare, "PRECISIONS": ("high", "fast")})


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    """Record on the CPU; return what was recorded."""
    made: list[Tape] = []

    def record(function):
        made.append(Tape(function))
        return made[-1]

    monkeypatch.setattr(graph, "recorder", lambda device, kind: record if kind in RECORDED else None)
    return made


def fit(X: np.ndarray, *, plans=None, weights=None, checked=True, **parameters: object) -> tuple[DPGMM, list]:
    """Return a fitted mixture and every ascent on the way."""
    ascents = []
    whole = engine._pass

    def kept(*given):
        ascents.append(whole(*given))
        return ascents[-1]

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        patch.setattr(engine, "_pass", kept)
        patch.setattr("fastclust.fitting.checked", lambda device: checked)
        if plans is not None:
            patch.setattr("fastclust.fitted.kernels.select", lambda name, device: ("watched", plans, {}))
        model = DPGMM(**OWN | {"backend": "torch"} | parameters).fit(X, sample_weight=weights)
    return model, ascents


def assert_same(found: tuple[DPGMM, list], expected: tuple[DPGMM, list]) -> None:
    """Compare two fits, pass by pass, to the last bit."""
    assert found[0].lower_bounds_ == expected[0].lower_bounds_
    assert found[0].converged_ == expected[0].converged_
    assert len(found[1]) == len(expected[1]) > WARM + 2
    for one, other in zip(found[1], expected[1], strict=True):
        pairs = list(zip(tensors(one), tensors(other), strict=True))
        assert len(pairs) > 10
        assert all(torch.equal(a, b) for a, b in pairs)
        assert (one.lower_bounds, one.change, one.fast) == (other.lower_bounds, other.change, other.fast)


def eager(X: np.ndarray, **options: object) -> tuple[DPGMM, list]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "recorder", lambda device, kind: None)
        return fit(X, **options)


@pytest.mark.parametrize("sort_sticks", [False, True], ids=["", "sorted"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
@pytest.mark.parametrize("plan", [None, Staying, About], ids=["torch", "staying", "about"])
def test_a_fit_in_a_graph_is_the_eager_fit(plan, kind, weighted, sort_sticks, tapes, caplog):
    X = blobs(600, 4, 6)
    weights = np.random.default_rng(1).uniform(0, 2, len(X)) if weighted else None
    options = {"covariance_type": kind, "weights": weights, "sort_sticks": sort_sticks}
    expected = eager(X, plans=None if plan is None else backend(plan, renews=False), **options)
    assert not tapes
    found = fit(X, plans=None if plan is None else backend(plan, renews=True), **options)
    assert_same(found, expected)
    assert [tape.replays for tape in tapes] == [found[0].n_iter_ - WARM]
    assert not caplog.records


def test_a_plan_that_stays_is_made_once_a_fit(tapes):
    Staying.made = 0
    model, _ = fit(blobs(600, 4, 6), plans=backend(Staying, renews=True), init_params="random_from_data")
    assert model.n_iter_ > 2 * WARM
    assert Staying.made == 2  # and once for the labels


class Moving(Staying):
    """A plan that turns out not to be renewable when it has rows: it has sums in each pass's own memory."""

    renewable = property(lambda plan: not plan._some)

    def keep(self, found: Statistics) -> None:
        self._sums = []
        super().keep(found)


def test_a_plan_whose_sums_move_is_copied_from(tapes):
    """A graph that read them would see the pass that it was recorded in for ever, and its sums would add up."""
    X = blobs(600, 4, 6)
    expected = eager(X, plans=backend(Staying, renews=False), sort_sticks=True)
    assert_same(fit(X, plans=backend(Moving, renews=True), sort_sticks=True), expected)
    assert [tape.replays for tape in tapes] == [len(expected[1]) - WARM]


def test_a_plan_that_begins_to_move_its_sums_ends_the_graph(tapes, monkeypatch, caplog):
    X, passes = blobs(600, 4, 6), []
    options = {"init_params": "random_from_data", "sort_sticks": True}
    expected = eager(X, plans=backend(Staying, renews=False), **options)
    keep = Staying.keep

    def moves(plan, found):
        passes.append(plan)
        if len(passes) == WARM + 3:
            plan._sums, plan.renewable = [], False
        keep(plan, found)

    monkeypatch.setattr(Staying, "keep", moves)
    assert_same(fit(X, plans=backend(Staying, renews=True), **options), expected)
    assert [tape.replays for tape in tapes] == [2]
    assert "the plan keeps sums elsewhere than before" in caplog.text


@pytest.mark.parametrize("plan", [None, About], ids=["torch", "about"])
def test_mixed_precision_several_starts_and_a_dirichlet_are_as_eager(plan, tapes, caplog, monkeypatch):
    """Each start has a graph, and in mixed precision two: of its fast passes and of the others."""
    monkeypatch.setattr(graph, "WARM", 1)  # there are two of the others
    options = {"n_init": 2, "precision": "mixed", "weight_concentration_prior_type": "dirichlet_distribution"}
    options |= {"checked": False, "tol": 1e-2, "init_params": "random_from_data"}
    X = relu_features(400, 8)
    expected = eager(X, plans=backend(plan or Staying, renews=False), **options)
    found = fit(X, plans=backend(plan or Staying, renews=plan is not None), **options)
    assert_same(found, expected)
    assert {ascent.fast for ascent in found[1]} == {True, False}
    assert [tape.replays for tape in tapes] == [9, 1, 11, 1]
    assert not caplog.records


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_what_cusolver_does_is_not_recorded(kind):
    assert graph.recorder(torch.device("cuda:0"), kind) is None
    assert graph.recorder(torch.device("cpu"), "diag") is None
    assert graph.recorder(torch.device("cuda:0"), "diag") is not None


def test_a_fit_that_goes_on_is_the_fit_that_was_not_stopped(tapes, tmp_path):
    X = blobs(600, 4, 6)
    whole, _ = fit(X, sort_sticks=True, tol=0, max_iter=12)
    path = tmp_path / "fit.h5"
    for last in (WARM + 2, 12):
        model = DPGMM(**OWN | {"backend": "torch", "sort_sticks": True, "tol": 0, "max_iter": last})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, checkpoint=Checkpoint(path, every=0, resume=True))
    assert model.lower_bounds_ == whole.lower_bounds_
    np.testing.assert_array_equal(model.means_, whole.means_)
    fit(X, sort_sticks=True, max_iter=1)
    assert len(tapes) == 3  # one pass is none to record


@pytest.mark.parametrize("renews", [False, True])
def test_what_cannot_be_recorded_is_a_warning_and_an_eager_fit(renews, monkeypatch, caplog):
    X, plans = blobs(600, 4, 6), backend(About, renews=renews)
    expected = eager(X, plans=plans)

    def refused(function):
        function()  # on the host all of it was done when the device refuses
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graph, "recorder", lambda device, kind: refused)
    assert_same(fit(X, plans=plans), expected)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "passes go on without a CUDA graph" in record.getMessage()
    assert record.getMessage().endswith("not permitted when stream is capturing")


def test_a_refused_recording_leaves_the_stream_as_it_was(monkeypatch):
    """torch 2.11 ends the recording first, which raises, and then would leave the stream that it was on."""
    now = ["the caller's"]

    @contextmanager
    def recording(graph, pool, stream, mode):
        now[0] = stream
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "the recording's")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: now.__setitem__(0, stream))
    monkeypatch.setattr(torch.cuda, "graph", recording)
    seen = []
    with pytest.raises(RuntimeError, match="during capture"):
        graph.Graph(torch.device("cuda:0"), lambda: seen.append(now[0]))
    assert seen == ["the recording's"]
    assert now == ["the caller's"]


class Wrong(Tape):
    """A graph that gets one number wrong, by the last bit."""

    def replay(self) -> None:
        super().replay()
        mean = self.found.step.posterior.m[0]
        mean[0] = torch.nextafter(mean[0], mean[0] + 1)


@pytest.mark.parametrize("renews", [False, True])
def test_a_graph_that_differs_in_one_bit_is_dropped(renews, monkeypatch, caplog):
    X, plans = blobs(600, 4, 6), backend(About, renews=renews)
    expected = eager(X, plans=plans)
    monkeypatch.setattr(graph, "recorder", lambda device, kind: Wrong)
    assert_same(fit(X, plans=plans), expected)
    [record] = caplog.records
    assert "numbers otherwise than its operations one by one" in record.getMessage()


@pytest.mark.parametrize("renews", [False, True])
@pytest.mark.parametrize("at", [1, WARM + 1, WARM + 3])
def test_rows_that_come_in_other_pieces_end_the_graph(at, renews, tapes, monkeypatch, caplog):
    """A graph that reads what a plan left of one block must not be replayed for two."""
    X = blobs(1100, 4, 6)
    plans = backend(Staying, renews=renews)
    calls = []
    whole = Staying.keep

    def short(plan, found):
        calls.append(found)
        if len(calls) == at:
            raise torch.OutOfMemoryError("made up")
        whole(plan, found)

    options = {"init_params": "random_from_data", "sort_sticks": True, "max_iter": WARM + 6, "tol": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Staying, "keep", short)
        expected = eager(X, plans=backend(Staying, renews=False), **options)
        calls.clear()
        caplog.clear()
        found = fit(X, plans=plans, **options)
    assert_same(found, expected)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "passes go on without a CUDA graph, for the device ran out of memory" in said
    assert [tape.replays for tape in tapes] == [at - WARM - 1] * (at > WARM + 1)


def test_blocks_that_change_end_the_graph(tapes, monkeypatch, caplog):
    """Rows that stay on the device after their first passes come as one block, where they were two before."""
    X = torch.from_numpy(blobs(600, 4, 6))
    halves, passes = engine.Rows.read_into, []

    def cut(rows, plan):
        passes.append(plan)
        if len(passes) != WARM + 3:
            return halves(rows, plan)
        plan.add(X[:400])
        plan.add(X[400:])
        return [400, 200]

    monkeypatch.setattr(engine.Rows, "read_into", cut)
    model, _ = fit(X.numpy(), plans=backend(Staying, renews=True), init_params="random_from_data", tol=0, max_iter=9)
    assert [tape.replays for tape in tapes] == [2]
    assert "the rows came in 2 pieces, not in 1 as before" in caplog.records[-1].getMessage()
    monkeypatch.undo()
    plain_fit, _ = eager(
        X.numpy(), plans=backend(Staying, renews=False), init_params="random_from_data", tol=0, max_iter=9
    )
    np.testing.assert_allclose(model.lower_bounds_, plain_fit.lower_bounds_, rtol=1e-12)


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_covariance_that_is_not_positive_definite_is_found_in_a_replay(kind, tapes, monkeypatch):
    found, passes = Staying.keep, []

    def broken(plan, statistics):
        passes.append(plan)
        found(plan, statistics)
        if len(passes) == WARM + 3:
            plan._sums[2][1].mul_(-1)

    monkeypatch.setattr(Staying, "keep", broken)
    with pytest.raises(IllDefinedCovarianceError, match="ill-defined empirical covariance"):
        fit(
            blobs(600, 4, 6),
            plans=backend(Staying, renews=True),
            covariance_type=kind,
            init_params="random_from_data",
            checked=False,
            tol=0,
        )
    assert len(passes) == WARM + 3
    assert tapes[0].replays == 3

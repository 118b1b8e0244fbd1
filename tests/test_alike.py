"""Components that are alike are read as one where the host cannot look, and the fit is that of passes over all."""

import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import groupby, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning
from tape import Tape
from test_graph import About, Staying, assert_same, backend, fit, tapes  # noqa: F401
from test_kernels import problem

from fastclust import DPGMM, engine, graph
from fastclust.alike import RECORDED_FROM, SETTLED, UNKNOWN, Alike, alike
from fastclust.checkpoint import Checkpoint
from fastclust.graph import AGAIN, RECORDED, WARM
from fastclust.group import Group
from fastclust.kernels import Coefficients, Frame, chosen, reference
from fastclust.kernels import torch as plain
from fastclust.kernels.duplicates import merge, merge_alike
from fastclust.rows import Rows

KINDS = ("full", "tied", "diag", "spherical")
FEW = {"n_components": 40, "init_params": "random_from_data", "dtype": "float64", "tol": 0, "max_iter": 34}
FEW |= {"weight_concentration_prior": 1e-4}  # what is dead has no row at all


def corners(n: int = 800) -> np.ndarray:
    """Return (n, 4) rows of four clusters far from each other: of 40 components, 36 die."""
    random = np.random.default_rng(0)
    return 12 * np.eye(4)[random.integers(4, size=n)] + random.normal(size=(n, 4))


@pytest.fixture
def device(monkeypatch) -> pytest.MonkeyPatch:
    """The CPU as a device whose values the host does not look at, with passes of few rows worth a recording."""
    monkeypatch.setattr(Rows, "by_value", False)
    monkeypatch.setattr("fastclust.alike.RECORDED_FROM", 0)
    return monkeypatch


@contextmanager
def never():
    """Within it, nothing is read as one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Alike, "next", lambda now, found, *given: Alike(found, 1, 1))
        yield


def merged_in(ascents: list) -> list[int]:
    """Return how many components each pass but the first read as one."""
    return [ascent.alike.merged for ascent in ascents[:-1]]


def replays_of(ascents: list) -> list[int]:
    """Return how often each graph of a fit is replayed: of passes that read as many as one, all but the first ones."""
    runs = [len(list(run)) for _, run in groupby([1, *merged_in(ascents)])]
    return [run - (AGAIN if i else WARM) for i, run in enumerate(runs)]


def posterior_of(kind: str, means: torch.Tensor, precision: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(covariance_type=kind, m=means, precisions_cholesky=precision)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_components_that_are_alike_cost_one_and_count_as_many(kind, n):
    """Of seven components three are alike, and of these n are one."""
    rows, one = problem(200, 4, 5, kind)
    which = torch.tensor([1, 0, 1, 2, 3, 4, 1])
    offset = one.offset[which] + torch.tensor([0.0, -1.0, 0.5, 0.0, 0.0, 2.0, -3.0], dtype=torch.float64)
    many = Coefficients(kind, offset, one.means[which], one.precision if kind == "tied" else one.precision[which])
    merged, parts = merge_alike(many, which == 1, n)
    assert merged.n_components == 8 - n
    assert sorted(torch.bincount(parts.group).tolist()) == [1] * (7 - n) + [n]
    expected = reference.statistics(rows, many, Frame(), torch.float64)
    found = parts.apart(reference.statistics(rows, merged, Frame(), torch.float64))
    for name in ("nk", "sx", "sxx", "log_norm", "entropy", "about"):
        if getattr(expected, name) is not None:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    if n == 3:  # what the CPU finds by value, in another order
        there, apart = merge(many)
        torch.testing.assert_close(there.offset.sort()[0], merged.offset.sort()[0], rtol=1e-15, atol=0)
        torch.testing.assert_close(apart.share, parts.share, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_that_are_equal_to_the_last_bit_are_alike(kind):
    _, one = problem(200, 4, 5, kind)
    which = torch.tensor([3, 0, 1, 3, 3, 2, 0, 3])
    means, precision = one.means[which].clone(), one.precision
    if kind != "tied":
        precision = precision[which].clone()
    assert alike(posterior_of(kind, means, precision)).tolist() == [True, *[False] * 2, True, True, *[False] * 2, True]
    means[3, 2] = torch.nextafter(means[3, 2], torch.tensor(math.inf, dtype=torch.float64))
    assert alike(posterior_of(kind, means, precision)).nonzero()[:, 0].tolist() == [0, 4, 7]
    if kind != "tied":
        last = precision[4].reshape(-1)[-1:]
        last.copy_(torch.nextafter(last, torch.zeros_like(last)))
        assert alike(posterior_of(kind, means, precision)).nonzero()[:, 0].tolist() in ([0, 7], [1, 6])
    means[:] = torch.nan
    assert alike(posterior_of(kind, means, precision)).any()


def test_a_precision_that_differs_off_its_diagonal_is_another():
    precision = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    precision[1, 0, 2] = 0.5
    assert alike(posterior_of("full", torch.ones(3, 3, dtype=torch.float64), precision)).tolist() in (
        [True, False, True],
        [False, True, False],
    )


def test_what_is_not_recorded_is_one_at_once_and_what_is_when_a_block_is_saved_for_long():
    def after(told: list[int], recorded: bool = True, k: int = 50, rows: int = RECORDED_FROM) -> list[int]:
        now, merged = UNKNOWN, []
        for found in told:
            now = now.next(found, k, recorded, rows)
            merged.append(now.merged)
        return merged

    assert after([1, 3, 2, 7, 1], recorded=False, rows=1) == [1, 3, 2, 7, 1]
    steady = [20] * (SETTLED + 2)
    assert after(steady) == [1] * (SETTLED - 1) + [20] * 3  # of 64 places 32 are left
    assert after([19] * 20, k=51) == after([18] * 20) == [1] * 20  # 33 components take 64 places
    assert after([19] * 20)[-1] == 19  # 32 do not
    growing = [*range(10, 30), 29, 31]
    assert after(growing) == [1] * 16 + [26] * 6  # which save a block from 19 on; 31 save no other
    assert after([20] * SETTLED + [36] * SETTLED)[SETTLED - 1 :] == [20] * SETTLED + [36]  # 15 take 16
    assert after([20] * SETTLED + [19, 18, 19]) == [*after([20] * SETTLED), 19, 1, 1]
    assert after([20] * (SETTLED - 1) + [18] + [20] * (SETTLED - 1)) == [1] * (2 * SETTLED - 1)
    assert after([100] * SETTLED, k=200)[-1] == 100
    assert after([9] * SETTLED, k=200)[-1] == 9  # 192 take three blocks
    assert after([8] * SETTLED, k=200)[-1] == 1  # 193 take four, as 200 do
    assert after([5] * 20, k=12) == [1] * 20  # there are no fewer than 16 places
    assert after([20] * 20, rows=RECORDED_FROM - 1) == [1] * 20


@pytest.mark.parametrize("sort_sticks", [False, True], ids=["", "sorted"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_that_of_passes_over_all(kind, weighted, sort_sticks, device, tapes, caplog):  # noqa: F811
    """Its sums are held against the columns', and diag and spherical are recorded twice."""
    X = corners()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X)) if weighted else None
    options = {"covariance_type": kind, "weights": weights, "sort_sticks": sort_sticks, **FEW}
    model, ascents = fit(X, **options)
    merged = merged_in(ascents)
    assert max(merged) > 5
    recorded = [tape.replays for tape in tapes]
    with never():
        whole, others = fit(X, **options)
    assert merged_in(others) == [1] * len(merged)
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-12)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.covariances_, whole.covariances_, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(model.predict(X), whole.predict(X))
    for one, other in zip(ascents, others, strict=True):
        torch.testing.assert_close(one.statistics.nk, other.statistics.nk, rtol=1e-9, atol=1e-9)
    assert not caplog.records
    if kind in ("diag", "spherical"):
        assert recorded == replays_of(ascents)


@pytest.mark.parametrize("plan", [None, Staying, About], ids=["torch", "staying", "about"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_graph_of_what_is_one_is_its_operations(plan, kind, device, tapes, caplog):  # noqa: F811
    X = corners()
    options = {"covariance_type": kind, "sort_sticks": True, **FEW}
    found = fit(X, plans=None if plan is None else backend(plan, renews=True), **options)
    assert [tape.replays for tape in tapes] == replays_of(found[1])
    assert len(tapes) > 1
    assert tapes[1].replays > 5
    assert not caplog.records
    tapes.clear()
    whole = Alike.next
    device.setattr(Alike, "next", lambda now, n, k, recorded, rows: whole(now, n, k, True, rows))
    device.setattr(graph, "recorder", lambda device, kind: None)
    expected = fit(X, plans=None if plan is None else backend(plan, renews=False), **options)
    assert not tapes
    assert max(merged_in(expected[1])) > 5
    assert_same(found, expected)
    assert [one.alike for one in found[1]] == [one.alike for one in expected[1]]


@pytest.mark.parametrize("plan", [None, Staying, About], ids=["torch", "staying", "about"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_graph_follows_those_that_are_alike_wherever_they_go(kind, plan, device, tapes):  # noqa: F811
    """In each pass components change places, and three that have rows of their own are one in each."""
    X = blobs(300, 4, 3)
    options = {"n_components": 7, "max_iter": 3, "weight_concentration_prior_type": "dirichlet_distribution"}
    model, _ = fit(X, **FEW | options | {"covariance_type": kind, "weight_concentration_prior": 1.0})
    _, rows = model._rows_of(X)
    if plan is not None:
        object.__setattr__(rows, "backend", backend(plan, renews=True))
    start = model._posterior(rows)
    which = torch.tensor([0, 1, 2, 3, 2, 4, 2])
    m, precision = start.m[which], start.precisions_cholesky[which]
    start = replace(start, m=m, precisions_cholesky=precision, gamma1=50 + 30 * torch.arange(7).double())
    largest = rows.statistics(engine.coefficients(start)).nk.argmax()

    def follow(statistics):
        place = (torch.arange(7) + largest - statistics.nk.argmax() - 1) % 7  # each comes one further
        own = {one.name: getattr(start, one.name) for one in fields(start)}
        moved = {name: part[place] if isinstance(part, torch.Tensor) else part for name, part in own.items()}
        return graph.Step(statistics, type(start)(**moved), statistics.log_norm[None])

    passes = graph.Passes(rows, follow, engine.coefficients, Tape)
    posterior = start
    for _ in range(8):
        step = passes.after(posterior, 3)
        expected = reference.statistics(torch.from_numpy(X), engine.coefficients(posterior), rows.frame, torch.float64)
        found = step.statistics.moved(expected.about)
        for name in ("nk", "sx", "sxx", "entropy"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
        posterior = step.posterior
    assert float(expected.nk.min()) > 1
    assert passes._graph.replays == 8 - WARM


class Wrong(Tape):
    """A graph that gets a share wrong, by the last bit."""

    def replay(self) -> None:
        super().replay()
        if self.found.parts is not None:
            self.found.parts.share[0] = torch.nextafter(self.found.parts.share[0], torch.zeros(()).double())


def test_a_second_graph_that_differs_in_one_bit_is_dropped(device, caplog):
    X = corners()
    options = {"covariance_type": "diag", **FEW}
    device.setattr(graph, "recorder", lambda device, kind: Wrong)
    found = fit(X, **options)
    [record] = caplog.records
    assert "numbers otherwise than its operations one by one" in record.getMessage()
    device.setattr(graph, "recorder", lambda device, kind: Tape)
    assert_same(found, fit(X, **options))


@pytest.mark.parametrize("plan", [None, Staying], ids=["torch", "staying"])
@pytest.mark.parametrize("at", ["a replay", "the recording", "a first pass"])
def test_memory_that_runs_out_where_components_are_one_leaves_them_so(at, plan, device, tapes, monkeypatch, caplog):  # noqa: F811
    """Rows were read with one in place of many when the graph is dropped: the pass is taken apart all the same."""
    X, passes, read_into = corners(), [], Rows.read_into
    options = {"covariance_type": "diag", "plans": None if plan is None else backend(plan, renews=True), **FEW}
    whole, ascents = fit(X, **options)
    first = merged_in(ascents).index(max(merged_in(ascents))) + 2  # pass
    when = first + {"a replay": AGAIN + 4, "the recording": AGAIN, "a first pass": 0}[at]

    def short(rows, plan):
        passes.append(plan)
        cut = read_into(rows, plan)
        if len(passes) == when:
            rows.pieces.size = len(X)
        return cut

    monkeypatch.setattr(Rows, "read_into", short)
    model, _ = fit(X, **options)
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-13)


@pytest.mark.parametrize(  # not tied: no component of one covariance is wide enough
    ("plan", "kind"), [(None, "full"), *product((None, Staying, About), RECORDED)], ids=str
)
def test_one_that_comes_to_life_again_is_itself_again(kind, plan, device, tapes, monkeypatch, caplog):  # noqa: F811
    """From pass 40 on there are rows where none was, which the prior's wide components are the best for."""
    X, read_into, passes = np.concatenate([corners(), corners(150) + 40]), Rows.read_into, []
    near = torch.from_numpy(corners())

    def some(rows, plan):
        passes.append(plan)
        if len(passes) >= 40:
            return read_into(rows, plan)
        plan.add(near)
        return [len(X)]  # as later: rows in other pieces would end the graph

    monkeypatch.setattr(Rows, "read_into", some)
    monkeypatch.setattr("fastclust.alike.SETTLED", 22)  # when all have died, so that none is left by itself
    prepared = None if plan is None else backend(plan, renews=True)
    options = {"covariance_type": kind, "plans": prepared, "sort_sticks": True, "checked": False, **FEW}
    options |= {"max_iter": 75, "weight_concentration_prior": 1e-2}  # of less, none that is dead would be worth it
    model, ascents = fit(X, **options)
    found = [ascent.alike.found for ascent in ascents]
    merged = merged_in(ascents)
    assert found[39] < merged[38]  # of those that pass 40 read as one
    assert all(n <= there for n, there in zip(merged, found, strict=False))
    passes.clear()
    n_tapes = len(tapes)
    with never():
        whole, others = fit(X, **options)
    assert len(passes) == 75
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-11)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-8, atol=1e-8)
    assert others[38].statistics.nk.sum() < len(near) + 1e-6 < others[-1].statistics.nk.sum()
    assert (others[-1].statistics.nk[torch.from_numpy(model.means_[:, 0] > 30)] > 1).any()
    if kind in ("diag", "spherical"):
        assert n_tapes > 2  # of all, of those that are one, and of those that still are
        assert not caplog.records


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("last", [14, 20, 26])
def test_a_fit_that_goes_on_reads_as_one_what_the_whole_fit_does(kind, last, device, tapes, tmp_path):  # noqa: F811
    X, path = corners(), tmp_path / "fit.h5"
    options = {"covariance_type": kind, "sort_sticks": True, **FEW}
    whole, ascents = fit(X, **options)
    assert max(merged_in(ascents)) > 5
    parameters = {"device": "cpu", "random_state": 0, "backend": "torch", **options}
    seen, whole_pass = [], engine._pass
    device.setattr(engine, "_pass", lambda *given: seen.append(whole_pass(*given)) or seen[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        device.setattr("fastclust.fitting.checked", lambda device: True)
        for max_iter in (last, FEW["max_iter"]):
            model = DPGMM(**parameters | {"max_iter": max_iter})
            model.fit(X, checkpoint=Checkpoint(path, every=0, resume=True))
    assert [one.alike for one in seen] == [one.alike for one in ascents]
    assert model.lower_bounds_ == whole.lower_bounds_
    np.testing.assert_array_equal(model.means_, whole.means_)


def test_what_a_device_read_as_one_is_nothing_to_the_cpu(monkeypatch, tapes):  # noqa: F811
    """A fit may go on elsewhere; what it told last is not what its posterior has when it comes back."""
    X = corners()
    _, ascents = fit(X, **FEW | {"covariance_type": "diag", "max_iter": 5})
    assert {ascent.alike for ascent in ascents} == {UNKNOWN}
    started = []
    whole = engine.ascend
    told = {"alike": UNKNOWN}
    monkeypatch.setattr(
        engine, "ascend", lambda rows, prior, start, **more: whole(rows, prior, replace(start, **told), **more)
    )
    for told["alike"] in (UNKNOWN, Alike(9, 9, 9)):
        started.append(fit(X, **FEW | {"covariance_type": "diag", "max_iter": 5}))
    assert_same(*started)
    assert {ascent.alike for ascent in started[1][1]} == {UNKNOWN}


def test_mixed_precision_goes_on_with_what_is_one(device, tapes):  # noqa: F811
    """High passes begin where fast ones ended, and need not wait again."""
    options = {**FEW, "covariance_type": "diag", "precision": "mixed", "tol": 1e-3, "checked": False}
    _, ascents = fit(corners(), plans=backend(Staying, renews=True), **options | {"tol": 1e-9})
    fast = [ascent.fast for ascent in ascents]
    assert {True, False} == set(fast)
    switch = fast.index(False)
    assert ascents[switch].alike.merged > 5
    assert ascents[switch + 1].alike.passes == ascents[switch].alike.passes + 1


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_a_backend_whose_smaller_kernels_fail_their_proof_says_so_and_the_fit_goes_on(kind, device, caplog, tmp_path):
    device.setenv("TRITON_CACHE_DIR", str(tmp_path))
    device.setattr(chosen, "_verdicts", {})

    def prepare(coefficients, *given, **more):
        wrong = coefficients.n_components <= 16
        return plain.prepare(
            replace(coefficients, offset=coefficients.offset.flip(0)) if wrong else coefficients, *given
        )

    faulty = SimpleNamespace(PRECISIONS=("high",), prepare=prepare, moments=plain.moments)
    made = chosen.Chosen(torch.device("cpu"), {"triton": faulty}, {})
    options = {"covariance_type": kind, **FEW}
    model, ascents = fit(corners(), plans=made, **options)
    assert 40 - max(merged_in(ascents)) + 1 <= 16
    [record] = [one for one in caplog.records if "passed over" in one.getMessage()]
    assert record.levelno == logging.WARNING
    assert made.ran == "torch"
    with never():
        whole, _ = fit(corners(), **options)
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-12)


class Two(Group):
    """Two processes, of which the other gives these statistics."""

    size = 2

    def __init__(self, other: torch.Tensor) -> None:
        self.other = other

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor, self.other]


@pytest.mark.parametrize("kind", KINDS)
def test_processes_need_not_have_the_same_components_as_one(kind, device):
    """Another device's last bits may differ, and what it finds alike with them."""
    X = corners(200)
    model, _ = fit(X, **FEW | {"covariance_type": kind})
    _, rows = model._rows_of(X)
    posterior = model._posterior(rows)
    given, same = engine.coefficients(posterior), alike(posterior)
    assert int(same.sum()) > 2
    own = rows.statistics(given)
    flat = torch.cat([part.reshape(-1) for part in (own.nk, own.sx, own.sxx, own.log_norm, own.entropy, own.about)
                      if part is not None])  # fmt: skip
    device.setattr(rows.blocks, "group", Two(flat))
    found = rows.statistics(*merge_alike(given, same, 3))
    for name in ("nk", "sx", "sxx", "log_norm", "entropy"):
        if getattr(own, name) is not None:
            torch.testing.assert_close(getattr(found, name), 2 * getattr(own, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_features_as_a_relu_leaves_them_are_fitted_as_by_passes_over_all(kind, device):
    X = relu_features(1500, 8)
    options = {"covariance_type": kind, **FEW}
    model, ascents = fit(X, **options)
    with never():
        whole, _ = fit(X, **options)
    np.testing.assert_allclose(model.lower_bounds_, whole.lower_bounds_, rtol=1e-11)
    assert max(merged_in(ascents)) > 1

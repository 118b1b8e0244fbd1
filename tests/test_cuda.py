"""The CUDA kernels against the oracle: on a GPU where there is one with CuPy, and on the CPU by `cupy_on_cpu`."""

import importlib.util
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import cupy_on_cpu
import numpy as np
import pytest
import test_graph
import torch
from conftest import blobs, relu_features
from cupy_on_cpu import before_a_wall
from tape import Tape
from test_kernels import SHAPES, TOLERANCE, _on_origin, _variance, error, errors, problem

from fastclust import DPGMM, graph, kernels
from fastclust.kernels import Coefficients, Frame, Statistics, handover, reference
from fastclust.kernels import cuda as backend
from fastclust.kernels.cuda import launch as launch

LIMIT = TOLERANCE[torch.float32]
KINDS = ["diag", "spherical"]
H200 = launch.Limits(132, 228 << 10, 227 << 10, tf32=True)
FEW = launch.Limits(2, 64 << 10, 227 << 10, tf32=True)  # blocks, so that each has several tiles
WITHOUT = "cpu, no tensor cores"
MORE_SHAPES = [
    (65, 33, 50, "one row more than a tile, one column more than half of one"),
    (70, 64, 64, "nothing is padded, and coefficients stay where they are"),
    (70, 65, 65, "one column and one component more than that"),
    (70, 65, 130, "three rounds of components"),
    (3, 4096, 20, "a dense layer"),
    (150, 40, 1000, "many components, and a block with two tiles"),
]
PLACES = ["cpu", WITHOUT] + ["cuda"] * (torch.cuda.is_available() and importlib.util.find_spec("cupy") is not None)


@pytest.fixture(name="place", params=PLACES)
def where_kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where kernels run. What they write holds no number before; on the CPU, memory ends where tensors do."""
    on_cpu = request.param != "cuda"
    if on_cpu and shutil.which("g++") is None:
        pytest.skip("g++ is not installed: it compiles the kernels for the CPU")

    def filled(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        nothing = torch.nan if dtype.is_floating_point else -(2**31)
        empty = torch.full(size, nothing, dtype=dtype, device=device)
        return before_a_wall(empty) if on_cpu else empty

    monkeypatch.setattr(launch, "empty", filled)
    if on_cpu:
        monkeypatch.setitem(sys.modules, "cupy", cupy_on_cpu)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(launch, "limits_of", lambda device: replace(FEW, tf32=request.param != WITHOUT))
    launch._kernel.cache_clear()
    yield torch.device("cpu" if on_cpu else "cuda")
    launch._kernel.cache_clear()


def there(coefficients: Coefficients, device: torch.device) -> Coefficients:
    c = coefficients
    return Coefficients(c.covariance_type, c.offset.to(device), c.means.to(device), c.precision.to(device))


def passed(
    rows: torch.Tensor, coefficients: Coefficients, place: torch.device, frame: Frame | None = None, **more: object
) -> Statistics:
    here = (frame or Frame()).to(place)
    found = kernels.statistics(backend, rows.to(place), there(coefficients, place), here, torch.float32, **more)
    return on_cpu(found)


def on_cpu(found: Statistics) -> Statistics:
    return Statistics(*(part if part is None else part.cpu() for part in vars(found).values()))


def assigned(rows: torch.Tensor, coefficients: Coefficients, place: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    labels, density = backend.prepare(there(coefficients, place), Frame(), torch.float32).assign(rows.to(place))
    return labels.cpu(), density.cpu()


def oracle(rows: torch.Tensor, coefficients: Coefficients, frame: Frame | None = None, **more: object) -> Statistics:
    return reference.statistics(rows, coefficients, frame or Frame(), torch.float64, **more)


def apart(found: Statistics, expected: Statistics) -> float:
    """Return the largest error of a statistic about the origin."""
    return max(errors(_on_origin(found), _on_origin(expected)).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k", "why"), SHAPES + MORE_SHAPES, ids=lambda part: str(part))
def test_a_pass_agrees_with_the_oracle(n, d, k, why, kind, place):
    rows, coefficients = problem(n, d, k, kind)
    rows = before_a_wall(rows.float())
    found = passed(rows, coefficients, place)
    assert torch.equal(found.about, coefficients.means.float().double())
    assert apart(found, oracle(rows, coefficients)) < LIMIT
    labels, density = assigned(rows, coefficients, place)
    _, expected_density = reference.assign(rows, coefficients, Frame(), torch.float64)
    assert labels.dtype == torch.int32
    assert density.dtype == torch.float32
    np.testing.assert_allclose(density, expected_density, rtol=LIMIT, atol=LIMIT * 10)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    lost = r.max(1).values - r.gather(1, labels.long()[:, None])[:, 0]
    assert float(lost.max()) < LIMIT * 10


@pytest.mark.parametrize("shape", [(131, 17, 5), (131, 70, 130)], ids=["once", "in rounds"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_as_stored_in_any_order_with_weights(kind, shape, place):
    rows, coefficients = problem(*shape, kind)
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.integers(0, 3, size=2 * len(rows)).astype(np.float32))[::2]
    shift = torch.linspace(-1, 1, rows.shape[1]).double()
    for stored in (rows.half(), rows.bfloat16(), rows.float()):
        every_second = torch.stack([stored, torch.full_like(stored, torch.nan)], 1).to(place)[:, 0]
        columns_first = stored.T.contiguous().to(place).T
        frames = Frame(), Frame(shift), Frame(shift, 1 + shift**2)
        for view, frame in zip((every_second, columns_first, columns_first), frames, strict=True):
            assert not view.is_contiguous()
            counts = weights if frame.shift is None else weights.double()
            found = passed(view, coefficients, place, frame, weights=counts.to(place))
            assert apart(found, oracle(stored, coefficients, frame, weights=weights)) < LIMIT


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_sixteen_bits_is_read_as_it_is(stored, place):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(stored)
    size = every.float().abs()  # what is larger has no square in float32, what is smaller is subnormal there
    row = every[((size >= 2.0**-126) & (size < 1e18)) | (size == 0)][None]
    assert row.shape[1] > 40_000
    d = row.shape[1]
    one = Coefficients(
        "spherical", torch.zeros(1).double(), torch.zeros(1, d).double(), torch.full((1,), 1e-30).double()
    )
    assert torch.equal(passed(row, one, place).sx, row.double())  # about the mean, which is zero
    for bad in (torch.inf, -torch.inf, torch.nan):
        _, density = assigned(
            torch.tensor([[bad, 0.0], [0.0, 0.0]], dtype=stored), replace(one, means=one.means[:, :2]), place
        )
        assert density.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_the_origin(kind, place):
    rows, coefficients = problem(200, 6, 4, kind, far=1e4)
    rows = rows.float()
    shift = rows.mean(0).double()
    moved = replace(coefficients, means=coefficients.means - shift)
    assert apart(passed(rows, moved, place, Frame(shift)), oracle(rows, moved, Frame(shift))) < LIMIT


@pytest.mark.parametrize("d", [4, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_tight_components_do_not_cancel(kind, d, place):
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(size=(90, d)), 8 + 1e-3 * random.normal(size=(110, d))])
    means = torch.tensor([0.0, 8.0, 8.0005], dtype=torch.float64)[:, None].repeat(1, d)
    means[2] += 1e-4 * torch.arange(d).double() / d
    tight = torch.tensor([1.0, 1e6 / d, 1e6 / d], dtype=torch.float64)
    rows = torch.from_numpy(rows).float()
    precision = tight[:, None].repeat(1, d) if kind == "diag" else tight
    coefficients = Coefficients(kind, torch.zeros(3, dtype=torch.float64), means, precision)
    found, expected = passed(rows, coefficients, place), oracle(rows, coefficients)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    assert 0.05 < float(r[90:, 1].mean()) < 0.95
    assert apart(found, expected) < LIMIT
    np.testing.assert_allclose(_variance(found), _variance(expected), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_features_after_a_relu(kind, place):
    rows = torch.from_numpy(relu_features(400, 16)).float()
    assert bool((rows[:, 3] == 0).all())
    random = np.random.default_rng(0)
    r = torch.from_numpy(random.dirichlet([0.05] * 12, size=len(rows)))
    sums = reference.moments(rows, r, kind, torch.zeros(12, 16).double(), Frame(), torch.float64)
    means = sums.sx / sums.nk[:, None]
    if kind == "diag":
        variance = sums.sxx / sums.nk[:, None] - means**2 + 1e-6
    else:
        variance = (sums.sxx / sums.nk - (means**2).sum(1)) / 16 + 1e-6
    offset = 0.5 * (-variance.log()).sum(1) if kind == "diag" else -8 * variance.log()
    coefficients = Coefficients(kind, offset, means, 1 / variance)
    found, expected = passed(rows, coefficients, place), oracle(rows, coefficients)
    assert apart(found, expected) < LIMIT
    np.testing.assert_allclose(_variance(found), _variance(expected), rtol=1e-3, atol=1e-9)


def test_many_rows_that_are_alike_keep_their_variance(place):
    random = np.random.default_rng(0)
    rows = torch.from_numpy(5 + 1e-3 * random.normal(size=(30_000, 3))).float()
    means = torch.tensor([[5.01], [5.0]], dtype=torch.float64).repeat(1, 3)
    coefficients = Coefficients("diag", torch.zeros(2).double(), means, torch.full((2, 3), 1e3).double())
    found, expected = passed(rows, coefficients, place), oracle(rows, coefficients)
    np.testing.assert_allclose(_variance(found), _variance(expected), rtol=1e-4)


@pytest.mark.parametrize("shape", [(1031, 5, 31), (300, 70, 130)], ids=["once", "in rounds"])
def test_the_bits_are_the_same_again_and_in_any_order_of_threads(shape, place, monkeypatch):
    rows, coefficients = problem(*shape, "diag")
    rows = rows.float()
    one = *vars(passed(rows, coefficients, place)).values(), *assigned(rows, coefficients, place)
    monkeypatch.setattr(cupy_on_cpu, "REVERSED", True)
    two = *vars(passed(rows, coefficients, place)).values(), *assigned(rows, coefficients, place)
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second)


def test_ties_go_to_the_first_component(place):
    """Rows of small integers and coefficients of one: every product and sum is exact, in any order."""
    rows = torch.arange(70 * 3).remainder(5).view(70, 3).float()
    for k in (3, 200):
        same = Coefficients("diag", torch.zeros(k).double(), torch.ones(k, 3).double(), torch.ones(k, 3).double())
        assert bool((assigned(rows, same, place)[0] == 0).all())


@pytest.mark.parametrize("more", [0, 100], ids=["once", "in rounds"])
def test_responsibilities_below_the_floor_are_zero(more, place):
    offset = torch.tensor([-1e4] * more + [0.0, -39.0, -41.0]).double()
    k = len(offset)
    coefficients = Coefficients("diag", offset, torch.zeros(k, 1).double(), torch.ones(k, 1).double())
    nk = passed(torch.zeros(1, 1), coefficients, place).nk[more:]
    assert float(nk[0]) == 1.0
    assert float(nk[1]) == pytest.approx(np.exp(-39), rel=1e-4)
    assert float(nk[2]) == 0.0


def test_no_rows_add_nothing(place):
    rows, coefficients = problem(5, 3, 2, "diag")
    found = passed(rows[:0].float(), coefficients, place)
    assert not any(bool(getattr(found, name).any()) for name in ("nk", "sx", "sxx", "log_norm", "entropy"))
    labels, density = assigned(rows[:0].float(), coefficients, place)
    assert labels.shape == density.shape == (0,)


@pytest.mark.parametrize("block_bytes", [227 << 10, 64 << 10, 40 << 10, 20 << 10])
def test_kernels_are_cut_to_the_shared_memory_that_there_is(block_bytes, place, monkeypatch):
    if place.type == "cuda":
        pytest.skip("a device has what it has")
    monkeypatch.setattr(launch, "limits_of", lambda device: launch.Limits(2, 100 << 10, block_bytes, tf32=True))
    assert launch.shape_of(50, 64, block_bytes).shared_bytes <= block_bytes
    rows, coefficients = problem(100, 64, 50, "diag")
    assert apart(passed(rows.float(), coefficients, place), oracle(rows.float(), coefficients)) < LIMIT


def test_a_changed_header_is_compiled_again(place, monkeypatch, tmp_path):
    if place.type == "cuda":
        pytest.skip("CuPy's own cache would keep the changed kernel")
    sources = shutil.copytree(launch.SOURCES, tmp_path / "cuda")
    monkeypatch.setattr(launch, "SOURCES", sources)
    rows, coefficients = problem(5, 3, 2, "diag")
    before = passed(rows.float(), coefficients, place)
    header = (sources / "parts.cuh").read_text()
    (sources / "parts.cuh").write_text(
        header.replace("number(float x) { return x; }", "number(float x) { return -x; }")
    )
    launch._kernel.cache_clear()
    after = passed(rows.float(), coefficients, place)
    assert float((after.log_norm - before.log_norm).abs()) > 0.1


def assert_same_bits(found: Statistics, expected: Statistics) -> None:
    for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        assert torch.equal(one, other)


def only_on_cpu_with_tensor_cores(place: torch.device) -> None:
    if place.type == "cuda" or not launch.limits_of(place).tf32:
        pytest.skip("of the kernel on tensor cores, as the CPU runs it")


def test_rows_without_a_share_are_passed_over_exactly(place, monkeypatch, tmp_path):
    """Moments of all rows are those of the rows that have a share, to the last bit."""
    only_on_cpu_with_tensor_cores(place)
    rows, coefficients = problem(700, 20, 13, "diag")
    coefficients = replace(coefficients, precision=10 * coefficients.precision)
    found = passed(rows.float(), coefficients, place)
    r = reference.responsibilities(rows, coefficients, Frame(), torch.float64)
    assert 0.1 < float((r < 1e-17).double().mean()) < 0.9
    sources = shutil.copytree(launch.SOURCES, tmp_path / "cuda")
    text = (sources / "fused.cu").read_text()
    assert text.count("r[w] != 0.0f") == 1
    (sources / "fused.cu").write_text(text.replace("r[w] != 0.0f", "true"))
    monkeypatch.setattr(launch, "SOURCES", sources)
    launch._kernel.cache_clear()
    assert_same_bits(passed(rows.float(), coefficients, place), found)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
def test_rows_with_few_digits_are_the_same_without_their_low_part(stored, place, monkeypatch):
    only_on_cpu_with_tensor_cores(place)
    cuts, start = [], launch.start
    monkeypatch.setattr(launch, "start", lambda name, cut, *more: cuts.append(cut) or start(name, cut, *more))
    rows, coefficients = problem(300, 12, 7, "diag")
    short, long = rows.to(stored), rows.to(stored).float()
    assert_same_bits(passed(short, coefficients, place), passed(long, coefficients, place))
    moved = Frame(torch.ones(12).double())
    passed(short, coefficients, place, moved)
    assert [cut.exact for cut in cuts] == [True, False, False]


def test_rows_are_read_four_numbers_at_a_time_where_they_lie_so(place, monkeypatch):
    only_on_cpu_with_tensor_cores(place)
    cuts, start = [], launch.start
    monkeypatch.setattr(launch, "start", lambda name, cut, *more: cuts.append(cut) or start(name, cut, *more))
    rows, coefficients = problem(300, 12, 7, "diag")
    rows = rows.float()
    wide = torch.cat([rows, torch.full((300, 4), torch.nan)], 1)
    odd = torch.cat([torch.full((300, 1), torch.nan), rows, torch.full((300, 3), torch.nan)], 1)
    packed, views = before_a_wall(rows), (wide[:, :12], odd[:, 1:13], rows.T.contiguous().T)
    expected = passed(packed, coefficients, place)
    for view in views:
        assert_same_bits(passed(view, coefficients, place), expected)
    assert [cut.pack for cut in cuts] == [4, 4, 1, 1]


def test_tight_components_stand_beside_others(place):
    """In places that a thread's registers hold one by one, among components that are products."""
    random = np.random.default_rng(0)
    k, d = 21, 9
    means = torch.from_numpy(random.normal(size=(k, d)))
    precision = torch.ones(k, d).double()
    for tight in (0, 1, 6, 7, 8, 13, 20):
        means[tight] += 30 * torch.from_numpy(random.choice([-1.0, 1.0], size=d))
        precision[tight] = 1e4
    assert ((precision * means**2).sum(1) > 2e3).sum() == 7
    near = means[torch.arange(600) % k]
    rows = (
        near + torch.from_numpy(random.normal(size=near.shape)) * (precision[torch.arange(600) % k] ** -0.5)
    ).float()
    coefficients = Coefficients("diag", 0.5 * precision.log().sum(1), means, precision)
    assert apart(passed(rows, coefficients, place), oracle(rows, coefficients)) < LIMIT


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800000], ids=hex)
def test_what_is_no_number_stays_none(bits, place):
    rows, coefficients = problem(200, 5, 4, "diag")
    rows = rows.float()
    rows[150, 2] = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    found = passed(rows, coefficients, place)
    assert not bool(found.log_norm.isfinite())
    assert not bool(found.nk.isfinite().all())


def test_cuts_and_grids() -> None:
    assert launch.fused_of(50, 64, H200) == launch.Fused(64, 56)
    assert launch.fused_of(1, 1, H200) == launch.Fused(16, 8)
    assert launch.fused_of(64, 33, H200) == launch.Fused(64, 64)
    assert launch.fused_of(65, 3, H200) is launch.fused_of(3, 65, H200) is None
    assert launch.fused_of(50, 64, replace(H200, tf32=False)) is None
    l40s = launch.Limits(142, 100 << 10, 99 << 10, tf32=True)
    assert launch.fused_of(56, 64, l40s) == launch.Fused(64, 56)
    assert launch.fused_of(57, 64, l40s) is None
    assert launch.fused_of(64, 32, l40s) == launch.Fused(32, 64)
    assert H200.at_once(launch.Fused(64, 64)) == H200.at_once(launch.Fused(16, 8)) == 2 * 132
    assert launch.shape_of(50, 64, H200.block_bytes) == launch.Shape(64, 4)
    assert launch.shape_of(1, 1, H200.block_bytes) == launch.Shape(32, 1)
    assert launch.shape_of(32, 33, H200.block_bytes) == launch.Shape(64, 2)
    assert launch.shape_of(64, 64, 64 << 10) == launch.Shape(32, 4)
    assert H200.at_once(launch.Shape(64, 4)) == 2 * 132
    assert launch.tiles_of(65) == 2
    with pytest.raises(RuntimeError, match=r"K = 128 components of D = 128 features need \d+ bytes.*has 1024"):
        launch.shape_of(128, 128, 1024)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_the_torch_backends(kind, place, monkeypatch):
    monkeypatch.setattr(backend, "unavailable", lambda device: None)
    X = blobs(300, 4).astype(np.float32)
    one, two = (
        DPGMM(6, covariance_type=kind, backend=name, device=place.type, random_state=0, max_iter=8, tol=0).fit(X)
        for name in ("cupy", "torch")
    )
    assert one.backend_ == "cupy"
    np.testing.assert_allclose(one.lower_bounds_, two.lower_bounds_, rtol=1e-5)
    np.testing.assert_allclose(one.means_, two.means_, rtol=1e-4, atol=1e-4)
    assert (one.predict(X) == two.predict(X)).all()


def test_what_has_no_kernel_goes_to_torch_and_is_told(caplog):
    caplog.set_level(logging.INFO, "fastclust")
    handover.tell.cache_clear()
    rows, coefficients = problem(40, 3, 2, "full")
    args = coefficients, Frame(), torch.float32
    expected = oracle(rows.float(), coefficients)
    assert error(kernels.statistics(backend, rows.float(), *args).nk, expected.nk) < LIMIT
    assert "backend cupy leaves this to the torch backend: full covariance has no CUDA kernel" in caplog.text
    labels, _ = backend.prepare(*args).assign(rows.float())
    assert torch.equal(labels, reference.assign(rows.float(), *args)[0])
    r = backend.prepare(*args).responsibilities(rows.float())
    found = backend.moments(rows.float(), r, "full", coefficients.means, *args[1:])
    assert error(found.nk, expected.nk) < LIMIT
    assert "moments of given responsibilities have no CUDA kernel" in caplog.text
    assert "float64" in str(backend.why_not("diag", torch.float64, torch.float32))
    assert "float64" in str(backend.why_not("diag", torch.float32, torch.float64))
    assert backend.why_not("spherical", torch.float32, torch.bfloat16) is None


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert backend.unavailable(cpu) == "needs a CUDA device"
    with pytest.raises(RuntimeError, match=r"'cupy' cannot run on cpu: needs a CUDA device; numba, torch"):
        kernels.select("cupy", cpu)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "not installed: pip install 'fastclust[cuda]'" in str(backend.unavailable(cuda))
    monkeypatch.setattr(cupy_on_cpu.cuda, "nvrtc", NoCompiler, raising=False)
    monkeypatch.setitem(sys.modules, "cupy", cupy_on_cpu)
    assert backend.unavailable(cuda) == "cupy is installed and does not work: libnvrtc is not to be found"


class NoCompiler:
    """NVRTC, where its library is missing."""

    @staticmethod
    def getVersion() -> tuple[int, int]:
        raise RuntimeError("libnvrtc is not to be found")


@pytest.mark.parametrize("stored", [np.float32, np.float64], ids=["read", "left to torch"])
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_a_fit_in_a_graph_is_the_eager_fit_and_adds_up(kind, stored, place, monkeypatch, caplog):
    """On a GPU a CUDA graph; on the CPU what stands for one. Sums of the torch backend are copied to where it reads."""
    X = relu_features(300, 8).astype(stored)
    options = {"plans": backend, "covariance_type": kind, "device": str(place), "dtype": "float32", "n_components": 4}
    options |= {"init_params": "random_from_data", "tol": 0, "max_iter": 8}
    graphs, record = [], Tape if place.type == "cpu" else partial(graph.Graph, place)
    expected = test_graph.eager(X, **options)
    monkeypatch.setattr(graph, "recorder", lambda device, kind: lambda work: graphs.append(record(work)) or graphs[-1])
    test_graph.assert_same(test_graph.fit(X, **options), expected)
    assert len(graphs) == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

"""The suites beyond pairs: passes on a device, the GPU's run, growth with the rows, peers, tiles, and the picture."""

import itertools
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_extract import photographs

from benchmarks import (
    card_tests,
    data,
    extraction,
    gpu,
    growth,
    pairs,
    passes,
    peers,
    plot,
    processes,
    run,
    table,
    tiles,
    timing,
)
from benchmarks.cases import Case, suite
from fastclust.kernels import torch as plain

CPU = torch.device("cpu")
TINY = Case("relu", 700, 16, 8, "diag", "float32", "torch", burn_in=3, repeats=2, fit_passes=2)


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        replace(TINY, covariance="full"),
        replace(TINY, backend="numba", dtype="float16"),
        replace(TINY, dtype="float64", n=70_001),
    ],
    ids=lambda case: case.name,
)
def test_a_pass_is_verified_and_timed_on_any_device(case):
    record = passes.run_case(case, CPU)
    assert record["name"] == case.name
    assert asdict(case).items() <= record.items()
    assert set(record["errors"]) == {"nk", "sx", "sxx", "log_norm", "entropy", "all rows"}
    assert max(record["errors"].values()) < record["tolerance"] == 1e-4
    assert record["verified_rows"] == len(range(0, case.n, 2 if case.n > passes.VERIFIED_ROWS else 1))
    assert record["repeatable"]
    assert 0 < record["statistics"]["min"] <= record["statistics"]["median"] <= record["statistics"]["max"]
    moved = record["gbytes_per_second"] * record["statistics"]["median"] * 1e9
    assert moved == pytest.approx(case.n * 16 * {"float16": 2, "float32": 4, "float64": 8}[case.dtype], rel=1e-3)
    assert ("pass" in record) == (case.dtype == "float32")
    assert record["peak_memory_bytes"] is None, "of a CPU, torch's allocator says nothing"


def test_a_pass_that_is_wrong_or_fails_or_has_no_kernel_is_not_timed(monkeypatch):
    right = plain.Plan.result

    def too_many(plan):
        found = right(plan)
        return replace(found, nk=found.nk * 1.001)

    monkeypatch.setattr(plain.Plan, "result", too_many)
    record = passes.run_case(TINY, CPU)
    assert "nk: 1.0e-03" in record["refused"]
    assert "all rows: 1.0e-03" in record["refused"]
    assert "statistics" in passes.run_case(TINY, CPU, refuse=False), "it is timed where that was asked for"

    def another_each_time(plan):
        found = right(plan)
        return replace(found, entropy=found.entropy * (1 + 1e-9 * next(count)))

    count = itertools.count()
    monkeypatch.setattr(plain.Plan, "result", another_each_time)
    unsteady = passes.run_case(TINY, CPU)
    assert unsteady["repeatable"] is False

    monkeypatch.setattr(plain.Plan, "result", right)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "own_passes", lambda *given: 1 / 0)
        late = passes.run_case(TINY, CPU)
    assert late["failed"] == "ZeroDivisionError: division by zero"

    monkeypatch.setattr(plain.Plan, "result", lambda plan: 1 / 0)
    broken = passes.run_case(TINY, CPU)
    assert broken["failed"] == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(plain, "why_not", lambda kind, dtype, stored: f"no kernel for {stored}", raising=False)
    assert passes.run_case(TINY, CPU)["left_out"] == "no kernel for torch.float32"
    fast = passes.run_case(replace(TINY, precision="fast"), CPU)
    assert fast["left_out"] == "backend torch has no precision 'fast'"
    unknown = passes.run_case(replace(TINY, backend="abacus"), CPU)
    assert "'abacus'" in unknown["left_out"]
    assert not any("statistics" in one for one in (record, late, broken, fast, unknown))


def test_after_its_time_a_process_starts_no_case(tmp_path):
    cases, records = tmp_path / "cases.json", tmp_path / "records.jsonl"
    cases.write_text(json.dumps([asdict(TINY)] * 2))
    assert passes.main([str(cases), str(records), "--device", "cpu", "--seconds", "0"]) == 0
    found = [json.loads(text) for text in records.read_text().splitlines()]
    assert [record["name"] for record in found] == [TINY.name] * 2
    assert all(record["left_out"].startswith("no time") for record in found)


def test_a_process_that_dies_or_hangs_leaves_a_record_of_every_case(monkeypatch):
    (stopped,) = gpu.run_backend([TINY], "cpu", 0.01 - gpu.GRACE)
    assert "was stopped" in stopped["failed"]
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    first, second = gpu.run_backend([TINY, replace(TINY, n=300)], "cpu", 10)
    assert first["failed"].startswith("its process ended with 1")
    assert second["n"] == 300


@pytest.fixture(scope="module")
def on_a_card_that_is_not_there(tmp_path_factory):
    """The whole of the GPU's run on the CPU: torch, triton in its interpreter, and a backend whose tests failed."""
    in_a_process = gpu.run_backend
    ids = {
        "torch": ["test_one[diag]", "test_one[full]"],
        "triton": ["test_one[diag]", "test_two[1-diag]"],
        "cupy": ["test_one[diag]", "test_two"],
    }
    nothing = {"passed": [], "skipped": [], "failed": {}, "not_done": []}
    results = {name: card_tests.summary([(nothing | {"passed": some}, None)]) for name, some in ids.items()}
    broken = {"failed": {"test_two[full]": {"error": "assert 1 < 0"}}}
    results["torch"] = card_tests.summary([(nothing | {"passed": ids["torch"][:1]} | broken, None)])
    results["cupy"] = card_tests.summary([(nothing | {"failed": {"test_two": {}}, "passed": ids["cupy"]}, None)])
    cases = [replace(TINY, n=200, d=8, k=4, backend=backend) for backend in results]
    cases.insert(0, replace(cases[0], covariance="full"))
    with pytest.MonkeyPatch.context() as patch:

        def run_backend(cases, *more):
            if cases[0].backend == "torch":
                return [passes.run_case(case, CPU) for case in cases]
            with pytest.MonkeyPatch.context() as there:
                there.setenv("TRITON_INTERPRET", "1")  # read when triton is imported: not by this process
                return in_a_process(cases, *more)

        patch.setattr(gpu, "run_backend", run_backend)
        patch.setattr(
            card_tests, "run_tests", lambda tests, seconds: {name: results[name] for name in tests if name in results}
        )
        about = gpu.run(cases, device="cpu", seconds=180)
    return run.describe("gpu") | about


def test_the_gpus_run_times_every_backend_whose_tests_passed(on_a_card_that_is_not_there):
    record = on_a_card_that_is_not_there
    pytest.importorskip("triton")
    full, plain_one, triton, cupy = record["cases"]
    for one in (plain_one, triton):
        assert one["repeatable"]
        assert max(one["errors"].values()) < 1e-4
        for floor in ("floor", "split_floor"):
            share = one[f"{floor}_seconds"] / one["statistics"]["median"]
            assert one[f"share_of_{floor}"] == pytest.approx(share, rel=1e-2)
        assert one["split_floor_seconds"] > one["floor_seconds"]
        assert one["assign"]["median"] > 0
    assert full["refused"] == "1 of its tests of full failed"
    assert "times_torch" not in plain_one, "it is what the others are compared with"
    ratio = plain_one["statistics"]["median"] / triton["statistics"]["median"]
    assert triton["times_torch"] == pytest.approx(ratio, rel=1e-3)
    assert cupy["refused"] == "1 of its tests of diag failed", "a test that names no kind is of all"
    assert "statistics" not in cupy
    dtypes = {"float64", "float32", "tf32", "float16", "bfloat16"}
    assert set(record["matrix_products_gflop_per_second"]) == dtypes
    assert record["read_gbytes_per_second"] > 0


def test_the_gpus_record_is_a_table(on_a_card_that_is_not_there):
    record = json.loads(json.dumps(on_a_card_that_is_not_there))
    record["card"] = {"name": "Some Card", "driver_version": "1.2"}
    text = table.render([record])
    assert text.startswith("Some Card, driver 1.2.")
    assert "triton 2 passed, 0 failed" in text
    assert "| diag | 200 float32 | cupy | high | refused |" in text
    assert text.count("\n| ") == 5
    assert f"| {record['cases'][1]['share_of_split_floor']:.0%} |" in text


def test_the_tests_of_a_backend_decide_which_kinds_are_timed(tmp_path):
    some, none = (tmp_path / f"test_{name}.py" for name in ("some", "none"))
    some.write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('kind', ['diag', 'full', 'tied'])\n"
        "def test_sums(kind): assert max([3e-3 * (kind == 'full')]) < 2e-5\n"
        "@pytest.mark.parametrize('n', [1])\n"
        "def test_spherical_rows(n): pytest.skip('no')\n"
    )
    none.write_text("")
    found = card_tests.run_tests({"a": [[str(some)]], "b": [[str(none)]], "c": [["nowhere.py"]]}, 60)
    a = found["a"]
    assert (a["passed"], a["failed"], a["skipped"]) == (2, 1, 1)
    (failure,) = a["failures"]
    assert failure["id"].endswith("test_sums[full]")
    assert failure["times"] == 150
    assert card_tests.refusal(a) == "1 of its tests failed"
    assert card_tests.refusal(a, "full") == "1 of its tests of full failed"
    assert card_tests.refusal(a, "diag") is None
    assert card_tests.refusal(a, "spherical") == "no test of spherical of it ran", "it was skipped"
    assert card_tests.refusal(found["b"]) == "no test of it ran"
    assert "pytest ended with 4" in str(card_tests.refusal(found["c"], "diag"))
    late = card_tests.run_tests({"a": [[str(some)]]}, 0.01)["a"]
    assert "not done after 0 s" in str(card_tests.refusal(late, "diag"))


def test_tests_that_a_killed_run_did_not_end_forbid_their_kind_alone(tmp_path):
    hangs = tmp_path / "test_hangs.py"
    hangs.write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('kind', ['diag', 'full'])\n"
        "def test_sums(kind): kind == 'diag' or time.sleep(60)\n"
    )
    found = card_tests.run_tests({"a": [[str(hangs)]]}, 8)["a"]
    assert card_tests.refusal(found, "diag") is None
    assert card_tests.refusal(found, "full") == "1 of its tests of full failed"
    assert "not done after 8 s" in found["failures"][0]["error"]


def test_a_worker_that_dies_is_a_failure_of_its_test(tmp_path):
    pytest.importorskip("xdist")
    dies = tmp_path / "test_dies.py"
    dies.write_text("import os\ndef test_full(): os.abort()\ndef test_diag(): pass\n")
    found = card_tests.run_tests({"a": [[str(dies), "-n", "1"]]}, 60)["a"]
    assert card_tests.refusal(found, "full") == "1 of its tests of full failed"
    assert card_tests.refusal(found, "diag") is None


def test_a_test_names_its_kind_in_its_parameters_or_else_in_its_name():
    for name, kind in (
        ("tests/test_kernels.py::test_a_pass[triton-cuda-one row-full-torch.float32]", "full"),
        ("tests/test_full_disk.py::test_it", None),
        ("tests/a.py::test_diag_rows", "diag"),
        ("tests/a.py::test_full_is_like_others[spherical-3]", "spherical"),
        ("tests/a.py::test_full_and_diag", None),
        ("tests/a.py::test_fully", None),
    ):
        assert card_tests.kind_of(name) == kind


def test_every_backend_has_tests_of_its_own_on_a_gpu():
    for backend in ("torch", "cupy"):
        lists = card_tests.tests_of(backend)
        assert lists[-1] == ["tests/test_kernels.py", "-k", f"{backend}-cuda"]
        assert all((card_tests.ROOT / arguments[0]).exists() for arguments in lists)
    linear, full = card_tests.tests_of("triton")
    assert linear[:2] == full[:2] == ["tests/triton_cases.py", "tests/test_kernels.py"]
    assert linear[3] == "(triton-cuda or triton_cases) and not compile and not full"
    around = card_tests.around()
    assert all((card_tests.ROOT / arguments[0]).exists() for lists in around.values() for arguments in lists)
    assert {"tests/test_staging.py", "tests/test_no_waiting.py"} <= {lists[0][0] for lists in around.values()}


def test_floors_count_split_products_as_often_as_they_are_made():
    rates = {"tf32": 400.0, "bfloat16": 800.0}
    diag = Case("relu", 10**6, 64, 50, "diag")
    once = diag.flop / 1e9
    for case, seconds in (
        (diag, 3 * once / 400),
        (replace(diag, precision="fast"), 3 * once / 800),
        (replace(diag, dtype="float16"), 2.5 * once / 400),
        (replace(diag, dtype="float16", precision="fast"), 3 * once / 800),
        (replace(diag, covariance="full"), 3 * 16 * once / 400),  # D / 2 times the flop, half of them the E-step's
    ):
        assert case.split_floor_seconds(1e9, rates) == pytest.approx(seconds, rel=1e-12)
    assert diag.split_floor_seconds(1e-3, rates) == pytest.approx(diag.bytes / 1e-3 / 1e9)


def test_without_a_gpu_the_gpu_suite_says_so_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("FASTCLUST_DATA", raising=False)
    for name, what in (("gpu", "CUDA"), ("tiles", "FASTCLUST_DATA"), ("extraction", "FASTCLUST_DATA")):
        assert run.main(["--suite", name, "--out", str(tmp_path / "no.json")]) == 2
        said = capsys.readouterr()
        assert what in said.err
        assert said.err.count("\n") == 1
        assert not said.out
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def grown():
    """A record of the growth suite, of two tiny cases, with a peer of each kind."""
    some = {
        "scikit-learn": peers.PEERS["scikit-learn"],
        "gone": replace(peers.PEERS["gmmx"], module="no_such_module"),
        "broken": replace(peers.PEERS["scikit-learn"], seconds=lambda *_: 1 / 0),
        "small": replace(peers.PEERS["scikit-learn"], most_rows=1_000, why="it is small"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "PEERS", some)
        patch.setattr(peers, "PEERS", some)
        patch.setattr(run, "matrix_product_rate", lambda dtype="float32": 1e4)
        patch.setattr(run, "copy_bandwidth", lambda: 1e4)
        cases = [Case("relu", n, 64, 50, "diag", burn_in=2, repeats=2) for n in (1_000, 3_000)]
        return run.describe("growth") | run.run_on_cpu("growth", cases)


def test_growth_is_the_cost_of_a_row_at_each_number_of_rows(grown):
    small, large = grown["cases"]
    for case in (small, large):
        assert max(case["errors"].values()) < 1e-4
        assert 0 < case["pass"]["share_of_floor"] < 1
        for name, seconds in (
            ("ours", case["pass"]["ours"]),
            ("scikit-learn", case["peers"]["scikit-learn"]["seconds"]),
        ):
            assert case["ns_per_row"][name]["median"] == pytest.approx(seconds["median"] / case["n"] * 1e9, rel=2e-3)
        assert case["peers"]["gone"]["not_timed"] == "not installed"
        assert "ZeroDivisionError" in case["peers"]["broken"]["not_timed"]
    assert "seconds" in small["peers"]["small"]
    assert large["peers"]["small"]["not_timed"] == "it is small: given 1,000 rows at most"
    costs = [case["ns_per_row"]["ours"]["median"] for case in (small, large)]
    assert grown["growth"]["largest_over_smallest"] == pytest.approx(max(costs) / min(costs), rel=1e-3)
    for dearer, reached in ((11.9, True), (12.1, False)):
        some = [{"n": n, "ns_per_row": {"ours": {"median": cost}}} for n, cost in ((1, 10), (2, dearer))]
        assert growth.summary(some)["reached"] is reached
    assert growth.summary([{"n": 1, "refused": "wrong"}]) == {}


def test_growth_is_a_table_and_a_picture(grown):
    record = json.loads(json.dumps(grown))
    text = table.render([record])
    assert "within the 1.2 that is the aim" in text
    assert "Not timed: gone, broken." in text
    assert "| rows | fastclust | scikit-learn | small | fastclust's share of the floor | error |" in text
    assert "| it is small |" in text
    lines, of_what = plot.chosen([record])
    assert set(lines) == {"fastclust", "floor", "scikit-learn", "small"}
    assert lines["small"].keys() == {1_000}
    assert "diag, 64 features, 50 components" in of_what


@pytest.mark.parametrize("name", ["torch", "pomegranate", "torchgmm", "gmmx"])
def test_a_peer_makes_the_passes_that_are_timed(name):
    pytest.importorskip(peers.PEERS[name].module)
    case = Case("relu", 500, 8, 4, "diag", burn_in=3)
    X = growth.rows_of(case)
    with pytest.warns(match="did not converge"):
        ours = growth.make_ours(case, max_iter=3).fit(X)
    found = peers.PEERS[name].seconds(case, X, ours, 3)
    assert len(found) == 3
    assert min(found) > 0


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_pairs_are_timed_on_rows_of_any_dtype(dtype):
    case = Case("relu", 400, 8, 4, "diag", dtype, "torch", burn_in=2, repeats=1, fit_passes=2, fit_repeats=1)
    record = pairs.run_case(case)
    assert (record["dtype"], record["backend"]) == (dtype, "torch")
    worst = max(record["errors"].values())
    assert worst < (1e-4 if dtype == "float16" else 1e-10), "float64 rows are computed in float64"
    assert record["pass"]["largest_bound_difference_per_row"] < (1e-3 if dtype == "float16" else 1e-8)


def test_extraction_is_verified_then_timed_beside_the_network_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "REST", 0)
    images = [photographs(tmp_path / "images", 9)]
    bare = extraction.against_bare(images, "squeezenet1_1", "random", "2", 64, repeats=2)
    again = extraction.recomputed(images, "squeezenet1_1", "random", "2", 64, passes=2)
    assert (bare["images"], bare["batch_size"], bare["errors"]["features"] < 1e-3) == (9, 8, True)
    assert set(bare["seconds_per_image"]) == {"bare", "bare_channels_last", "stream", "total"}
    assert bare["reached"] is (bare["ratio"]["stream_over_bare"]["median"] <= 1.15)
    assert all(value["min"] > 0 for value in bare["cpu_seconds_per_image"].values())
    assert again["bytes_per_image"] == 15 * 15 * 16 * 2
    for name, value in again["seconds_per_image"].items():
        crossover = again["bytes_per_image"] / value["median"] / 1e6
        assert again["crossover_megabytes_per_second"][name] == pytest.approx(crossover, rel=1e-2)
    assert set(again["store_megabytes_per_second"]) == {"cold", "warm"}
    text = table.render([run.describe("extraction") | {"cases": [bare, again]}])
    assert "squeezenet1_1 | 2 |" in text and "at most 1.15 times" in text
    assert extraction.line(bare).startswith("bare-squeezenet1_1-2-64  ms an image: bare ")
    assert "a store beats it from" in extraction.line(again)
    monkeypatch.setattr(extraction, "TOLERANCE", 0)
    wrong = extraction.against_bare(images, "squeezenet1_1", "random", "2", 64, repeats=1)
    assert "features differ" in wrong["refused"] and "seconds_per_image" not in wrong
    assert "REFUSED" in extraction.line(wrong)
    assert "not timed: wrong" in table.render([run.describe("extraction") | {"cases": [bare, wrong]}])


def test_tiles_compare_converged_fits_and_refuse_a_lower_bound(monkeypatch):
    monkeypatch.setattr(tiles, "REST", 0)
    record = tiles.run("float64", "relu", 600, 5, 3)
    ours, theirs = record["ours"], record["theirs"]
    assert (ours["converged"], theirs["converged"]) == (True, True)
    assert ours["n_iter"] == theirs["n_iter"]
    assert abs(record["bound_difference_per_row"]) < 1e-3
    assert "refused" not in record
    text = table.render([run.describe("tiles") | {"cases": [record]}])
    assert f"| {ours['n_iter']} | yes |" in text
    assert tiles.line(record).startswith("converged-diag-relu-600x5-k3-float64")

    class Worse(tiles.Ours):
        def fit(self, X):
            super().fit(X)
            self.lower_bound_ -= 2 * tiles.TOL_PER_ROW * len(X)

    monkeypatch.setattr(tiles, "Ours", Worse)
    assert "lower by 2.0e-03 nats a row" in tiles.run("float64", "relu", 600, 5, 3)["refused"]


def test_the_committed_picture_is_that_of_the_records():
    assert plot.SVG.read_text() == plot.draw(*plot.chosen(table.load())), "run `python -m benchmarks.plot`"
    assert f"({plot.SVG.relative_to(table.README.parent)})" in table.README.read_text()


def test_a_picture_has_its_points_where_they_belong():
    lines = {"fastclust": {10_000: 1e-3, 1_000_000: 10.0}, "gmmx": {10_000: 1e-1}, "floor": {10_000: 9.5e-2}}
    root = ElementTree.fromstring(plot.draw(lines, "a & b"))
    named = {element.get("class"): element for element in root.iter() if element.get("class")}
    right, bottom = plot.WIDTH - plot.RIGHT, plot.HEIGHT - plot.BOTTOM
    assert named["line fastclust"].get("points") == f"{plot.LEFT}.0,{bottom}.0 {right}.0,{plot.TOP}.0"
    texts = {element.text for element in root.iter() if element.text}
    assert {"a & b", "10,000", "1,000,000", "1 ms", "10 s", "fastclust", "gmmx", "rows", "seconds a pass"} <= texts
    heights = [float(named[f"label {name}"].get("y")) for name in ("gmmx", "floor")]
    assert heights[1] - heights[0] >= plot.SPACING, "labels would lie on each other"
    assert "prefers-color-scheme: dark" in plot.style()
    with pytest.raises(ValueError, match="two numbers of rows"):
        plot.chosen([])


def test_what_no_gpu_has_run_is_said():
    names = [case.name for case in suite("gpu")]
    assert len(set(names)) == len(names) == 14
    none = table.never_on_a_gpu([])
    assert none == "Never run on a GPU: torch, triton, cupy. There is no figure for one."
    timed = [{"cases": [{"name": name, "statistics": {}} for name in names]}]
    assert table.never_on_a_gpu(timed) == "Every case of the gpu suite has been timed on a GPU."
    timed[0]["cases"] = [case for case in timed[0]["cases"] if "full" not in case["name"] or "torch" in case["name"]]
    some = table.never_on_a_gpu(timed)
    assert some.startswith("Never timed on a GPU: triton (full, float32, high;")
    assert "torch" not in some
    if not any(record["suite"] == "gpu" for record in table.load()):
        assert none in table.README.read_text()


def test_the_suites_vary_what_they_say():
    base, *others = suite("cpu")[4:5] + suite("sweep")
    varied = [{key for key in asdict(base) if getattr(case, key) != getattr(base, key)} for case in others]
    assert {"d"} in [keys - {"repeats", "fit_repeats"} for keys in varied]
    assert {case.dtype for case in others} == {"float32", "float16", "float64"}
    assert {case.backend for case in others} == {"auto", "numba", "torch"}
    assert [case.n for case in suite("growth")] == [10_000, 100_000, 1_000_000, 10_000_000]
    assert len({case.name for case in others}) == len(others)


def test_rows_made_on_a_device_are_like_those_of_a_relu():
    rows = data.relu_on(CPU, 5_000, 64, "float16")
    assert rows.dtype == torch.float16
    assert 0.4 < float((rows == 0).float().mean()) < 0.6
    assert not rows[:, 3].any()
    assert (float(rows.min()), float(rows.max())) == (0, 10)
    assert float(rows.max()) > 20 * float(rows.float().mean()), "no heavy tails"
    assert torch.equal(rows, data.relu_on(CPU, 5_000, 64, "float16"))


def test_rates_of_a_device_are_those_of_its_dtypes():
    rate = timing.matrix_product_rate(CPU, "float64", 128)
    assert rate > 0
    assert timing.copy_bandwidth(CPU, 1 << 20) > 0
    assert timing.read_bandwidth(CPU, 1 << 20) > 0
    assert not torch.backends.cuda.matmul.allow_tf32
    assert timing.spread([3.0, 1.0, 2.00004]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    calls = []
    assert len(timing.seconds_on(CPU, lambda: calls.append(1), 3, warm_up=2)) == 3
    assert len(calls) == 5
    assert np.isfinite(timing.seconds(lambda: None))

"""The first minutes on a card, tried without one: what dies or hangs, every stage's work on a CPU, the table."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import passes, processes
from benchmarks.first_contact import __main__ as program
from benchmarks.first_contact import checks, hosts, predictions, problem, profiles, speed, stages, sums, table
from benchmarks.first_contact.journal import Journal
from benchmarks.first_contact.predictions import Machine
from benchmarks.first_contact.stages import STAGES, Job, Options, Stage
from fastclust import kernels
from fastclust.kernels import torch as plain

HERE = Path(__file__).parent
CPU = Options(device="cpu", rows=1500)


def job(name, **arguments):
    return Job(name, f"first_contact_jobs:{name}", arguments)


def stage(name, *jobs, side_by_side=1):
    return Stage(name, 1, lambda options: list(jobs), side_by_side)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return Journal(tmp_path / "results.jsonl")


def run(journal, *some, seconds=20.0):
    program.run(list(some), CPU, journal, time.monotonic() + seconds)


def values(journal, name):
    return [one["value"] for one in journal.read(job=name) if "value" in one]


def test_what_dies_raises_or_floods_is_recorded_and_the_next_begins(journal):
    run(journal, stage("one", job("dies"), job("raises")), stage("two", job("floods"), job("writes")))
    ended = {one["job"]: one["ended"] for one in journal.read() if "ended" in one}
    assert ended["dies"] == "was ended by SIGABRT"
    assert ended["raises"] == "ended with 1"
    assert ended["floods"] == ended["writes"] == "well"
    assert values(journal, "dies") == values(journal, "raises") == ["before"]
    assert [one["raised"] for one in journal.read() if "raised" in one] == ["ValueError: what it said"]
    assert [one["stage"] for one in journal.read() if "stage_seconds" in one] == ["one", "two"]
    log = journal.path.with_name("output.log").read_text()
    assert "the end\n" in log
    assert len(log) < 5 * processes.KEPT_BYTES
    assert "dies" in table.table(journal.read())


@pytest.mark.parametrize("side_by_side", [1, 4])
def test_what_hangs_is_killed_with_all_that_it_started_and_leaves_time(journal, side_by_side):
    began = time.monotonic()
    run(journal, stage("one", job("hangs"), job("writes"), side_by_side=side_by_side), seconds=4)
    assert time.monotonic() - began < 9
    (child,) = (one["child"] for one in journal.read(job="hangs") if "child" in one)
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(child, 0)
            if "Z" in Path(f"/proc/{child}/stat").read_text().split(") ")[1][:1]:
                raise ProcessLookupError
            time.sleep(0.1)
    assert "was stopped after" in next(one["ended"] for one in journal.read(job="hangs") if "ended" in one)
    assert values(journal, "writes") == [1]
    assert "in hangs" in journal.path.with_name("output.log").read_text(), "it says where it hung"


def test_without_time_nothing_is_begun_and_that_is_recorded(journal):
    run(journal, stage("one", job("writes")), seconds=0)
    assert [one["left_out"] for one in journal.read(job="writes")] == ["no time was left"]


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_run_that_is_killed_keeps_what_it_wrote_and_leaves_nothing_running(tmp_path, side_by_side):
    text = (
        "import sys; from benchmarks.first_contact import __main__ as program\n"
        "from benchmarks.first_contact.stages import Job, Stage\n"
        "jobs = [Job(f'hangs {index}', 'first_contact_jobs:hangs') for index in range(3)]\n"
        f"program.STAGES = [Stage('one', 1, lambda options: jobs, {side_by_side})]\n"
        "sys.exit(program.main(['--device', 'cpu', '--out', sys.argv[1]]))\n"
    )
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    journal = Journal(tmp_path / "results.jsonl")
    until = time.monotonic() + 20
    while not any("child" in one for one in journal.read()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert values(journal, "hangs 0") == ["before"]
    assert b"predicted and measured" in said
    child = next(one["child"] for one in journal.read() if "child" in one)
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().split(") ")[1][0] == "Z"


def test_every_job_of_every_stage_names_a_function_that_takes_its_arguments():
    import importlib
    import inspect

    names = []
    for options in (Options(), CPU):
        for one in STAGES:
            for each in one.jobs(options):
                json.dumps(each.arguments)
                module, _, name = each.function.partition(":")
                function = getattr(importlib.import_module(module), name)
                inspect.signature(function).bind(print, **each.arguments)
                names.append((options.device, one.name, each.name))
    assert len(set(names)) == len(names)
    assert sum(one.seconds for one in STAGES) == program.SECONDS
    assert [one.name for one in STAGES] == [line.split()[0] for line in _stages_of_the_docstring()]


def _stages_of_the_docstring():
    import benchmarks.first_contact as package

    return [line for line in (package.__doc__ or "").splitlines() if line.startswith("    ") and "python" not in line]


def test_nothing_of_the_program_itself_imports_torch():
    text = (
        "import benchmarks.first_contact.__main__, benchmarks.first_contact.job, sys; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", text], cwd=HERE.parent).returncode == 0


def found(function, **arguments):
    """Return what a job writes."""
    lines = []
    function(lines.append, **arguments)
    json.dumps(lines)
    return lines


@pytest.mark.parametrize("what", ["statistics", "assign", "responsibilities", "moments"])
def test_a_kernel_is_held_against_the_oracle_on_few_rows(what, monkeypatch):
    arguments = {"device": "cpu", "backend": "torch", "kind": "full", "stored": "float32", "precision": "high"}
    (good,) = found(checks.smoke, what=what, large=False, **arguments)
    assert good["right"]
    assert 2 / 50 < good["sureness"] < 0.9, "the problem does not discriminate"
    monkeypatch.setattr(problem, "on", lambda device, c: replace(c, means=c.means + 0.05, offset=c.offset.flip(0)))
    (bad,) = found(checks.smoke, what=what, large=False, **arguments)
    assert bad["right"] == (what == "moments"), "moments are of given responsibilities, about any point"
    (left,) = found(checks.smoke, what=what, large=False, **arguments | {"precision": "fast"})
    assert left["left_out"] == "torch has no precision 'fast'"


def test_the_tests_stage_writes_failures_with_their_numbers(tmp_path):
    some = tmp_path / "test_some.py"
    some.write_text("def test_good(): pass\ndef test_bad(): assert max([3e-4]) < 1e-4\n")
    journal = Journal(tmp_path / "results.jsonl")
    run(journal, stage("tests", Job("own", "benchmarks.first_contact.checks:tests", {"arguments": [str(some)]})))
    lines = [one for one in journal.read("tests", "own") if "ended" not in one]
    failing = next(one for one in lines if "failing" in one)
    assert failing["failing"].endswith("::test_bad") and failing["times"] == 3
    assert lines[-1]["counts"] == {"passed": 1, "skipped": 0, "failed": 1, "not_done": 0}


def tunable(monkeypatch, wrong_at=()):
    """Make the torch backend one whose tiles can be chosen; flushes of wrong_at shrink sums, as truncation would."""
    whole = plain.prepare

    def prepare(*given, tuning=None, **named):
        plan = whole(*given, **named)
        if tuning is not None and getattr(tuning, "flush", None) in wrong_at:
            result = plan.result

            def shrunk():
                found = result()
                return replace(found, sx=found.sx * (1 - 1.7e-5), sxx=found.sxx * (1 - 1.7e-5))

            plan.result = shrunk
        if getattr(tuning, "rows", None) == 128:
            raise RuntimeError("too much shared memory")
        return plan

    from fastclust.kernels.triton import shapes

    monkeypatch.setattr(shapes, "Tuning", lambda **given: SimpleNamespace(**given), raising=False)
    monkeypatch.setattr(plain, "prepare", prepare)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return str(tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_sums_over_all_rows_show_what_truncation_does(kind, scratch, monkeypatch):
    tunable(monkeypatch, wrong_at=(32,))
    given = replace(CPU, scratch=scratch, rows=1500 if kind == "diag" else 5000).problem(kind, "float32", "torch")
    lines = found(sums.sums, **given, precisions=["high", "fast"], flush=[8, 32])
    exact, formula, eight, thirty_two, *fast = lines
    assert exact["lost_x"] < 1e-12 and exact["lost_xx"] < 1e-12
    assert formula["variant"] == "formula"
    for good in (formula, eight):
        assert good["lost_x"] < 2e-6 and good["lost_xx"] < 2e-6
        assert max(map(abs, good["bias"].values())) < 1e-6
    assert abs(thirty_two["bias"]["nk"]) < 1e-6
    assert thirty_two["bias"]["sxx"] == pytest.approx(-1.7e-5, rel=0.1)
    if kind == "diag":
        assert thirty_two["bias"]["sx"] == pytest.approx(-1.7e-5, rel=0.1)
        assert thirty_two["lost_x"] > 5e-6
    assert all(one["left_out"] == "no precision 'fast'" for one in fast)


def test_variants_are_timed_and_one_that_fails_is_no_end(scratch, monkeypatch):
    given = replace(CPU, scratch=scratch).problem("diag", "float32", "torch")
    variants = [{"rows": 64}, {"rows": 128}, {"warps": 4}]
    lines = found(speed.ablations, **given, precisions=["high"], variants=variants)
    assert [("ms" in one, "left_out" in one) for one in lines] == [(True, False)] + [(False, True)] * 3
    tunable(monkeypatch)
    lines = found(speed.ablations, **given, precisions=["high"], variants=variants)
    assert ["ms" in one for one in lines] == [True, True, False, True]
    assert lines[2]["failed"] == "RuntimeError: too much shared memory"
    assert all(one["nk_away"] == 0 and one["ms"] > 0 for one in lines if "ms" in one)
    text = table.table([{"stage": "ablations", "job": "x", **one} for one in lines])
    assert "diag float32 high: formula" in text and "warps 4" in text and "1 failed: RuntimeError" in text


def test_headline_times_what_is_wrong_too_and_says_so(scratch, monkeypatch):
    (given,) = (one.arguments for one in stages.headline(replace(CPU, scratch=scratch)) if one.name == "torch diag")
    right, *_, wide = found(speed.headline, **given)
    assert right["statistics"]["median"] > 0 and right["assign"]["median"] > 0 and "refused" not in right
    assert wide["case"] == "diag float32 in float64"
    result = plain.Plan.result
    monkeypatch.setattr(plain.Plan, "result", lambda plan: (r := result(plan)) and replace(r, nk=r.nk * 1.001))
    wrong = found(speed.headline, **given)[0]
    assert "nk: 1.0e-03" in wrong["refused"] and "statistics" in wrong
    monkeypatch.undo()
    monkeypatch.setattr(passes, "own_passes", lambda *given: 1 / 0)
    failed = found(speed.headline, **given)[0]
    assert failed["failed"] == "ZeroDivisionError: division by zero" and failed["statistics"]["median"] > 0
    text = table.table([{"stage": "headline", "job": "torch diag", **failed}])
    assert "1 failed: ZeroDivisionError" in text and "torch diag float32 high, ms" in text
    assert Path(scratch, f"{passes.Case('relu', 1500, 64, 50, 'diag', backend='torch').name}-5.pt").exists()


def test_rates_profile_and_what_is_around(scratch):
    rates = found(speed.ceilings, device="cpu")
    assert {one["rate"] for one in rates if "rate" in one} == {"copy", "read", *speed.RATES}
    given = replace(CPU, scratch=scratch).problem("diag", "float32", "torch")
    (fit,) = found(profiles.fit, **given)
    assert fit["launches"] == fit["kernels"] > 10 and 0 <= fit["idle"] < 1 and fit["ms"] > 0
    (left,) = found(profiles.fit, **given | {"backend": "cupy"})
    assert "cannot run" in left["left_out"]
    bare, a_pass = found(hosts.rows, **given)
    assert bare["gbytes_per_second"] > 0 and a_pass["gbytes_per_second"] > 0
    few = found(hosts.decoding, device="cpu", images=6)
    assert all(one["images_per_second"] > 0 for one in few) and len(few) == 2
    assert profiles.main([json.dumps(given | {"precision": "high"})]) == 0
    assert "left_out" in found(profiles.counters, precision="high", **given)[0]


def test_a_launch_is_what_the_host_starts_and_not_a_kernel_of_a_graph():
    calls = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync"]
    others = ["cudaStreamSynchronize", "cudaEventRecord", "aten::add", "fused_statistics", "Memcpy DtoH", "cudaMalloc"]
    assert all(map(profiles.STARTS.match, [*calls, "cuMemsetD32Async"]))
    assert not any(map(profiles.STARTS.match, others))


def test_images_go_through_the_network(monkeypatch):
    monkeypatch.setattr(hosts, "SIZE", 32)
    one, *more = found(hosts.network, device="cpu", images=8)
    assert one["images_per_second"] > 0
    assert [line["left_out"] for line in more] == ["there are 8 images"] * 2


def test_counters_are_read_as_ncu_writes_them():
    text = (
        "==PROF== Connected to process 1\n"
        '"ID","Process ID","Kernel Name","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum",'
        '"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio","unwanted"\n'
        '"","","","%","us","","n"\n'
        '"0","1","fused_statistics","41.5","1,234.5","3.2","7"\n'
        '"1","1","reduce","2","5","1","7"\n'
    )
    first, second = profiles.kernels_of(text)
    assert first["kernel"] == "fused_statistics"
    assert first["counters"] == {
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": "41.5 %",
        "gpu__time_duration.sum": "1,234.5 us",
        "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "3.2",
    }
    assert second["kernel"] == "reduce"
    assert not list(profiles.kernels_of("==ERROR== no permission"))
    said = table.table([{"stage": "ncu", "job": "diag", **first}])
    assert "time_duration 1,234.5 us" in said and "stalled_wait" in said


def test_predictions_are_those_of_the_model():
    usual = Machine()
    low, high = predictions.of_pass("triton diag float32 high", "diag", 10_000_000, usual)
    assert (low, high) == (pytest.approx(2.63, abs=0.02), pytest.approx(3.07, abs=0.02))
    assert predictions.Cycles(3072, 2394, 256).milliseconds(10_000_000, usual)[1] == pytest.approx(3.4, abs=0.05)
    assert predictions.Cycles(0, 0, 256).milliseconds(10_000_000, usual)[0] == pytest.approx(1.27 * 0.853, abs=0.01)
    faster = Machine(clock=2 * predictions.CLOCK)
    assert predictions.of_pass("triton full float32 high", "full", 1_000_000, faster) == (1.9, 2.45)
    assert predictions.of_pass("torch tied", "tied", 1, usual) is None


def test_the_table_has_predicted_measured_ratio_and_both_shares():
    case = passes.Case("relu", 10_000_000, 64, 50, "diag", "float32", "triton")
    spread = {"median": 4e-3, "min": 4e-3, "max": 4e-3}
    head = {"n": case.n, "precision": "high", "bytes": case.bytes, "flop": case.flop, "split_flop": case.split_flop}
    head |= {"case": "diag float32 high", "backend": "triton", "statistics": spread, "assign": spread, "pass": spread}
    rates = {"copy": 3000.0, "read": 2800.0}
    products = {"tf32": 400e3, "bfloat16": 700e3, "float16": 700e3}
    records = [
        {"stage": "run", "options": {"device": "cuda"}},
        {"stage": "about", "multiprocessors": 132},
        *({"stage": "ceilings", "rate": name, "gbytes_per_second": value} for name, value in rates.items()),
        *({"stage": "ceilings", "rate": name, "gflop_per_second": value} for name, value in products.items()),
        {"stage": "ceilings", "clock_after": "tf32", "card": {"clocks.sm": "1755 MHz"}},
        {"stage": "headline", "job": "triton diag", "errors": {"nk": 2e-6}, "repeatable": True, **head},
        {"stage": "hosts", "what": "rows from the host", "gbytes_per_second": 20.0},
        {"stage": "smoke", "job": "triton full", "right": False, "error": 1.0, "limit": 2e-5, "errors": {"nk": 1.0}},
        {
            "stage": "tests",
            "job": "triton 1",
            "failing": "tests/a.py::test_b[diag]",
            "error": "assert 3 < 1",
            "times": 3,
        },
        {"stage": "tests", "job": "triton 1", "counts": {"passed": 7, "failed": 1}},
        {"stage": "profile", "job": "odd", "most": None},
    ]
    text = table.table(records)
    line = next(line for line in text.splitlines() if line.startswith("triton diag float32 high, ms"))
    assert line.split()[5:] == ["2.63", "to", "3.07", "4", "1.30", "21%", "48%", "2.0e-06"]
    assert "WRONG triton full: nk 1.0e+00" in text
    assert "triton 1: 7 passed, 1 failed; not ended" in text
    assert "a.py::test_b[diag] 3 times the limit: assert 3 < 1" in text
    assert "-- profile\ncannot be shown: " in text, "one bad record takes no other with it"
    assert text.splitlines()[-1].split()[-5:] == ["40", "to", "55", "20", "0.50"]
    assert table.machine_of(records).clock == pytest.approx(predictions.CLOCK)


def test_a_folder_is_found_from_where_the_program_was_started(tmp_path):
    command = [*processes.module("benchmarks.first_contact", "--out", "here", "--device", "cpu")]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command += ["--stages", "about", "--seconds", "60"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert any("backends" in one for one in Journal(tmp_path / "here" / "results.jsonl").read())


def test_options_of_the_command_line_are_the_variants(tmp_path):
    options, given = program._parsed(
        ["--out", str(tmp_path), "--flush", "8", "16", "--warps", "--stages", "sums", "--device", "cpu"]
    )
    assert (options.flush, options.warps, options.device, given.stages) == ((8, 16), (), "cpu", ["sums"])
    assert (options.tile_rows, options.precisions) == ((32, 64, 128), ("high", "fast"))
    diag = stages.ablations(options)[0].arguments["variants"]
    assert {"flush": 16} in diag and not any("warps" in one for one in diag)


def test_the_oracles_problem_is_one_that_the_oracle_agrees_on():
    rows, coefficients = problem.small(200, 8, 5, "tied")
    one = kernels.statistics(plain, rows, coefficients, kernels.Frame(), torch.float64)
    assert max(problem.errors(one, one).values()) == 0
    assert problem.errors(replace(one, nk=one.nk * torch.nan), one)["nk"] == float("inf")

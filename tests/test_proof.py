"""Proofs of kernels: what is healthy is never refused, each planted fault is found, and "auto" takes what passed."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stand_in
import torch
from broken import PREPARED, READ, SUMMED, broken
from command_line import call
from proof_problems import KINDS, at_random
from test_kernels import problem

from fastclust import kernels
from fastclust.kernels import Frame, chosen, constructed, numba, proof, remembered, table
from fastclust.kernels import torch as plain

HERE = Path(__file__).parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEALTHY = {"torch": plain, "numba": numba}
PROBLEMS = 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_never_refused(name, kind, monkeypatch, one_thread):
    monkeypatch.setattr(constructed, "ROWS", (131, 259))
    worst = 0.0
    for seed in range(PROBLEMS // (len(HEALTHY) * len(KINDS))):
        rows, coefficients, frame, weights = at_random(seed, kind)
        operation = proof.OPERATIONS[0 if seed % 2 else seed // 2 % 4]
        found = proof.prove(HEALTHY[name], operation, rows, coefficients, frame, torch.float32, "high", weights)
        assert found.passed, f"problem {seed}, {operation}: {found.failures()}"
        worst = max(worst, found.worst)
    assert 1e-3 < worst < 0.5, "the tolerance has no room to be wrong in, or too much"


SEEN = {  # by which operations a fault can be seen
    **dict.fromkeys(PREPARED, ("statistics", "assign", "responsibilities")),
    **dict.fromkeys(READ, proof.OPERATIONS),
    "rows of weight zero counted": ("statistics",),
    "components swapped": ("statistics", "moments"),
    "entropy halved": ("statistics",),
}
FAULTS = [(fault, operation) for fault in PREPARED | READ | SUMMED for operation in SEEN[fault]]
# Nothing to see: responsibilities and labels of rows that are read twice are not asked for.
FAULTS = [one for one in FAULTS if one not in (("last row twice", "assign"), ("last row twice", "responsibilities"))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize(("fault", "operation"), FAULTS)
def test_each_planted_fault_is_found(fault, operation, name, kind, one_thread):
    rows, coefficients = problem(300, 9, 5, kind)
    weights = torch.from_numpy(np.random.default_rng(0).integers(0, 3, size=300).astype(float))
    given = (operation, rows.float(), coefficients, Frame(), torch.float32, "high", weights)
    assert proof.prove(broken(HEALTHY[name], None), *given).passed
    found = proof.prove(broken(HEALTHY[name], fault), *given)
    assert not found.passed, f"{found.errors}"


def of_many(of_rows: bool) -> SimpleNamespace:
    """Return a backend that is wrong from the 5000th row on: programs take no more than a tile, and few rows show none.

    of_rows: whether labels are, or sums.
    """

    class Plan:
        def __init__(self, *given, **more):
            self.plan = plain.prepare(*given, **more)
            self.result = self.plan.result

        def add(self, rows, weights=None):
            count = 5000 if not of_rows else len(rows)
            self.plan.add(rows[:count], None if weights is None else weights[:count])

        def assign(self, rows):
            labels, density = self.plan.assign(rows)
            if of_rows:
                labels[5000:], density[5000:] = labels[0], density[0]
            return labels, density

    return SimpleNamespace(PRECISIONS=("high",), prepare=Plan, moments=plain.moments)


@pytest.mark.parametrize("operation", ["statistics", "assign"])
def test_what_only_many_rows_show_is_found_on_an_accelerator(operation, monkeypatch):
    rows, coefficients = problem(300, 9, 5, "diag")
    weights = torch.linspace(0, 2, 300, dtype=torch.float64)
    given = (operation, rows.float(), coefficients, Frame(), torch.float32, "high", weights)
    assert proof.prove(of_many(operation == "assign"), *given).passed, "the CPU has no copies"
    monkeypatch.setattr(proof, "_copies", lambda some: 6)
    assert not proof.prove(of_many(operation == "assign"), *given).passed
    assert proof.prove(of_many(operation != "assign"), *given).passed
    for name in HEALTHY:
        assert proof.prove(HEALTHY[name], *given).passed, name


@pytest.mark.parametrize("kind", KINDS)
def test_sums_that_would_fail_a_pass_fail_the_proof_on_an_accelerator(kind, monkeypatch):
    """As those of a tensor core that rounds toward zero: of full and tied too little for anything else to see."""

    def shrunk(found):
        small = None if found.sxx is None else found.sxx * (1 - 5e-6)
        return replace(found, sx=found.sx * (1 - 5e-6), sxx=small)

    monkeypatch.setitem(SUMMED, "sums shrink", shrunk)
    rows, coefficients = problem(300, 9, 5, kind)
    rows = rows.float().abs()  # so that sums do not cancel
    given = ("statistics", rows, coefficients, Frame(), torch.float32, "high", None)
    shrinking = broken(plain, "sums shrink")
    assert proof.prove(shrinking, *given).passed == (kind in ("full", "tied"))
    monkeypatch.setattr(proof, "checked", lambda device: True)
    failed = proof.prove(shrinking, *given)
    assert not failed.passed
    assert "columns errs by" in failed.failures()
    assert proof.prove(plain, *given).passed


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_faults_in_the_source_of_the_triton_kernels_are_found():
    """Triton reads TRITON_INTERPRET when it is imported, so in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "faulty_triton.py")],
        cwd=HERE.parent,
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture
def device(monkeypatch, tmp_path):
    """A device on which backends have to prove themselves, as on CUDA; no process has proven anything there yet."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(chosen, "_verdicts", {})
    remembered.digest.cache_clear()
    return stand_in.install(monkeypatch.setattr)


def test_auto_takes_triton_when_it_has_proven_itself(device, caplog):
    caplog.set_level(logging.INFO, "fastclust")
    model = device.fit()
    assert model.backend_ == "triton"
    assert [line for line in caplog.messages if line.startswith("backend")] == ["backend triton on cpu"]
    assert {operation for name, operation in device.proven} == {"statistics", "assign"}
    assert {name for name, _ in device.proven} == {"triton"}
    n_proofs = len(device.proven)
    assert device.fit().backend_ == "triton"
    assert len(device.proven) == n_proofs, "this process has proven it already"
    model.predict_proba(device.rows)
    assert device.proven[-1] == ("triton", "responsibilities")


def test_one_that_fails_is_passed_over_with_a_warning_that_has_the_numbers(device, caplog):
    caplog.set_level(logging.INFO, "fastclust")
    device.faults["triton"] = "components swapped"
    assert device.fit().backend_ == "cupy"
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    warned = [line for line in warned if "statistics" in line]
    assert len(warned) == 1
    number = r"\d\.\de[+-]\d\d"
    assert re.match(
        r"backend triton on cpu is passed over for statistics of diag covariance: it failed its proof: "
        rf".*nk errs by {number} where {number} is allowed",
        warned[0],
    )
    said = [line for line in caplog.messages if line.startswith("backend cupy on cpu")]
    assert len(said) == 1
    assert "not triton: it failed its proof: " in said[0]


def test_where_all_fail_torch_passes_over_the_rows(device):
    device.faults |= {"triton": "last component masked", "cupy": "stale table"}
    assert device.fit().backend_ == "torch"


def test_one_whose_proof_raises_is_passed_over_and_says_what_it_raised(device, caplog):
    device.raises["triton"] = RuntimeError("Currently fp64 don't support largeK MMA")
    assert device.fit().backend_ == "cupy"
    assert "its proof ended with RuntimeError: Currently fp64 don't support largeK MMA" in caplog.text


def test_a_proof_that_runs_out_of_memory_says_nothing_of_a_backend(device):
    device.raises["triton"] = torch.OutOfMemoryError("made up")
    with pytest.raises(torch.OutOfMemoryError):
        device.fit(backend="triton")
    del device.raises["triton"]
    assert device.fit().backend_ == "triton"


def test_one_that_was_asked_for_and_fails_raises(device):
    device.faults["triton"] = "last row lost"
    with pytest.raises(RuntimeError, match=r"backend 'triton' was asked for, and it failed its proof: .* errs by"):
        device.fit(backend="triton")
    assert device.fit(backend="cupy").backend_ == "cupy"
    assert device.fit(backend="torch").backend_ == "torch"
    assert ("torch", "statistics") not in device.proven


def test_what_has_no_kernel_goes_to_torch_without_a_proof(device, caplog):
    caplog.set_level(logging.INFO, "fastclust")
    assert device.fit(covariance_type="tied").backend_ == "torch"
    assert ("triton", "statistics") not in device.proven
    assert "backend torch on cpu; not triton: no kernel for tied; not cupy: no kernel for tied" in caplog.messages


def test_a_better_one_that_cannot_run_is_named(device, caplog):
    caplog.set_level(logging.INFO, "fastclust")
    device.unable["triton"] = "it is not installed"
    assert device.fit().backend_ == "cupy"
    assert "backend cupy on cpu; not triton: it is not installed" in caplog.messages


def test_dtypes_and_weights_and_sizes_are_proven_each(device):
    device.fit()
    for more in ({"sample_weight": np.ones(len(device.rows))}, {"dtype": np.float16}, {"n_components": 9}):
        before = len(device.proven)
        device.fit(**more)
        assert ("triton", "statistics") in device.proven[before:], more
    before = len(device.proven)
    device.fit(n_components=12)  # of the size class of 9
    assert len(device.proven) == before
    device.fit(n_components=17)
    device.fit(n_components=25)  # of another, though padded to one power of two
    assert device.proven[before:].count(("triton", "statistics")) == 2


def test_rows_that_are_moved_or_scaled_are_proven_each(device):
    """Kernels are compiled for each, and read float16 rows otherwise where they are moved."""
    rows, coefficients = problem(300, 9, 3, "diag")
    some = torch.ones(9, dtype=torch.float64)
    for frame in (Frame(), Frame(some), Frame(None, 2 * some), Frame(some, 2 * some)):
        for expected in (1, 0):
            before = len(device.proven)
            kernels.select("auto", CPU)[1].prepare(coefficients, frame, torch.float32).add(rows.half())
            assert len(device.proven) == before + expected


def test_a_second_process_remembers_and_other_sources_prove_anew(device, monkeypatch, tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}

    device.fit()
    assert len(device.proven) == 3
    run = [sys.executable, str(HERE / "stand_in.py")]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == {"backend": "triton", "proofs": 0}
    assert len(list(remembered.all_passed(CPU))) == 3
    chosen._verdicts.clear()
    monkeypatch.setattr(remembered, "digest", lambda: "of other sources")
    assert not list(remembered.all_passed(CPU))
    device.fit()
    assert len(device.proven) == 6
    for path in remembered.folder().iterdir():
        path.write_text("{", encoding="utf-8")
    chosen._verdicts.clear()
    device.fit()
    assert len(device.proven) == 9, "what cannot be read is proven again"


def test_failures_are_not_remembered(device):
    device.faults["triton"] = "components swapped"
    assert device.fit().backend_ == "cupy"
    device.faults.clear()
    assert device.fit().backend_ == "cupy", "a verdict holds for its process"
    chosen._verdicts.clear()
    assert device.fit().backend_ == "triton"


def test_a_folder_that_cannot_be_written_is_said_once(device, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    assert device.fit().backend_ == "triton"
    assert caplog.text.count("cannot be remembered in") == 1


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"TRITON_CACHE_DIR": "/kept/here"}, "/kept/here/fastclust-proofs"),
        ({"TRITON_HOME": "/home/of"}, "/home/of/.triton/cache/fastclust-proofs"),
    ],
)
def test_proofs_are_kept_where_triton_keeps_kernels(variables, where, monkeypatch):
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert remembered.folder() == Path(where)


@pytest.mark.parametrize("library", ["offers 13.1", "not there"])
def test_a_proof_on_cuda_is_for_the_card_and_its_driver(library, monkeypatch, tmp_path):
    """Nothing is asked of torch but what it has: these are its answers where there is a card."""

    def opened(name):
        if library == "not there":
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(cuDriverGetVersion=lambda number: setattr(number._obj, "value", 13010))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(name="A card", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(remembered.ctypes, "CDLL", opened)
    monkeypatch.setattr(remembered, "DRIVER", tmp_path / "version")
    known = "" if library == "not there" else "13010"
    for own, driver in ((None, known), ("NVRM 590.44\nGCC 12\n", f"{known} NVRM 590.44".strip())):
        if own is not None:
            (tmp_path / "version").write_text(own)
        remembered._driver.cache_clear()
        found = remembered.surroundings(CUDA)
        assert (found["device"], found["capability"], found["driver"]) == ("A card", "9.0", driver)
    remembered._driver.cache_clear()


def test_auto_on_cuda_is_triton_then_cupy_then_torch(monkeypatch):
    monkeypatch.setattr(table, "_unavailable", lambda name, device: None)
    name, backend, passed_over = kernels.select("auto", CUDA)
    assert (name, list(backend.candidates), passed_over) == ("triton", ["triton", "cupy", "torch"], {})
    assert kernels.select("auto", CPU)[:2] == ("numba", numba)
    assert kernels.select("torch", CUDA)[1] is plain
    assert kernels.select("cupy", CUDA)[1].only


def test_blocks_that_different_backends_take_add_up(device):
    rows, coefficients = problem(200, 9, 5, "diag")
    device.without = (torch.float32,)
    backend = kernels.select("auto", CPU)[1]
    plan = backend.prepare(coefficients, Frame(), torch.float32)
    plan.add(rows.half())
    assert backend.ran == "triton"
    plan.add(rows.float())
    assert backend.ran == "cupy"
    both = torch.cat([rows.half().float(), rows.float()])
    expected = kernels.statistics(plain, both, coefficients, Frame(), torch.float64)
    np.testing.assert_allclose(plan.result().sx, expected.moved(plan.result().about).sx, rtol=1e-4, atol=1e-4)


def test_the_doctor_prints_a_table_of_proofs(monkeypatch):
    monkeypatch.setattr("fastclust.doctor.STORED", (torch.float32,))
    found = call("doctor", "--prove")
    assert found.status == 0
    lines = found.out.splitlines()
    of_torch = [line.split() for line in lines if line.startswith("torch")]
    assert {(one[2], one[3]) for one in of_torch} == {(what, kind) for what in proof.OPERATIONS for kind in KINDS}
    assert all(one[-1] == "ok" and 0 <= float(one[-2]) < 1 for one in of_torch)
    assert any(
        line.startswith("numba") and "left to torch: tied covariance has no numba kernel" in line for line in lines
    )
    assert any(line.startswith("cupy") and "cannot run: needs a CUDA device" in line for line in lines)
    healthy = {"torch": plain, "numba": numba}
    monkeypatch.setattr(kernels, "module", lambda name: broken(healthy[name], "components swapped" * (name == "torch")))
    wrong = call("doctor", "--prove")
    assert wrong.status == 1
    assert "FAILED: nk errs by" in wrong.out
    assert "proofs failed" in wrong.err


def test_the_doctor_says_what_is_remembered(device):
    assert "nothing yet" in call("doctor").out
    device.fit()
    assert "proven        on cpu: triton diag (2), triton spherical (1)" in call("doctor").out


def test_a_plan_that_can_be_renewed_is_one_still_and_chooses_for_the_new_coefficients(device):
    rows, coefficients = problem(200, 9, 5, "diag")
    plan = kernels.select("auto", CPU)[1].prepare(coefficients, Frame(), torch.float32)
    assert not plan.renewable
    plan.add(rows.float())
    assert not plan.renewable, "the stand-in's plans cannot be"
    made = []

    class Renewed(plain.Plan):
        renewable = True

        def renew(self, given):
            made.append(given)
            self.form, self._total = plain.prepare(given, Frame(), torch.float32).form, None

        def clear(self):
            self._total = None

    plan._plans["triton"].plan.__class__ = Renewed
    plan._plans["triton"] = plan._plans["triton"].plan
    plan._adding[:] = plan._plans.values()
    other = replace(coefficients, means=coefficients.means + 1)
    assert plan.renewable
    plan.renew(other)
    assert made == [other]
    with pytest.raises(ValueError, match="no rows"):
        plan.result()
    plan.add(rows.float())
    expected = kernels.statistics(plain, rows.float(), other, Frame(), torch.float32)
    assert torch.equal(plan.result().sx, expected.sx)
    plan.clear()
    with pytest.raises(ValueError, match="no rows"):
        plan.result()

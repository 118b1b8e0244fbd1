"""What is said about the machine: true, portable to JSON, and silent about who and where."""

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastclust import launch, machine


@pytest.fixture(scope="module")
def described() -> dict:
    return machine.describe()


def test_description_survives_json(described: dict) -> None:
    assert json.loads(json.dumps(described, allow_nan=False)) == described


def test_description_agrees_with_torch_and_the_kernel(described: dict) -> None:
    assert described["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert described["torch_threads"] == torch.get_num_threads()
    assert len(described["devices"]) == torch.cuda.device_count()
    assert 1 <= described["cores"] <= (os.cpu_count() or 1)
    assert described["memory_bytes"] > 2**26
    assert described["cpu"]


def test_description_names_no_host_person_or_path(described: dict) -> None:
    text = json.dumps(described)
    assert str(Path.home()) not in text
    assert str(Path(__file__).parent) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert name not in {str(value) for value in described.values()}


@pytest.mark.parametrize("package", ["triton", "cupy", "numba"])
def test_description_imports_no_optional_compiler(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # an import of it would raise
    assert package in machine.describe()["versions"]


def test_missing_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.DISTRIBUTIONS, "numba", ("a package that is not there",))
    assert machine.describe()["versions"]["numba"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"job/cpu.max": "100000 100000", "job/memory.max": "67108864"}, 1, 67108864),
        ({"cpu.max": "50000 100000", "job/cpu.max": "max 100000"}, 1, None),  # the parent bounds, by half a core
        ({"job/cpu.max": "max 100000", "job/memory.max": "max"}, None, None),
        ({"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"}, 1, None),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None, None),
        ({"memory/job/memory.limit_in_bytes": "67108864"}, None, 67108864),
        ({}, None, None),
    ],
    ids=["v2", "v2 parent", "v2 max", "v1 quota", "v1 no quota", "v1 memory", "none"],
)
def test_control_groups_bound_cores_and_memory(
    files: dict[str, str], cores: int | None, memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    groups = {"own": ["2:memory:/job", "1:cpu:/job", "0::/job"]}
    lines = machine._lines
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_lines", lambda path: groups["own"] if path.name == "cgroup" else lines(path))
    described = machine.describe()
    assert described["cores"] == (cores or len(os.sched_getaffinity(0)))
    assert described["memory_bytes"] == (memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_is_of_the_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    tracked, installed = tmp_path / "machine.py", tmp_path / "site-packages" / "machine.py"
    installed.parent.mkdir()
    for file in (tracked, installed):
        file.write_text("one\n")
    assert machine._commit(tracked) is None
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "machine.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    assert machine._commit(tracked) == git(tmp_path, "rev-parse", "HEAD")
    assert machine._commit(installed) is None
    tracked.write_text("two\n")
    assert machine._commit(tracked) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"


def test_peak_memory_sees_an_allocation_and_never_falls() -> None:
    before = machine.peak_memory()
    block = bytearray(os.urandom(2**20)) * (before // 2**20 + 64)  # larger than all that was resident until now
    during = machine.peak_memory()
    size = len(block)
    del block
    assert during >= size
    assert machine.peak_memory() >= during - 2**23  # the kernel counts pages in batches a core


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the operating system's own peak is taken as it is")
def test_peak_memory_is_not_the_parents() -> None:
    code = f"import runpy; print(runpy.run_path({machine.__file__!r})['peak_memory']())"
    alone = int(subprocess.check_output([sys.executable, "-c", code]))
    block = bytearray(os.urandom(2**20)) * (alone // 2**20 + 64)
    assert int(subprocess.check_output([sys.executable, "-c", code])) < len(block)


def test_processes_share_the_cores_also_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS, say."""

    class Asked(Exception):
        pass

    def ask(threads: int) -> None:
        raise Asked(threads)

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(machine, "CGROUPS", Path("none"))
    monkeypatch.setattr(torch, "set_num_threads", ask)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(Asked, match="3"), launch.joined_group("cpu"):
        pass

"""What a result was computed on: the machine, its devices and versions, and nothing that names a person or a place."""

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
DISTRIBUTIONS = {  # the names under which each package is published, most common first
    "fastclust": ("fastclust",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "scikit-learn": ("scikit-learn",),
    "h5py": ("h5py",),
    "triton": ("triton", "triton-windows"),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "numba": ("numba",),
}


def describe() -> dict[str, Any]:
    """Describe the machine, its devices and the installed versions, ready for JSON.

    Optional packages are looked up in the installed metadata and never imported; what is not there is None.
    Holds no host name, user name or path.

    Returns:
        platform, python, cpu (str); cores (int) and memory_bytes (int or None), both within what the affinity and
        the control groups of this process allow; torch_threads (int); cuda (str or None), the CUDA version that
        torch was built for; devices, a list of {name, memory_bytes, capability}, one for each CUDA device;
        versions, a dict of str or None; commit (str or None), of the checkout that this file is tracked in, with
        "-dirty" where it differs from that commit.
    """
    import torch  # here, so that asking for the peak does not raise it

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [
            {"name": one.name, "memory_bytes": int(one.total_memory), "capability": f"{one.major}.{one.minor}"}
            for one in devices
        ],
        "versions": {package: _version(names) for package, names in DISTRIBUTIONS.items()},
        "commit": _commit(Path(__file__)),
    }


def cores() -> int:
    """Return how many cores this process may keep busy: its affinity, cut to the quota of its control groups."""
    found = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for group in _control_groups("cpu"):
        quota, period = [*" ".join(_lines(group / "cpu.max")).split(), "", ""][:2]  # version 2
        if not quota:  # version 1
            quota = "".join(_lines(group / "cpu.cfs_quota_us"))
            period = "".join(_lines(group / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 mean no limit
            found = min(found, max(1, math.ceil(int(quota) / int(period))))
    return found


def peak_memory() -> int:
    """Return the largest resident set of this process so far, in bytes.

    On Linux this is VmHWM of /proc/self/status and not getrusage's ru_maxrss, since the latter survives exec: a small
    process started by a large one would report its parent's peak. Elsewhere on Unix it is ru_maxrss, which macOS
    counts in bytes and others in KiB; on Windows the peak working set. Memory on a GPU is not in it, and pages of a
    mapped file are, while they are resident.
    """
    if sys.platform == "win32":
        return _windows_peak()
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _output(*command: str, cwd: Path | None = None) -> str | None:
    """What a command prints, stripped; None where it is missing, fails or hangs."""
    try:
        run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def _cpu() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    brand = _output("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else None
    return brand or platform.processor() or platform.machine()


def _memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, cut to the limit of its control groups."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    for group in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            limit = "".join(_lines(group / name))
            total = min(total, int(limit)) if limit.isdigit() else total
    return total


def _control_groups(controller: str) -> list[Path]:
    """Folders of the control groups that bound this process, from its own up to the root, in both versions."""
    groups = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        own = root / path.lstrip("/")
        groups += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return groups


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _commit(file: Path) -> str | None:
    """The commit of the checkout that tracks the file; None for an installed copy, even one inside another checkout."""
    folder = file.resolve().parent
    if _output("git", "ls-files", "--error-unmatch", file.name, cwd=folder) is None:
        return None
    return _output("git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*", cwd=folder)


def _windows_peak() -> int:
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = (  # PROCESS_MEMORY_COUNTERS
            ("cb", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel = ctypes.CDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return int(counters.peak_working_set)


def _windows_memory() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (  # MEMORYSTATUSEX
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total_physical", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 6),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.CDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.total_physical)

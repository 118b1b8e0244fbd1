"""What is compiled is kept where that can be, and is not taken for what other sources say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Call a function that is compiled quickly, and print how many kinds of arguments were in the cache, and how many not.
COMPILE = """
import numpy as np
from fastclust.kernels.numba.full_sweep import pack
pack(np.eye(16)[None], np.zeros((1, 256)), 1, 0)
print(sum(pack.stats.cache_hits.values()), sum(pack.stats.cache_misses.values()))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package."""
    shutil.copytree(ROOT / "fastclust", tmp_path / "fastclust", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code on the package in a folder."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=plain | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
    )


def test_a_function_is_compiled_anew_where_another_file_that_it_is_made_of_changed(copy: Path) -> None:
    for said in ("0 1", "1 0"):
        assert run(copy, COMPILE).stdout.strip() == said
    with (copy / "fastclust" / "kernels" / "numba" / "exp.py").open("a") as file:
        file.write("# changed\n")
    for said in ("0 1", "1 0"):
        assert run(copy, COMPILE).stdout.strip() == said


def test_a_fit_runs_where_nothing_can_be_kept_and_says_so_once(copy: Path) -> None:
    (copy / "fastclust" / "kernels" / "numba" / "__pycache__").touch()  # a file, where numba wants a folder
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "LOCALAPPDATA": os.devnull}
    fit = "import numpy as np; from fastclust import DPGMM; X = np.random.default_rng(0).normal(size=(50, 3))\n"
    fit += "for backend in ('numba', 'torch'): print(DPGMM(2, max_iter=2, tol=1e9, backend=backend).fit(X).backend_)"
    found = run(copy, fit, **nowhere)
    assert (found.returncode, found.stdout.split()) == (0, ["numba", "torch"]), found.stderr
    assert found.stderr.count("numba finds no folder to keep compiled functions in") == 1

"""What a card is asked needs only what its machine has: fastclust and what that depends on, pytest and hypothesis."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import card_tests
from benchmarks.cases import GPU_BACKENDS

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
NAMES = {"array-api-strict": "array_api_strict", "pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn"}
LACKED = {"skimage"}  # although fastclust depends on it: pictures alone do
PRESENT = {"hypothesis", "pytest", "triton", "fastclust", "benchmarks"}


def modules(requirements: list[str]) -> set[str]:
    """Return what requirements are imported as."""
    names = {re.split(r"[\[<>=~ ]", requirement)[0] for requirement in requirements}
    return {NAMES.get(name, name) for name in names}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALLOWED = modules(PROJECT["dependencies"]) | PRESENT - LACKED
EXTRAS = PROJECT["optional-dependencies"]
ABSENT = (modules(EXTRAS["dev"] + EXTRAS["bench"]) | LACKED) - {
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
}


def imported_at_once(source: str) -> set[str]:
    """Return the modules that a file imports as it is imported itself: not those that its functions import."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def asked() -> set[str]:
    """Return the files of tests that the gpu suite runs, and conftest.py, by their stems."""
    lists = [arguments for backend in GPU_BACKENDS for arguments in card_tests.tests_of(backend)]
    lists += [arguments for some in card_tests.around().values() for arguments in some]
    return {"conftest"} | {Path(one).stem for arguments in lists for one in arguments if one.endswith(".py")}


def needed(stems: set[str]) -> dict[str, set[str]]:
    """Return what those files, and those that they import from this folder, import at once, by stem."""
    found: dict[str, set[str]] = {}
    waiting = list(stems)
    while waiting:
        stem = waiting.pop()
        if stem not in found:
            found[stem] = imported_at_once((TESTS / f"{stem}.py").read_text())
            waiting += [name for name in found[stem] if (TESTS / f"{name}.py").exists()]
    return found


def test_what_a_card_runs_imports_what_its_machine_has() -> None:
    found = needed(asked())
    assert {"test_kernels", "triton_cases", "test_cuda", "test_arrays", "test_staging", "test_no_waiting"} <= set(found)
    known = ALLOWED | set(sys.stdlib_module_names) | set(found)
    assert {stem: names - known for stem, names in found.items() if names - known} == {}


def test_a_card_runs_what_is_skipped_without_one() -> None:
    skipping = re.compile(r"skipif\(not torch\.cuda\.is_available\(\)|not \(torch\.cuda\.is_available\(\)")
    there = {path.stem for path in TESTS.glob("*.py") if skipping.search(path.read_text())}
    assert {"test_seeding", "test_cuda_on_gpu"} <= there <= asked()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b, c as d\nfrom e.f import g", {"a", "c", "e"}),
        ("try:\n    import a\nexcept ImportError:\n    import b", {"a", "b"}),
        ("class A:\n    import a\n    def f(self):\n        import b", {"a"}),
        ("def f():\n    import a\ng = lambda: __import__('b')", set()),
    ],
)
def test_imports_of_functions_are_not_at_once(source: str, expected: set[str]) -> None:
    assert imported_at_once(source) == expected


def test_kernels_are_compiled_with_the_oldest_versions_that_are_allowed() -> None:
    script = (ROOT / "scripts" / "test-card-versions").read_text()
    least = dict(re.findall(r"^(torch|torchvision)>=([\d.]+)$", "\n".join(PROJECT["dependencies"]), re.MULTILINE))
    assert dict(re.findall(r'"(torch|torchvision)==([\d.]+)\.0"', script)) == least != {}


def test_the_gpu_suite_starts_where_the_rest_is_not_installed() -> None:
    """It gets as far as asking for a device; its other processes, and the first minutes on a card, are imported."""
    assert {"array_api_strict", "polars", "pandas", "selenium", "skimage", "gmmx"} <= ABSENT
    code = f"""
import sys
for name in {sorted(ABSENT)}:
    sys.modules[name] = None
import torch
torch.cuda.is_available = lambda: False
import benchmarks.passes, benchmarks.outcomes, benchmarks.first_contact.__main__, benchmarks.first_contact.job
from benchmarks import run
sys.exit(run.main(["--suite", "gpu"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "the gpu suite needs a CUDA device" in done.stderr

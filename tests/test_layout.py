"""The structure that the code keeps: who may import whom, and what stands at the top level."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "accelerate": {"accelerate", "drop_in", "kernels"},
    "cli": {
        "checkpoint",
        "console",
        "demo",
        "describe",
        "doctor",
        "extract",
        "group",
        "labels",
        "launch",
        "layer_fit",
        "merge",
        "model_file",
        "options",
        "pipeline",
        "saved",
        "store",
        "verify",
        "views.command_report",
        "views.commands",
    },
    "console": set(),
    "doctor": {"kernels", "machine"},
    "options": set(),
    "demo": {"weights"},
    "describe": {"checkpoint", "model_file", "saved", "seal", "store"},
    "pipeline": {"atomic", "extract", "labels", "layer_fit", "live", "report", "store", "views.page"},
    "layer_fit": {"blocks", "checkpoint", "estimator", "fitted", "group", "kernels", "labels", "store"},
    "labels": {"arrays", "atomic", "fitted", "group", "parts", "picture", "store"},
    "views.page": {
        "atomic",
        "console",
        "fitted",
        "labels",
        "networks",
        "plan",
        "receptive",
        "report",
        "saved",
        "store",
        "views.embed",
        "views.panels",
        "views.survey",
    },
    "views.panels": {"arrays", "console", "picture", "receptive", "views.portrait", "views.survey"},
    "views.embed": {"extract", "receptive", "store", "views.survey"},
    "views.survey": {"arrays", "fitted", "labels", "parts", "picture", "receptive", "store"},
    "views.portrait": {"arrays", "fitted"},
    "views.plots": {"arrays", "atomic", "console", "fitted", "views.transfer"},
    "receptive": {"networks"},
    "report": {"atomic", "extract", "labels", "machine", "picture", "store"},
    "saved": {"drop_in", "estimator", "model_file"},
    "estimator": {"fitted", "initialise", "kernels", "mixture", "variational"},
    "drop_in": {"arrays", "engine", "fitted", "initialise", "kernels", "mixture", "variational"},
    "mixture": {
        "arrays",
        "blocks",
        "checkpoint",
        "engine",
        "fitted",
        "fitting",
        "group",
        "kernels",
        "memo",
        "priors",
        "rows",
        "summary",
    },
    "fitting": {"arrays", "blocks", "engine", "fitted", "initialise", "memo", "rows", "summary", "sums", "variational"},
    "fitted": {"arrays", "blocks", "engine", "group", "kernels", "memo", "model_file", "rows", "variational"},
    "checkpoint": {"alike", "arrays", "engine", "group", "kernels", "model_file", "summary", "variational"},
    "memo": {"arrays", "blocks", "kernels", "parts", "summary"},
    "priors": {"rows", "summary", "variational"},
    "engine": {"alike", "graph", "kernels", "rows", "sums", "variational"},
    "graph": {"alike", "kernels", "rows", "variational"},
    "alike": {"variational"},
    "sums": {"kernels", "rows", "summary"},
    "initialise": {"kernels", "rows", "seeding"},
    "seeding": set(),
    "atomic": set(),
    "layout": {"seal", "store"},
    "verify": {"store"},
    "repair": {"store", "verify", "writer"},
    "merge": {"atomic", "images", "layout", "store", "verify", "writer"},
    "pieces": {"kernels"},
    "rows": {"blocks", "kernels", "pieces", "summary"},
    "staging": {"kernels"},
    "summary": {"blocks", "kernels"},
    "extract": {"decode", "forward", "group", "images", "networks", "plan", "reader", "repair", "store", "writer"},
    "plan": {"forward", "glas", "images", "networks", "reader", "store", "weights"},
    "decode": {"reader", "store"},
    "forward": {"networks"},
    "live": {"blocks", "decode", "extract", "forward", "networks", "plan", "store"},
    "reader": set(),
    "writer": {"atomic", "layout", "store", "verify"},
    "networks": {"weights"},
    "picture": {"atomic", "colours"},
    "arrays": {"parts"},
    "blocks": {"group", "parts", "staging"},
    "colours": set(),
    "group": set(),
    "launch": {"group", "machine"},
    "images": {"glas"},
    "machine": set(),
    "model_file": {"atomic", "seal"},
    "parts": set(),
    "seal": set(),
    "store": {"seal"},
    "variational": set(),
    "weights": set(),
    "__main__": {"program"},
    "program": {"cli", "console"},
    "views.__init__": set(),
    "views.commands": {
        "views.command_atlas",
        "views.command_centres",
        "views.command_compare",
        "views.command_images",
        "views.command_plot",
        "views.command_report",
    },
    "views.command_report": {"console", "layer_fit", "options", "views.page"},
    "views.command_compare": {
        "atomic",
        "console",
        "layer_fit",
        "options",
        "store",
        "views.agreement",
        "views.comparison",
        "views.plots",
        "views.transfer",
    },
    "views.command_plot": {"console", "saved", "views.plots"},
    "views.command_atlas": {"console", "describe", "options", "store", "views.atlas", "views.plots"},
    "views.command_images": {
        "console",
        "describe",
        "extract",
        "layer_fit",
        "model_file",
        "options",
        "store",
        "views.composition",
        "views.figure4",
        "views.images",
        "views.plots",
    },
    "views.command_centres": {"console", "layer_fit", "options", "views.centres", "views.detection", "views.plots"},
    "views.atlas": {
        "atomic",
        "extract",
        "labels",
        "layer_fit",
        "networks",
        "picture",
        "pipeline",
        "plan",
        "report",
        "store",
        "views.plots",
        "weights",
    },
    "__init__": {"checkpoint", "drop_in", "estimator", "saved"},
    "views.regions": {"fitted", "receptive", "views.portrait"},
    "views.markers": {"picture", "views.regions"},
    "views.detection": {"reader", "store"},
    "views.centres": {
        "atomic",
        "extract",
        "fitted",
        "labels",
        "networks",
        "picture",
        "plan",
        "reader",
        "receptive",
        "saved",
        "store",
        "views.detection",
        "views.markers",
        "views.regions",
    },
    "views.points": {"arrays", "estimator", "fitted", "labels", "parts", "store"},
    "views.composition": set(),
    "views.contact": {"extract", "picture", "store"},
    "views.figure4": {"demo"},
    "views.images": {
        "atomic",
        "images",
        "labels",
        "pipeline",
        "store",
        "views.composition",
        "views.contact",
        "views.points",
        "views.portrait",
    },
    "glas": set(),
    "views.transfer": {"estimator", "fitted", "labels", "parts", "layer_fit", "store"},
    "views.comparison": {"fitted", "labels", "saved", "store", "views.transfer"},
    "views.agreement": {"labels", "picture"},
}
COMPILERS = {"triton": "triton", "cuda": "cupy", "numba": "numba"}  # by the package of kernels that alone has it


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names: set[str]) -> set[str]:
    """The module of ours, its name below fastclust, that each imported name is of."""
    below = {name.removeprefix("fastclust.") for name in names if name.startswith("fastclust.")}
    return {".".join(name.split(".")[: 2 if name.startswith("views.") else 1]) for name in below}


def name_of(path: Path) -> str:
    """The name below fastclust of a module in it."""
    return ".".join(path.relative_to(ROOT / "fastclust").with_suffix("").parts)


MODULES = [path for folder in ("", "views") for path in sorted((ROOT / "fastclust" / folder).glob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_import_only_what_the_table_allows(path: Path) -> None:
    known = set(MAY_IMPORT) | {"kernels"}
    assert ours(imported(path)) & known <= MAY_IMPORT[name_of(path)]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "kernels"))
)
def test_kernels_import_kernels_only(path: Path) -> None:
    names = imported(path)
    assert ours(names) <= {"kernels"}
    room = path.relative_to(ROOT / "kernels").parts[0]
    foreign = {name.split(".")[0] for name in names} & set(COMPILERS.values())
    assert foreign <= {COMPILERS.get(room)}, f"{foreign} belongs in the kernels' package for it"


def test_every_package_of_kernels_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {path.parent.relative_to(ROOT / "kernels") for path in (ROOT / "kernels").rglob("*.py")}
    names = {".".join(("fastclust.kernels", *folder.parts)) for folder in there}
    assert names == {name for name in setuptools["packages"] if name.startswith("fastclust.kernels")}
    named = {Path(one).suffix for one in setuptools["package-data"]["fastclust.kernels.cuda"]}
    assert {path.suffix for path in (ROOT / "kernels" / "cuda").iterdir() if path.is_file()} <= named | {".py"}


def test_importing_fastclust_loads_no_optional_compiler() -> None:
    code = f"import sys, fastclust; print(sorted({set(COMPILERS.values())!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_fitting_and_labelling_load_no_torchvision() -> None:
    """It takes longer to load than all the rest: seconds before each `fastclust fit`, and in each of its processes."""
    loaded = "from fastclust import describe, labels, launch, layer_fit, saved"
    code = f"import sys; {loaded}; print('torchvision' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_kernels_refuse_their_bare_name() -> None:
    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0
    assert "fastclust.kernels" in run.stderr


def test_top_level_is_what_the_layout_names() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listing.stdout.splitlines()}
    named = {"pyproject.toml", "fastclust", "kernels", "tests", "benchmarks", "scripts", "README.md"}
    named |= {"LICENSE", "CHANGELOG.md"}
    assert {top for top in tops if not top.startswith(".")} <= named

"""Programs written for scikit-learn's mixture, unchanged: the same numbers under fastclust.accelerate, and ours ran."""

import importlib.util
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn.mixture
from conftest import blobs
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastclust.accelerate import USAGE, install, uninstall
from fastclust.drop_in import BayesianGaussianMixture as Ours

ROOT = Path(__file__).parent.parent
EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parent / "examples").glob("*.py"))}
TOLERANCE = {"rel_tol": 1e-6, "abs_tol": 1e-8}  # the examples' numbers are of order one, but for weights near zero
THEIRS = "sklearn.mixture._bayesian_mixture"
LINE = "fastclust: sklearn.mixture.BayesianGaussianMixture is now fastclust's: backend "

WHERE = """
import json, pickle, sys
from sklearn.mixture import BayesianGaussianMixture
with open("theirs.pickle", "rb") as file:
    mixture, rows = pickle.load(file)
def annotated(x: int): ...
told = {
    "annotation": str(annotated.__annotations__["x"]),
    "class": BayesianGaussianMixture.__module__,
    "argv": sys.argv,
    "path": sys.path[0],
    "names": sorted(name for name in globals() if not name.startswith("__")),
    "own": [__name__, __file__, __package__, __spec__ and __spec__.name, type(__loader__).__name__],
    "main": vars(sys.modules["__main__"]) is globals(),
    "labels": mixture.predict(rows).tolist(),
    "proba": mixture.predict_proba(rows).tolist(),
    "mixture": type(mixture).__module__,
}
from fastclust.accelerate import uninstall
uninstall()
from sklearn.mixture import BayesianGaussianMixture
told["after"] = BayesianGaussianMixture.__module__
json.dump(told, sys.stdout)
"""
FAIL = """
def fail():
    raise __builtins__.ValueError("the program says so")
fail()
"""


def python(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run python in a folder, with this fastclust to import."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs, and with scikit-learn's own mixture and its rows in a pickle."""
    made = tmp_path_factory.mktemp("programs")
    for name, source in {
        "below/where.py": WHERE + FAIL,
        "package/__init__.py": "",
        "package/leaves.py": WHERE + "sys.exit(3)\n",
        "wrong.py": "x = = 1\n",
    }.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(source)
    theirs = sklearn.mixture.BayesianGaussianMixture(n_components=6, random_state=0)
    assert type(theirs).__module__ == THEIRS
    (made / "theirs.pickle").write_bytes(pickle.dumps((theirs.fit(blobs()), blobs())))
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[Callable[[str], tuple[subprocess.CompletedProcess[str], ...]]]:
    """What a program does, by its name: under python alone, and under fastclust.accelerate. Two run at a time."""
    commands: dict[str, tuple[object, ...]] = {name: (path,) for name, path in EXAMPLES.items()} | {
        "script": ("below/where.py", "-h", "--device", "a b"),
        "module": ("-m", "package.leaves", "-m", "x"),
    }
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: [pool.submit(python, *prefix, *words, cwd=folder) for prefix in ((), ("-m", "fastclust.accelerate"))]
            for name, words in commands.items()
        }
        yield lambda name: tuple(run.result() for run in started[name])
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def installed() -> Iterator[None]:
    """fastclust's class in scikit-learn's place, for one test."""
    install()
    yield
    uninstall()


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Name what differs: floats beyond TOLERANCE, anything else at all."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i in range(len(a)) for line in differences(a[i], b[i], f"{where}[{i}]")]
    if isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, **TOLERANCE):
        return []
    return [] if type(a) is type(b) and a == b else [f"{where}: {a} and {b}"]


def same_but_for_the_class(
    plain: subprocess.CompletedProcess[str], accelerated: subprocess.CompletedProcess[str]
) -> dict[str, Any]:
    """Check what WHERE told, the predictions of scikit-learn's pickle among it, and return what python told."""
    assert plain.stdout, plain.stderr
    assert accelerated.stdout, accelerated.stderr
    told, ours = json.loads(plain.stdout), json.loads(accelerated.stdout)
    for of in ("class", "mixture"):
        assert (told.pop(of), ours.pop(of)) == (THEIRS, Ours.__module__)
    assert differences(told, ours) == []
    assert len(set(told["labels"])) == 6
    return told


def test_differences_are_found() -> None:
    numbers = {"labels": [0, 1], "mean": [1.0, 0.0]}
    assert differences(numbers, {"labels": [0, 1], "mean": [1 + 5e-7, 5e-9]}) == []
    assert differences(numbers, {"labels": [0, 2], "mean": [1 + 5e-6, 5e-8]}) == [
        "/labels[1]: 1 and 2",
        "/mean[0]: 1.0 and 1.000005",
        "/mean[1]: 0.0 and 5e-08",
    ]
    assert differences([1.0], [math.nan])
    assert differences([0], [0.0])
    assert differences([0], [0, 0])


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_the_same_numbers(name: str, both: Any) -> None:
    plain, accelerated = both(name)
    assert plain.returncode == accelerated.returncode == 0, accelerated.stderr
    assert accelerated.stderr.startswith(LINE)
    assert "fastclust" not in plain.stderr
    assert differences(json.loads(plain.stdout), json.loads(accelerated.stdout)) == []


def test_a_script_finds_itself_as_under_python_and_fails_as_there(both: Any, folder: Path) -> None:
    plain, accelerated = both("script")
    told = same_but_for_the_class(plain, accelerated)
    assert told["argv"] == ["below/where.py", "-h", "--device", "a b"]
    assert told["path"] == str(folder / "below")
    assert told["after"] == THEIRS
    line, rest = accelerated.stderr.split("\n", 1)
    assert line.startswith(LINE)
    assert "still scikit-learn's" not in line
    assert rest == plain.stderr
    assert rest.endswith("ValueError: the program says so\n")
    assert plain.returncode == accelerated.returncode == 1


def test_a_module_finds_itself_as_under_python_and_exits_as_there(both: Any, folder: Path) -> None:
    plain, accelerated = both("module")
    told = same_but_for_the_class(plain, accelerated)
    assert told["argv"] == [str(folder / "package" / "leaves.py"), "-m", "x"]
    assert told["path"] == str(folder)
    assert told["after"] == THEIRS
    (line,) = accelerated.stderr.splitlines()
    assert line.startswith(LINE)
    assert plain.returncode == accelerated.returncode == 3


@pytest.mark.parametrize(
    ("words", "status", "out", "err"),
    [
        ([], 2, "", f"{USAGE}\n"),
        (["-m"], 2, "", f"{USAGE}\n"),
        (["-h"], 0, f"{USAGE}\n", ""),
        (["--help"], 0, f"{USAGE}\n", ""),
        (["no\n.py", "-h"], 2, "", "fastclust: cannot open 'no\\n.py': No such file or directory\n"),
        (["below"], 2, "", "fastclust: cannot open 'below': Is a directory\n"),
        (["-m", "no.such"], 1, "", "fastclust: no module named 'no.such'\n"),
        (["wrong.py"], 1, "", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_run(folder: Path, words: list[str], status: int, out: str, err: str | None) -> None:
    run = python("-m", "fastclust.accelerate", *words, cwd=folder)
    expected = python(*words, cwd=folder).stderr if err is None else err
    assert (run.returncode, run.stdout, run.stderr) == (status, out, expected)


def test_install_and_uninstall(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = sklearn.mixture.BayesianGaussianMixture
    uninstall()
    assert sklearn.mixture.BayesianGaussianMixture is theirs
    for _ in range(2):
        install()
        assert sklearn.mixture.BayesianGaussianMixture is Ours
        assert sklearn.mixture._bayesian_mixture.BayesianGaussianMixture is Ours
        assert capsys.readouterr().err.startswith(LINE)
        install()
        assert capsys.readouterr().err == ""
        uninstall()
        assert sklearn.mixture.BayesianGaussianMixture is theirs
        assert sklearn.mixture._bayesian_mixture.BayesianGaussianMixture is theirs
    uninstall()
    assert sklearn.mixture.BayesianGaussianMixture is theirs


def test_the_line_says_where_the_class_runs(capsys: pytest.CaptureFixture[str], installed: None) -> None:
    mixture = sklearn.mixture.BayesianGaussianMixture().fit(blobs(20).astype("float32"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.split(";")[0] == f"{LINE}{mixture.backend_} on {mixture.device_.split(':')[0]}"


def test_the_line_names_modules_that_keep_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"early.import": ModuleType("early.import"), "other": ModuleType("other")}
    modules["early.import"].Mixture = sklearn.mixture.BayesianGaussianMixture
    modules["other"].Mixture = sklearn.mixture.GaussianMixture
    (tmp_path / "lazy.py").write_text("from sklearn.mixture import BayesianGaussianMixture")
    spec = importlib.util.spec_from_file_location("lazy", tmp_path / "lazy.py")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    modules["lazy"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules["lazy"])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    install()
    uninstall()
    (line,) = capsys.readouterr().err.splitlines()
    kept = line.split("; imported before, and still scikit-learn's, in ")[1].split(", ")
    assert "early.import" in kept
    assert not {"other", "lazy"} & set(kept)
    assert not [name for name in kept if name.split(".")[0] in ("sklearn", "fastclust")]
    assert modules["lazy"].BayesianGaussianMixture.__module__ == THEIRS  # imported by this line, not by install


def test_pickles_and_clones_are_ours(installed: None) -> None:
    mixture = sklearn.mixture.BayesianGaussianMixture(n_components=6, random_state=0)
    fitted = clone(mixture).fit(blobs())
    assert type(fitted) is Ours
    assert fitted.get_params() == mixture.get_params()
    assert not hasattr(mixture, "weights_")
    data = pickle.dumps(fitted)
    assert Ours.__module__.encode() in data
    assert THEIRS.encode() not in data
    uninstall()  # ours is found under its own name
    again = pickle.loads(data)
    assert type(again) is Ours
    assert np.array_equal(again.predict_proba(blobs()), fitted.predict_proba(blobs()))


def test_workers_get_ours(installed: None) -> None:
    Mixture = sklearn.mixture.BayesianGaussianMixture

    def fit() -> tuple[int, str, list[int]]:  # of no module, so sent whole, as a script's functions are
        mixture = Mixture(n_components=3, random_state=0).fit(blobs())
        return os.getpid(), type(mixture).__module__, mixture.predict(blobs()).tolist()

    here, *there = fit(), *joblib.Parallel(n_jobs=2)(joblib.delayed(fit)() for _ in range(2))
    assert here[0] not in [process for process, _, _ in there]
    assert here[1] == Ours.__module__
    assert [told[1:] for told in there] == [here[1:]] * 2

    choices = {"bayesiangaussianmixture__n_components": [1, 6]}
    pipeline = make_pipeline(StandardScaler(), Mixture(random_state=0))
    search = GridSearchCV(pipeline, choices, cv=2, n_jobs=2, error_score="raise").fit(blobs())
    best = search.best_estimator_[-1]
    assert type(best) is Ours
    assert best.n_components == 6
    assert search.score(blobs()) == pytest.approx(best.score(StandardScaler().fit_transform(blobs())))

"""Run programs written for scikit-learn's BayesianGaussianMixture on fastclust's, unchanged.

    python -m fastclust.accelerate script.py [arguments]
    python -m fastclust.accelerate -m module [arguments]

run a program as python itself would, but `from sklearn.mixture import BayesianGaussianMixture` gives it
`fastclust.BayesianGaussianMixture`. `install()` does the same for the rest of a process, and `uninstall()` ends it. One
line on stderr says which class runs where.

What stays scikit-learn's: all other estimators, and BayesianGaussianMixture itself

- in modules that imported it before, which the line names;
- in objects made before: they work on, but cannot be pickled until `uninstall()`, for their class is not where pickle
  looks for it. Files pickled with scikit-learn's class load as fastclust's;
- in processes started anew that import it themselves, as those of multiprocessing do where it spawns: they have to call
  `install()`. joblib's workers are sent fastclust's class with every estimator and every function of the script.
"""

from __future__ import annotations

import builtins
import importlib.util
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

USAGE = "usage: python -m fastclust.accelerate (script.py | -m module) [arguments]"


def install() -> None:
    """Put fastclust's class in the place of sklearn.mixture.BayesianGaussianMixture, and say so on stderr.

    Later imports find it. A module that imported the name earlier keeps scikit-learn's class, and is named on stderr.
    Where it is installed already, nothing happens.
    Raises RuntimeError where no backend can run.
    """
    import torch

    from fastclust import kernels
    from fastclust.drop_in import BayesianGaussianMixture

    theirs = _theirs()
    if _placed() is BayesianGaussianMixture:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend, _, _ = kernels.select("auto", device)
    _place(BayesianGaussianMixture)
    keep = ", ".join(sorted(_holders(theirs)))
    sys.stderr.write(
        f"fastclust: sklearn.mixture.BayesianGaussianMixture is now fastclust's: backend {backend} on {device}"
        + (f"; imported before, and still scikit-learn's, in {keep}" if keep else "")
        + "\n"
    )


def uninstall() -> None:
    """Put scikit-learn's class back; modules that imported fastclust's meanwhile keep that. Harmless if not needed."""
    _place(_theirs())


def main() -> None:
    """Run the program that the command line names, with fastclust's class installed."""
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(f"{USAGE}\n")
        return
    if words in ([], ["-m"]):
        _refuse(USAGE, 2)
    sys.excepthook = _show
    if words[0] == "-m":
        if importlib.util.find_spec(words[1].split(".")[0]) is None:
            _refuse(f"no module named {words[1]!r}", 1)
        install()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    path = Path(words[0])
    try:
        source = path.read_bytes()
    except OSError as error:
        _refuse(f"cannot open {words[0]!r}: {error.strerror}", 2)
    # Not runpy.run_path: sys.argv[0] and __file__ would be the same, and __main__ gone when atexit's functions run.
    module, file = ModuleType("__main__"), str(path.absolute())
    loader = SourceFileLoader("__main__", file)
    vars(module).update(__file__=file, __cached__=None, __loader__=loader, __builtins__=builtins, __annotations__={})
    code = compile(source, file, "exec", dont_inherit=True)
    install()
    sys.argv = words
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)
    sys.modules["__main__"] = module
    exec(code, vars(module))


@cache
def _theirs() -> type:
    """Return scikit-learn's own class: the first call comes before the first replacement."""
    return _placed()


def _placed() -> type:
    from sklearn.mixture import _bayesian_mixture

    placed: type = _bayesian_mixture.BayesianGaussianMixture
    return placed


def _place(kind: type) -> None:
    import sklearn.mixture

    sklearn.mixture.BayesianGaussianMixture = kind
    sklearn.mixture._bayesian_mixture.BayesianGaussianMixture = kind


def _holders(kind: type) -> Iterator[str]:
    """Name the imported modules, but for scikit-learn's and ours, that have a class under any name."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("sklearn", "fastclust") and isinstance(module, ModuleType):
            held = object.__getattribute__(module, "__dict__")  # vars(module) would import a lazy module
            if any(value is kind for value in list(held.values())):
                yield name


def _refuse(line: str, status: int) -> NoReturn:
    sys.stderr.write(f"{line}\n" if line == USAGE else f"fastclust: {line}\n")
    raise SystemExit(status)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception that nobody caught as if the program had been started without us."""
    outer = {function.__code__.co_filename for function in (main, runpy.run_module)}
    while trace is not None and trace.tb_frame.f_code.co_filename in outer:
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    # The module that a program can import, so that there is one: not this copy of it, which is called __main__.
    from fastclust.accelerate import main as run

    run()

"""Checkpoints: where a fit is, written aside every few minutes, so that a crash costs no more than these.

A checkpoint holds everything that the next pass depends on, bit by bit: the posterior, the statistics that it follows
from, the bound's history, the best of the starts before this one, the random state, the summary of the rows, from which
the priors follow, and how many components the next pass of an accelerator reads as one. So a fit that goes on from one
ends with the same bits as one that was never stopped (on the CPU, with as many threads). It also holds what the fit is
of, and goes on with nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclust import model_file
from fastclust.alike import Alike
from fastclust.arrays import host
from fastclust.engine import Ascent
from fastclust.group import Group
from fastclust.kernels import Statistics
from fastclust.summary import Summary
from fastclust.variational import Posterior

log = logging.getLogger("fastclust")

FORMAT = "fastclust.checkpoint"
VERSION = 2  # 1 did not say which components are alike


@dataclass(frozen=True)
class State:
    """Where a fit is: in which of its starts, how far in it, with what from earlier ones.

    random: the state of the random numbers, after those that this start took. summary: of all rows.
    """

    start: int
    now: Ascent
    best: Ascent | None
    random: tuple[Any, ...]
    summary: Summary


class Checkpoint:
    """A file that a fit writes while it goes on: `DPGMM().fit(rows, checkpoint=Checkpoint("fit.h5", resume=True))`.

    path: the file; each checkpoint takes the place of the last, whole or not at all. every: seconds from one to the
    next, at the end of a pass; one is also written where the fit ends, and where an exception (Ctrl-C is one) ends it.
    A checkpoint that cannot be written is a warning in the log, and the fit goes on. resume: go on from the file, where
    there is one. In a group of processes the first one writes and reads it.
    Raises ValueError for `every` below 0; FileExistsError, when fitting starts, where there is a file and resume is
    false; and ValueError, then, where the file is of another fit, or is none of ours.
    """

    def __init__(self, path: str | os.PathLike[str], *, every: float = 300.0, resume: bool = False) -> None:
        if not every >= 0:
            raise ValueError(f"every: expected seconds, 0 or more, got {every!r}")
        self.path, self.every, self.resume = Path(path), every, resume
        self._writes = False
        self._about: dict[str, Any] = {}
        self._latest: State | None = None
        self._written = 0.0

    def open(self, about: dict[str, Any], group: Group, device: torch.device) -> State | None:
        """Return where to go on from, on a device, or None to start; about: what the fit is of, which JSON can hold."""
        self._about, self._writes = about, group.rank == 0
        self._latest, self._written = None, time.monotonic()
        found = group.first(self._read() if self._writes else None)  # on the host: each has a device of its own
        return None if found is None else _state(found, device)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            if not self.path.absolute().parent.is_dir():
                raise FileNotFoundError(f"{self.path.parent} is not a folder: create it first")
            return None
        if not self.resume:
            raise FileExistsError(f"{self.path} exists: resume goes on from it; delete it, or name another checkpoint")
        about, state = _read(self.path)
        for key in self._about:
            if about.get(key) != self._about[key]:
                raise ValueError(
                    f"{self.path} is a checkpoint of another fit: its {key} is {about.get(key)!r}, now "
                    f"{self._about[key]!r}; fit the same, or delete it"
                )
        return state

    def keep(self, state: State) -> None:
        """Take note of where the fit is, and write it where it is time to."""
        self._latest = state
        if time.monotonic() - self._written >= self.every:
            self.write()

    def write(self) -> None:
        """Write the last that was kept, if it is not written yet."""
        state = self._latest
        if state is None or not self._writes:
            return
        plain = {
            "start": state.start,
            "now": _plain(state.now),
            "best": None if state.best is None else _plain(state.best),
            "random": state.random,
            "summary": {one.name: _host(getattr(state.summary, one.name)) for one in fields(Summary)},
        }
        try:
            model_file.write_groups(self.path, FORMAT, VERSION, {}, {"about": self._about, "state": plain})
        except OSError as error:
            log.warning("the checkpoint %s cannot be written (%s): the fit goes on without", self.path, error)
        self._latest, self._written = None, time.monotonic()  # not before: what ends the fit may come meanwhile
        log.info("checkpoint %s: pass %d", self.path, state.now.n_passes)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write what was kept last where the body ends, however it does."""
        try:
            yield
        finally:
            self.write()


def said(path: Path) -> tuple[dict[str, Any], int, float]:
    """Return what a checkpoint is of, how many passes it holds, and the last bound, in nats summed over rows.

    Raises as `fastclust.load`.
    """
    about, state = _read(path)
    bounds = state["now"]["lower_bounds"]
    return about, len(bounds), float(bounds[-1]) if len(bounds) else -np.inf


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    _, found = model_file.read_groups(path, FORMAT, VERSION, ("about", "state"), "a checkpoint of `fit`")
    return found["about"], found["state"]


def _state(parts: dict[str, Any], device: torch.device) -> State:
    return State(
        int(parts["start"]),
        _ascent(parts["now"], device),
        None if parts["best"] is None else _ascent(parts["best"], device),
        parts["random"],
        Summary(**{name: _tensor(value, torch.device("cpu")) for name, value in parts["summary"].items()}),
    )


def _plain(ascent: Ascent) -> dict[str, Any]:
    """Return an ascent as what can be written: numbers, strings, None and NumPy arrays, in dictionaries."""
    parts = {one.name: getattr(ascent, one.name) for one in fields(Ascent)}
    for name in ("posterior", "statistics"):
        if parts[name] is not None:
            parts[name] = {one.name: _host(getattr(parts[name], one.name)) for one in fields(parts[name])}
    return parts | {"lower_bounds": np.array(ascent.lower_bounds), "alike": np.array(ascent.alike)}


def _ascent(parts: dict[str, Any], device: torch.device) -> Ascent:
    inside = {
        name: None if parts[name] is None else {key: _tensor(value, device) for key, value in parts[name].items()}
        for name in ("posterior", "statistics")
    }
    statistics = inside["statistics"]
    return Ascent(
        Posterior(**(inside["posterior"] or {})),
        None if statistics is None else Statistics(**statistics),
        tuple(float(bound) for bound in parts["lower_bounds"]),
        **{name: parts[name] for name in ("change", "reference", "fast", "converged")},
        alike=Alike(*map(int, parts["alike"])),
    )


def _host(value: Any) -> Any:
    return host(value) if isinstance(value, torch.Tensor) else value


def _tensor(value: Any, device: torch.device) -> Any:
    return torch.from_numpy(np.asarray(value)).to(device) if isinstance(value, (np.ndarray, np.generic)) else value

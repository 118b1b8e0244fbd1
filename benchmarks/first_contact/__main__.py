"""Run the stages, each in its share of the time that is left, and print the table: see `benchmarks.first_contact`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import processes
from benchmarks.first_contact.journal import Journal
from benchmarks.first_contact.stages import STAGES, Job, Options, Stage
from benchmarks.first_contact.table import brief, table

SECONDS, RESERVED = 500.0, 6.0  # in all; of these, for killing what still runs, and for the table
OUTPUT_BYTES = 12 << 20  # of output.log, at most
leaving = threading.Event()  # whether this process was told to end


def main(arguments: list[str] | None = None) -> int:
    """Run stages and print what came of them; see the package."""
    began = time.monotonic()
    options, given = _parsed(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(given.out / "results.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        options = Options(**{**vars(options), "scratch": scratch})
        if sys.dont_write_bytecode:  # else every process compiles all that it imports, torch too
            os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{scratch}/bytecode"}
        journal.write({"stage": "run", "options": vars(options), "seconds": given.seconds, "at": time.time()})
        signal.signal(signal.SIGTERM, _leave)
        try:
            stages = [stage for stage in STAGES if stage.name in given.stages]
            run(stages, options, journal, began + given.seconds - RESERVED)
        finally:
            processes.kill_all()
            text = table(journal.read())
            (given.out / "table.txt").write_text(text)
            print(text, flush=True)
    return 0


def run(stages: list[Stage], options: Options, journal: Journal, deadline: float) -> None:
    """Run stages one after the other until the deadline, by the monotonic clock."""
    for index, stage in enumerate(stages):
        share = stage.seconds / sum(other.seconds for other in stages[index:])
        now = time.monotonic()
        run_stage(stage, options, journal, now + share * max(deadline - now, 0.0))


def run_stage(stage: Stage, options: Options, journal: Journal, deadline: float) -> None:
    """Run the jobs of a stage until the deadline; whatever becomes of one, the next are run."""
    began = time.monotonic()
    print(f"== {stage.name}, {max(deadline - began, 0):.0f} s at most", flush=True)
    try:
        jobs = stage.jobs(options)
    except Exception as error:
        journal.write({"stage": stage.name, "raised": f"its jobs cannot be listed: {type(error).__name__}: {error}"})
        return
    at_once = min(stage.side_by_side, os.cpu_count() or 1)
    if at_once > 1:
        with ThreadPoolExecutor(at_once) as pool:
            alone = 1.0 if len(jobs) <= at_once else 0.65  # of what is left: the rest is for those that wait
            list(pool.map(lambda job: run_job(stage, job, journal, _left(deadline, alone)), jobs))
    else:
        for index, job in enumerate(jobs):
            rest = sum(other.weight for other in jobs[index:])
            share = 1.0 if index == len(jobs) - 1 else min(2 * job.weight / rest, 0.7)  # one that hangs leaves some
            run_job(stage, job, journal, _left(deadline, share))
    journal.write({"stage": stage.name, "stage_seconds": round(time.monotonic() - began, 1)})


def run_job(stage: Stage, job: Job, journal: Journal, seconds: Callable[[], float]) -> None:
    """Run a job for so many seconds at most, and write what became of it."""
    about = {"stage": stage.name, "job": job.name}
    limit = seconds()
    if limit < 1.0 or leaving.is_set():
        journal.write(about | {"left_out": "no time was left"})
        return
    asked = about | {"function": job.function, "arguments": job.arguments, "seconds": limit}
    command = processes.module("benchmarks.first_contact.job", str(journal.path), json.dumps(asked))
    try:
        ended = processes.run(command, limit)
    except Exception as error:
        journal.write(about | {"raised": f"it could not be started: {type(error).__name__}: {error}"})
        return
    why = ended.failure()
    journal.write(about | {"ended": why or "well", "job_seconds": round(ended.seconds, 1)})
    log = journal.path.with_name("output.log")
    if ended.output and (not log.exists() or log.stat().st_size < OUTPUT_BYTES):
        with log.open("a") as file:
            file.write(f"==== {stage.name}: {job.name}, {why or 'ended well'}\n{ended.output}\n")
    for text in dict.fromkeys(map(brief, journal.read(stage.name, job.name))):
        if text:
            print(f"{job.name}: {text}"[:200], flush=True)


def _left(deadline: float, share: float) -> Callable[[], float]:
    """Return what says, when a job begins, how many seconds it has."""
    return lambda: share * (deadline - time.monotonic())


def _parsed(arguments: list[str] | None) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="benchmarks.first_contact", description="The first minutes on a CUDA card.")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results.jsonl and output.log")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all, after which it ends by itself")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--device", default=Options.device)
    parser.add_argument("--rows", type=int, default=Options.rows, help="of diag; full covariance has a tenth")
    for name, kind in (("precisions", str), ("flush", int), ("tile_rows", int), ("columns", int), ("warps", int)):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, nargs="*", type=kind, default=getattr(Options, name), help="variants")
    given = parser.parse_args(arguments)
    given.out = given.out.absolute()  # jobs run from the checkout's root
    chosen: dict[str, Any] = {one.name: getattr(given, one.name) for one in fields(Options) if hasattr(given, one.name)}
    found: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in chosen.items()}
    return Options(**found), given


def _leave(number: int, frame: object) -> NoReturn:
    leaving.set()
    processes.kill_all()  # threads wait for what they run
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

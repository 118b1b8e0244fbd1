"""Joining the processes that torchrun starts, and starts again."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed

from fastclust.group import LONGEST
from fastclust.machine import cores

MEETING = timedelta(minutes=10)  # for all processes to have started


def launched() -> tuple[int, int] | None:
    """Return the rank and the number of processes where torchrun, or what sets the same variables, started this one."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    return (int(found[0]), int(found[1])) if all(found) and int(found[1]) > 1 else None


@contextmanager
def joined_group(device: str) -> Iterator[None]:
    """Join the group of processes that this one was launched with, where it was, and leave it at the end.

    device: "auto", or where to compute: sums go through NCCL where that is CUDA, each process on a device of its own,
    and else through gloo. torchrun sets OMP_NUM_THREADS=1 unless told otherwise; here each of a machine's processes
    then takes its share of the cores.
    """
    if launched() is None:
        yield
        return
    local, here = (int(os.environ.get(name, one)) for name, one in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(local % torch.cuda.device_count())
    if os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, cores() // here))
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    store = PrefixStore(_meet(store, rank, size), store)
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=LONGEST)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _meet(store: Any, rank: int, size: int) -> str:
    """Agree on a name under which nothing is in the store yet, and return it.

    torchrun may give processes that it restarts the store of those before, with the addresses of the dead in it. So
    each says hello with a word of its own; process 0 answers to every hello, also to those of the dead, until all of
    the living have said under the name that they know it. Raises RuntimeError where some do not come.
    """
    deadline = time.monotonic() + MEETING.total_seconds()
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"fastclust/hello/{rank}", word)
    name = word if rank == 0 else ""
    missing = set(range(1, size)) if rank == 0 else {rank}
    while missing:
        if rank > 0 and store.check([f"fastclust/welcome/{word}"]):
            name = store.get(f"fastclust/welcome/{word}").decode()
            store.set(f"{name}/here/{rank}", "1")
            missing = set()
        elif rank == 0:
            for other in list(missing):
                if store.check([f"fastclust/hello/{other}"]):
                    store.set(f"fastclust/welcome/{store.get(f'fastclust/hello/{other}').decode()}", name)
                if store.check([f"{name}/here/{other}"]):
                    missing.remove(other)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(missing)} of {size} did not come within {MEETING}")
        time.sleep(0.01)
    return name

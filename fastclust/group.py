"""The processes that fit one model together, each to rows of its own: what they know of each other, and sums over all.

A process group of torch.distributed that has been initialised is all that is needed. Numbers are gathered and then
added in order of rank, so that every process has the same bits, and the update of size K is made by each alike.

A process that dies must not leave the others waiting. Each gives a sign of life every second through the store that
they have in common; waiting for the others looks out for one that has given none for DEAD_AFTER seconds, or that has
said that it failed, and raises with its name.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import reduce
from itertools import count
from operator import add
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

BEAT = 1.0  # seconds
DEAD_AFTER = 20.0  # seconds
LONGEST = timedelta(days=365)  # the watch decides when waiting is in vain, for a pass may take hours
PAUSES = (2e-5, 1e-3)  # seconds: the first and the longest between two looks at what is waited for
DISAGREE = 1e-6  # of a bound
MEETINGS = count()  # of this process with the others, which have as many

T = TypeVar("T")


class Group:
    """Processes that work together, of which this is one; this class alone stands for one process by itself.

    rank: which of them this is, from 0. size: how many there are.
    """

    rank = 0
    size = 1

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return what each process gives, in order of rank: tensors of one shape and dtype, on this one's device."""
        return [tensor]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of what each process gives, added in order of rank."""
        return reduce(add, self.gather(tensor))

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """Return all processes' rows (n, ...) one after the other; only n may differ."""
        if self.size == 1:
            return rows
        counts = [int(n) for (n,) in self.numbers(len(rows))]
        room = rows.new_zeros((max(counts), *rows.shape[1:]))
        room[: len(rows)] = rows
        return torch.cat([part[:n] for part, n in zip(self.gather(room), counts, strict=True)])

    def numbers(self, *values: float) -> list[list[float]]:
        """Return the numbers that each process gives, in order of rank."""
        if self.size == 1:
            return [list(values)]
        return torch.stack(self.gather(torch.tensor(values, dtype=torch.float64))).tolist()

    def objects(self, value: T) -> list[T]:
        """Return what each process gives, in order of rank: anything that can be pickled."""
        if self.size == 1:
            return [value]
        packed = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(n) for (n,) in self.numbers(len(packed))]
        return [pickle.loads(part.numpy().tobytes()) for part in torch.split(self.joined(packed), sizes)]

    def first(self, value: T) -> T:
        """Return what process 0 gives: there the thing itself, elsewhere a copy."""
        found = self.objects(value if self.rank == 0 else None)[0]
        return value if self.rank == 0 else found  # type: ignore[return-value]

    def check(self) -> None:
        """Raise RuntimeError where another process has died or failed: for long work in which nothing is waited for."""

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.numbers(0)

    def agreed(self, bound: float) -> float:
        """Return process 0's bound, by which all decide whether to go on.

        Raises RuntimeError where the processes' own differ by more than rounding: they are not at the same posterior.
        """
        bounds = [bound for (bound,) in self.numbers(bound)]
        if max(bounds) - min(bounds) > DISAGREE * abs(bounds[0]):
            raise RuntimeError(f"the processes are at different posteriors: their lower bounds are {bounds}")
        return bounds[0]


ALONE = Group()


class _Processes(Group):
    """The processes of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        nccl = distributed.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self._watch: Watch | None = None
        self._store: Any = distributed.distributed_c10d._get_default_store()
        self._came = f"fastclust/{next(MEETINGS)}/came"
        with suppress(RuntimeError):  # where the store is gone, so is the connection
            self._store.set(f"{self._came}/{self.rank}", "")
        each = self.objects((socket.gethostname(), os.getpid(), uuid.uuid4().hex))
        names = [f"process {rank} (pid {pid} on {host})" for rank, (host, pid, _) in enumerate(each)]
        self._watch = Watch(names, each[0][2])

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        own = tensor.detach().to(self._device).contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        try:
            work = distributed.all_gather(found, own, async_op=True)
            pause, longest = PAUSES
            while not work.is_completed():
                if self._watch is not None:
                    self._watch.check()
                time.sleep(pause)
                pause = min(2 * pause, longest)
            work.wait(LONGEST)
        except RuntimeError as error:  # the connection broke: whose, the watch will say
            if self._watch is None:
                why = f"the connection to the other processes broke{self._before()}: {str(error).splitlines()[0]}"
                raise RuntimeError(why) from error
            if self._watch.gone is not None:
                raise
            self._watch.blame(error)
        return [part.to(tensor.device) for part in found]

    def _before(self) -> str:
        """Say which processes have not come yet, and may have died."""
        try:
            away = [rank for rank in range(self.size) if not self._store.check([f"{self._came}/{rank}"])]
        except RuntimeError:
            return ", for process 0, or what holds the processes' store, has died"
        return f" before process {', '.join(map(str, away))} of {self.size} came" if away else ""

    def check(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def leave(self, error: BaseException | None) -> None:
        """Stop giving signs of life; tell the others what went wrong here, if anything did."""
        if self._watch is not None:
            self._watch.stop(error)


class Watch:
    """Give signs of life, and look for those of the others.

    names: of all processes, by rank. token: what no earlier watch had, for torchrun's store outlives what it restarts.
    gone: in a sentence, which process died or failed, as soon as that is known.
    """

    def __init__(self, names: list[str], token: str) -> None:
        self.rank, self.names = distributed.get_rank(), names
        self.gone: str | None = None
        self._prefix = f"fastclust/{token}"
        self._store: Any = distributed.distributed_c10d._get_default_store().clone()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastclust-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RuntimeError where a process has died or failed."""
        if self.gone is not None:
            raise RuntimeError(self.gone)

    def blame(self, error: RuntimeError) -> None:
        """Raise RuntimeError that names the process on whose account an exchange failed."""
        deadline = time.monotonic() + DEAD_AFTER + 5 * BEAT
        while self.gone is None and time.monotonic() < deadline:
            time.sleep(BEAT / 10)
        why = self.gone or f"the connection to the other processes broke: {str(error).splitlines()[0]}"
        raise RuntimeError(why) from error

    def stop(self, error: BaseException | None) -> None:
        """End the watch; error: what the others are to be told."""
        self._ended.set()
        self._thread.join(5 * BEAT)
        if error is not None and self.gone is None:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            self._try(lambda: self._store.set(self._key("failed", self.rank), said))

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what}/{rank}"

    def _run(self) -> None:
        others = [rank for rank in range(len(self.names)) if rank != self.rank]
        began = time.monotonic()
        seen = dict.fromkeys(others, (b"", began))  # the last sign of life, and when it was new
        for beat in count():
            if not self._try(lambda beat=beat: self._store.set(self._key("alive", self.rank), str(beat))):
                self.gone = self.gone or f"{self.names[0]}, or what holds the processes' store, has died"
                return
            for rank in others:
                if self._store_has(self._key("failed", rank)):
                    reason = self._store.get(self._key("failed", rank)).decode()
                    self.gone = f"{self.names[rank]} failed: {reason}"
                    return
                sign = self._store.get(self._key("alive", rank)) if self._store_has(self._key("alive", rank)) else b""
                if sign != seen[rank][0]:
                    seen[rank] = (sign, time.monotonic())
                elif time.monotonic() - seen[rank][1] > DEAD_AFTER:
                    self.gone = f"{self.names[rank]} has died: no sign of life for {DEAD_AFTER:.0f} seconds"
                    return
            if self._ended.wait(BEAT):
                return

    def _store_has(self, key: str) -> bool:
        return bool(self._try(lambda: self._store.check([key])))

    def _try(self, what: Any) -> Any:
        """Return what a call to the store returns, True for nothing; False where the store is gone."""
        try:
            found = what()
        except RuntimeError:
            return False
        return True if found is None else found


def ranks() -> tuple[int, int]:
    """Return which process this is, from 0, and of how many, in the group that torch.distributed has initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@contextmanager
def together() -> Iterator[Group]:
    """Yield the group of processes that torch.distributed has initialised, or this process alone.

    What is raised inside stops the other processes too, as RuntimeError with the name of the one that it was raised in.
    """
    if ranks()[1] == 1:
        yield ALONE
        return
    group = _Processes()
    try:
        yield group
    except BaseException as error:
        group.leave(error)
        raise
    group.leave(None)

"""What the Triton kernels are started with on a card that is not here, as Triton itself tells launches apart.

A backend's calls are repeated with fake CUDA tensors, which have shape, strides, dtype and device and no values, on a
device that answers for the card. Each start of a kernel goes through Triton's own JIT up to the point where it would
compile: its hook `jit_cache_hook` gets all that the compilation depends on, and `binaries.py` does that elsewhere.
Whoever called gets the torch backend's numbers, so that tests, and whole fits, go on as if a card had answered.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastclust.kernels import Frame, Statistics
from fastclust.kernels import torch as plain
from fastclust.kernels import triton as backend


@dataclass(frozen=True)
class Card:
    """What kernels may ask of a card: its multiprocessors, and the shared memory of a program, in bytes."""

    name: str
    capability: int  # 90 for sm_90
    multi_processor_count: int
    shared_memory_per_block_optin: int
    regs_per_multiprocessor: int = 1 << 16
    warp_size: int = 32

    @property
    def shared_memory_per_multiprocessor(self) -> int:
        """Bytes; the driver keeps 1 KiB of them for each program."""
        return self.shared_memory_per_block_optin + 1024


CARDS = {
    80: Card("A100", 80, 108, 163 << 10),
    89: Card("L40S", 89, 142, 99 << 10),
    90: Card("H100", 90, 132, 227 << 10),
}
FREE = 40 << 30  # bytes of memory of any of them
SMALL, LARGE = (640, 64, 50), (640, 512, 200)  # rows, features, components
HEADLINES = [
    ("statistics", SMALL, "diag", torch.float32, "high"),
    ("statistics", SMALL, "diag", torch.float16, "high"),
    ("statistics", SMALL, "full", torch.float32, "high"),
]
CALLS = [  # too large for the interpreter, or with an edge that it does not have
    *HEADLINES,
    ("statistics", SMALL, "diag", torch.float16, "fast"),
    ("statistics", SMALL, "spherical", torch.bfloat16, "high"),
    ("statistics", (640, 128, 128), "diag", torch.float32, "high"),
    ("statistics", (1, 1, 1), "diag", torch.float32, "high"),
    ("responsibilities", (1, 1, 1), "diag", torch.float32, "high"),
    ("assign", SMALL, "diag", torch.float32, "high"),
    ("assign", LARGE, "diag", torch.float16, "high"),
    ("statistics", LARGE, "spherical", torch.float32, "high"),
    ("statistics", LARGE, "diag", torch.float32, "fast"),
    ("statistics", (640, 130, 3), "full", torch.float16, "fast"),
    ("statistics", (1, 1, 1), "full", torch.float32, "high"),
    ("assign", SMALL, "full", torch.bfloat16, "fast"),
]


def call(what: str, shape: tuple[int, int, int], kind: str, stored: torch.dtype, precision: str) -> None:
    """Do one of CALLS."""
    from test_kernels import problem

    rows, coefficients = problem(*shape, kind)
    plan = backend.prepare(coefficients, Frame(), torch.float32, precision)
    getattr(plan, {"statistics": "add"}.get(what, what))(rows.to(stored))


def name_of(some_call: tuple[Any, ...]) -> str:
    """Return one of CALLS in words."""
    what, (_, d, k), kind, stored, precision = some_call
    return f"{what} of {kind} {d} x {k}, {str(stored).removeprefix('torch.')} rows, {precision}"


@dataclass(frozen=True)
class Launch:
    """A start of a kernel, up to what Triton does not look at; equal ones are compiled once.

    capability: of the card. module, kernel: names of the function. key: all that Triton tells launches apart by.
    signature, constants, attributes, options: what Triton makes of it, and compiles.
    """

    capability: int
    module: str
    kernel: str
    key: str
    signature: dict[str, Any] = field(compare=False, repr=False)
    constants: dict[tuple[int, ...], Any] = field(compare=False, repr=False)
    attributes: dict[tuple[int, ...], Any] = field(compare=False, repr=False)
    options: dict[str, Any] = field(compare=False, repr=False)


class StandIn:
    """Triton's driver of a card that is not here: it says which it is, and each has a cache of its own."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """The architecture to compile for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """A number that no other card has."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """A stream that nothing is put on."""
        return 0


class Pointer:
    """What Triton looks at in a tensor: its dtype, and whether it begins at a multiple of 16 bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self._bytes = tensor.dtype, tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        """Where the tensor would begin: what is allocated begins at a multiple of 512 bytes."""
        return 512 + self._bytes


def pointed(value: Any) -> Any:
    """Return an argument of a kernel with a Pointer for each tensor."""
    if isinstance(value, tuple):
        parts = map(pointed, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return Pointer(value) if isinstance(value, torch.Tensor) else value


@contextmanager
def as_on(card: Card, launches: dict[Launch, None]) -> Iterator[None]:
    """Within it, torch has such a card, and Triton notes what is started there and neither compiles nor runs it."""

    def note(*, fn: Any, compile: dict[str, Any], **more: Any) -> bool:
        written = json.loads(compile["specialization_data"])["options"]
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
        given = compile["signature"], compile["constants"], compile["configs"][0], options
        launches[Launch(card.capability, fn.module, fn.name, compile["key"], *given)] = None
        return True  # there is nothing to compile

    run, active = JITFunction.run, triton.runtime.driver._active
    with ExitStack() as stack:
        for name, value in (
            ("get_device_properties", lambda device=None: card),
            ("get_device_capability", lambda device=None: divmod(card.capability, 10)),
            ("current_device", lambda: 0),
            ("device", type("device", (nullcontext,), {})),
            ("is_available", lambda: True),
            ("mem_get_info", lambda device=None: (FREE, FREE)),
            ("memory_reserved", lambda device=None: 0),
            ("memory_allocated", lambda device=None: 0),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(triton.knobs.runtime, "jit_cache_hook", note))
        stack.callback(triton.runtime.driver.set_active, active)
        triton.runtime.driver.set_active(StandIn(card.capability))

        def start(self: Any, *given: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
            named = {name: pointed(value) for name, value in named.items()}
            run(self, *map(pointed, given), grid=grid, warmup=True, **named)

        stack.enter_context(mock.patch.object(JITFunction, "run", start))
        yield


def there(mode: FakeTensorMode, value: Any) -> Any:
    """Return the like of a tensor, or of a dataclass of them, on the fake device: as its strides and offset are."""
    if isinstance(value, torch.Tensor):
        span = value.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        with mode:
            whole = torch.empty(max(span, 1), dtype=value.dtype, device="cuda:0")
            return whole.as_strided(value.shape, value.stride(), value.storage_offset())
    if is_dataclass(value):
        return type(value)(*(there(mode, getattr(value, field.name)) for field in fields(value)))
    return value


class Plan:
    """What `Everywhere` prepares: what is asked of it is asked of each card's plan, and the torch backend's answers."""

    def __init__(self, everywhere: Everywhere, plans: dict[Card, Any], *given: Any, **named: Any) -> None:
        self._everywhere, self._plans = everywhere, plans
        named.pop("tuning", None)
        self._prepare = functools.partial(plain.prepare, **named)
        self._given = given
        self._own = self._prepare(*given)

    def add(self, *given: Any) -> None:
        """Add rows."""
        self._asked("add", *given)
        self._own.add(*given)

    def result(self) -> Statistics:
        """Return the statistics of the rows added so far."""
        found = self._own.result()
        self._asked("result")
        return found

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels and density."""
        self._asked("assign", rows)
        return self._own.assign(rows)

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return responsibilities."""
        self._asked("responsibilities", rows)
        return self._own.responsibilities(rows)

    def renew(self, coefficients: Any) -> None:
        """Take other coefficients and forget the rows."""
        self._asked("renew", coefficients)
        self._given = (coefficients, *self._given[1:])
        self._own = self._prepare(*self._given)

    def clear(self) -> None:
        """Forget the rows."""
        self._asked("clear")
        self._own = self._prepare(*self._given)

    def _asked(self, name: str, *given: Any) -> None:
        self._everywhere.asked({card: getattr(plan, name) for card, plan in self._plans.items()}, *given)


class Everywhere:
    """The backend on cards, started on each, with the torch backend's answers.

    launches: what was started, as they came.
    """

    def __init__(self, cards: list[Card]) -> None:
        self.launches: dict[Launch, None] = {}
        self._cards = cards
        self._modes = {card: FakeTensorMode() for card in cards}
        self._functions = {name: getattr(backend, name) for name in ("prepare", "moments")}

    def asked(self, functions: dict[Card, Callable[..., Any]], *given: Any, **named: Any) -> dict[Card, Any]:
        """Call each card's function with the like of the arguments; return the answers, which have no values."""
        answers = {}
        for card, mode in self._modes.items():
            like = [there(mode, value) for value in given]
            like_named = {name: there(mode, value) for name, value in named.items()}
            with as_on(card, self.launches), mode:
                answers[card] = functions[card](*like, **like_named)
        return answers

    def prepare(self, *given: Any, **named: Any) -> Plan:
        """As a backend's."""
        plans = self.asked(dict.fromkeys(self._cards, self._functions["prepare"]), *given, **named)
        return Plan(self, plans, *given, **named)

    def moments(self, *given: Any, **named: Any) -> Statistics:
        """As a backend's."""
        self.asked(dict.fromkeys(self._cards, self._functions["moments"]), *given, **named)
        return plain.moments(*given, **named)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Within it, this is the Triton backend, also where one is chosen by name."""
        with (
            mock.patch.object(backend, "prepare", self.prepare),
            mock.patch.object(backend, "moments", self.moments),
            mock.patch.object(backend, "unavailable", lambda device: None),
        ):
            yield


def launches_of(function: Callable[[], object], cards: list[Card]) -> list[Launch]:
    """Return the distinct launches on cards of a function that calls the backend with tensors on the CPU."""
    everywhere = Everywhere(cards)
    with everywhere.instead():
        function()
    return list(everywhere.launches)

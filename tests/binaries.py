"""Compile launches of Triton kernels for cards that are not here, and read what the binaries cost.

`compiled` starts this file as a program, which reads launches from its input and answers a line of JSON each. It forks
for every launch, for a compiler may abort: then that launch failed, and the others go on.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from launches import CARDS, Launch, StandIn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Binary:
    """What became of a launch.

    constants: the constants by the kernel's names for them. types: Triton's, of its pointers.
    seconds: of processor time; few where Triton's cache had it. failure: why a card cannot run it, or "".
    registers: of a thread. stack_bytes: of a thread, where registers are spilled to. shared_bytes: of a program.
    instructions: in all, where they are counted. loop_instructions: in the loop over tiles, the shortest of those with
        most products of matrices; 0 without one.
    products: how many instructions on tensor cores there are, by their names in PTX, which end in their types.
    """

    capability: int
    kernel: str
    constants: dict[str, Any]
    types: dict[str, str]
    seconds: float = 0.0
    failure: str = ""
    registers: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    instructions: int = 0
    loop_instructions: int = 0
    products: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"sm_{self.capability} {self.kernel}({self.types.get('rows', '')}, {constants})"


def compiled(launches: list[Launch], counted: Container[Launch] = ()) -> Iterator[tuple[Launch, Binary]]:
    """Compile launches, as many at once as there are cores; yield each with its Binary, as they are done.

    counted: those whose instructions are counted, which takes 0.3 s each.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), environment.get("PYTHONPATH")]))
    environment.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryFile() as given:
        pickle.dump([(launch, launch in counted) for launch in launches], given)
        given.seek(0)
        command = [sys.executable, str(Path(__file__))]
        with subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, text=True, env=environment) as program:
            assert program.stdout is not None
            for line in program.stdout:
                place, binary = json.loads(line)
                yield launches[place], Binary(**binary)
    if program.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {program.returncode}: see what it wrote to stderr")


def binary_of(launch: Launch, counted: bool) -> Binary:
    """Compile a launch in this process; count its instructions where that is asked for."""
    source = ASTSource(function_of(launch), launch.signature, launch.constants, launch.attributes)
    target = GPUTarget("cuda", launch.capability, 32)
    found = triton.compile(source, target=target, options=launch.options)
    spent = os.times()  # the assembler is a child
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "--print-code", file.name) if counted else ""
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    limit = CARDS[launch.capability].shared_memory_per_block_optin
    much = f"needs {found.metadata.shared} bytes of shared memory, and a program has {limit}"
    products = Counter(re.findall(r"^\s*(?:@\S+\s+)?([\w.:]*mma[\w.:]*\.[\w.:]+)\s", found.asm["ptx"], re.MULTILINE))
    return Binary(
        **described(launch),
        seconds=sum(spent[:4]),
        failure=much if found.metadata.shared > limit else "",
        registers=int(registers),
        stack_bytes=int(stack),
        shared_bytes=found.metadata.shared,
        products={name: n for name, n in products.items() if re.search(r"\.(tf32|bf16|f16|f64)\b", name)},
        **instructions_of(code),
    )


def function_of(launch: Launch) -> Any:
    """Return Triton's function of a launch."""
    return getattr(importlib.import_module(launch.module), launch.kernel)


def described(launch: Launch) -> dict[str, Any]:
    """Return what a Binary has from its launch."""
    names = list(launch.signature)
    constants = {
        ".".join([names[place], *map(str, inner)]): value for (place, *inner), value in launch.constants.items()
    }
    types = {name: kind for name, kind in launch.signature.items() if isinstance(kind, str) and kind[0] == "*"}
    return {"capability": launch.capability, "kernel": launch.kernel, "constants": constants, "types": types}


def instructions_of(code: str) -> dict[str, int]:
    """Count the instructions of a disassembly, and those of its loop over tiles."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[str, int]] = []
    for line in code.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            if target := re.search(r"\((\.L\w+)\)", found[2]):
                jumps.append((target[1], len(names)))
            names.append(found[1])
    loops = [(labels[label], end) for label, end in jumps if labels.get(label, end + 1) <= end]
    products = {(low, high): sum("MMA" in name for name in names[low : high + 1]) for low, high in loops}
    some = [loop for loop in loops if products[loop]]
    low, high = min(some, key=lambda loop: (-products[loop], loop[1] - loop[0]), default=(0, -1))
    return {"instructions": len(names), "loop_instructions": high - low + 1}


def _tool(name: str, *arguments: str) -> str:
    """Run one of the tools that come with Triton; return what it prints."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


@triton.jit
def _nothing(place):
    tl.store(place, 0)


def _answer(launch: Launch, counted: bool, answer: Path) -> None:
    """In a process of its own: write the Binary of a launch, as JSON, or what the compiler raised."""
    with answer.with_suffix(".said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        binary = binary_of(launch, counted)
    except BaseException as error:
        binary = Binary(**described(launch), failure=f"{type(error).__name__}: {error}"[-2000:])
    answer.write_text(json.dumps(asdict(binary)))


def main() -> None:
    """Read launches from the input, compile each in a process of its own, and print its number and Binary."""
    launches = pickle.load(sys.stdin.buffer)
    jobs = len(os.sched_getaffinity(0))
    triton.runtime.driver.set_active(StandIn(90))
    _nothing.warmup(torch.int32, grid=(1,))  # what is done once, among it the hashes of Triton's own files
    for launch, _ in launches:
        with suppress(Exception):  # its own process says why
            hash(function_of(launch))  # of its sources, so that no other process needs to read them
    waiting, running = list(enumerate(launches))[::-1], {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, (launch, counted) = waiting.pop()
                child = os.fork()
                if child == 0:
                    _answer(launch, counted, Path(folder) / f"{place}.json")
                    os._exit(0)
                running[child] = place, launch
            child, status = os.wait()
            place, launch = running.pop(child)
            answer = Path(folder) / f"{place}.json"
            if answer.exists():
                binary = json.loads(answer.read_text())
            else:
                said = answer.with_suffix(".said").read_text()[-2000:]
                ended = f"the compiler ended with {os.waitstatus_to_exitcode(status)}: {said}"
                binary = asdict(Binary(**described(launch), failure=ended))
            print(json.dumps([place, binary]), flush=True)


if __name__ == "__main__":
    main()

"""What things were predicted to take before a card was there, as data, and how each prediction was made.

All for an H100 at 1.755 GHz with 132 multiprocessors and 3.0 TB/s; 10 million rows of 64 features for diag, 1 million
for full, K = 50. A multiprocessor treats tiles of 64 rows, so that 1000 cycles a tile are 0.675 ms a pass:

    tensor cores    64 x 64 x 64 products a tile, of 1024 tf32 or 2048 bfloat16 multiply-adds a cycle. Both of the
                    E-step and both of the M-step, three times each: 3072 cycles in tf32, 1536 in bfloat16; of float16
                    rows, which tf32 holds exactly, the linear ones twice: 2560
    issue slots     the instructions of the loop over tiles, as Triton 3.6 compiles it for sm_90, and an eighth of those
                    that flush the sums, over four schedulers: 1703 + 118, of float16 rows 1449 + 112, with bfloat16
                    1607 + 102 and 1578 + 100
    memory          16 KiB of a tile in float32, 8 KiB in float16

The largest of these is what a pass takes if all overlap. They do not wholly: the phases of a tile depend on each other,
so the prediction is from 1.27 times the largest to 0.93 of tensor cores and issue slots one after the other. Cycles are
scaled to the clock and the multiprocessors of the card that is there, memory to its bandwidth; the rest stays.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOCK, MULTIPROCESSORS, BANDWIDTH = 1.755e9, 132, 3.0e12
TILE = 64  # rows
OVERLAPPED, IN_TURN = 1.27, 0.93
ROWS = {"diag": 10_000_000, "full": 1_000_000}


@dataclass(frozen=True)
class Machine:
    """What predictions are scaled to: clock in Hz, multiprocessors, bytes a second."""

    clock: float = CLOCK
    multiprocessors: int = MULTIPROCESSORS
    bandwidth: float = BANDWIDTH

    @property
    def slower(self) -> float:
        """How many times as long as there the same cycles take here."""
        return (CLOCK * MULTIPROCESSORS) / (self.clock * self.multiprocessors)


@dataclass(frozen=True)
class Cycles:
    """A pass by its cycles a tile of 64 rows, and its bytes a row."""

    tensor: float
    issue: float
    bytes: int

    def milliseconds(self, rows: int, machine: Machine) -> tuple[float, float]:
        """Return from how many milliseconds to how many a pass over so many rows takes."""
        each = rows / TILE / machine.multiprocessors / machine.clock * 1e3
        memory = self.bytes * rows / machine.bandwidth * 1e3
        low = OVERLAPPED * max(self.tensor * each, self.issue * each, memory)
        return low, max(low, IN_TURN * (self.tensor + self.issue) * each)


@dataclass(frozen=True)
class Interval:
    """From how many to how many on the H100, and how that was come by; milliseconds where `scaled`."""

    low: float
    high: float
    how: str
    scaled: bool = True  # with cycles


PASSES: dict[str, Cycles | Interval] = {  # backend and case: E-step and sums
    "triton diag float32 high": Cycles(3072, 1821, 256),
    "triton diag float32 fast": Cycles(1536, 1709, 256),
    "triton diag float16 high": Cycles(2560, 1561, 128),
    "triton diag float16 fast": Cycles(1536, 1678, 128),
    "triton full float32 high": Interval(
        3.8, 4.9, "three quarters of 5 to 6.5 ms: of R, the blocks on and below the diagonal"
    ),
    "cupy diag float32 high": Interval(
        2.0, 3.0, "2700 issue slots and 2150 cycles of mma.sync, 1.8 and 1.5 ms, overlap in part"
    ),
    "torch diag float32 in float64": Interval(35.0, 45.0, "rows widened, N x K written and read between operations"),
}
WHOLE_PASS = Interval(3.1, 3.7, "the kernels, and a graph of some 290 nodes of 1.5 to 2 us")  # triton, diag, high
LAUNCHES = Interval(4, 12, "2 a block of rows, a graph, a copy, the bound", scaled=False)
BIAS = -1.7e-5 / 32  # of sx and sxx, where accumulators round toward zero: simulated over 32 tiles, and one is added up
HOSTS: dict[str, Interval] = {  # by how what was measured begins
    "rows from the host": Interval(40.0, 55.0, "GB/s: PCIe 5 x 16 through two pinned buffers", scaled=False),
    "VGG-19 to conv1_2, batches of 256": Interval(
        25_000, 40_000, "images/s: 3.87 GFLOP each at a fifth of float16's rate", scaled=False
    ),
    "decoding in 16 processes": Interval(3_100, 5_000, "images/s of 16 cores", scaled=False),
}


def of_pass(name: str, kind: str, rows: int, machine: Machine) -> tuple[float, float] | None:
    """Return the milliseconds that a pass was predicted to take, from and to; None where nobody predicted it."""
    found = PASSES.get(name)
    if isinstance(found, Cycles):
        return found.milliseconds(rows, machine)
    if isinstance(found, Interval):
        times = rows / ROWS[kind] * machine.slower
        return found.low * times, found.high * times
    return None

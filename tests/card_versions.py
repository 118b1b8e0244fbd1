"""Compile all that the tests start on a card, for cards that are not here: `scripts/test-card-versions` runs it.

    python -O tests/card_versions.py [--cards 80,89,90] [--tests 80,89,90]

The tests run on the CPU with the torch backend's numbers, and without their assertions: what they ask of the numbers is
asked in the interpreter and on a card. A test that raises anything else is an error here, too: it may not have started
all that it would.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
import triton
from binaries import Binary, compiled
from launches import CALLS, CARDS, HEADLINES, Card, Everywhere, Launch, call, launches_of, name_of

HERE = Path(__file__).parent
FILES = [HERE / "triton_cases.py", HERE / "test_kernels.py"]
MARK = "triton-"  # in the name of a test of test_kernels.py that runs on this backend


class Selection:
    """A plugin of pytest that leaves the tests that start Triton kernels."""

    @staticmethod
    def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect the other tests."""
        kept = [item for item in items if item.path.name.startswith("triton_") or MARK in item.name]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def started_by_tests(cards: list[Card]) -> list[Launch]:
    """Return the distinct launches of the tests on cards."""
    if not cards:
        return []
    everywhere = Everywhere(cards)
    options = "-q --no-header --assert=plain -p no:cacheprovider -W ignore::pytest.PytestConfigWarning"
    with everywhere.instead():
        ended = pytest.main([*options.split(), *map(str, FILES)], plugins=[Selection()])
    if ended != pytest.ExitCode.OK:
        raise SystemExit(f"pytest ended with {ended}: not every launch of the tests is known")
    return list(everywhere.launches)


def summary(card: Card, binaries: list[Binary]) -> str:
    """Return a line of all binaries for a card."""
    whole = [binary for binary in binaries if not binary.failure]
    text = f"{card.name}, sm_{card.capability}: {len(whole)} of {len(binaries)} launches compile"
    text += f", {sum(binary.seconds for binary in whole):.0f} s of processor time"
    if whole:
        most = max(whole, key=lambda binary: binary.stack_bytes)
        text += f", at most {max(binary.registers for binary in whole)} registers"
        text += f", {most.stack_bytes} stack bytes ({most.kernel}), {max(b.shared_bytes for b in whole)} shared bytes"
    return text


def line(binary: Binary) -> str:
    """Return what a binary of a headline costs."""
    if binary.failure:
        return f"{binary.kernel}: does not compile"
    tight = {True: ", tight components", False: "", None: ""}[binary.constants.get("TIGHT")]
    text = f"{binary.kernel}{tight}: {binary.registers} registers, {binary.stack_bytes} stack bytes"
    return f"{text}, {binary.instructions} instructions, {binary.loop_instructions} in the loop over tiles"


def main() -> int:
    """Compile, and print what it costs; return 1 where anything does not compile."""
    parser = argparse.ArgumentParser(description="Compile all that the tests start on a card, without a card.")
    parser.add_argument("--cards", default="80,89,90", help="capabilities, such as 80,90; all by default")
    parser.add_argument(
        "--tests", default="80,89,90", help="those that all tests run on; only CALLS of launches.py do on the others"
    )
    options = parser.parse_args()
    if __debug__:
        parser.error("start it as `python -O`: assertions on numbers are not for here")
    began = time.monotonic()
    print(f"torch {torch.__version__}, Triton {triton.__version__}", flush=True)
    cards = [CARDS[int(card)] for card in options.cards.split(",")]
    launches = dict.fromkeys(
        started_by_tests([card for card in cards if str(card.capability) in options.tests.split(",")])
    )
    of_calls = {some: launches_of(functools.partial(call, *some), cards) for some in CALLS}
    launches |= dict.fromkeys(chain.from_iterable(of_calls.values()))
    print(f"{len(launches)} distinct launches, found in {time.monotonic() - began:.0f} s", flush=True)
    found: dict[Launch, Binary] = {}
    for launch, binary in compiled(list(launches), set(chain.from_iterable(of_calls[some] for some in HEADLINES))):
        found[launch] = binary
        if binary.failure:
            print(f"DOES NOT COMPILE: {binary}\n{binary.failure}", flush=True)
    for card in cards:
        print(summary(card, [binary for launch, binary in found.items() if launch.capability == card.capability]))
        for headline in HEADLINES:
            print(f"  {name_of(headline)}")
            for launch in of_calls[headline]:
                if launch.capability == card.capability:
                    print(f"    {line(found[launch])}")
    print(f"{time.monotonic() - began:.0f} s in all", flush=True)
    return int(any(binary.failure for binary in found.values()))


if __name__ == "__main__":
    sys.exit(main())

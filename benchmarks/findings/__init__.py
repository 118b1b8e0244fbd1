"""What the clusters show, measured: each module runs a suite, and renders the tables of a page of its own name.

A module has `run() -> list of cases` (JSON values, with seeds and spreads) and `tables(record) -> Markdown`. The page
NAME.md says in words what the tables show, and holds them between two markers, where `python -m benchmarks.table`
writes them from benchmarks/results.
"""

from __future__ import annotations

import importlib
from types import ModuleType

SUITES = ("detection", "composition", "transfer", "segmentation")


def module(suite: str) -> ModuleType:
    """Return the module of a suite, which is imported now: some need what a card's machine may lack."""
    return importlib.import_module(f"{__name__}.{suite}")

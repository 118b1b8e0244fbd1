"""What the clusters show, measured: each module runs a suite, and renders the tables of a page of its own name.

A module has `run() -> list of cases` (JSON values, with seeds and spreads) and `tables(record) -> Markdown`. The page
NAME.md says in words what the tables show, and holds them between two markers, where `python -m benchmarks.table`
writes them from benchmarks/results.
"""

from __future__ import annotations

from types import ModuleType

from benchmarks.findings import composition, detection, segmentation, transfer

SUITES: dict[str, ModuleType] = {
    "detection": detection,
    "composition": composition,
    "transfer": transfer,
    "segmentation": segmentation,
}

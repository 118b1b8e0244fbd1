"""Run a suite and write its record; nothing is timed that has not been verified in the same run.

    python -m benchmarks.run [--suite SUITE] [--out FILE] [--only NAME] [--seconds S]

    cpu, sweep, quick   fastclust against scikit-learn, in pairs on the same rows: `benchmarks.pairs`
    growth              the cost of a row from 10^4 rows to 10^7, ours and the peers': `benchmarks.growth`
    tiles               from features to a converged mixture, against scikit-learn: `benchmarks.tiles`
    scale, sample       from 10^5 rows to 10^8 in 2 GB of memory; a fit to all and to a part: `benchmarks.scale`
    extraction          images to a store, against bare forward passes; recomputing: `benchmarks.extraction`
    detection           whether centres of clusters find cells: `benchmarks.findings.detection`
    composition         clusters of images against classes, by layer: `benchmarks.findings.composition`
    gpu                 tests, rates and passes of every backend on a CUDA card: `benchmarks.gpu`
    transfer            how much of other images looks like a layer's own: `benchmarks.findings.transfer`
    segmentation        label images against people's segmentations: `benchmarks.findings.segmentation`

A card's first minutes have a program of their own, which asks it everything and keeps whatever it answers:
`python -m benchmarks.first_contact`, described in `benchmarks/first_contact/__init__.py`.

Without --out, a whole suite goes to benchmarks/results; a part of one, or "quick", goes nowhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import card_tests, findings, gpu
from benchmarks.cases import FORMULAE, Case, suite
from benchmarks.timing import copy_bandwidth, matrix_product_rate, short
from benchmarks.verify import TOLERANCE
from fastclust import machine

RESULTS = Path(__file__).parent / "results"
SUITES = ("cpu", "sweep", "growth", "tiles", "extraction", "scale", "sample", "gpu", "quick", *findings.SUITES)
OF_DATA = (
    "tiles",
    "extraction",
    "scale",
    "sample",
    *findings.SUITES,
)  # cases of their own, on FASTCLUST_DATA's files
WRONG = ("refused", "failed")


def main(arguments: list[str] | None = None) -> int:
    """Run a suite, print a line a case, write the record.

    Returns 1 where a case was refused, failed or could not be repeated, 2 where the suite cannot run here, else 0.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Verify, then time.")
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--out", type=Path, help="the record; without it, a whole suite goes to benchmarks/results")
    parser.add_argument("--only", default="", metavar="NAME", help="run the cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=gpu.SECONDS, help="of the gpu suite, in all")
    options = parser.parse_args(arguments)
    reason = unable(options.suite)
    if reason is not None:
        print(f"benchmarks.run: {reason}", file=sys.stderr)
        return 2
    own = options.suite in OF_DATA
    cases = [] if own else [case for case in suite(options.suite) if options.only in case.name]
    if not cases and not own:
        parser.error(f"no case of {options.suite} has {options.only!r} in its name")
    about = describe(options.suite)
    out: Path | None = options.out
    if out is None and options.suite != "quick" and not options.only:
        device = torch.cuda.get_device_name() if options.suite == "gpu" else about["machine"]["cpu"]
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        out = RESULTS / f"{options.suite}-{slug}.json"
    if options.suite == "gpu":
        about |= gpu.run(cases, seconds=options.seconds)
    else:
        about |= run_on_cpu(options.suite, cases)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(about, indent=1) + "\n")
        print(f"wrote {out}")
    failed = [name for name, tests in about.get("tests", {}).items() if card_tests.refusal(tests)]
    wrong = [record for record in about["cases"] if set(WRONG) & set(record) or not record.get("repeatable", True)]
    return int(bool(failed or wrong))


def unable(suite_name: str) -> str | None:
    """Say why a suite cannot run here; None where it can."""
    if suite_name == "gpu" and not torch.cuda.is_available():
        return f"the gpu suite needs a CUDA device, and torch {torch.__version__} sees none"
    if suite_name in OF_DATA and "FASTCLUST_DATA" not in os.environ:
        return f"the {suite_name} suite needs FASTCLUST_DATA, which names the folder of real weights and images"
    return None


def run_on_cpu(suite_name: str, cases: list[Case]) -> dict[str, Any]:
    """Run a suite of the CPU's; return the record's parts: this machine's rates, and cases."""
    from benchmarks import extraction, growth, pairs, scale, tiles  # which need what a card's machine may lack

    about: dict[str, Any] = {
        "matrix_product_gflop_per_second": matrix_product_rate(),
        "matrix_products_gflop_per_second": {"float64": matrix_product_rate(dtype="float64")},
        "copy_gbytes_per_second": copy_bandwidth(),
    }
    print({name: about[name] for name in gpu.rates_names(about)})
    if suite_name == "growth":
        records = growth.run(cases)
        about["growth"] = growth.summary(records)
        print(about["growth"])
    elif suite_name == "tiles":
        records = []
        for dtype in tiles.DTYPES:
            records.append(tiles.run(dtype))
            print(tiles.line(records[-1]), flush=True)
    elif suite_name == "scale":
        records = scale.run_passes()
        about["scale"] = scale.summary(records)
        print(about["scale"])
    elif suite_name == "sample":
        records = scale.run_fits()
    elif suite_name == "extraction":
        records = []
        for record in extraction.run():
            records.append(record)
            print(extraction.line(record), flush=True)
    elif suite_name in findings.SUITES:
        records = findings.module(suite_name).run()
    else:
        records = []
        for case in cases:
            records.append(pairs.run_case(case))
            print(pairs.line(records[-1]), flush=True)
    for case, record in zip(cases, records, strict=False):
        if "pass" in record:
            rates = {"float32": about["matrix_product_gflop_per_second"], **about["matrix_products_gflop_per_second"]}
            least = case.floor_seconds(about["copy_gbytes_per_second"], rates[case.arithmetic])
            share = least / record["pass"]["ours"]["median"]
            record["pass"] |= {"floor_seconds": short(least), "share_of_floor": short(share)}
    return about | {"cases": records}


def describe(suite_name: str) -> dict[str, Any]:
    """Return what is the same for all cases of a record: date, commit, machine, and the formulae."""
    about = machine.describe()
    return {
        "format": 2,
        "suite": suite_name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": about.pop("commit"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "tolerance": TOLERANCE,
        "formulae": FORMULAE,
        "machine": about,
    }


if __name__ == "__main__":
    sys.exit(main())

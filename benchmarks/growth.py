"""How the cost of a pass grows with the rows: ours and the peers' over three decades, on the same rows.

A pass of ours is E-step, M-step and bound in the middle of a fit, verified before it is timed as in `benchmarks.pairs`;
of the peers it is what `benchmarks.peers` says. Each is timed alone.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.data import relu_on
from benchmarks.pairs import REST, make_ours, own_passes
from benchmarks.peers import PEERS, time_peer
from benchmarks.timing import CPU, short, spread
from benchmarks.verify import TOLERANCE, beyond_tolerance, check
from fastclust import DPGMM

MOST_ROWS = max(peer.most_rows for peer in PEERS.values())
AIM = 1.2  # of the largest cost per row over the smallest


def run(cases: list[Case]) -> list[dict[str, Any]]:
    """Return the records of cases; first ours in all of them, since what the peers load leaves threads behind."""
    records, models = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # passes are counted here, not waited for; and peers have theirs to say
        for case in cases:
            record, ours = run_ours(case, rows_of(case))
            records.append(record)
            models.append(ours)
            print(line(record), flush=True)
        for case, record, ours in zip(cases, records, models, strict=True):
            record["peers"] = {}
            X = rows_of(case) if case.n <= MOST_ROWS else None
            for name in PEERS if "pass" in record else ():
                peer = record["peers"][name] = time_peer(name, case, X, ours)
                if "seconds" in peer:
                    record["ns_per_row"][name] = _ns(peer["seconds"], case)
                print(f"{record['name']:32} {name}: {peer.get('not_timed') or record['ns_per_row'][name]}", flush=True)
    return records


def rows_of(case: Case) -> np.ndarray:
    """Return the rows of a case (N, D)."""
    return relu_on(CPU, case.n, case.d, case.dtype, case.seed).numpy()


def run_ours(case: Case, X: np.ndarray) -> tuple[dict[str, Any], DPGMM]:
    """Verify and time passes of ours; return the record, "refused" in place of times if wrong, and the mixture."""
    record: dict[str, Any] = {"name": case.name, **asdict(case)}
    ours = make_ours(case, max_iter=case.burn_in).fit(X)
    record["backend"] = ours.backend_
    _, rows = ours._rows_of(X)
    record |= check(rows, ours._posterior(rows), X)
    wrong = beyond_tolerance(record["errors"])
    if wrong:
        return record | {"refused": f"error against the oracle above {TOLERANCE}: {', '.join(wrong)}"}, ours
    time.sleep(REST)
    passes = max(case.repeats, min(20, 200_000 // case.n))  # of few rows they are short: more of them
    found = spread(own_passes(ours.set_params(warm_start=True), X, passes))
    return record | {"pass": {"ours": found}, "ns_per_row": {"ours": _ns(found, case)}}, ours


def _ns(seconds: dict[str, float], case: Case) -> dict[str, float]:
    return {key: short(value / case.n * 1e9) for key, value in seconds.items()}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the suite is for: the cost of a row at each number of rows, and the largest over the smallest."""
    ns = {record["n"]: record["ns_per_row"]["ours"]["median"] for record in records if "ns_per_row" in record}
    if not ns:
        return {}
    ratio = max(ns.values()) / min(ns.values())
    return {"ns_per_row": ns, "largest_over_smallest": short(ratio), "aim": AIM, "reached": ratio <= AIM}


def line(record: dict[str, Any]) -> str:
    """Return what is ours of a case's record in one line."""
    text = f"{record['name']:32} error {max(record['errors'].values()):.1e}"
    if "refused" in record:
        return f"{text}  REFUSED: {record['refused']}"
    return f"{text}  ns a row: {record['ns_per_row']['ours']}"

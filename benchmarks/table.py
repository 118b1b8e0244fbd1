"""Write the README's table of results from the records: `python -m benchmarks.table`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
FEATURES = {"blobs": "Gaussian blobs", "relu": "synthetic ReLU", "relu1_2": "relu1_2 of VGG-19, one image"}
HEADER = """\
| covariance | features | rows x features | pass: scikit-learn | fastclust | ratio | fit: scikit-learn | fastclust \
| ratio | error |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> int:
    """Rewrite what stands between the README's two markers."""
    README.write_text(replaced(README.read_text(), render(load())))
    print(f"wrote {README.name}")
    return 0


def load() -> list[dict[str, Any]]:
    """Return the committed records, by file name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def replaced(readme: str, table: str) -> str:
    """Return a text with the table between its markers. Raises ValueError where they are not there once, in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"expected {BEGIN} and then {END} in the README, once each")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def render(records: list[dict[str, Any]]) -> str:
    """Return the Markdown of all records: for each a paragraph on how it came about, and a table."""
    if not records:
        return "No measurements have been recorded yet."
    return "\n\n".join(
        f"{_heading(record)}\n\n{HEADER}\n" + "\n".join(map(_row, record["cases"])) for record in records
    )


def _heading(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("scikit-learn", "torch", "numpy"))
    components = _all({case["k"] for case in record["cases"]})
    dtypes = _all({case["dtype"] for case in record["cases"]})
    passes = _all({case["fit_passes"] for case in record["cases"]})
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {dtypes}, {components} components, against scikit-learn's "
        "BayesianGaussianMixture on the same rows from the same start. A pass is E-step, M-step and bound in the "
        f"middle of a fit; a fit is a whole one of {passes} passes. Medians of interleaved pairs, the ratio's smallest "
        "and largest in brackets; the error is the largest of any statistic of a pass against the float64 oracle. "
        f"This machine multiplies matrices at {record['matrix_product_gflop_per_second']:.0f} GFLOP/s and copies at "
        f"{record['copy_gbytes_per_second']:.0f} GB/s. "
        f"{versions}; commit {_commit(record['commit'])}, {record['date']}."
    )


def _row(case: dict[str, Any]) -> str:
    cells = [case["covariance"], FEATURES[case["data"]], f"{case['n']:,} x {case['d']}"]
    for part in ("pass", "fit"):
        if part in case:
            ours, theirs, ratio = (case[part][side] for side in ("ours", "theirs", "ratio"))
            times = f"{_number(ratio['median'])} ({_number(ratio['min'])} to {_number(ratio['max'])})"
            cells += [_time(theirs["median"]), _time(ours["median"]), times]
        else:
            why = "wrong" if "refused" in case else f"{case['failed'].partition(':')[0]} failed"
            cells += ["", "", f"not timed: {why}"]
    cells.append(f"{max(case['errors'].values()):.0e}" if "errors" in case else "")
    return f"| {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else "1 s"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"


def _all(values: set[Any]) -> str:
    return " or ".join(str(value) for value in sorted(values))


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown"
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


if __name__ == "__main__":
    sys.exit(main())

"""Write the tables of results from the records, in the README and in findings/: `python -m benchmarks.table`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import findings
from benchmarks.cases import suite
from benchmarks.run import RESULTS

README = Path(__file__).parent.parent / "README.md"
FINDINGS = Path(__file__).parent / "findings"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
FEATURES = {"blobs": "Gaussian blobs", "relu": "synthetic ReLU", "relu1_2": "relu1_2 of VGG-19, one image"}


def main() -> int:
    """Rewrite what stands between the README's two markers."""
    for path, text in pages(load()).items():
        path.write_text(text)
        print(f"wrote {path.name}")
    return 0


def pages(records: list[dict[str, Any]]) -> dict[Path, str]:
    """Return the README and the pages of findings, as they are to be with the tables of these records."""
    found = {README: replaced(README.read_text(), render(records))}
    for record in records:
        if record["suite"] in findings.SUITES:
            path = FINDINGS / f"{record['suite']}.md"
            found[path] = replaced(path.read_text(), findings.module(record["suite"]).tables(record))
    return found


def load() -> list[dict[str, Any]]:
    """Return the committed records, by file name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def replaced(readme: str, table: str) -> str:
    """Return a text with the table between its markers. Raises ValueError where they are not there once, in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"expected {BEGIN} and then {END} in the page, once each")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def render(records: list[dict[str, Any]]) -> str:
    """Return the Markdown of all records, suite by suite, and what no GPU has run."""
    parts = [shown(record) for name, shown in RENDERED.items() for record in records if record["suite"] == name]
    if not parts:
        parts = ["No measurements have been recorded yet."]
    return "\n\n".join([*parts, never_on_a_gpu(records)])


def never_on_a_gpu(records: list[dict[str, Any]]) -> str:
    """Say which cases of the gpu suite no record has times of, so that none of them is taken to be known."""
    timed = {case["name"] for record in records for case in record["cases"] if "statistics" in case}
    missing = [case for case in suite("gpu") if case.name not in timed]
    backends = list(dict.fromkeys(case.backend for case in missing))
    if not missing:
        return "Every case of the gpu suite has been timed on a GPU."
    if not timed:
        return f"Never run on a GPU: {', '.join(backends)}. There is no figure for one."
    names = (
        f"{backend} ({'; '.join(_settings(vars(case)) for case in missing if case.backend == backend)})"
        for backend in backends
    )
    return f"Never timed on a GPU: {', '.join(names)}."


def _settings(case: dict[str, Any]) -> str:
    return f"{case['covariance']}, {case['dtype']}, {case['precision']}"


def _pairs(record: dict[str, Any]) -> str:
    """Return the table of a suite of pairs with scikit-learn, and where scikit-learn was the faster one."""
    components = _all({case["k"] for case in record["cases"]})
    dtypes = _all({case["dtype"] for case in record["cases"]})
    backends = _all({case["backend"] for case in record["cases"]})
    passes = _all({case["fit_passes"] for case in record["cases"]})
    about = (
        f"{_machine(record)}, {dtypes}, {components} components, fastclust's backend {backends}, against "
        "scikit-learn's BayesianGaussianMixture on the same rows from the same start. A pass is E-step, M-step and "
        f"bound in the middle of a fit; a fit is a whole one of {passes} passes. Medians of interleaved pairs, the "
        "ratio's smallest and largest in brackets; the error is the largest of any statistic of a pass against the "
        f"float64 oracle. {_rates(record)} {_versions(record)}"
    )
    more = [key for key in ("k", "dtype", "backend") if len({case[key] for case in record["cases"]}) > 1]
    titles = {"k": "components", "dtype": "dtype", "backend": "backend"}
    header = ["covariance", "features", "rows x features", *(titles[key] for key in more)]
    header += ["pass: scikit-learn", "fastclust", "ratio", "fit: scikit-learn", "fastclust", "ratio", "error"]
    rows = []
    for case in record["cases"]:
        cells = [case["covariance"], FEATURES[case["data"]], f"{case['n']:,} x {case['d']}"]
        cells += [str(case[key]) for key in more]
        for part in ("pass", "fit"):
            if part in case:
                ours, theirs, ratio = (case[part][side] for side in ("ours", "theirs", "ratio"))
                times = f"{_number(ratio['median'])} ({_number(ratio['min'])} to {_number(ratio['max'])})"
                cells += [_time(theirs["median"]), _time(ours["median"]), times]
            else:
                why = "wrong" if "refused" in case else f"{case['failed'].partition(':')[0]} failed"
                cells += ["", "", f"not timed: {why}"]
        rows.append([*cells, _error(case)])
    return f"{about}\n\n{_table(header, rows)}{_losses(record)}"


def _losses(record: dict[str, Any]) -> str:
    """Return where scikit-learn was the faster one; nothing where it never was."""
    lost = [
        f"{case['covariance']} {case['n']:,} x {case['d']} ({part} {_number(case[part]['ratio']['median'])})"
        for case in record["cases"]
        for part in ("pass", "fit")
        if part in case and case[part]["ratio"]["median"] < 1
    ]
    return f"\n\nscikit-learn was the faster one at: {', '.join(lost)}." if lost else ""


def _growth(record: dict[str, Any]) -> str:
    """Return the cost of a row by the number of rows, ours and the peers'."""
    first, summary = record["cases"][0], record["growth"]
    peers = list(dict.fromkeys(name for case in record["cases"] for name in case.get("peers", {})))
    timed = [name for name in peers if any(name in case.get("ns_per_row", {}) for case in record["cases"])]
    absent = [name for name in peers if name not in timed]
    backends = _all({case["backend"] for case in record["cases"]})
    about = (
        f"What a pass costs a row, in ns: {first['covariance']}, {FEATURES[first['data']]} {first['dtype']} rows of "
        f"{first['d']}, {first['k']} components, fastclust's backend {backends}. "
    )
    if summary:
        aim = "within" if summary["reached"] else "not within"
        ratio = summary["largest_over_smallest"]
        about += f"The dearest row costs {ratio:.3g} times the cheapest, {aim} the {summary['aim']:g} that is the aim. "
    about += "The floor is what all the products of a pass take; distances that are not finished may beat it. "
    whats = {name: case["peers"][name]["what"] for case in record["cases"] for name in timed if name in case["peers"]}
    about += "".join(f"{name} is {what}. " for name, what in whats.items())
    about += f"Not timed: {', '.join(absent)}. " if absent else ""
    rows = []
    for case in record["cases"]:
        costs = case.get("ns_per_row", {})
        cells = [_cost(costs[name]["median"]) if name in costs else _why(case, name) for name in ("ours", *timed)]
        share = f"{case['pass']['share_of_floor']:.0%}" if "pass" in case else ""
        rows.append([f"{case['n']:,}", *cells, share, _error(case)])
    header = ["rows", "fastclust", *timed, "fastclust's share of the floor", "error"]
    return f"{about}{_machine(record)}. {_rates(record)} {_versions(record)}\n\n{_table(header, rows)}"


def _why(case: dict[str, Any], name: str) -> str:
    """Return in a few words why there is no time."""
    if "refused" in case:
        return "not timed: wrong"
    return str(case["peers"][name]["not_timed"]).partition(":")[0]


def _tiles(record: dict[str, Any]) -> str:
    """Return the time to convergence, both sides'."""
    case = record["cases"][0]
    about = (
        f"From features to a converged mixture: relu1_2 of VGG-19 on eight histology tiles, {case['n']:,} x "
        f"{case['d']} rows, {case['k']} components, {case['covariance']}, "
        "`fastclust.BayesianGaussianMixture` in place of scikit-learn's with the same `random_state` and "
        f"`tol={case['parameters']['tol']:g}`. {_machine(record)}. {_versions(record)}"
    )
    rows = []
    for case in record["cases"]:
        for name, side in (("scikit-learn", case["theirs"]), (f"fastclust, {case['ours']['backend']}", case["ours"])):
            converged = "yes" if side["converged"] else "no"
            bound = f"{side['lower_bound'] / case['n']:.6f}"
            rows.append([case["dtype"], name, _time(side["seconds"]["median"]), str(side["n_iter"]), converged, bound])
        rows[-1][2] += f", {_number(case['ratio'])} times faster"
    return f"{about}\n\n{_table(['rows', '', 'time', 'passes', 'converged', 'bound, nats a row'], rows)}"


def _extraction(record: dict[str, Any]) -> str:
    """Return extraction beside the bare network, and the rates of reading at which stores beat computing again."""
    first = record["cases"][0]
    about = (
        f"From images to a store: {first['images']} photographs, {first['size']} pixels, batches of "
        f"{first['batch_size']}, {first['dtype']}, against the network's forward passes alone on inputs that are "
        "decoded before, with nothing kept. The aim is a stream of at most "
        f"{_all({case['aim'] for case in record['cases'] if 'aim' in case})} times the passes with channels first. "
        f"{_machine(record)}. {_versions(record)}"
    )
    bare = [["model", "layer", "forward alone, an image", "channels last", "extraction", "ratio", "with start", "MB/s"]]
    again = [["model", "layer", "recomputed, an image", "images kept", "stored", "crossover", "store reads"]]
    for case in record["cases"]:
        cells = [case["model"], case["layer"]]
        if "refused" in case:
            (bare if case["kind"] == "bare" else again).append([*cells, "not timed: wrong", *[""] * 4])
            continue
        times = {name: _time(value["median"]) for name, value in case["seconds_per_image"].items()}
        if case["kind"] == "bare":
            ratios = [_ratio(case["ratio"][f"{name}_over_bare"]) for name in ("stream", "total")]
            rate = f"{case['rates']['megabytes_per_second']:.0f}"
            bare.append([*cells, times["bare"], times["bare_channels_last"], times["stream"], *ratios, rate])
        else:
            crossover = case["crossover_megabytes_per_second"]
            cells += [times["with_decoding"], times["images_kept"], f"{case['bytes_per_image'] / 1e6:.3g} MB"]
            cells.append(f"{crossover['with_decoding']:.0f} ({crossover['images_kept']:.0f}) MB/s")
            reads = (f"{value['median']:.0f} {name}" for name, value in case["store_megabytes_per_second"].items())
            again.append([*cells, f"{', '.join(reads)} MB/s"])
    text = f"{about}\n\n{_table(bare[0], bare[1:])}\n\nA layer that is computed on every pass (`--no-store`), and "
    return f"{text}the rate of reading above which a float16 store beats that:\n\n{_table(again[0], again[1:])}"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _scale(record: dict[str, Any]) -> str:
    """Return what rows cost that are not in memory, what fitting a part gives up, and what ImageNet would take."""
    cases, line = record["cases"], record["scale"]
    passes = sorted((case for case in cases if "pass" in case), key=lambda case: (case["n"], case["limit_bytes"] == 0))
    limit = max(case["limit_bytes"] for case in cases)
    about = (
        f"More rows than memory: relu1_2 features of {passes[0]['d']} channels in a float16 store that the system's "
        f"cache holds, {passes[0]['k']} components, diag, in processes that may allocate {limit / 2**30:g} GiB. Passes "
        f"take {line['ns_per_row']:.0f} ns a row, to within {line['largest_deviation']:.0%}; from the store "
        f"{line['stored_over_in_memory']:.2f} times what they take from an array. {_machine(record)}. "
        f"{_rates(record)} {_versions(record)}"
    )
    header = ["rows", "in the store", "before the first pass", "a pass", "ns a row", "GB/s", "peak memory"]
    table = [
        [
            f"{case['n']:,}" + ("" if case["limit_bytes"] else ", in memory"),
            f"{case['nbytes'] / 1e9:.3g} GB",
            _time(case["start_seconds"]),
            _time(case["pass"]["median"]),
            _cost(case["ns_per_row"]),
            f"{case['gbytes_per_second']:.2g}",
            f"{case['peak_memory_bytes'] / 1e9:.2f} GB",
        ]
        for case in passes
    ]
    predicted = _prediction(line["ns_per_row"], passes[0]["d"], passes[0]["k"])
    return f"{about}\n\n{_table(header, table)}\n\n{predicted}"


def _sample(record: dict[str, Any]) -> str:
    """Return what a fit to a part of the rows gives up."""
    fits = [case for case in record["cases"] if "passes" in case]
    (label,) = (case for case in record["cases"] if case["name"] == "label")
    about = (
        f"A fit to all of {label['n']:,} rows of that kind and one to a sample of them (`--rows`); labelling all, with "
        f"its {label['files']:,} pictures, takes {_time(label['seconds'])}. Fits end where a pass gains less than "
        f"{fits[0]['tol']:g} nats a row. {_machine(record)}. {_versions(record)}"
    )
    rows = [
        [
            f"{case['rows_fitted']:,}",
            _time(case["seconds"]),
            str(case["passes"]),
            str(case["clusters_in_use"]),
            f"{case['lower_bound_per_row']:.3f}",
            f"{case['score']['lower_bound_after_one_pass']:.3f}",
            f"{case['score']['log_density_per_row']:.3f}",
        ]
        for case in fits
    ]
    header = [
        "rows fitted",
        "time",
        "passes",
        "clusters",
        "bound a row",
        "after a pass over all",
        "log-density a row of all",
    ]
    return f"{about}\n\n{_table(header, rows)}"


def _prediction(ns: float, d: int, k: int) -> str:
    """Say what a pass over ImageNet's validation set would take, by the straight line here and by floors elsewhere."""
    rows = 50_000 * 224 * 224
    size, flop = 2 * d * rows, 8 * rows * d * k
    one = max(size / H200["host_bytes_per_second"], flop / H200["flop_per_second"])
    eight = max(size / 8 / H200["bytes_per_second"], flop / 8 / H200["flop_per_second"])
    return (
        f"*Predicted, not measured*: ImageNet's 50,000 validation images are {rows / 1e9:.2g} billion such rows, "
        f"{size / 1e9:.0f} GB. By the line above a pass here would take {_time(ns * rows / 1e9)}. On an H200, by its "
        f"data sheet ({H200['flop_per_second'] / 1e12:.0f} TFLOP/s in float32, "
        f"{H200['bytes_per_second'] / 1e12:.2g} TB/s, {H200['host_bytes_per_second'] / 1e9:.0f} GB/s from the host) "
        f"and if nothing else took time, {_time(one)}, since the rows do not fit its memory; on eight, where they do, "
        f"{_time(eight)} (`torchrun --nproc-per-node 8`). No GPU has run this."
    )


H200 = {"flop_per_second": 67e12, "bytes_per_second": 4.8e12, "host_bytes_per_second": 64e9}  # PCIe 5.0 x 16


def _gpu(record: dict[str, Any]) -> str:
    """Return what a card did, case by case, and which backends' tests failed."""
    card, first = record["card"] or {}, record["cases"][0]
    name = card.get("name") or record["machine"]["devices"][0]["name"]
    products = record["matrix_products_gflop_per_second"]
    each = ", ".join(f"{rate / 1e3:.3g} in {dtype}" for dtype, rate in products.items())
    tests = "; ".join(
        f"{backend} {counts['passed']} passed, {counts['failed']} failed" for backend, counts in record["tests"].items()
    )
    about = (
        f"{name}, driver {card.get('driver_version', 'unknown')}. It copies {record['copy_gbytes_per_second']:.0f} "
        f"GB/s, reads {record['read_gbytes_per_second']:.0f} and multiplies matrices at {each} TFLOP/s. The floor has "
        "each product once, at the largest rate; the one with split products has them as often as numbers in two parts "
        f"need. A pass is E-step and sums over {first['d']} features and {first['k']} components. Tests: {tests}. "
        f"{_versions(record)}"
    )
    header = ["covariance", "rows", "backend", "precision", "pass", "GB/s", "TFLOP/s", "of the floor"]
    header += ["with split products", "against torch", "error"]
    rows = []
    for case in record["cases"]:
        cells = [case["covariance"], f"{case['n']:,} {case['dtype']}", case["backend"], case["precision"]]
        if "statistics" in case:
            cells += [_time(case["statistics"]["median"]), f"{case['gbytes_per_second']:.0f}"]
            cells += [f"{case['gflop_per_second'] / 1e3:.3g}", f"{case['share_of_floor']:.0%}"]
            cells.append(f"{case['share_of_split_floor']:.0%}")
            cells.append(f"{_number(case['times_torch'])} times" if "times_torch" in case else "")
        else:
            why = next(key for key in ("refused", "failed", "left_out") if key in case)
            cells += [why.replace("_", " "), "", "", "", "", ""]
        rows.append([*cells, _error(case)])
    return f"{about}\n\n{_table(header, rows)}"


RENDERED: dict[str, Callable[[dict[str, Any]], str]] = {  # in the order of the README
    "tiles": _tiles,
    "extraction": _extraction,
    "scale": _scale,
    "sample": _sample,
    "growth": _growth,
    "cpu": _pairs,
    "sweep": _pairs,
    "gpu": _gpu,
    "quick": _pairs,
}


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" if cells[0] != "---" else f"|{'|'.join(cells)}|" for cells in lines)


def _machine(record: dict[str, Any]) -> str:
    return f"{record['machine']['cpu']}, {record['machine']['cores']} cores"


def _rates(record: dict[str, Any]) -> str:
    return (
        f"This machine multiplies matrices at {record['matrix_product_gflop_per_second']:.0f} GFLOP/s and copies at "
        f"{record['copy_gbytes_per_second']:.0f} GB/s."
    )


def _versions(record: dict[str, Any]) -> str:
    versions = record["machine"]["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("scikit-learn", "torch", "numpy"))
    return f"{named}; commit {_commit(record['commit'])}, {record['date']}."


def _error(case: dict[str, Any]) -> str:
    return f"{max(case['errors'].values()):.0e}" if "errors" in case else ""


def _cost(ns: float) -> str:
    return f"{ns:,.0f}" if ns >= 99.5 else f"{ns:.3g}"


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

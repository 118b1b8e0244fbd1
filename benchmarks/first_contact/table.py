"""What a run found, for reading: failures and details first, and last a table of predicted, measured and ratio."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.first_contact import predictions
from benchmarks.first_contact.predictions import Interval, Machine

Records = list[dict[str, Any]]
BAD = ("raised", "failed", "refused")
FAILING, LINES, WIDTH = 14, 40, 150  # of tests and of a section that are shown, and characters
COUNTERS = ("gpu__time_duration", "pipe_tensor", "issue_active", "dram__throughput", "warps_active", "registers_per")


def brief(record: dict[str, Any]) -> str | None:
    """Return a result in a few words, for who watches; None for what says little by itself."""
    for why in ("raised", "failed", "left_out"):
        if why in record:
            return f"{why.replace('_', ' ').upper()}: {record[why]}"
    if record.get("ended", "well") != "well":
        return str(record["ended"])
    if "error" in record and "limit" in record:
        return f"error {record['error']:.1e} {'ok' if record['right'] else 'WRONG'}"
    if "failing" in record:
        return f"FAILING {record['failing']}: {record.get('error', '')}"
    if "counts" in record:
        return _said(record["counts"])
    if "statistics" in record:
        return f"{record['case']}: {record['statistics']['median'] * 1e3:.4g} ms"
    for unit in ("gbytes_per_second", "gflop_per_second", "images_per_second", "ms", "lost_x"):
        if unit in record:
            what = record.get("rate") or record.get("what") or record.get("case")
            return f"{what} {_variant(record)}: {record[unit]:.4g} {unit}"
    return None


def table(records: Records) -> str:
    """Return everything worth reading first, in lines; whatever of it cannot be made says why."""
    parts = []
    for name, section in (
        ("jobs that did not end well", _ended), ("kernels on few rows", _smoke), ("tests", _tests),
        ("counters", _counters), ("other tiles, ms", _ablations), ("sums over all rows", _sums),
        ("profile", _profile), ("rates", _rates), ("predicted and measured", _predicted),
    ):  # fmt: skip
        try:
            lines = [line[:WIDTH] for line in section(records)]
        except Exception as error:  # a result that is not as expected must not take the others with it
            lines = [f"cannot be shown: {type(error).__name__}: {error}"]
        if lines:
            parts.append("\n".join([f"-- {name}", *lines[:LINES]]))
    return "\n".join(parts)


def _of(records: Records, stage: str, key: str | None = None) -> Records:
    return [one for one in records if one.get("stage") == stage and (key is None or key in one)]


def _variant(record: dict[str, Any]) -> str:
    given = record.get("variant", "")
    return given if isinstance(given, str) else " ".join(f"{name} {value}" for name, value in given.items())


def _ended(records: Records) -> Iterator[str]:
    for one in records:
        why = one.get("raised") or (one["ended"] if one.get("ended", "well") != "well" else None)
        if why and one.get("stage") != "tests":
            yield f"{one.get('stage')} {one.get('job', '')}: {why}"
    for one in _of(records, "about", "failed"):
        yield f"import of {one.get('module')}: {one['failed']}"


def _smoke(records: Records) -> Iterator[str]:
    done = _of(records, "smoke", "right")
    if done:
        worst = max(done, key=lambda one: one["error"] / one["limit"])
        yield f"{sum(one['right'] for one in done)} of {len(done)} right; nearest its limit: {worst['job']} " + (
            f"{worst['error']:.1e} of {worst['limit']:.0e}"
        )
        yield from (f"WRONG {one['job']}: {_errors(one)}" for one in done if not one["right"])
    left = _of(records, "smoke", "left_out")
    if left:
        yield f"left out: {', '.join(sorted({one['left_out'] for one in left}))}"


def _errors(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in record["errors"].items())


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count or name == "passed")


def _tests(records: Records) -> Iterator[str]:
    for job in dict.fromkeys(one["job"] for one in _of(records, "tests") if "job" in one):
        own = [one for one in _of(records, "tests") if one.get("job") == job]
        counts = next((one[key] for one in reversed(own) for key in ("counts", "so_far") if key in one), None)
        ended = next((one["ended"] for one in own if "ended" in one), "not ended")
        yield f"{job}: {_said(counts) if counts else 'no test'}{'' if ended == 'well' else f'; {ended}'}"
    failing = _of(records, "tests", "failing")
    for one in failing[:FAILING]:
        times = f" {one['times']} times the limit" if "times" in one else ""
        yield f"  {one['failing'].rpartition('/')[2]}{times}: {one.get('error', '')}"
    if len(failing) > FAILING:
        yield f"  and {len(failing) - FAILING} more"


def _counters(records: Records) -> Iterator[str]:
    for one in _of(records, "ncu", "counters"):
        some = {name: value for name, value in one["counters"].items() if any(part in name for part in COUNTERS)}
        stalls = {name: value for name, value in one["counters"].items() if "stalled" in name}
        some |= dict(sorted(stalls.items(), key=lambda each: -_number(each[1]))[:2])
        names = (re.sub(r"^[a-z0-9]+__|[.](avg|sum|pct)[a-z_.]*", "", name) for name in some)
        each = (f"{name} {value}" for name, value in zip(names, some.values(), strict=True))
        yield f"{one['job']} {one['kernel'][:30]}: {'; '.join(each)}"
    yield from _why(_of(records, "ncu"))


def _number(text: str) -> float:
    found = re.match(r"[\d.,]+", text)
    return float(found[0].replace(",", "")) if found else 0.0


def _ablations(records: Records) -> Iterator[str]:
    done = _of(records, "ablations", "ms")
    for case in dict.fromkeys(one["case"] for one in done):
        own = {_variant(one): one["ms"] for one in done if one["case"] == case}
        yield f"{case}: {', '.join(f'{name} {ms:.4g}' for name, ms in own.items())}"
    yield from _why(_of(records, "ablations"))


def _why(records: Records) -> Iterator[str]:
    """Say once each why things were left out or failed."""
    found: dict[str, int] = {}
    for one in records:
        for why in ("left_out", "failed"):
            if why in one:
                text = f"{why.replace('_', ' ')}: {one[why]}"
                found[text] = found.get(text, 0) + 1
    yield from (f"{count} {text}" for text, count in found.items())


def _sums(records: Records) -> Iterator[str]:
    for one in _of(records, "sums", "lost_x"):
        bias = {name: value for name, value in one.get("bias", {}).items() if value is not None}
        text = f"{one['job'].partition(' ')[0]} {one['case']} {_variant(one)}: lost x {one['lost_x']:.1e}"
        text += f", x^2 {one['lost_xx']:.1e}" if one["lost_xx"] is not None else ""
        if bias:
            each = ", ".join(f"{name} {value:+.1e}" for name, value in bias.items())
            text += f"; bias {each} (truncation would make it {predictions.BIAS:+.1e})"
        yield text
    yield from _why(_of(records, "sums"))


def _profile(records: Records) -> Iterator[str]:
    for one in _of(records, "profile", "most"):
        most = ", ".join(f"{name[:28]} {ms:.3g}" for name, ms in list(one["most"].items())[:4])
        text = f"{one['job']}: a pass is {one['launches']:.0f} launches of {one['kernels']:.0f} kernels"
        yield f"{text}, {one['ms']:.4g} ms, {one['idle']:.0%} idle; {most}"
    yield from _why(_of(records, "profile"))


def _rates(records: Records) -> Iterator[str]:
    found = {one["rate"]: one for one in _of(records, "ceilings", "rate")}
    each = [f"{name} {one['gbytes_per_second']:.0f} GB/s" for name, one in found.items() if "gbytes_per_second" in one]
    each += [f"{name} {one['gflop_per_second'] / 1e3:.4g} TFLOP/s" for name, one in found.items()
             if "gflop_per_second" in one]  # fmt: skip
    if each:
        yield ", ".join(each) + f"; {machine_of(records).clock / 1e9:.2f} GHz"
    yield from _why(_of(records, "hosts"))


def machine_of(records: Records) -> Machine:
    """Return the clock, multiprocessors and bandwidth that were measured, and the H100's where they were not."""
    found: dict[str, Any] = {}
    for one in _of(records, "ceilings", "clock_after"):
        clock = _number(str((one.get("card") or {}).get("clocks.sm", "")))
        if one["clock_after"] in ("tf32", "bfloat16") and clock:
            found["clock"] = clock * 1e6
    for one in _of(records, "about", "multiprocessors"):
        found["multiprocessors"] = one["multiprocessors"]
    rates = [one["gbytes_per_second"] for one in _of(records, "ceilings", "gbytes_per_second")]
    return Machine(**found, **({"bandwidth": max(rates) * 1e9} if rates else {}))


def _predicted(records: Records) -> Iterator[str]:
    yield from _why(_of(records, "headline"))
    on_card = any(one.get("options", {}).get("device") == "cuda" for one in records)
    yield f"{'':38} {'predicted':>15} {'measured':>9} {'ratio':>6} {'floor':>6} {'split':>6}  error"
    for what, expected, value, more in _rows(records):
        if expected is None or not on_card:  # predictions are of a card
            yield f"{what:38} {'':15} {value:9.4g} {'':6} {more}"
        else:
            low, high = expected
            off = value / high if value > high else value / low if value < low else 1.0
            yield f"{what:38} {f'{low:.3g} to {high:.3g}':>15} {value:9.4g} {off:6.2f} {more}"


def _rows(records: Records) -> Iterable[tuple[str, tuple[float, float] | None, float, str]]:
    """Yield what was measured, from and to what it was predicted, the measurement, and more about it."""
    machine, rates = machine_of(records), {one["rate"]: one for one in _of(records, "ceilings", "rate")}
    for one in _of(records, "headline", "statistics"):
        name, value = f"{one['backend']} {one['case']}", one["statistics"]["median"] * 1e3
        kind, rows = one["case"].partition(" ")[0], one.get("n")
        expected = predictions.of_pass(name, kind, rows or predictions.ROWS[kind], machine)
        yield f"{name}, ms", expected, value, _floors(one, value, rates)
        if "assign" in one:
            yield f"{name}, assign", None, one["assign"]["median"] * 1e3, ""
        if "pass" in one:
            whole = _interval(predictions.WHOLE_PASS, machine) if name == "triton diag float32 high" else None
            yield f"{name}, whole pass", whole, one["pass"]["median"] * 1e3, ""
    for one in _of(records, "profile", "launches"):
        own = _interval(predictions.LAUNCHES, machine) if one["job"] == "triton diag" else None
        yield f"{one['job']}, launches a pass", own, one["launches"], f"{one['idle']:.0%} idle"
    for one in _of(records, "hosts", "what"):
        for unit, said in (("gbytes_per_second", "GB/s"), ("images_per_second", "images/s")):
            if unit in one:
                known = predictions.HOSTS.get(one["what"])
                yield f"{one['what']}, {said}", _interval(known, machine) if known else None, one[unit], ""


def _interval(given: Interval, machine: Machine) -> tuple[float, float]:
    times = machine.slower if given.scaled else 1.0
    return given.low * times, given.high * times


def _floors(record: dict[str, Any], ms: float, rates: dict[str, Any]) -> str:
    """Return the shares of both floors, where the rates are known, and the worst error, marked if it is too large."""
    text = f"{'':13}"
    if "flop" in record and {"copy", "read", "tf32", "bfloat16", "float16"} <= set(rates):
        memory = record["bytes"] / max(rates[name]["gbytes_per_second"] for name in ("copy", "read"))
        best = max(one["gflop_per_second"] for one in rates.values() if "gflop_per_second" in one)
        split = rates["tf32" if record["precision"] == "high" else "bfloat16"]["gflop_per_second"]
        floors = (max(memory, record["flop"] / best), max(memory, record["split_flop"] / split))
        text = " ".join(f"{floor * 1e-6 / ms:6.0%}" for floor in floors)
    if "errors" in record:
        text += f"  {max(record['errors'].values()):.1e}{' WRONG' * ('refused' in record)}"
    return text if record.get("repeatable", True) else f"{text} NOT REPEATABLE"

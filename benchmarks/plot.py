"""Draw the seconds of a pass against the rows, from the records: `python -m benchmarks.plot` writes .github/growth.svg.

It is a picture of the first record of the growth suite, or, where there is none, of the diag cases of the first one of
"cpu" that differ in their rows alone. Both axes are logarithmic, so that a cost per row that is constant is a straight
line of slope one. Colours follow the reader's light or dark scheme, background included.

.github/detection.png, where there is a record of the detection suite, is `benchmarks.findings.detection.draw`'s.
"""

from __future__ import annotations

import math
import sys
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.findings import detection
from benchmarks.table import README, load

SVG = README.parent / ".github" / "growth.svg"
DETECTION = SVG.with_name("detection.png")
WIDTH, HEIGHT = 880, 470
LEFT, RIGHT, TOP, BOTTOM = 84, 200, 64, 62  # margins
SPACING = 17  # of labels, from one to the next at least
LIGHT = {"page": "#ffffff", "text": "#1f2328", "quiet": "#59636e", "grid": "#e3e7eb"}
DARK = {"page": "#0d1117", "text": "#f0f6fc", "quiet": "#9198a1", "grid": "#262c36"}
COLOURS = {  # light, dark
    "fastclust": ("#0969da", "#58a6ff"),
    "scikit-learn": ("#bc4c00", "#f0883e"),
    "torch": ("#1b7c83", "#39c5cf"),
    "pomegranate": ("#8250df", "#bc8cff"),
    "torchgmm": ("#1a7f37", "#3fb950"),
    "gmmx": ("#bf3989", "#f778ba"),
    "floor": ("#59636e", "#9198a1"),
}
LABELS = {"floor": "floor of this machine", "torch": "plain torch"}

Series = dict[str, dict[int, float]]


def main() -> int:
    """Write the picture."""
    records = load()
    SVG.write_text(draw(*chosen(records)))
    print(f"wrote {SVG.name}")
    for record in records:
        if record["suite"] == "detection":
            detection.draw(record, DETECTION)
            print(f"wrote {DETECTION.name}")
    return 0


def chosen(records: list[dict[str, Any]]) -> tuple[Series, str]:
    """Return what is drawn, seconds of a pass by rows of each line, and of what machine and mixture it is.

    Raises ValueError where no record has two numbers of rows.
    """
    for name in ("growth", "cpu"):
        for record in records:
            if record["suite"] != name:
                continue
            found = series(record)
            if len(found.get("fastclust", {})) > 1:
                case = next(case for case in record["cases"] if _drawn(case))
                machine = f"{record['machine']['cpu']}, {record['machine']['cores']} cores"
                mixture = f"{case['covariance']}, {case['d']} features, {case['k']} components"
                return found, f"{mixture}; {machine}; fastclust's backend {case['backend']}"
    raise ValueError("no record of the growth or the cpu suite has passes over two numbers of rows")


def _drawn(case: dict[str, Any]) -> bool:
    kind = (case["data"], case["covariance"], case["d"], case["k"], case["dtype"])
    return kind == ("relu", "diag", 64, 50, "float32") and "pass" in case


def series(record: dict[str, Any]) -> Series:
    """Return the lines of a record, by name; the floor is the machine's (`cases.FORMULAE`)."""
    found: Series = {}
    for case in sorted(filter(_drawn, record["cases"]), key=lambda case: int(case["n"])):
        seconds = {"fastclust": case["pass"]["ours"]["median"], "floor": case["pass"].get("floor_seconds")}
        if "theirs" in case["pass"]:
            seconds["scikit-learn"] = case["pass"]["theirs"]["median"]
        for name, peer in case.get("peers", {}).items():
            seconds[name] = peer.get("seconds", {}).get("median")
        for name, value in seconds.items():
            if value is not None:
                found.setdefault(name, {})[case["n"]] = value
    return found


def draw(lines: Series, of_what: str) -> str:
    """Return the SVG of some lines."""
    rows = [n for line in lines.values() for n in line]
    times = [second for line in lines.values() for second in line.values()]
    x_low, x_high = math.log10(min(rows)), math.log10(max(rows))
    y_low, y_high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(n: float) -> float:
        return round(LEFT + (right - LEFT) * (math.log10(n) - x_low) / (x_high - x_low), 1)

    def y(second: float) -> float:
        return round(bottom - (bottom - TOP) * (math.log10(second) - y_low) / (y_high - y_low), 1)

    parts = [f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>']
    parts.append(_text(LEFT, 28, "title", "Time of a pass over the rows"))
    parts.append(_text(LEFT, 48, "quiet", of_what))
    for power in range(y_low, y_high + 1):
        at = y(10**power)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at}" x2="{right}" y2="{at}"/>')
        parts.append(_text(LEFT - 10, at + 4, "quiet end", _time(power)))
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        at = x(10**power)
        parts.append(f'<line class="grid" x1="{at}" y1="{TOP}" x2="{at}" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 20, "quiet middle", f"{10**power:,}"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 16, "text middle", "rows"))
    middle = (TOP + bottom) / 2
    parts.append(f'<text class="text middle" transform="translate(20 {middle}) rotate(-90)">seconds a pass</text>')
    names = sorted(lines, key=lambda name: name == "fastclust")  # the last one lies on top
    for name in names:
        points = " ".join(f"{x(n)},{y(second)}" for n, second in lines[name].items())
        parts.append(f'<polyline class="line {name}" points="{points}"/>')
        if name != "floor":
            parts += [f'<circle class="dot {name}" cx="{x(n)}" cy="{y(t)}" r="3.5"/>' for n, t in lines[name].items()]
    for n in sorted(set(map(max, lines.values()))):  # a label stands where its line ends
        ends = {name: y(line[n]) for name, line in lines.items() if max(line) == n}
        for name, at in apart(ends).items():
            parts.append(_text(x(n) + 11, at + 4.5, f"label {name}", LABELS.get(name, name)))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="Seconds a pass against rows, {escape(of_what)}">\n'
        f"<style>\n{style()}\n</style>\n{body}\n</svg>\n"
    )


def apart(ends: dict[str, float]) -> dict[str, float]:
    """Return heights for labels at least SPACING apart, in the order of the lines' ends and close to them."""
    found: dict[str, float] = {}
    order = sorted(ends, key=lambda name: ends[name])
    for name in order:
        found[name] = max([ends[name], *(at + SPACING for at in list(found.values())[-1:])])
    below = max(0.0, max(found.values()) - (HEIGHT - BOTTOM))
    return {name: at - below for name, at in found.items()}


def style() -> str:
    """Return the style sheet: one set of rules, and the colours of both schemes."""
    rules = [
        "text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }",
        ".title { font-size: 16px; font-weight: 600; }",
        ".label { font-size: 14px; paint-order: stroke; stroke-width: 5; stroke-linejoin: round; }",
        ".label.fastclust { font-weight: 600; }",
        ".middle { text-anchor: middle; } .end { text-anchor: end; }",
        ".line { fill: none; stroke-width: 2; } .line.fastclust { stroke-width: 3.5; }",
        ".line.floor { stroke-dasharray: 6 5; stroke-width: 1.5; }",
    ]
    dark = "\n".join(f"  {rule}" for rule in _colours(DARK, 1))
    return "\n".join([*rules, *_colours(LIGHT, 0), f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}"])


def _colours(scheme: dict[str, str], place: int) -> list[str]:
    return [
        f".page {{ fill: {scheme['page']}; }} .label {{ stroke: {scheme['page']}; }}",
        f".grid {{ stroke: {scheme['grid']}; }}",
        f".text, .title {{ fill: {scheme['text']}; }} .quiet {{ fill: {scheme['quiet']}; }}",
        *(
            f".line.{name} {{ stroke: {pair[place]}; }} .dot.{name}, .label.{name} {{ fill: {pair[place]}; }}"
            for name, pair in COLOURS.items()
        ),
    ]


def _text(x: float, y: float, kind: str, text: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def _time(power: int) -> str:
    return f"{10**power:g} s" if power >= 0 else f"{10 ** (power + 3):g} ms"


if __name__ == "__main__":
    sys.exit(main())

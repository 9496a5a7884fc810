"""Results: a table for the terminal, JSON, and a Markdown report with a plot."""

import json
from html import escape
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 360, 80, 40
_COLOURS = ("#1f6feb", "#d1242f", "#2da44e", "#9a6700", "#8250df")
_HIDDEN = {"curve", "metrics", "references", "load", "cores", "checks"}


def write_json(result: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(result, indent=2) + "\n")


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    columns = [result, *result.get("references", {}).values()]
    names = [name for name in result if name not in _HIDDEN and not isinstance(result[name], dict | list)]
    return [(name, *(_text(column.get(name, "")) for column in columns)) for name in names]


def _text(value: object) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def as_table(result: dict[str, Any]) -> str:
    """Names on the left, one column per server."""
    rows = _rows(result)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    checks = result.get("checks")
    if checks:
        lines.append(
            f"checked {checks['clients']} clients: {checks['updates']} updates, "
            f"{checks['digests_passed']} digests right, {checks['digests_failed']} wrong, "
            f"{checks['broken_chains']} broken chains"
        )
    return "\n".join(lines)


def write_report(result: dict[str, Any], file: Path) -> None:
    """Markdown at ``file``, its plots beside it."""
    columns = [result, *result.get("references", {}).values()]
    header = ["", *(str(column.get("server", "")) for column in columns)]
    lines = [f"# depthcast loadtest {result['scenario']}", ""]
    if "load" in result:
        lines += [", ".join(f"{name} {value}" for name, value in result["load"].items()), ""]
    lines += [_markdown(header), _markdown(["---"] * len(header)), *(_markdown(list(row)) for row in _rows(result))]
    for name, (title, svg) in _plots(result, columns).items():
        picture = file.with_name(f"{file.stem}{name}.svg")
        picture.write_text(svg)
        lines += ["", f"![{title}]({picture.name})"]
    file.write_text("\n".join(lines) + "\n")


def _plots(result: dict[str, Any], columns: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By the end of the file's name: (title, SVG) of all that the result has to show."""
    plots = {}
    curves = {str(column["server"]): column["curve"] for column in columns if column.get("curve")}
    if curves:
        plots[""] = ("latency by quantile", latency_plot(curves))
    if samples := result.get("rss_samples_kib"):
        points = [(seconds, kib / 1024) for seconds, kib in samples]
        ticks = [(0.0, "0 s"), (points[-1][0], f"{points[-1][0]:.0f} s")]
        plots["-memory"] = ("memory over time", plot({str(result["server"]): points}, ticks, "MiB"))
    searches = {str(column["server"]): column["steps"] for column in columns if column.get("steps")}
    if searches:
        lines = {name: sorted((s["deliveries_per_s"], s["p99_ms"]) for s in steps) for name, steps in searches.items()}
        top = max(x for line in lines.values() for x, _ in line) or 1.0
        ticks = [(top * i / 4, f"{top * i / 4 / 1e3:,.0f}k/s") for i in range(5)]
        plots["-rates"] = ("p99 by rate", plot(lines, ticks, "ms"))
    return plots


def _markdown(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def latency_plot(curves: dict[str, list[tuple[float, float]]]) -> str:
    """An SVG: milliseconds over the quantile, on an axis of nines."""
    ticks = [(float(nines), label) for nines, label in enumerate(("0", "90 %", "99 %", "99.9 %", "99.99 %"))]
    points = {name: [(step / 10, ms) for step, (_, ms) in enumerate(curve)] for name, curve in curves.items()}
    return plot(points, ticks, "ms")


def plot(curves: dict[str, list[tuple[float, float]]], ticks: list[tuple[float, str]], unit: str) -> str:
    """An SVG: lines over an axis with these (place, label), whose first and last are its ends."""
    top = max((y for curve in curves.values() for _, y in curve), default=1.0) * 1.05 or 1.0
    right, bottom = _WIDTH - 20, _HEIGHT - _BOTTOM
    first, last = ticks[0][0], ticks[-1][0]

    def across(place: float) -> float:
        return _LEFT + (place - first) / (last - first) * (right - _LEFT)

    def up(value: float) -> float:
        return bottom - value / top * (bottom - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for place, label in ticks:
        x = f"{across(place):.1f}"
        parts.append(f'<line x1="{x}" y1="20" x2="{x}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    for step in range(5):
        value = top * step / 4
        y = up(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g} {unit}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        colour = _COLOURS[i % len(_COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_LEFT + 12}" y="{36 + 16 * i}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"

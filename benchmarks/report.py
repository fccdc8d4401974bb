"""Tables and a plot from the measurements of `benchmarks.compare`.

    python -m benchmarks.report DIR          # again from DIR/results.jsonl

Of each row the median of the rounds counts; its ratio is the peer's time over that of megafs in the
same run, so above 1 means that megafs took less.
"""

from __future__ import annotations

import json
import sys
from html import escape
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

Result = dict[str, Any]
SUBJECT = "megafs"
COLOURS = ("#0b6", "#36c", "#69f", "#c60", "#888", "#a3a", "#a55", "#0aa")


def _ordered(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _median(results: list[Result], line: str, row: str, peer: str, what: str) -> float | None:
    found = [
        r[what]
        for r in results
        if (r["line"], r["row"], r["peer"]) == (line, row, peer) and what in r
    ]
    return median(found) if found else None


def _failure(results: list[Result], line: str, row: str, peer: str) -> str:
    for r in results:
        if (r["line"], r["row"], r["peer"]) == (line, row, peer) and "failed" in r:
            return str(r["failed"])
    return ""


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cell(results: list[Result], line: str, row: str, peer: str) -> str:
    seconds = _median(results, line, row, peer, "seconds")
    if seconds is None:
        return "failed" if _failure(results, line, row, peer) else "-"
    ours = _median(results, line, row, SUBJECT, "seconds")
    if peer == SUBJECT or ours is None:
        return _time(seconds)
    return f"{_time(seconds)} ({seconds / max(ours, 1e-6):.2g}x)"


def table(results: list[Result], facts: dict[str, Any]) -> str:
    """All of it in Markdown."""
    parts = [", ".join(f"{name}: {value}" for name, value in facts.items()), ""]
    for line in _ordered([r["line"] for r in results]):
        here = [r for r in results if r["line"] == line]
        peers = _ordered([SUBJECT, *(r["peer"] for r in here)])
        rows = _ordered([r["row"] for r in here if "seconds" in r])
        parts += [f"### {line}", ""]
        parts += ["| | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
        for row in rows:
            cells = [_cell(here, line, row, peer) for peer in peers]
            parts.append(f"| {row} | " + " | ".join(cells) + " |")
        for row in _ordered([r["row"] for r in here if "mib" in r]):
            memory = [_median(here, line, row, peer, "mib") for peer in peers]
            cells = ["-" if m is None else f"{m:.0f} MiB" for m in memory]
            parts.append(f"| {row} | " + " | ".join(cells) + " |")
        parts += ["", "CPU seconds / requests / MiB on the line:", ""]
        parts += ["| | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
        for row in rows:
            cells = [_costs(here, line, row, peer) for peer in peers]
            parts.append(f"| {row} | " + " | ".join(cells) + " |")
        parts.append("")
    failures = _ordered(
        [f"- {r['line']}, {r['peer']}, {r['row']}: {r['failed']}" for r in results if "failed" in r]
    )
    if failures:
        parts += ["### Failed", "", *failures, ""]
    return "\n".join(parts)


def _costs(results: list[Result], line: str, row: str, peer: str) -> str:
    cpu = _median(results, line, row, peer, "cpu")
    if cpu is None:
        return "-"
    requests = _median(results, line, row, peer, "requests")
    if requests is None:
        return f"{cpu:.2f}"
    moved = sum(_median(results, line, row, peer, way) or 0 for way in ("sent", "received"))
    return f"{cpu:.2f} / {requests:.0f} / {moved / (1 << 20):.1f}"


def plot(results: list[Result]) -> str:
    """An SVG: one band a row, a dot for each peer at its ratio, on a logarithmic scale."""
    keys = _ordered([f"{r['line']}\0{r['row']}" for r in results if "seconds" in r])
    peers = [p for p in _ordered([r["peer"] for r in results]) if p != SUBJECT]
    left, width, height = 380, 620, 18
    top = 50
    low, high = -2.0, 3.0

    def at(ratio: float) -> float:
        return left + (min(max(log10(ratio), low), high) - low) / (high - low) * width

    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 20}"'
            f' height="{top + height * len(keys) + 20}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="{left}" y="14">time of the peer / time of megafs'
            " (right of 1: megafs took less)</text>"
        ),
    ]
    bottom = top + height * len(keys)
    for power in range(int(low), int(high) + 1):
        x = at(10.0**power)
        out.append(
            f'<line x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{bottom}"'
            f' stroke="{"#000" if power == 0 else "#ddd"}"/>'
            f'<text x="{x:.1f}" y="{top - 10}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for n, peer in enumerate(peers):
        x, y = 8.0 + 120 * (n % 3), 14.0 + 14 * (n // 3)
        out.append(
            f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[n + 1]}"/>'
            f'<text x="{x + 8}" y="{y}">{escape(peer)}</text>'
        )
    for number, key in enumerate(keys):
        line, row = key.split("\0")
        y = top + height * number + height / 2
        out.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(f"{row} ({line})")}</text>'
        )
        ours = _median(results, line, row, SUBJECT, "seconds")
        for n, peer in enumerate(peers):
            theirs = _median(results, line, row, peer, "seconds")
            if ours and theirs:
                out.append(
                    f'<circle cx="{at(theirs / ours):.1f}" cy="{y}" r="4"'
                    f' fill="{COLOURS[n + 1]}"><title>{escape(peer)}: {theirs / ours:.2f}</title>'
                    "</circle>"
                )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main(directory: Path) -> None:
    with (directory / "results.jsonl").open() as file:
        results = [json.loads(line) for line in file]
    (directory / "plot.svg").write_text(plot(results))
    print(table(results, {"measurements": len(results)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

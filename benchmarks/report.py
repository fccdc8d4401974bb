"""Tables and a plot from the measurements of `benchmarks.compare`.

    python -m benchmarks.report DIR [DIR2 ...] [--before DIR]

The measurements of several directories count together, as rounds of one run.  Writes DIR/plot.svg
and prints the table.  --before: megafs as it was measured there, in a column of its own.

Of each row the median of the rounds counts; its ratio is the peer's time over that of megafs in the
same run, so above 1 means that megafs took less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html import escape
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

Result = dict[str, Any]
SUBJECT = "megafs"
BEFORE = "megafs before"
COLOURS = ("#0b6", "#36c", "#69f", "#c60", "#888", "#a3a", "#a55", "#0aa")
#: Where the rows of `SMALL` should be this many times ahead of the rivals.
FAR, GOAL = "20ms", 10
#: Groups of small files and metadata.
SMALL = ("small", "tree", "programs")


def _ordered(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _median(results: list[Result], line: str, row: str, peer: str, what: str) -> float | None:
    found = [
        r[what]
        for r in results
        if (r.get("line"), r.get("row"), r.get("peer")) == (line, row, peer) and what in r
    ]
    return median(found) if found else None


def _failure(results: list[Result], line: str, row: str, peer: str) -> str:
    for r in results:
        if (r.get("line"), r.get("row"), r.get("peer")) == (line, row, peer) and "failed" in r:
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


def rivals(results: list[Result]) -> list[str]:
    """The peers that encrypt and keep their data in a store, as megafs does."""
    return _ordered(
        [
            r["peer"]
            for r in results
            if "note" in r and r["encrypts"] and r["store"] == "s3" and r["peer"] != SUBJECT
        ]
    )


def _against(
    results: list[Result], line: str, row: str, below: float
) -> tuple[float, list[tuple[str, float]]]:
    """The time of megafs, and the rivals whose ratio is *below*, the fastest first."""
    ours = _median(results, line, row, SUBJECT, "seconds")
    found = []
    for peer in rivals(results):
        theirs = _median(results, line, row, peer, "seconds")
        if ours is not None and theirs is not None and theirs / max(ours, 1e-6) < below:
            found.append((peer, theirs))
    return ours or 0.0, sorted(found, key=lambda pair: pair[1])


def behind(results: list[Result]) -> list[str]:
    """The rows where megafs takes longer than a rival, or fails and the rival does not."""
    lines = []
    for line, row in _rows(results):
        ours, found = _against(results, line, row, 1.0)
        if found:
            said = ", ".join(f"{p} {_time(t)} ({t / max(ours, 1e-6):.2g}x)" for p, t in found)
            lines.append(f"- {line}, {row}: {_time(ours)}; {said}")
        elif _failure(results, line, row, SUBJECT) and not ours:
            did = [p for p in rivals(results) if _median(results, line, row, p, "seconds")]
            if did:
                lines.append(f"- {line}, {row}: failed; {', '.join(did)} did it")
    return lines


def not_far_ahead(results: list[Result]) -> list[str]:
    """The rows of small files and metadata, at `FAR`, less than `GOAL` times ahead of a rival."""
    lines = []
    for line, row in _rows(results):
        groups = [r.get("group") for r in results if (r.get("line"), r.get("row")) == (line, row)]
        if line != FAR or groups[0] not in SMALL or row.startswith("mount "):
            continue
        ours, found = _against(results, line, row, GOAL)
        if found:
            said = ", ".join(f"{p} {_time(t)} ({t / max(ours, 1e-6):.2g}x)" for p, t in found)
            lines.append(f"- {row}: {_time(ours)}; {said}")
    return lines


def _rows(results: list[Result]) -> list[tuple[str, str]]:
    """(line, row) of everything that has a time or failed to have one."""
    return list(
        dict.fromkeys(
            (r["line"], r["row"]) for r in results if "row" in r and not r["row"].startswith("(")
        )
    )


def _measurements(results: list[Result]) -> list[Result]:
    return [r for r in results if "row" in r]


def _facts(results: list[Result]) -> list[str]:
    return [
        ", ".join(f"{name}: {value}" for name, value in r["facts"].items())
        for r in results
        if "facts" in r
    ]


def table(results: list[Result], before: Sequence[Result] = ()) -> str:
    """All of it in Markdown."""
    parts = _ordered(_facts(results))
    parts += [f"{BEFORE}: {fact}" for fact in _facts(list(before))]
    parts += [""]
    measurements = _measurements(results)
    old = [{**r, "peer": BEFORE} for r in before if r.get("peer") == SUBJECT and "row" in r]
    for line in _ordered([r["line"] for r in measurements]):
        here = [r for r in measurements if r["line"] == line]
        there = [r for r in old if r["line"] == line]
        peers = _ordered([SUBJECT, *(r["peer"] for r in there), *(r["peer"] for r in here)])
        rows = _ordered([r["row"] for r in here if "seconds" in r])
        here += there
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
        [
            f"- {r['line']}, {r['peer']}, {r['row']}: {r['failed']}"
            for r in measurements
            if "failed" in r
        ]
    )
    if failures:
        parts += ["### Failed", "", *failures, ""]
    notes = _ordered([f"- {r['peer']}: {r['note']}" for r in results if "note" in r])
    if notes:
        parts += ["### How each was set, and what it promises", "", *notes, ""]
    if names := ", ".join(rivals(results)):
        parts += ["### Behind", ""]
        parts += [f"Where megafs takes longer than what encrypts and has a store, too ({names}):"]
        parts += ["", *(behind(results) or ["- nowhere"]), ""]
        if any(line == FAR for line, _ in _rows(results)):
            parts += [f"Small files and metadata, {FAR} away, less than {GOAL} times ahead:"]
            parts += ["", *(not_far_ahead(results) or ["- nowhere"]), ""]
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
    peers = [p for p in _ordered([r["peer"] for r in results if "row" in r]) if p != SUBJECT]
    colours = [COLOURS[(n + 1) % len(COLOURS)] for n in range(len(peers))]
    left, width, height = 440, 620, 18
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
            f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colours[n]}"/>'
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
                ratio = theirs / ours
                out.append(
                    f'<circle cx="{at(ratio):.1f}" cy="{y}" r="4" fill="{colours[n]}">'
                    f"<title>{escape(peer)}: {ratio:.2f}</title></circle>"
                )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def load(directories: Sequence[Path]) -> list[Result]:
    return [
        json.loads(line)
        for directory in directories
        for line in (directory / "results.jsonl").read_text().splitlines()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--before", action="append", default=[], type=Path, metavar="DIR")
    args = parser.parse_args()
    results = load(args.directories)
    (args.directories[0] / "plot.svg").write_text(plot(results))
    print(table(results, load(args.before)))


if __name__ == "__main__":
    main()

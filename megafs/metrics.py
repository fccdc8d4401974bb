"""Counters and gauges, and their text for Prometheus.

A registry belongs to one mount (several simulated mounts in one process must not share numbers), so
there is nothing global here.  A series is looked up once, when its owner is made; adding to it is
one addition.  The text is the Prometheus exposition format, version 0.0.4:

    # HELP megafs_store_requests_total Requests sent to the store.
    # TYPE megafs_store_requests_total counter
    megafs_store_requests_total{op="get"} 17

Names carry their unit (`_bytes`, `_seconds`), counters end in `_total`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count *amount* more."""
        self.value += amount


class Gauge:
    """A number that goes up and down, set by its owner or read from `source` when asked for."""

    __slots__ = ("_value", "source")

    def __init__(self, source: Callable[[], float] | None = None) -> None:
        self._value: float = 0
        self.source = source

    @property
    def value(self) -> float:
        return self._value if self.source is None else self.source()

    def set(self, value: float) -> None:
        """Replace the number."""
        self._value = value

    def add(self, amount: float) -> None:
        """Change the number by *amount*."""
        self._value += amount


Labels = tuple[tuple[str, str], ...]


class _Family:
    """All series of one name."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text
        self.series: dict[Labels, Counter | Gauge] = {}


class Registry:
    """The numbers of one mount."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def counter(self, name: str, text: str, unit: str = "", **labels: str) -> Counter:
        """Return the counter *name* (without unit and `_total`) with these labels, made if new.

        text: one sentence for people.  unit: "bytes", "seconds" or "" for plain counts.
        """
        full = "_".join(part for part in (name, unit, "total") if part)
        family, key = self._family(full, "counter", text, labels)
        series = family.series.setdefault(key, Counter())
        assert isinstance(series, Counter)
        return series

    def gauge(
        self,
        name: str,
        text: str,
        unit: str = "",
        source: Callable[[], float] | None = None,
        **labels: str,
    ) -> Gauge:
        """Return the gauge *name* (without unit) with these labels, made if new.

        source: asked for the number whenever the text is made; then `set()` has no effect.
        """
        full = "_".join(part for part in (name, unit) if part)
        family, key = self._family(full, "gauge", text, labels)
        series = family.series.setdefault(key, Gauge())
        assert isinstance(series, Gauge)
        if source is not None:
            series.source = source
        return series

    def text(self) -> str:
        """Return everything in Prometheus' text format."""
        lines: list[str] = []
        for name, family in sorted(self._families.items()):
            lines.append(f"# HELP {name} {_escape(family.text, quotes=False)}")
            lines.append(f"# TYPE {name} {family.kind}")
            lines.extend(
                f"{name}{_braces(labels)} {_number(series.value)}"
                for labels, series in sorted(family.series.items(), key=lambda item: item[0])
            )
        return "\n".join(lines) + "\n" if lines else ""

    def _family(
        self, name: str, kind: str, text: str, labels: dict[str, str]
    ) -> tuple[_Family, Labels]:
        if not _NAME.match(name):
            raise ValueError(f"not a metric name: {name!r}")
        family = self._families.setdefault(name, _Family(kind, text))
        if family.kind != kind:
            raise ValueError(f"{name} is a {family.kind} already")
        return family, tuple(sorted(labels.items()))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels) + "}"


def _escape(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text

"""Counters, gauges, and the text that Prometheus reads."""

from __future__ import annotations

import pytest

from megafs.metrics import Registry


def test_the_text_is_prometheus() -> None:
    registry = Registry()
    registry.counter("megafs_requests", "Requests sent.", op="get").add(3)
    registry.counter("megafs_requests", "Requests sent.", op="put").add()
    registry.counter("megafs_sent", "Sent.", "bytes").add(10)
    registry.gauge("megafs_used", "Used.", "bytes").set(1.5)

    assert registry.text() == (
        "# HELP megafs_requests_total Requests sent.\n"
        "# TYPE megafs_requests_total counter\n"
        'megafs_requests_total{op="get"} 3\n'
        'megafs_requests_total{op="put"} 1\n'
        "# HELP megafs_sent_bytes_total Sent.\n"
        "# TYPE megafs_sent_bytes_total counter\n"
        "megafs_sent_bytes_total 10\n"
        "# HELP megafs_used_bytes Used.\n"
        "# TYPE megafs_used_bytes gauge\n"
        "megafs_used_bytes 1.5\n"
    )


def test_a_series_is_the_same_each_time_it_is_asked_for() -> None:
    registry = Registry()

    assert registry.counter("a", "A.", op="x") is registry.counter("a", "A.", op="x")
    assert registry.counter("a", "A.", op="x") is not registry.counter("a", "A.", op="y")


def test_registries_share_nothing() -> None:
    one, two = Registry(), Registry()
    one.counter("a", "A.").add()

    assert two.counter("a", "A.").value == 0


def test_a_gauge_can_be_read_where_the_number_is() -> None:
    registry = Registry()
    numbers = [1]
    registry.gauge("length", "Length.", source=lambda: len(numbers))
    numbers.append(2)

    assert registry.text().splitlines()[2:] == ["length 2"]


def test_label_values_are_escaped() -> None:
    registry = Registry()
    registry.counter("a", "Line\nbreak.", where='C:\\"x"\n').add()

    assert registry.text().splitlines()[0] == "# HELP a_total Line\\nbreak."
    assert registry.text().splitlines()[2] == 'a_total{where="C:\\\\\\"x\\"\\n"} 1'


def test_a_name_is_of_one_kind() -> None:
    registry = Registry()
    registry.counter("a", "A.")

    with pytest.raises(ValueError):
        registry.gauge("a_total", "A.")
    with pytest.raises(ValueError):
        registry.counter("not a name", "A.")


def test_an_empty_registry_has_no_text() -> None:
    assert Registry().text() == ""

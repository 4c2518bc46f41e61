"""Metric families as plain data, which can be sent to another process, and added up over processes.

A family has the samples of one metric name. It holds only strings, numbers and lists, so that `to_json` and `of_json`
take it through a socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import msgspec

ROWS_AT_ONCE: Final = 256
"""Rows that are added up in a step."""

Kind = Literal["counter", "gauge", "histogram"]
Sum = Literal["sum", "max", "min"]
Value = int | float | list[int | float]
"""A number; for a histogram the calls in each bucket, not added up, the last above all bounds, then their sum."""
Row = tuple[tuple[str, ...], Value]
"""The label values of a sample, and its value."""


class Family(msgspec.Struct):
    """The samples of one metric.

    Attributes:
        name: the name; a counter's ends with `_total`.
        kind: the type.
        help: one sentence about the metric.
        labels: the names of the labels.
        rows: the samples. No two have the same label values.
        over_processes: what becomes of the samples with the same labels in several processes of one proxy.
        bounds: the upper bounds of a histogram's buckets.
        is_public: whether it is for Prometheus too, and not for the status page alone.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    rows: Sequence[Row] = ()
    over_processes: Sum = "sum"
    bounds: tuple[float, ...] = ()
    is_public: bool = True


def counter(name: str, text: str, value: float, over_processes: Sum = "sum") -> Family:
    """A counter without labels."""
    return Family(name, "counter", text, rows=[((), value)], over_processes=over_processes)


def gauge(name: str, text: str, value: float, over_processes: Sum = "sum") -> Family:
    """A gauge without labels."""
    return Family(name, "gauge", text, rows=[((), value)], over_processes=over_processes)


def merge(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """As `merging`, at once."""
    return [family for family in merging(processes) if family is not None]


def merging(processes: Iterable[Iterable[Family]]) -> Iterator[Family | None]:
    """The families of several processes as those of one: samples with the same labels become one sample.

    The processes may have different versions of esp: a family of another kind, or with other labels, than the first
    with its name is left out. Goes in steps; None is a step that is no whole family.
    """
    by_name: dict[str, list[Family]] = {}
    for families in processes:
        for family in families:
            by_name.setdefault(family.name, []).append(family)
        yield None
    for first, *others in by_name.values():
        rows = {tuple(labels): value for labels, value in first.rows}
        yield None
        for other in others:
            if (other.kind, other.labels, other.bounds) != (first.kind, first.labels, first.bounds):
                continue
            for number, (labels, value) in enumerate(other.rows, 1):
                key = tuple(labels)
                rows[key] = _together(first.over_processes, rows[key], value) if key in rows else value
                if number % ROWS_AT_ONCE == 0:
                    yield None
        yield msgspec.structs.replace(first, rows=list(rows.items()))


def _together(how: Sum, one: Value, other: Value) -> Value:
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    if isinstance(one, list) or isinstance(other, list):
        return one
    if how == "sum":
        return one + other
    return max(one, other) if how == "max" else min(one, other)


def to_json(families: Sequence[Family]) -> bytes:
    """The families as JSON, in one line."""
    return msgspec.json.encode(families)


def of_json(data: bytes) -> list[Family]:
    """The families in `data`.

    Raises:
        ValueError: `data` holds none.
    """
    return msgspec.json.decode(data, type=list[Family])

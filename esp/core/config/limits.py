"""The `limits` of the file."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

from esp.core.config.fields import Fields, shown, unknown_field
from esp.core.config.yaml_lines import Place
from esp.core.wire.limits import Limits, out_of_bounds

_LIMITS: dict[str, Any] = {limit.name: limit.default for limit in dataclasses.fields(Limits)}


def limits_of(values: dict[str, Any], fields: Fields) -> Limits:
    """The values of a file's `limits`; a wrong one is noted, and has its default.

    Raises:
        LineError: there are too many faults.
    """
    known = {name: value for name, value in values.items() if fields.tried(False, _is_limit, name, value, fields)}
    while True:
        limits = replace(Limits(), **known)
        if (wrong := out_of_bounds(limits)) is None:
            return limits
        name, bound = wrong
        fields.note_at(("limits", name), f'limits: "{name}" is {getattr(limits, name)}; it must be {bound}')
        if known.pop(name, None) is None:  # a default that another limit does not go with
            return Limits()


def _is_limit(name: str, value: Any, fields: Fields) -> bool:
    """True; raises LineError for a name or a value that is none."""
    place: Place = ("limits", name)
    if name not in _LIMITS:
        fields.fail(place, f"limits: {unknown_field(name, _LIMITS)}")
    whole = isinstance(_LIMITS[name], int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "whole number" if whole else "number"
        fields.fail(place, f'limits: "{name}" must be a {kind}, not {shown(value)}{_in_digits(value, whole)}')
    return True


def _in_digits(value: object, whole: bool) -> str:
    """The cure for a number that YAML takes for text or for a fraction, such as 1e9; "" for other values."""
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        return ""
    if not 0 < number < 1e15 or (whole and not number.is_integer()):
        return ""
    return f"; write {int(number) if number.is_integer() else number}"

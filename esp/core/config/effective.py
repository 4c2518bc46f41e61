"""The values that a config has in force, and where each comes from: a line of the file, or esp's default."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from esp.core.config.file import DEFAULT_LISTEN, FileShape
from esp.core.config.log import LogShape
from esp.core.config.shape import Shape
from esp.core.config.traces import TracesShape
from esp.core.config.values import Config
from esp.core.config.yaml_lines import Lines, Place, read
from esp.core.keys import format_range

_UNSET: Final = {
    "listen": f"[{DEFAULT_LISTEN}]",
    "advertise": "the addresses of listen",
    "traces": "none",
    "tls": "none",
    "shard_tls": "the CAs of the system",
    "auth": "none",
    "namespace": "none",
    "hot_prefixes": "off",
}
"""The defaults that the shapes of the file do not say."""

_BARE: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:@+-]*")
"""A text that needs no quotes in YAML."""
_SHAPES: Final[dict[str, type[Shape]]] = {"log": LogShape, "traces": TracesShape}
_CAN_BE_OFF: Final = ("control", "hot_prefixes", "log.access", "log.slow_seconds")
_WORDS_OR_MAPPING: Final = ("across_shards", "compaction", "hot_prefixes")


class Effective(NamedTuple):
    """One value.

    Attributes:
        name: its field, such as `limits.max_tokens`.
        value: for people, as a config may have it.
        line: where the file has it; None for a default.
    """

    name: str
    value: str
    line: int | None


def effective(text: str, config: Config) -> list[Effective]:
    """Every value of `config`, which `text` has become, in the order of docs/config.md."""
    value, lines = read(text)
    given: dict[str, Any] = value if isinstance(value, dict) else {}
    defaults = FileShape.defaults()
    found: list[Effective] = []
    for name in FileShape.names:
        here = given.get(name)
        if name == "shards":
            found += _of_shards(given["shards"], config, lines)
        elif name == "limits":
            found += _of_fields(name, here or {}, asdict(config.limits), lines)
        elif name == "log" or (name == "traces" and here):
            found += _of_fields(name, here or {}, _SHAPES[name].defaults(), lines)
        elif isinstance(here, dict) and name not in _WORDS_OR_MAPPING:
            found += _of_fields(name, here, here, lines)
        elif name in given:
            found.append(Effective(name, _shown(name, here), lines.of((name,))))
        else:
            found.append(Effective(name, _UNSET.get(name) or _shown(name, defaults[name]), None))
    return found


def _of_fields(name: str, given: dict[str, Any], values: dict[str, Any], lines: Lines) -> list[Effective]:
    """The fields of a mapping: those of `values`, and of these those that are `given`."""
    return [
        Effective(
            f"{name}.{field}",
            _shown(f"{name}.{field}", given.get(field, value)),
            lines.of((name, field)) if field in given else None,
        )
        for field, value in values.items()
    ]


def _of_shards(entries: list[Any], config: Config, lines: Lines) -> list[Effective]:
    found = []
    for index, (entry, shard) in enumerate(zip(entries, config.shards, strict=True)):
        place: Place = ("shards", index)
        name = f"shards.{shard.name}"
        endpoints = "endpoints" if "endpoints" in entry else "address"
        ranges = ", ".join(map(format_range, shard.ranges))
        found.append(
            Effective(f"{name}.endpoints", shown([str(one) for one in shard.endpoints]), lines.of((*place, endpoints)))
        )
        found.append(Effective(f"{name}.ranges", ranges, lines.of((*place, "ranges"))))
        found += [
            Effective(f"{name}.{field}", shown(entry[field]), lines.of((*place, field)))
            for field in ("auth", "tls")
            if field in entry
        ]
    return found


def _shown(name: str, value: object) -> str:
    """The value of a field; `off` is false to YAML."""
    return "off" if value is False and name in _CAN_BE_OFF else shown(value)


def shown(value: object) -> str:
    """A value as a config may have it, in one line."""
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(one)}" for name, one in value.items()) + "}"
    return f"{value:.15g}" if isinstance(value, float) else str(value)

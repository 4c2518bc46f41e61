"""The `hot_prefixes` of the file: whether esp finds out which keys have the most calls, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from esp.core.config.fields import Fields, shown
from esp.core.config.shape import Shape

MAX_DEPTH: Final = 16
MAX_KEEP: Final = 256
MAX_ONE_OF: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class HotConfig:
    """How hot prefixes are found.

    Attributes:
        separator: the byte sequence that divides keys, as `/` divides paths.
        depth: the number of separators in a prefix; with a separator at the beginning of the key it counts too.
        keep: the number of prefixes that are counted at once.
        one_of: of so many calls one is looked at.
    """

    separator: bytes = b"/"
    depth: int = 3
    keep: int = 64
    one_of: int = 1


class HotShape(Shape):
    """The fields of `hot_prefixes`."""

    separator: Any = "/"
    depth: Any = 3
    keep: Any = 64
    one_of: Any = 1


def hot_of(value: Any, fields: Fields) -> HotConfig | None:
    """The value of a file's `hot_prefixes`; None for off.

    Raises:
        LineError: a field is wrong.
    """
    if value is False or value == "off":  # YAML reads `off` as false
        return None
    if value is True or value == "on":
        return HotConfig()
    if not isinstance(value, dict):
        cure = "write off, on or {separator: /, depth: 3}"
        told = "empty" if value is None else shown(value)
        fields.fail(("hot_prefixes",), f'"hot_prefixes" is {told}; {cure}')
    shape = fields.shaped(value, HotShape, ("hot_prefixes",), '"hot_prefixes"')
    for name, most in (("depth", MAX_DEPTH), ("keep", MAX_KEEP), ("one_of", MAX_ONE_OF)):
        found = getattr(shape, name)
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= most:
            told = "empty" if found is None else shown(found)
            cure = f"write a whole number from 1 to {most}"
            fields.note_at(("hot_prefixes", name), f'hot_prefixes: "{name}" is {told}; {cure}')
    separator = shape.separator
    if not isinstance(separator, str) or not separator:
        told = "empty" if separator in (None, "") else shown(separator)
        fields.note_at(("hot_prefixes", "separator"), f'hot_prefixes: "separator" is {told}; write a text such as "/"')
    if fields.is_spoiled(("hot_prefixes",)):
        return None
    return HotConfig(separator.encode(), shape.depth, shape.keep, shape.one_of)

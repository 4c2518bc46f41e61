"""The shapes of mappings in the file: which fields there are, of which kinds, with which defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

_KINDS = {
    list: "a list",
    dict: "a mapping",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "empty",
    bytes: "!!binary",
}
_WRITTEN = {kind.__name__: kind for kind in _KINDS} | {"None": type(None)}


class Shape:
    """A mapping of the file: an annotation for each field, and its default beside it.

    An annotation is `Any`, or one of these joined by `|`: `str`, `bool`, `list[Any]`, `dict[str, Any]`, `None`. All
    that goes beyond that is checked where the values are used. Defaults are shared: nothing may change them.

    Attributes:
        names: the fields, in their order.
        given: those that the file has, in the same order.
    """

    names: ClassVar[tuple[str, ...]]
    _kinds: ClassVar[dict[str, list[type] | None]]

    def __init_subclass__(cls) -> None:
        annotations: dict[str, str] = cls.__annotations__
        cls.names = tuple(annotations)
        cls._kinds = {name: _kinds_of(annotation) for name, annotation in annotations.items()}

    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)

    @property
    def given(self) -> list[str]:
        """The fields that the file has."""
        return [name for name in self.names if name in vars(self)]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each field."""
        return {name: getattr(cls, name) for name in cls.names}

    @classmethod
    def fault_of(cls, name: str, value: object) -> str | None:
        """The sentence for a field whose value is of another kind; None if there is no fault."""
        kinds = cls._kinds[name]
        if kinds is None or type(value) in kinds:
            return None
        return wrong_kind(f'"{name}"', value, kinds)


def wrong_kind(subject: str, value: object, kinds: Iterable[type]) -> str:
    """The sentence for a value that is of none of these kinds."""
    wanted = dict.fromkeys(_KINDS[kind] for kind in kinds if kind is not type(None))
    cure = "; quote it" if _KINDS[str] in wanted and isinstance(value, bool | int | float) else ""
    return f"{subject} must be {' or '.join(wanted)}, not {kind_of(value)}{cure}"


def kind_of(value: object) -> str:
    """The kind of a value, for people."""
    return _KINDS.get(type(value), type(value).__name__)


def _kinds_of(annotation: str) -> list[type] | None:
    words = [word.partition("[")[0].strip() for word in annotation.split("|")]
    return None if words == ["Any"] else [_WRITTEN[word] for word in words]

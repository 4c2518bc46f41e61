"""YAML as plain values, and the line of each value.

A config error must name its line, but YAML libraries forget the lines when they build values. So values are built here
from PyYAML's nodes. Features that a config file does not need are refused: tags beyond the plain ones, anchors and
aliases (a few lines of them unfold to gigabytes), deep nesting, and a field given twice (YAML libraries silently keep
the last).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeAlias

import yaml

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"
Place: TypeAlias = tuple[str | int, ...]
"""The place of a value: the field names and list positions that lead to the value."""

MAX_DEPTH = 20
MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"


class LineError(Exception):
    """The fault in the text, its line, counted from 1, and the place of the value where that is known."""

    def __init__(self, line: int, text: str, place: Place = ()) -> None:
        super().__init__(line, text)
        self.line = line
        self.text = text
        self.place = place


class Lines:
    """The line of each value; for a field of a mapping, the line where its name stands."""

    def __init__(self) -> None:
        self._lines: dict[Place, int] = {}

    def record(self, place: Place, line: int) -> None:
        """Remembers the line, counted from 1, of the value at `place`. The first line recorded for a place stays."""
        self._lines.setdefault(place, line)

    def of(self, place: Place) -> int:
        """The line of the value at `place`; if none is recorded, that of the nearest value around it."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)


def read(text: str) -> tuple[Value, Lines]:
    """The one document in `text` as plain values, and their lines. An empty text is None.

    Raises:
        LineError: the text is not YAML, or has features that are refused here; see the module's text.
    """
    lines = Lines()
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        if root is None:
            return None, lines
        return _value(root, (), lines), lines
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise LineError(line, f"not YAML: the character {chr(error.character)!r} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        if "character '\\t'" in reason:
            reason = "a tab where only blanks may stand; indent with blanks"
        raise LineError(mark.line + 1 if mark else 1, f"not YAML: {reason}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without aliases and with a bound on nesting; dates stay text."""

    depth = 0
    values = 0

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if self.check_event(yaml.DocumentStartEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise LineError(event.start_mark.line + 1, "a second YAML document begins here; keep one")
        return node

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            raise LineError(line, "YAML anchors and aliases are not read here; write the value out")
        if self.depth >= MAX_DEPTH:
            raise LineError(line, f"nested more than {MAX_DEPTH} deep")
        self.values += 1
        if self.values > MAX_VALUES:
            raise LineError(line, f"more than {MAX_VALUES} values")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _value(node: yaml.Node, place: Place, lines: Lines) -> Value:
    line = node.start_mark.line + 1
    lines.record(place, line)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_value(item, (*place, position), lines) for position, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        fields: dict[str, Value] = {}
        for name_node, value_node in node.value:
            name_line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != _TAG + "str":
                raise LineError(name_line, "a field name must be text; quote it")
            name = _text(name_node, name_line)
            if name in fields:
                first = lines.of((*place, name))
                raise LineError(name_line, f'field "{name}" is given twice (first on line {first}); keep one')
            lines.record((*place, name), name_line)
            fields[name] = _value(value_node, (*place, name), lines)
        return fields
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, line)
    raise LineError(line, f'unknown YAML tag "{node.tag}"')


def _text(node: yaml.ScalarNode, line: int) -> str:
    """The node's text. JSON may write a character as two escapes, which YAML does not join."""
    text = str(node.value)
    try:
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise LineError(line, f'"{text}" is not text in UTF-8; keys may be written as hex: or !!binary') from None


def _scalar(node: yaml.ScalarNode, line: int) -> Value:
    if node.tag in (_TAG + "int", _TAG + "float") and ":" in node.value:
        raise LineError(line, f'"{node.value}" is a base 60 number to YAML; quote it')
    try:
        match node.tag.removeprefix(_TAG):
            case "str":
                return _text(node, line)
            case "null":
                return None
            case "bool":
                return bool(_constructor.construct_yaml_bool(node))
            case "int":
                return int(_constructor.construct_yaml_int(node))
            case "float":
                return float(_constructor.construct_yaml_float(node))
            case "binary":
                return base64.b64decode("".join(node.value.split()), validate=True)
    except binascii.Error:
        raise LineError(line, "!!binary needs base64 text") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise LineError(line, f'"{node.value}" is not what its tag says; quote it if it is text') from None
    if node.tag in (_TAG + "value", _TAG + "merge"):
        raise LineError(line, f'"{node.value}" means something else in YAML; quote it')
    raise LineError(line, f'unknown YAML tag "{node.tag}"')


_constructor = yaml.SafeLoader("")

"""Ranges of keys as the config file writes them: `{prefix: P}`, `{start: S, end: E}`, `{kubernetes: RESOURCE}`."""

from __future__ import annotations

from typing import Any

from esp.core.config.fields import Fields, key
from esp.core.config.shape import Shape
from esp.core.config.yaml_lines import Lines, Place
from esp.core.keys import KeyRange, prefix_end
from esp.core.kubernetes import DEFAULT_PREFIX, directory, resource_range


class RangeShape(Shape):
    """The fields of a range."""

    prefix: Any = None
    start: Any = None
    end: Any = None
    kubernetes: str = ""
    etcd_prefix: str = DEFAULT_PREFIX


class RangeFields(Fields):
    """Reads ranges.

    Attributes:
        kubernetes: the `directory` of every range that was written as a Kubernetes resource.
    """

    def __init__(self, lines: Lines) -> None:
        super().__init__(lines)
        self.kubernetes: dict[bytes, None] = {}

    def range_at(self, value: Any, place: Place, subject: str = "") -> KeyRange:
        """The range at `place`.

        Raises:
            LineError: the value is no range.
        """
        what = f"{subject}: a range" if subject else "a range"
        shape = self.shaped(value, RangeShape, place, what)
        given = shape.given
        if given == ["start"]:
            self.fail(place, f'{what} has no "end"; write end: "" for the last key there is')
        if given == ["end"]:
            self.fail(place, f'{what} has no "start"; write start: "" for the first key there is')
        if given[:1] == ["kubernetes"]:
            return self._resource(shape.kubernetes, shape.etcd_prefix, place, what)
        if given not in (["prefix"], ["start", "end"]):
            self.fail(place, f"{what} is {{prefix: ...}}, {{start: ..., end: ...}} or {{kubernetes: ...}}")
        keys = [self.key_at(getattr(shape, name), (*place, name), subject) for name in given]
        if len(keys) == 1:
            return KeyRange(keys[0], prefix_end(keys[0]))
        return KeyRange(keys[0], keys[1] or None)

    def range_or_prefix_at(self, value: Any, place: Place, subject: str) -> KeyRange:
        """As `range_at`; a key alone is a prefix.

        Raises:
            LineError: the value is neither a range nor a key, or the range holds no key.
        """
        if isinstance(value, dict):
            found = self.range_at(value, place, subject)
            if found.is_empty():
                self.fail(place, f"{subject}: a range holds no key; its end must be above its start")
            return found
        prefix = self.key_at(value, place, subject, "prefix")
        return KeyRange(prefix, prefix_end(prefix))

    def key_at(self, value: Any, place: Place, subject: str, field: str = "") -> bytes:
        """The key at `place`; `field` names it in messages, by default the last part of the place.

        Raises:
            LineError: the value is no key.
        """
        try:
            return key(value, field or str(place[-1]))
        except ValueError as error:
            self.fail(place, f"{subject}: {error}" if subject else str(error))

    def _resource(self, name: str, etcd_prefix: str, place: Place, what: str) -> KeyRange:
        try:
            found = resource_range(name, etcd_prefix)
        except ValueError as error:
            self.fail((*place, "kubernetes"), f"{what}: {error}")
        self.kubernetes[directory(etcd_prefix)] = None
        return found

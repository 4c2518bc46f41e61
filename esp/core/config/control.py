"""The field `control`: where the socket is through which an operator commands the running proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from esp.core.config.fields import Fields, shown

Control: TypeAlias = "Path | Literal['auto'] | None"
"""The path of the socket, or `auto` for a path derived from the config's; None for no socket."""

MAX_PATH_BYTES: Final = 100
"""The longest path of a socket; the kernel takes 107 bytes, and esp appends a few while it makes the socket."""


def control_at(value: Any, fields: Fields, folder: Path | None) -> Control:
    """The field's value; a relative path begins at `folder`.

    Raises:
        LineError: the value is neither a path nor `auto` or `off`, or the path is too long.
    """
    if value == "auto":
        return "auto"
    if value is False or value == "off":  # YAML reads a bare `off` as false
        return None
    if not isinstance(value, str) or not value:
        fields.fail(("control",), f'"control" is {shown(value)}; write auto, off or the path of a socket')
    path = Path(value) if folder is None else folder / value
    if len(bytes(path)) > MAX_PATH_BYTES:
        fields.fail(
            ("control",),
            f'"control": {path} is longer than {MAX_PATH_BYTES} bytes, the most for a socket; write a shorter path',
        )
    return path

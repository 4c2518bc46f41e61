"""Single values of the config file: keys, and fields of the wrong shape.

The functions raise ValueError with a sentence that has the fault and the cure; `Fields` adds the line.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

from esp.core.config.shape import Shape, kind_of, wrong_kind
from esp.core.config.yaml_lines import LineError, Lines, Place

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Shape = TypeVar("_Shape", bound=Shape)

MOST_FAULTS: Final = 100
"""The most faults of one file that are told."""


class Fields:
    """The fields of one file. Its errors name the line of the fault.

    Attributes:
        faults: those that did not keep the rest from being read, in the order in which they were found.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.faults: list[LineError] = []
        self._spoiled: set[Place] = set()  # the places of faults, all places around them, and what was meant by a typo

    def fail(self, place: Place, text: str) -> NoReturn:
        """Raises the error for the value at `place`."""
        raise LineError(self.lines.of(place), text, place)

    def tried(self, fallback: _T, read: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
        """The result of `read`; with a fault in it, which is noted, `fallback`, so that the rest can be read.

        Raises:
            LineError: there are too many faults.
        """
        try:
            return read(*args, **named)
        except LineError as error:
            self.note(error)
            return fallback

    def note(self, error: LineError) -> None:
        """Takes note of a fault; one that only follows from another, inside the same value, is left out.

        Raises:
            LineError: there are too many.
        """
        if error.place in self._spoiled and error.place:
            return
        if error not in self.faults:
            self.faults.append(error)
        self._spoiled.update(error.place[:length] for length in range(1, len(error.place) + 1))
        if len(self.faults) >= MOST_FAULTS:
            raise error

    def note_at(self, place: Place, text: str) -> None:
        """As `note`, for the value at `place`."""
        self.note(LineError(self.lines.of(place), text, place))

    def is_spoiled(self, place: Place) -> bool:
        """Whether there was a fault at `place`, or inside."""
        return place in self._spoiled

    def shaped(self, value: object, shape: type[_Shape], place: Place, subject: str) -> _Shape:
        """The value as a `shape`; `subject` names it in messages.

        A field that is unknown or of the wrong type is noted, and left out.

        Raises:
            LineError: the value is no mapping; or there are too many faults.
        """
        if not isinstance(value, dict):
            raise LineError(self.lines.of(place), wrong_kind(subject, value, [dict]), place)
        good = {}
        for name, here in value.items():
            fault = shape.fault_of(name, here) if name in shape.names else unknown_field(name, shape.names)
            if fault is None:
                good[name] = here
                continue
            self.note_at((*place, name), f"{subject}: {fault}" if place else fault)
            if meant := meant_by(name, shape.names):
                self._spoiled.add((*place, meant))
        return shape(good)

    def each(self, values: list[Any], place: Place, read: Callable[[Any], _T], subject: str = "") -> list[_T]:
        """The values, each read with `read`; its ValueError is noted with its line, and that value left out.

        Raises:
            LineError: there are too many faults.
        """
        return list(self.each_at(values, place, read, subject).values())

    def each_at(self, values: list[Any], place: Place, read: Callable[[Any], _T], subject: str = "") -> dict[int, _T]:
        """As `each`, each with its position in the file."""
        done = {}
        for position, value in enumerate(values):
            try:
                done[position] = read(value)
            except ValueError as error:
                text = f"{subject}: {error}" if subject else str(error)
                self.note_at((*place, position), text)
        return done


def key(value: Any, field: str) -> bytes:
    """A key: text, text such as `hex:6162`, or YAML's !!binary."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        if value.startswith("hex:"):
            digits = value.removeprefix("hex:")
            if len(digits) % 2 or re.fullmatch("[0-9A-Fa-f]*", digits) is None:
                raise ValueError(f'"{field}" is "{value}"; after hex: write two hexadecimal digits for each byte')
            return bytes.fromhex(digits)
        return value.encode()
    if value is None:
        raise ValueError(f'"{field}" is empty; write "" if that is meant')
    if isinstance(value, bool | int | float):
        raise ValueError(f'"{field}" is {kind_of(value)} to YAML; quote it')
    raise ValueError(f'"{field}" is {kind_of(value)}; write text, hex: or !!binary')


def key_bytes(value: Any, field: str) -> bytes:
    """A key as Go writes a []byte: numbers in YAML, base64 text in JSON; also !!binary. None is empty."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        try:
            return bytes(value)
        except (TypeError, ValueError):
            raise ValueError(f'"{field}" must be a list of numbers from 0 to 255') from None
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f'"{field}" is "{value}", which is not base64; text goes into "{field[:-5]}"') from None
    raise ValueError(f'"{field}" is {kind_of(value)}; write a list of bytes, base64 or !!binary')


def unknown_field(name: str, known: Iterable[str]) -> str:
    """The sentence for a field that is not known, with the one that was probably meant."""
    known = list(known)
    meant = meant_by(name, known)
    cure = f'did you mean "{meant}"?' if meant else f"the fields here are {', '.join(known)}"
    return f'unknown field "{name}"; {cure}'


def meant_by(name: str, known: Iterable[str]) -> str | None:
    """The field that was probably meant by an unknown name, or None; None for a known name too."""
    known = list(known)
    if name in known:
        return None
    import difflib  # takes a millisecond to load, and good files have no use for it

    near = difflib.get_close_matches(name, known, n=1)
    return near[0] if near else None


def shown(value: object) -> str:
    """A value as the file has it, if that is short; else its kind."""
    if isinstance(value, str) and len(value) <= 40:
        return f'"{value}"'
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else kind_of(value)

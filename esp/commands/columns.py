"""Aligned columns, and prose, in the width of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

INDENT: Final = "    "
"""What stands before a row that goes on in the next line."""
_GAP: Final = "  "


def laid_out(
    headers: Sequence[str], rows: Sequence[Sequence[str]], room: int | None, *, ragged: bool = False
) -> Iterator[tuple[int, str, str]]:
    """The lines of a table: the number of the row, -1 for the headers; what stands before; the text.

    No cell is cut off, and each stays in one piece, so that it can be copied. A row that is wider than `room` columns
    goes on in the next line; with None there is room for all. With `ragged` a row that fits stays in one line, whatever
    the others do.
    """
    widths = [max(map(width_of, column)) for column in zip(headers, *rows, strict=True)]
    whole = slice(None)
    groups = [whole] if room is None else _side_by_side(widths, room)
    for number, row in enumerate([headers, *rows], start=-1):
        cells = [cell + " " * (width - width_of(cell)) for cell, width in zip(row, widths, strict=True)]
        fits = ragged and room is not None and width_of(_GAP.join(cells).rstrip()) <= room
        for group in [whole] if fits else groups:
            yield number, INDENT if group.start else "", _GAP.join(cells[group]).rstrip()


def _side_by_side(widths: Sequence[int], room: int) -> list[slice]:
    """The columns for each line of a row: as many as fit, at least one."""
    groups = []
    first, used = 0, 0
    for column, width in enumerate(widths):
        if column > first and used + len(_GAP) + width > room:
            groups.append(slice(first, column))
            first, used = column, len(INDENT) + width
        else:
            used += width + (len(_GAP) if column > first else 0)
    return [*groups, slice(first, None)]


def width_of(text: str) -> int:
    """The number of terminal columns of a text: two for East Asian wide characters, none for accents."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)


def breaks(text: str, room: int) -> list[int]:
    """The places at which a text goes on in the next line: between words. A word stays in one piece."""
    import re

    places, used, start = [], 0, 0
    for word in re.findall(r"\S+\s*", text):
        if start and used + width_of(word.rstrip()) > room:
            places.append(start)
            used = 0
        used += width_of(word)
        start += len(word)
    return places

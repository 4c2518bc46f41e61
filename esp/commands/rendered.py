"""Text for people, made by rich: wrapped to the terminal, with colours where the terminal takes them.

Whatever is no terminal gets lines as long as they are, so that `grep` finds whole sentences. NO_COLOR and TERM=dumb are
heeded.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

from esp.commands.columns import breaks, laid_out
from esp.commands.output import takes_escapes, write
from esp.core.log.text import in_one_line

UNBOUNDED: Final = 100_000
"""The width of an output that is no terminal."""


@dataclass(frozen=True, slots=True)
class Look:
    """The look of an output.

    Attributes:
        width: in columns.
        colour: whether it takes colours.
        moves: whether the cursor can go back, as in a live view.
    """

    width: int
    colour: bool
    moves: bool = False

    @classmethod
    def of_stdout(cls) -> Look:
        """The look of standard output as it is now."""
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else UNBOUNDED
        return cls(width, takes_escapes(), is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown"))


class Page:
    """Lines that become one text."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lines: list[Text] = []

    def line(self, text: str = "", style: str = "", *, indent: int = 0, start: Text | None = None) -> None:
        """A paragraph; its further lines are indented by two more. `start` comes before the text, in its own style."""
        whole = (start or Text()) + Text(in_one_line(text), style)
        room = max(20, self._look.width - indent - 2)
        for number, line in enumerate(whole.divide(breaks(whole.plain, room))):
            line.rstrip()
            self._lines.append(Text(" " * (indent + (2 if number else 0))) + line)

    def begin(self, text: str) -> None:
        """Puts a line in front of all others, with an empty one behind it."""
        self._lines[:0] = [Text(text, "bold"), Text()]

    def table(
        self, headers: Sequence[str], rows: Iterable[Sequence[str]], styles: Mapping[int, str] | None = None
    ) -> None:
        """Aligned columns; no cell is cut off. `styles` has those of rows, by their number.

        A row that is too wide goes on in the next line, indented. A cell stays in one piece, so that it can be copied.
        """
        told = [[in_one_line(cell) for cell in row] for row in rows]
        for number, indent, text in laid_out(headers, told, self._look.width):
            style = "bold" if number == -1 else (styles or {}).get(number, "")
            self._lines.append(Text(indent) + Text(text, style))

    def renderable(self) -> Text:
        """All lines as rich has them, for a live view; they are not wrapped again."""
        return Text("\n", no_wrap=True, overflow="ignore").join(self._lines)

    def text(self) -> str:
        """All lines, each with its end."""
        out = io.StringIO()
        console = self._console(out)
        for line in self._lines:
            console.print(line, soft_wrap=True, crop=False, overflow="ignore")
        return out.getvalue()

    def show(self) -> None:
        """Write all lines to stdout.

        Raises:
            CommandError: stdout is closed or cannot be written.
        """
        write(self.text().removesuffix("\n"))

    def _console(self, out: io.StringIO) -> Console:
        return Console(
            file=out,
            width=self._look.width,
            force_terminal=self._look.colour,
            color_system="standard" if self._look.colour else None,
            no_color=not self._look.colour,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )

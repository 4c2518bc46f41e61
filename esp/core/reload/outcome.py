"""The outcome of a reload, for people, for programs and for the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from esp.core.reload.difference import Difference
from esp.core.wording import counted

log = logging.getLogger("esp")

MAX_LOGGED: Final = 20
"""The most lines of a difference in the log; the answer of `esp reload` has more."""


class Result(StrEnum):
    """The result of a reload."""

    DONE = "done"
    UNCHANGED = "unchanged"
    """The file says what is in force already."""
    POSSIBLE = "possible"
    """A reload that was only to be checked would be done."""
    REFUSED = "refused"
    """Nothing has changed."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a reload.

    Attributes:
        result: the result.
        epoch: the number of the layout that is in force now.
        difference: the difference to the config that was in force; None if the file could not be read.
        reasons: why the reload was refused, each a clause with its cure.
        warnings: faults that did not hinder the reload, because it was forced or came too late.
        notes: other facts that an operator wants to know.
    """

    result: Result
    epoch: int
    difference: Difference | None = None
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The outcome for people; first the changes."""
        lines = self.difference.lines() if self.difference is not None else []
        return [*lines, *self.notes, *(f"warning: {text}" for text in self.warnings)]

    def as_json(self, most: int) -> dict[str, Any]:
        """The outcome for programs, with the first `most` changes of each kind."""
        return {
            "result": self.result.value,
            "epoch": self.epoch,
            "changes": None if self.difference is None else self.difference.as_json(most),
            "reasons": self.reasons[:most],
            "warnings": self.warnings[:most],
            "notes": self.notes[:most],
        }


def log_outcome(why: str, result: str, lines: Sequence[str], reasons: Sequence[str]) -> None:
    """Logs a reload; of a long difference the first lines.

    Args:
        why: who wanted the reload.
        result: the `Result`.
        lines: what has changed.
        reasons: why the reload was refused.
    """
    match result:
        case Result.DONE:
            for line in lines[:MAX_LOGGED]:
                log.info("reload (%s): %s", why, line)
            if len(lines) > MAX_LOGGED:
                log.info("reload (%s): and %s", why, counted(len(lines) - MAX_LOGGED, "more change"))
        case Result.REFUSED:
            more = f"; and {counted(len(reasons) - 3, 'more reason')}" if len(reasons) > 3 else ""
            log.error("reload (%s): refused, nothing has changed: %s%s", why, "; ".join(reasons[:3]), more)
        case Result.UNCHANGED:
            log.info("reload (%s): the config has not changed", why)

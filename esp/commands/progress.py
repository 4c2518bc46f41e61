"""A progress bar on stderr, in a terminal only; its line is gone at the end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final, Protocol

from esp.commands.output import manner

UPDATE_SECONDS: Final = 0.1
WIDTH: Final = 24


class Show(Protocol):
    """Shows the step, the number that is done, the number of all, None if that is not known; and what else there is."""

    def __call__(self, step: str, done: int, total: int | None, more: str = "") -> None:
        """Shows it."""


def bar_of(step: str, done: int, total: int | None, seconds: float, since: int, what: str) -> str:
    """The line of a progress bar.

    Args:
        step: the work, such as "Exporting".
        done: the number that is done.
        total: the number of all; None if that is not known.
        seconds: the time that the step has taken so far.
        since: the number that was done before the step began.
        what: the things that are counted, such as "keys".
    """
    rate = (done - since) / seconds if seconds > 0 else 0.0
    told = f"{rate:,.0f}/s" if rate else ""
    if not total:
        return f"{step}: {done:,} {what}  {told}".rstrip()
    share = min(1.0, done / total)
    filled = int(share * WIDTH)
    left = ""
    if rate:
        minutes, rest = divmod(round((total - done) / rate), 60)
        left = f"  {minutes}:{rest:02d} left"
    return f"{step} [{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%}  {done:,} of {total:,} {what}  {told}{left}"


def _hidden(step: str, done: int, total: int | None, more: str = "") -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(what: str) -> Iterator[Show]:
    """Shows progress while the block runs; `what` is counted, such as "keys"."""
    if sys.stderr is None or not sys.stderr.isatty() or manner.quiet or os.environ.get("TERM") == "dumb":
        yield _hidden
        return
    begun: dict[str, tuple[float, int]] = {}
    told = 0.0
    shown = 0

    def put(text: str) -> None:
        nonlocal shown
        text = text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + text + " " * (shown - len(text)))
        sys.stderr.flush()
        shown = len(text)

    def show(step: str, done: int, total: int | None, more: str = "") -> None:
        nonlocal told
        now = monotonic()
        since = begun.setdefault(step, (now, done))
        if now - told >= UPDATE_SECONDS or done == total:
            told = now
            put(f"{bar_of(step, done, total, now - since[0], since[1], what)}  {more}".rstrip())

    try:
        yield show
    finally:
        put("")
        sys.stderr.write("\r")
        sys.stderr.flush()

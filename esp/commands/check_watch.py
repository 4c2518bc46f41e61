"""`esp check --watch SECONDS`: the same again and again; live on a terminal, one page after the other elsewhere.

Ctrl-C ends the command, with the exit code of the last page. With `-o json` each page is one line.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

from esp.commands.output import flush, write, write_data
from esp.commands.rendered import Look, Page
from esp.core.health import Health

Examine = Callable[[], Health]
PageOf = Callable[[Health, Look], Page]


def watch(seconds: float, look: Examine, page_of: PageOf) -> Health | None:
    """Shows pages until Ctrl-C; the last health, None if there is none yet.

    Raises:
        CommandError: the output cannot be written.
    """
    if not Look.of_stdout().moves:
        return _again(seconds, look, lambda health: _write(_dated(page_of(health, Look.of_stdout()), seconds).text()))
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False, no_color=not Look.of_stdout().colour)
    with Live(console=console, auto_refresh=False) as live:

        def show(health: Health) -> None:
            live.update(_dated(page_of(health, Look.of_stdout()), seconds).renderable(), refresh=True)

        return _again(seconds, look, show)


def watch_json(seconds: float, look: Examine, json_of: Callable[[Health], dict[str, Any]]) -> Health | None:
    """Writes an object a line until Ctrl-C; as `watch`."""

    def show(health: Health) -> None:
        write_data(json.dumps(json_of(health)))
        flush()

    return _again(seconds, look, show)


def _again(seconds: float, look: Examine, show: Callable[[Health], None]) -> Health | None:
    last: Health | None = None
    # Ctrl-C would end the process at once, with the cursor hidden and without an exit code.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_DFL:  # not if the parent process ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            last = look()
            show(last)
            time.sleep(seconds)
    except KeyboardInterrupt:
        return last
    finally:
        signal.signal(signal.SIGINT, before)


def _write(text: str) -> None:
    write(text)
    flush()


def _dated(page: Page, seconds: float) -> Page:
    page.begin(f"{time.strftime('%Y-%m-%d %H:%M:%S')}, every {seconds:g} s; Ctrl-C ends this")
    return page

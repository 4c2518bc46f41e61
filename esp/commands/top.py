"""`esp top`: running proxies, live: rates, seconds and errors by shard and RPC, watchers, hot prefixes.

Everything comes from the status page's own data (`/ui/state`), which each proxy makes from its metrics.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from esp.commands.noted import file_at
from esp.commands.output import USAGE, CommandError, Format, complain, flush, manner, note, write
from esp.commands.top_view import Seen, as_json, picture
from esp.core.config import is_wildcard, url_of
from esp.core.ui.pages import STATE
from esp.core.ui.rates import State, read
from esp.core.wording import counted, cured

TIMEOUT: Final = 5.0
"""Seconds for a proxy's answer."""
MOST_BYTES: Final = 64_000_000
"""Bytes of an answer."""
_URL: Final = re.compile(r"(https?://(?:\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(?::\d{1,5})?)/*")
AT_ONCE: Final = 16
"""Proxies that are asked side by side."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The files for proxies with `https://` URLs: whom to trust, and the client's own certificate."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The context of the connections.

        Raises:
            CommandError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ValueError) as error:
            files = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path is not None)
            raise CommandError(f"the certificate files cannot be used ({files}): {error}", USAGE) from None
        return context


def run(
    urls: Sequence[str],
    config: Path | None,
    tls: Tls,
    output: Format,
    *,
    interval: float,
    count: int | None,
) -> None:
    """Shows the proxies at `urls`, by default the one with this config, every `interval` seconds.

    At a terminal it is one picture that is made anew until q or Ctrl-C, else one picture after another, `count` times.
    JSON is one line a time.

    Raises:
        CommandError: no proxy can be asked.
        ConfigError: there are no URLs, and the config is wrong.
    """
    places = [_base(url) for url in urls] or _from_config(config)
    context = tls.context() if any(place.startswith("https://") for place in places) else None
    seen = [Seen(place) for place in places]
    is_live = output is Format.TABLE and sys.stdout.isatty() and count is None
    with ThreadPoolExecutor(min(AT_ONCE, len(places))) as pool, contextlib.suppress(KeyboardInterrupt):
        ask = partial(_ask_all, pool, seen, context)
        ask()
        for one in seen:
            esp = "" if one.now is None else f"esp {one.now.esp}, map {one.now.map.fingerprint}"
            note(f"asked {one.url}{STATE}: {one.trouble or esp}")
        if all(one.now is None for one in seen):
            raise CommandError("; ".join(f"{one.url}: {one.trouble}" for one in seen))
        if is_live:
            _live(seen, ask, interval)
            return
        if output is Format.TABLE and not manner.quiet:
            complain(f"watching {counted(len(seen), 'proxy')}; the first figures come in {interval:g} s")
        made = 0
        while count is None or made < count:
            time.sleep(interval)
            ask()
            if output is Format.JSON:
                write(as_json(seen))
            else:
                _print(seen)
            flush()
            made += 1


def _from_config(path: Path | None) -> list[str]:
    config = file_at(path)
    places = [*config.metrics_listen, *(config.listen if config.metrics_for_clients else ())]
    usable = [place for place in places if place.path is None and place.port]
    if not usable or not config.ui:
        cure = "set ui: true and metrics_listen: [http://127.0.0.1:2381], or name URLs"
        raise CommandError(f"with {config.path} esp has no status page at a port, which esp top reads; {cure}", USAGE)
    [first, *_] = usable
    return [url_of("127.0.0.1" if is_wildcard(first.host) else first.host, first.port, tls=first.tls)]


def _base(url: str) -> str:
    """The URL of a proxy, without a path."""
    found = _URL.fullmatch(url if "://" in url else f"http://{url}")
    if found is None:
        raise CommandError(f'"{url}" is no URL of a proxy; write http://HOST:PORT', USAGE)
    return found[1]


def _ask_all(pool: ThreadPoolExecutor, seen: Sequence[Seen], context: ssl.SSLContext | None) -> None:
    for one, answer in zip(seen, pool.map(partial(_ask, context), [one.url for one in seen]), strict=True):
        one.take(answer)


def _ask(context: ssl.SSLContext | None, url: str) -> State | str:
    """The state of the proxy, or why there is none."""
    request = urllib.request.Request(url + STATE)  # noqa: S310 - `_base` lets no other scheme pass
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as answer:  # noqa: S310
            return read(answer.read(MOST_BYTES))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return (
                "it has no status page: set ui: true there (and metrics_for_clients: true, or ask a metrics_listen URL)"
            )
        return f"it answers {error.code} {error.reason}"
    except ValueError:
        return "it is no esp, or a newer one: its answer has another form"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return cured(str(getattr(reason, "strerror", None) or reason).lower())


def _print(seen: Sequence[Seen]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _columns(), highlight=False)
    with console.capture() as captured:
        console.print(picture(seen, console.size.width, height=None))
    write(captured.get().rstrip("\n") + "\n")


def _columns() -> int:
    try:
        return max(40, int(os.environ.get("COLUMNS", "")))
    except ValueError:
        return 120


def _live(seen: Sequence[Seen], ask: partial[None], interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with _keys() as fd, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(picture(seen, console.size.width, console.size.height), refresh=True)
            until = time.monotonic() + interval
            while (left := until - time.monotonic()) > 0:
                if fd is None:
                    time.sleep(left)
                elif select.select([fd], [], [], left)[0] and os.read(fd, 64)[:1] in (b"q", b"Q", b"\x03", b""):
                    return
            ask()


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """The terminal's input key by key, without an echo; None if there is none."""
    try:
        import termios
        import tty

        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield None
        return
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)

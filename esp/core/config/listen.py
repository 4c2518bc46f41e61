"""Addresses on which esp listens: `http://` and `https://` with host and port, `unix:` and `unixs:` with a path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from esp.core.config.addresses import address

MAX_PATH_BYTES: Final = 107
"""The longest path of a socket, on Linux."""
_UNIX: Final = {"unix": False, "unixs": True}


class Listen(NamedTuple):
    """An address on which esp listens; as text it is a URL.

    Attributes:
        host: a name or an address without brackets; "" for a Unix socket.
        port: 0 is any free port.
        tls: clients speak TLS there.
        path: of a Unix socket; None for TCP.
        only_pages: there are only pages there, /metrics among them, and no calls.
    """

    host: str
    port: int
    tls: bool = False
    path: Path | None = None
    only_pages: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"{'unixs' if self.tls else 'unix'}:{self.path}"
        return url_of(self.host, self.port, tls=self.tls)

    def is_same(self, other: Listen) -> bool:
        """Whether both name the same socket, with TLS or without; port 0 is another port each time."""
        if self.path is not None or other.path is not None:
            return self.path == other.path
        return self.port == other.port != 0 and self.host == other.host


def url_of(host: str, port: int, *, tls: bool = False) -> str:
    """The URL of a TCP address."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def listen_at(url: object, folder: Path | None = None) -> Listen:
    """The address of a listen URL. A relative path of a Unix socket begins at `folder`.

    Raises:
        ValueError: the URL is wrong; the message is a sentence with the cure.
    """
    scheme, colon, rest = str(url).partition(":")
    if colon and scheme in _UNIX:
        return Listen("", 0, _UNIX[scheme], _path(str(url), rest, folder))
    host, port = address(url, "listen URL", lowest_port=0, needs_scheme=True)
    return Listen(host, port, scheme == "https")


def _path(url: str, rest: str, folder: Path | None) -> Path:
    text = rest.removeprefix("//")
    if not text or text.endswith("/") or not text.isprintable():
        raise ValueError(f'listen URL "{url}" names no file; write unix:/run/esp.sock')
    path = Path(text) if folder is None else folder / text
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ValueError(f'listen URL "{url}" has a path above {MAX_PATH_BYTES} bytes; name a shorter one')
    return path


def again(addresses: Sequence[Listen]) -> Listen | None:
    """The last address, if an earlier one names the same socket."""
    *before, last = addresses
    return last if any(map(last.is_same, before)) else None

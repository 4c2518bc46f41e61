"""Messages to the service manager that has started esp: the protocol sd_notify(3) of systemd."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import MutableMapping
from time import CLOCK_MONOTONIC, clock_gettime_ns, monotonic
from typing import Final

log = logging.getLogger("esp")

MOST_OWED: Final = 16
"""The most messages kept for a service manager that does not read; the oldest go first."""
LONGEST_STATUS: Final = 500
"""Characters of a status; the rest is cut."""


class ServiceManager:
    """Tells the service manager how esp is. Without an address nothing is sent.

    Sending never waits: a message that the socket does not take is sent again at the next tick. A service manager that
    is gone is logged once.

    Args:
        address: a path, or the name of an abstract socket behind an "@"; None if nobody asked for messages.
        watchdog_seconds: the manager restarts esp if it hears nothing for so long; None if there is no watchdog.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self.address = address
        self.watchdog_seconds = watchdog_seconds
        self._socket: socket.socket | None = None
        self._owed: deque[bytes] = deque(maxlen=MOST_OWED)
        self._alive_at = monotonic()
        self._status = ""
        if address is None:
            return
        if not address.startswith(("/", "@")):
            log.warning('NOTIFY_SOCKET is "%s", not a path or an abstract socket; the manager is told nothing', address)
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """The service manager that the environment names.

        The variables are taken out of `environ`: esp's own children, such as etcds, must not speak in its name.
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        told, process = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        watches = told.isdecimal() and int(told) > 0 and process in ("", str(os.getpid()))
        return cls(address or None, int(told) / 1e6 if watches else None)

    def ready(self, status: str) -> None:
        """Told when esp serves: after its start, or after a reload."""
        self._status = ""
        self._send("READY=1", self._line_of(status))

    def reloading(self) -> None:
        """Told when esp takes another config; `ready` has to follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={clock_gettime_ns(CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """Told when esp drains, for at most so many seconds, whatever the unit's TimeoutStopSec is."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", self._line_of("draining"))

    def main_process(self, pid: int) -> None:
        """From now on another process is the one to watch and to signal."""
        self._send(f"MAINPID={pid}")

    def status(self, text: str) -> None:
        """What `systemctl status` shows; sent if it has changed."""
        if line := self._line_of(text):
            self._send(line)

    def tick(self, now: float) -> None:
        """Tells the watchdog that esp works, at the time `now` (monotonic); called from the loop of the clients."""
        while self._owed and self._sent(self._owed[0]):
            self._owed.popleft()
        if self.watchdog_seconds is not None and now - self._alive_at >= self.watchdog_seconds / 4:
            self._alive_at = now
            if self._socket is not None:
                self._sent(b"WATCHDOG=1")  # not owed: what is late would be a lie

    def close(self) -> None:
        """Ends the messages."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _line_of(self, status: str) -> str:
        if status == self._status:
            return ""
        self._status = status
        text = " ".join(status.split())
        return f"STATUS={text if len(text) <= LONGEST_STATUS else text[: LONGEST_STATUS - 3] + '...'}"

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            message = "\n".join(line for line in lines if line).encode()
            if self._owed or not self._sent(message):
                self._owed.append(message)

    def _sent(self, message: bytes) -> bool:
        """Sends; False if the message has to wait."""
        if self._socket is None or self.address is None:
            return True
        try:
            self._socket.sendto(message, self.address.replace("@", "\0", 1) if self.address[0] == "@" else self.address)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            log.warning("the service manager at %s is told nothing more: %s", self.address, error.strerror)
            self.close()
        return True

"""The commands' end of a control socket. Blocking: commands have nothing else to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from esp.core.control.lines import MAX_ANSWER_BYTES, MAX_DESCRIPTORS, LineError, Lines, encode

Told = Callable[[Mapping[str, Any]], None]
"""Called with each line of progress."""


class NoneRunsError(Exception):
    """No process listens at the path, or it has gone before the answer; the text is a clause for people."""


class RefusedError(Exception):
    """The running proxy answered with an error; the text is the proxy's."""


class Client:
    """A connection to a running proxy; use as a context manager.

    Attributes:
        descriptors: the file descriptors that came with answers, which the caller takes and closes.

    Raises:
        NoneRunsError: no process listens at the path.
    """

    def __init__(self, path: Path) -> None:
        self.descriptors: list[int] = []
        self._lines = Lines(MAX_ANSWER_BYTES)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NoneRunsError(f"no esp listens at {path}: {(error.strerror or str(error)).lower()}") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; closes descriptors that nobody took."""
        self._socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def take(self) -> list[int]:
        """The descriptors that have come so far. From now on they are the caller's."""
        taken, self.descriptors = self.descriptors, []
        return taken

    def ask(self, command: str, *, seconds: float, told: Told | None = None, **arguments: Any) -> dict[str, Any]:
        """The result of a command.

        Args:
            command: its name.
            seconds: the longest to wait between two lines of the answer.
            told: called with each line of progress.
            arguments: the other fields of the request.

        Raises:
            NoneRunsError: the proxy has gone, or does not answer in time.
            RefusedError: the proxy answered with an error.
        """
        self.send({"command": command, **arguments})
        while True:
            answer = self.receive(seconds)
            if isinstance(result := answer.get("result"), dict):
                return result
            if "error" in answer:
                raise RefusedError(str(answer["error"]))
            if told is not None and isinstance(progress := answer.get("progress"), dict):
                told(progress)

    def send(self, line: Mapping[str, Any]) -> None:
        """Sends one line; for commands that are a dialogue.

        Raises:
            NoneRunsError: the proxy has gone.
        """
        try:
            self._socket.sendall(encode(line))
        except OSError:
            raise NoneRunsError(f"the esp at {self._path} has gone") from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next line of the answer, of any kind.

        Raises:
            NoneRunsError: the proxy has gone, or does not answer in time.
        """
        until = monotonic() + seconds
        try:
            while (line := self._lines.next()) is None:
                self._socket.settimeout(max(0.001, until - monotonic()))
                data, descriptors, _, _ = socket.recv_fds(self._socket, 65_536, MAX_DESCRIPTORS)
                self.descriptors += descriptors
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                if not data:
                    raise NoneRunsError(f"the esp at {self._path} ended before it answered")
                self._lines.feed(data)
        except TimeoutError:
            raise NoneRunsError(f"the esp at {self._path} has not answered within {seconds:g} s") from None
        except OSError:
            raise NoneRunsError(f"the esp at {self._path} has gone") from None
        except LineError as error:
            raise NoneRunsError(f"what listens at {self._path} is no esp: {error}") from None
        finally:
            with suppress(OSError):
                self._socket.settimeout(None)
        return line

"""The control socket in the running proxy: accepts, reads requests, and runs their commands.

Only this user and root can connect: the socket has mode 0600. Input is bounded all the same, and so are connections.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from esp.core.background import Background
from esp.core.control.lines import MAX_REQUEST_BYTES, LineError, Lines, encode
from esp.core.control.place import Place, PlaceError, is_live

log = logging.getLogger("esp")

MAX_CONNECTIONS: Final = 16
"""The most connections at once; further ones are closed at once."""
IDLE_SECONDS: Final = 10.0
"""The longest that a connection may take for a whole request, and for each answer."""
_LOCK_SECONDS: Final = 2.0
_PAUSE: Final = 0.05

Command = Callable[["Call"], Awaitable[Mapping[str, Any]]]
"""A command's function: gets the call, and returns the result. Raises DeniedError to answer with an error."""


class DeniedError(Exception):
    """A command is not done; the text is a sentence for the operator, with the cure."""


class Call:
    """One request, as its command sees it.

    Attributes:
        request: the whole request, with its `command`; hostile input.
    """

    def __init__(self, connection: _Connection, request: dict[str, Any]) -> None:
        self.request = request
        self._connection = connection

    @property
    def is_gone(self) -> bool:
        """Whether nobody reads the answer any more."""
        return self._connection.is_gone

    async def tell(self, progress: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends one line of progress, with copies of the file descriptors; nothing if the client is gone."""
        await self._connection.send({"progress": progress}, descriptors)

    async def receive(self, seconds: float = IDLE_SECONDS) -> dict[str, Any] | None:
        """The client's next line, for commands that are a dialogue; None if the client is gone or too slow."""
        return await self._connection.receive(seconds)


class Control:
    """The control socket. Use `open`, then `close`.

    Attributes:
        place: where the socket is; None while it is closed.
        refused: the number of connections that were closed because there were too many.
    """

    def __init__(self, background: Background, commands: Mapping[str, Command]) -> None:
        self.place: Place | None = None
        self.refused = 0
        self._background = background
        self._commands = dict(commands)
        self._inode = 0
        self._accepting: asyncio.Task[None] | None = None
        self._talks: dict[_Connection, asyncio.Task[None]] = {}

    async def open(self, place: Place, *, take: bool = False) -> None:
        """Listens at `place`. A socket that a dead process has left is replaced.

        If another live process listens there, this one listens at `place.beside(PID)`, and says so. With `take` it
        takes the path from the other instead, whose socket nobody finds any more.

        Raises:
            PlaceError: no socket can be made there.
        """
        try:
            with await _alone_in(place.path.parent):
                if not take and is_live(place.path):
                    other, place = place, place.beside(os.getpid())
                    log.warning(
                        "another esp has the control socket %s; that of this process is %s", other.path, place.path
                    )
                listening = self._bound(place.path)
        except OSError as error:
            raise PlaceError(f"{place.path}: {(error.strerror or str(error)).lower()}") from None
        self.place = place
        accepting = self._background.again("the control socket", partial(self._accept, listening))
        # The socket is closed when nothing waits for it any more, not before.
        self._accepting = self._background.start(accepting, on_end=listening.close)

    def _bound(self, path: Path) -> socket.socket:
        """A listening socket at `path`, in the place of whatever was there; at no time can others connect."""
        made = path.with_name(f".{os.getpid()}")
        if os.path.lexists(path) and not path.is_socket():
            raise PlaceError(f"{path} is there already and is no socket; remove it, or name another path")
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.setblocking(False)
            with suppress(FileNotFoundError):
                made.unlink()
            listening.bind(str(made))
            made.chmod(0o600)
            self._inode = made.stat().st_ino
            listening.listen(MAX_CONNECTIONS)
            made.rename(path)
        except BaseException:
            listening.close()
            with suppress(OSError):
                made.unlink()
            raise
        return listening

    def serve(self, name: str, command: Command) -> None:
        """Takes one more command from now on."""
        self._commands[name] = command

    def release(self) -> None:
        """Stops listening, so that another process may have the place; commands that run go on."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self.place is not None:
            with suppress(OSError):
                if self.place.path.lstat().st_ino == self._inode:  # else another process has taken the place
                    self.place.path.unlink()
            self.place = None

    async def close(self) -> None:
        """Stops listening, and cancels commands that run."""
        self.release()
        accepting = [] if self._accepting is None else [self._accepting]
        await self._background.end([*accepting, *self._talks.values()])

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listening)
            except OSError:  # no descriptor is free
                await asyncio.sleep(_PAUSE)
                continue
            if len(self._talks) >= MAX_CONNECTIONS or not _is_trusted(client):
                self.refused += 1
                client.close()
                continue
            client.setblocking(False)
            connection = _Connection(client)
            ended = partial(self._ended, connection)
            self._talks[connection] = self._background.start(self._talk(connection), on_end=ended)

    async def _talk(self, connection: _Connection) -> None:
        while (request := await connection.receive(IDLE_SECONDS)) is not None:
            await connection.send(await self._answer(Call(connection, request)))

    def _ended(self, connection: _Connection) -> None:
        del self._talks[connection]
        connection.close()

    async def _answer(self, call: Call) -> dict[str, Any]:
        name = call.request.get("command")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            return {"error": f"this esp has no such command; it has {', '.join(self._commands)}"}
        try:
            return {"result": await command(call)}
        except DeniedError as error:
            return {"error": str(error)}
        except Exception as error:
            self._background.failed(f"the command {name}", error)
            return {"error": f"{name}: a bug in esp, see its log"}


class _Connection:
    """One client: lines in both directions.

    Attributes:
        is_gone: the client has left, or is too slow.
    """

    def __init__(self, client: socket.socket) -> None:
        self.is_gone = False
        self._socket = client
        self._lines = Lines(MAX_REQUEST_BYTES)

    async def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None if the client is gone, too slow, or sends garbage, which the client is told."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                while (request := self._lines.next()) is None:
                    data = await loop.sock_recv(self._socket, MAX_REQUEST_BYTES)
                    if not data:
                        self.is_gone = True
                        return None
                    self._lines.feed(data)
                return request
        except LineError as error:
            await self.send({"error": str(error)})
        except (OSError, TimeoutError):
            pass
        self.is_gone = True
        return None

    async def send(self, answer: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a line, and copies of the descriptors with it; notes whether the client is gone."""
        if self.is_gone:
            return
        try:
            line = encode(answer)
        except LineError as error:
            line = encode({"error": str(error)})
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                sent = await self._send_descriptors(line, descriptors) if descriptors else 0
                await asyncio.get_running_loop().sock_sendall(self._socket, line[sent:])
        except (OSError, TimeoutError):
            self.is_gone = True

    async def _send_descriptors(self, line: bytes, descriptors: Sequence[int]) -> int:
        """Sends the beginning of a line with the descriptors; the number of bytes sent."""
        while True:
            try:
                return socket.send_fds(self._socket, [line], list(descriptors))
            except BlockingIOError:  # the client has yet to read what came before
                await asyncio.sleep(_PAUSE)

    def close(self) -> None:
        """Ends the connection."""
        self.is_gone = True
        self._socket.close()


def _is_trusted(client: socket.socket) -> bool:
    """Whether this user or root is at the other end; the socket's mode says the same, where the system heeds it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user in (0, os.geteuid())


class _Held:
    """A lock of a folder, until the end of the block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        """The lock is held already."""

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)


async def _alone_in(folder: Path) -> _Held:
    """Waits until no other process makes a control socket in this folder: two would take the place of a dead third.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for _ in range(int(_LOCK_SECONDS / _PAUSE)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # whoever holds the lock for longer only reads the folder: go on without
            await asyncio.sleep(_PAUSE)
        except OSError:
            os.close(descriptor)
            raise
    return _Held(descriptor)

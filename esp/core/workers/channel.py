"""The channel between the supervisor and one worker: a pair of sockets, one JSON object a line.

Both ends ask, and both answer: `{"command": NAME, ...}` with a number `ask` if an answer is wanted, then
`{"answer": NUMBER, "result": {...}}` or `{"answer": NUMBER, "error": TEXT}`. The ends trust each other; the bounds are
for an end that no longer reads.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, Final

import msgspec

from esp.core.background import Background

log = logging.getLogger("esp")

MAX_LINE_BYTES: Final = 64 << 20
"""The longest line: the metrics of a worker, or a config, take a fraction of this."""
MAX_UNREAD_BYTES: Final = 128 << 20
"""The most bytes that wait for an end that does not read; then the channel ends."""

Command = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""A command's function: gets the fields of the request, and returns those of the result."""


class ChannelError(Exception):
    """A question got no answer, or an error as its answer; the text is a clause for people."""


class Channel:
    """One end of a channel.

    Args:
        commands: the functions that answer the other end, by name.

    Attributes:
        gone: set once the other end has gone.
    """

    def __init__(self, background: Background, commands: Mapping[str, Command]) -> None:
        self.gone = asyncio.Event()
        self._background = background
        self._commands = commands
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._numbers = count(1)

    async def open(self, sock: socket.socket) -> None:
        """Begins to read; `sock` is the channel's from now on."""
        reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES)
        self._background.start(self._read(reader), on_end=self.close)

    def close(self) -> None:
        """Ends the channel: questions that wait fail."""
        self.gone.set()
        if self._writer is not None:
            self._writer.transport.abort()
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(ChannelError("the process has ended"))

    def tell(self, command: str, **fields: Any) -> None:
        """Sends a command of which no answer is wanted; nothing if the other end is gone."""
        self._send({"command": command, **fields})

    async def ask(self, command: str, seconds: float, **fields: Any) -> Mapping[str, Any]:
        """The result of a command at the other end.

        Raises:
            ChannelError: the other end has gone, is silent for `seconds`, or answers with an error.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            if not self._send({"command": command, "ask": number, **fields}):
                raise ChannelError("the process has ended")
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise ChannelError(f"the process has not answered within {seconds:g} s") from None
        finally:
            self._asked.pop(number, None)

    def _send(self, value: Mapping[str, Any]) -> bool:
        writer = self._writer
        if writer is None or self.gone.is_set():
            return False
        writer.write(msgspec.json.encode(value) + b"\n")
        if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.close()
        return not self.gone.is_set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(msgspec.json.decode(line))
        except (OSError, ValueError) as error:  # a ValueError is a line that is too long, or cut off
            log.debug("a channel between processes: %s", error)

    def _take(self, value: Mapping[str, Any]) -> None:
        if "answer" in value:
            asked = self._asked.get(value["answer"])
            if asked is not None and not asked.done():
                if "error" in value:
                    asked.set_exception(ChannelError(value["error"]))
                else:
                    asked.set_result(value["result"])
        else:
            self._background.start(self._serve(value))

    async def _serve(self, value: Mapping[str, Any]) -> None:
        name = value["command"]
        answer: Mapping[str, Any]
        try:
            answer = {"result": await self._commands[name](value)}
        except ChannelError as error:
            answer = {"error": str(error)}
        except Exception as error:
            self._background.failed(f"the command {name}", error)
            answer = {"error": f"{name}: a bug in esp, see its log"}
        if "ask" in value:
            self._send({"answer": value["ask"], **answer})

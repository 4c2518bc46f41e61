"""A shard's two connections to the endpoint in use: made, looked after, and taken out of use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from esp.core.background import Background
from esp.core.config import Endpoint
from esp.core.shard.dialler import Dialler, reason_of
from esp.core.shard.endpoint_state import EndpointState
from esp.core.shard.link import Link
from esp.core.shard.pulse import Pulse
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.ended import Passed
from esp.core.wire.frames import ErrorCode
from esp.core.wire.status import Status
from esp.core.wording import shard_called

STREAMS_PAUSE: Final = 2.0
"""Seconds between two attempts to connect for streams."""


class Owner(Protocol):
    """The shard, as its connections see it."""

    name: str
    passed: Passed | None

    def forget_member(self) -> None:
        """The member may have told facts about itself, and is not used any more."""

    def on_health(self, link: Link, outcome: bytes | Exception, seconds: float) -> None:
        """The connection of `link` has answered a Status call after so many seconds, or the call has failed."""

    def on_refused(self) -> None:
        """A coroutine has waited for a client in vain."""

    def note(self, text: str) -> None:
        """Logs news that leave the shard connected."""


class Links:
    """The connections of one shard, all to the same endpoint.

    Attributes:
        unary: the connection for unary calls.
        streams: the connection for long-lived streams, made when the first one needs it.
        lost: set when `unary` takes no more calls.
        silent_since: when the server of `unary` sent the last byte, if it was left for its silence; else None.
        wanted_streams: set when a stream waits for `streams`.
    """

    def __init__(self, owner: Owner, dialler: Dialler, context: WireContext, background: Background) -> None:
        self.unary = Link(context, background, owner.on_refused)
        self.streams = Link(context, background, owner.on_refused)
        self.lost = asyncio.Event()
        self.silent_since: float | None = None
        self.wanted_streams = asyncio.Event()
        self._owner = owner
        self._dialler = dialler
        self._context = context
        self._background = background
        self._pulses: dict[Link, Pulse] = {}
        self._retired: list[ClientConnection] = []

    # Connecting.

    async def dial(self, link: Link, endpoint: Endpoint, state: EndpointState) -> ClientConnection:
        """Connects a link, and lets waiting calls go.

        Raises:
            OSError: as `Dialler.dial`.
        """
        try:
            connection = await self._dialler.dial(endpoint, state)
        except BaseException:
            if link is self.unary:
                self._owner.forget_member()  # it may have told its status before the attempt failed
            raise
        if link.connection is not None:
            self._retire(link, leave=False)  # full, but as good as the new one
        if self._owner.passed is not None:
            connection.observe(self._owner.passed)
        connection.on_change = self._on_change(link, connection)
        link.connection = connection
        answered = partial(self._on_status, link, connection)
        self._pulses[link] = Pulse(connection, answered, only_if_silent=link is self.streams)
        link.go()
        self._context.flush()
        return connection

    async def dial_streams(self, endpoint: Endpoint, state: EndpointState) -> None:
        """Makes the connection for streams when the first stream needs it, and again when it breaks."""
        if self.streams.standing:
            self.wanted_streams.set()  # an attempt may have been cut short
        while True:
            await self.wanted_streams.wait()
            self.wanted_streams.clear()
            if self.streams.free() is None:
                try:
                    await self.dial(self.streams, endpoint, state)
                except OSError as error:
                    self._owner.note(f"cannot connect to {endpoint} for streams: {reason_of(error)}")
                    if self.streams.standing or self.streams.waiting:
                        await asyncio.sleep(STREAMS_PAUSE)
                        self.wanted_streams.set()
                else:
                    if self.streams.is_short:
                        self.wanted_streams.set()

    def _on_change(self, link: Link, connection: ClientConnection) -> Callable[[], None]:
        name = f"{shard_called(self._owner.name)}: its connection"

        def changed() -> None:
            self._background.guard(name, look, begin_anew)

        def begin_anew() -> None:
            self.lost.set()
            self.wanted_streams.set()

        def look() -> None:
            if link.connection is not connection:
                return
            if connection.draining or connection.ended:
                self._retire(link)
                if link is self.unary:
                    self.lost.set()
                elif link.waiting or link.standing:
                    self.wanted_streams.set()
            else:
                link.go()

        return changed

    # Looking after them.

    def tick(self, now: float) -> None:
        """Looks at every deadline: calls that wait, keepalive, the answers to Status calls."""
        self.unary.tick(now)
        self.streams.tick(now)
        self._retired = [connection for connection in self._retired if not connection.ended]
        for connection in self._retired:
            connection.tick(now)
        for link, pulse in tuple(self._pulses.items()):
            if why := pulse.tick(now):
                if link is self.unary:
                    self.silent_since = now - pulse.connection.silence(now)
                self.leave(link, why)

    def ask(self, link: Link, now: float) -> None:
        """Asks for the status at once."""
        if pulse := self._pulses.get(link):
            pulse.ask(now)

    def _on_status(self, link: Link, connection: ClientConnection, outcome: bytes | Exception, seconds: float) -> None:
        if link.connection is connection and not connection.draining:
            self._owner.on_health(link, outcome, seconds)

    # Taking them out of use.

    def leave(self, link: Link, why: str) -> None:
        """Lets a connection take no more calls; `why` is for people. Calls that it has may still be answered."""
        connection = link.connection
        if connection is not None and not connection.draining:
            connection.close(why)
            self._context.flush()
            if link is self.streams:
                self._owner.note(f"left the connection for streams: {why}")

    def observe(self, passed: Passed) -> None:
        """Lets the ends of clients' calls be known on all connections; `passed` may have changed."""
        for connection in (self.unary.connection, self.streams.connection, *self._retired):
            if connection is not None:
                connection.observe(passed)

    def retire(self) -> None:
        """Takes the connections out of use, so that another endpoint's can take their place."""
        for link in (self.unary, self.streams):
            if link.connection is not None:
                self._background.guard(f"{shard_called(self._owner.name)}: its connection", partial(self._retire, link))
        self._context.flush()

    def _retire(self, link: Link, *, leave: bool = True) -> None:
        """Takes the link's connection out of use; it stays open until its calls have finished.

        With `leave`, calls that can go on elsewhere are asked to do so.
        """
        connection, link.connection = link.connection, None
        assert connection is not None
        if pulse := self._pulses.pop(link, None):
            pulse.stop()
        if link is self.unary:
            self._owner.forget_member()
        if not connection.ended:
            self._retired.append(connection)
            connection.close()
            for stream in list(connection.streams.values()) if leave else ():
                self._background.guard("a stream that should move", stream.on_retired, stream.cancel)

    def bar(self, why: Status | None) -> None:
        """Refuses all calls with `why`, now and later, until `why` is None."""
        for link in (self.unary, self.streams):
            link.bar(why)
        self._context.flush()

    def close(self) -> None:
        """Refuses all calls, now and later, and ends the connections."""
        for link in (self.unary, self.streams):
            link.close()
        for connection in self._retired:
            connection.end(ErrorCode.NO_ERROR, "closing")
        self._retired.clear()
        self._context.flush()

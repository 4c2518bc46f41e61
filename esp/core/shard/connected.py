"""The connections of one shard: kept up to one of its endpoints, with fail-over to the next.

A shard keeps one connection for unary calls and, once it is needed, one for long-lived streams, both to the same
endpoint. So watches never hold up a Put. When the connection breaks, the next endpoint is tried at once. When all
endpoints have failed, there is a pause that grows. Calls that come meanwhile wait for `max_waiting_seconds`. Then they
are refused, with the text after which etcd's clients try again: the calls were surely not sent.

esp leaves a member for the next one when the member says that it has no leader, hangs up, sends GOAWAY, or is silent
and does not answer a Status call. Calls that are open on the old connection finish there. esp uses a connection only
after the server has answered a Status call, and so has shown that it is not an esp (`member`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.auth_tokens import OwnParts
from esp.core.background import Background
from esp.core.config import Endpoint, User
from esp.core.shard.cluster import Cluster
from esp.core.shard.dialler import Dialler, reason_of
from esp.core.shard.endpoint_state import EndpointState
from esp.core.shard.link import Link
from esp.core.shard.login import Login
from esp.core.shard.member import NotAnEtcd, UnfitError, ask_once, ask_status
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, RpcError, Status

log = logging.getLogger("esp.shard")

NO_LEADER_TEXTS: Final = frozenset((errors.NO_LEADER.message, errors.SERVER_STOPPED.message))
"""Answers of a member that cannot serve, while another member perhaps can."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
"""The first and the longest pause, in seconds, between rounds over the endpoints. After a connection that has lasted
for LONGEST_PAUSE, the next pause is FIRST_PAUSE again."""
LOGIN_SECONDS: Final = 7.0
"""Seconds that a shard may take to check esp's own password."""


class Connected(Cluster):
    """The connections to one etcd cluster.

    Attributes:
        endpoints: all endpoints, in the order of the config.
        states: the state of each endpoint, for metrics and logs.
        user: the user for esp's own calls; None if esp has no user at this shard.
        passed: the calls of clients that are passed on here; None if nobody wants to know how they end.
        dialled: the number of times that esp began to connect, at the start and whenever a connection was lost. Who has
            seen the number change knows of an outage, however short.
    """

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        context: WireContext,
        background: Background,
        user: User | None = None,
    ) -> None:
        super().__init__(name)
        self.endpoints = tuple(endpoints)
        self.user = user
        self.context = context
        self.background = background
        self.states = {endpoint: EndpointState() for endpoint in self.endpoints}
        self.dialled = 0
        self._own_parts = OwnParts(name)
        self.passed = None if context.observer is None else context.observer.passed_to(name)
        self._login = None if user is None else Login(name, user, self._own_parts, self._ask_once, background)
        self._dialler = Dialler(context, self._own_parts.of, self.take_status)
        self._unary = Link(context, background)
        self._streams = Link(context, background)
        self._retired: list[ClientConnection] = []
        self._esps: set[Endpoint] = set()
        self._is_asking = False
        self._lost = asyncio.Event()
        self._wanted_streams = asyncio.Event()
        self._moved_on = -LONGEST_PAUSE

    @property
    def troubles(self) -> dict[Endpoint, str]:
        """Why esp cannot use the endpoints, as far as they were tried; empty while the shard is connected."""
        if self.endpoint is not None:
            return {}
        return {endpoint: state.trouble for endpoint, state in self.states.items() if state.trouble}

    @property
    def calls_sent(self) -> int:
        """The unary calls that were sent on the present connection, streams' aside."""
        connection = self._unary.connection
        return 0 if connection is None else connection.highest_stream_id() // 2

    @property
    def is_ready(self) -> bool:
        """Whether a call could be sent now."""
        return self._unary.free() is not None

    @property
    def barred(self) -> Status | None:
        """The status with which calls fail at once if all endpoints are esps; None if one may be an etcd."""
        return self._unary.barred

    def free_connection(self) -> ClientConnection | None:
        """The connection for a unary call, if a call can be sent on it now."""
        return self._unary.free()

    def consider_moving(self, connection: ClientConnection, status: Status) -> None:
        """Tries the next endpoint if `status`, of a call on `connection`, says that the member cannot serve."""
        unary = self._unary.connection
        if status.code != Code.UNAVAILABLE or status.message not in NO_LEADER_TEXTS or len(self.endpoints) == 1:
            return
        now = monotonic()
        # If the cluster has no leader, all members say so. Each is kept for a while: it still serves serializable
        # reads.
        current = connection in (unary, self._streams.connection)
        if unary is not None and current and now - self._moved_on >= LONGEST_PAUSE:
            self._moved_on = now
            log.warning("shard %s: %s says %r; trying the next endpoint", self.name, self.endpoint, status.message)
            unary.close()

    async def log_in(self, since: float, seconds: float | None = None) -> bool:
        """Gets a new token after the shard has refused esp's own. False if the shard would refuse the same call again.

        Args:
            since: the `monotonic` time of the refused call.
            seconds: the longest time to wait.
        """
        return self._login is not None and await self._login.renew(since, seconds)

    @property
    def is_logged_in(self) -> bool:
        """Whether the shard has wanted a user, and has got esp's own."""
        return bool(self._own_parts.own)

    @property
    def login_trouble(self) -> str:
        """Why esp cannot authenticate here, for people; "" when it can, or has not been asked to."""
        return "" if self._login is None else self._login.trouble

    async def _ask_once(self, forward: Forward, message: bytes) -> bytes:
        """The answer of the member in use to esp's password.

        Raises:
            RpcError: there is no connection, or another answer.
            OSError, BrokenCall: there is no answer.
        """
        connection = self._unary.free()
        if connection is None:
            raise errors.NO_CONNECTION.error()
        return await ask_once(connection, forward, message, LOGIN_SECONDS)

    async def run(self) -> None:
        """Keeps the shard connected, until cancelled; then refuses all waiting calls and closes the connections."""
        try:
            await self.background.again(f"shard {self.name}", self._stay_connected)
        finally:
            self._close()
            await asyncio.sleep(0)  # the transports close in the loop's next turn

    async def _stay_connected(self) -> None:
        pause = 0.0
        turn = 0
        failures = 0
        while True:
            endpoint = self.endpoints[turn % len(self.endpoints)]
            began = monotonic()
            held = False
            try:
                await self._serve(endpoint)
                held = monotonic() - began >= LONGEST_PAUSE
            except NotAnEtcd as error:
                self.states[endpoint].failed(reason_of(error))
                self._found_esp(endpoint)
            except OSError as error:
                why = reason_of(error)
                self.states[endpoint].failed(why)
                self._found_no_esp(endpoint)
                level = logging.WARNING if failures == len(self.endpoints) - 1 else logging.DEBUG
                log.log(level, "shard %s: cannot connect to %s: %s", self.name, endpoint, why)
            turn += 1
            # An endpoint that accepts and hangs up at once counts like one that does not accept.
            failures = 0 if held else failures + 1
            if failures == 0:
                pause = 0.0
            elif failures % len(self.endpoints) == 0:
                pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311

    def _found_esp(self, endpoint: Endpoint) -> None:
        """Notes, and logs once, that an endpoint is an esp. If all endpoints are, calls need not wait."""
        if endpoint not in self._esps:
            self._esps.add(endpoint)
            log.error("shard %s: %s cannot be used: %s", self.name, endpoint, self.states[endpoint].trouble)
        if self._esps.issuperset(self.endpoints):
            self._bar(errors.leads_to_esp(self.name, ", ".join(map(str, self.endpoints))))

    def _found_no_esp(self, endpoint: Endpoint) -> None:
        self._esps.discard(endpoint)
        self._bar(None)

    def _bar(self, why: Status | None) -> None:
        for link in (self._unary, self._streams):
            link.bar(why)
        self.context.flush()

    def _close(self) -> None:
        for link in (self._unary, self._streams):
            link.close()
        for connection in self._retired:
            connection.end(ErrorCode.NO_ERROR, "closing")
        self._retired.clear()
        self.context.flush()

    async def _serve(self, endpoint: Endpoint) -> None:
        """Connects to `endpoint` and returns when that connection takes no more calls.

        Raises:
            OSError: the endpoint takes no connection.
        """
        self._lost.clear()
        self.dialled += 1
        state = self.states[endpoint]
        state.connecting()
        await self._dial(self._unary, endpoint)
        if self.endpoint != endpoint:
            log.info("shard %s: connected to %s", self.name, endpoint)
        self.endpoint = endpoint
        state.ready()
        self._found_no_esp(endpoint)
        tasks = [self.background.keep(f"shard {self.name}: its streams", partial(self._dial_streams, endpoint))]
        if not self.version_in_use:
            tasks.append(self.background.keep(f"shard {self.name}: its version", self._learn_version))
        try:
            await self._lost.wait()
        finally:
            await self.background.end(tasks)
            self.endpoint = None
            state.failed("connection lost")
            self.version_in_use = ""
            for link in (self._unary, self._streams):
                if link.connection is not None:
                    self.background.guard(f"shard {self.name}: its connection", partial(self._retire, link))
            self.context.flush()
        log.warning("shard %s: lost %s", self.name, endpoint)

    async def _learn_version(self) -> None:
        """Asks the member in use for its version until it answers."""
        level = logging.INFO
        while True:
            asked = monotonic()
            connection = self._unary.free()
            if connection is not None:
                try:
                    self.take_status(await ask_status(connection, self.context.limits.connect_timeout))
                    return
                except UnfitError as error:
                    log.error("shard %s: %s", self.name, error)
                    self._lost.set()
                    return
                except (RpcError, OSError) as error:
                    stale = isinstance(error, RpcError) and error.status in errors.STALE_TOKEN
                    if stale and await self.log_in(asked):
                        continue
                    log.log(level, "shard %s: does not tell its version: %s", self.name, error)
            level = logging.DEBUG
            await asyncio.sleep(LONGEST_PAUSE)

    async def _dial_streams(self, endpoint: Endpoint) -> None:
        """Makes the connection for streams when the first stream needs it, and again when it breaks."""
        if self._streams.standing:
            self._wanted_streams.set()  # an attempt may have been cut short
        while True:
            await self._wanted_streams.wait()
            self._wanted_streams.clear()
            if self._streams.free() is None:
                try:
                    await self._dial(self._streams, endpoint)
                except OSError as error:
                    reason = reason_of(error)
                    log.warning("shard %s: cannot connect to %s for streams: %s", self.name, endpoint, reason)
                    if self._streams.standing or self._streams.waiting:
                        await asyncio.sleep(LONGEST_PAUSE)
                        self._wanted_streams.set()
                else:
                    if self._streams.is_short:
                        self._wanted_streams.set()

    async def _dial(self, link: Link, endpoint: Endpoint) -> None:
        """Connects a link.

        Raises:
            OSError: as `Dialler.dial`.
        """
        try:
            connection = await self._dialler.dial(endpoint, self.states[endpoint])
        except BaseException:
            if link is self._unary:
                self.forget_member()  # it may have told its status before the attempt failed
            raise
        if link.connection is not None:
            self._retire(link, leave=False)  # full, but as good as the new one
        if self.passed is not None:
            connection.observe(self.passed)
        connection.on_change = self._on_change(link, connection)
        link.connection = connection
        link.go()
        self.context.flush()

    def _on_change(self, link: Link, connection: ClientConnection) -> Callable[[], None]:
        def changed() -> None:
            self.background.guard(f"shard {self.name}: its connection", look, begin_anew)

        def begin_anew() -> None:
            self._lost.set()
            self._wanted_streams.set()

        def look() -> None:
            if link.connection is not connection:
                return
            if connection.draining or connection.ended:
                self._retire(link)
                if link is self._unary:
                    self._lost.set()
                elif link.waiting or link.standing:
                    self._wanted_streams.set()
            else:
                link.go()

        return changed

    def _retire(self, link: Link, *, leave: bool = True) -> None:
        """Takes the link's connection out of use; it stays open until its calls have finished.

        With `leave`, calls that can go on elsewhere are asked to do so.
        """
        connection, link.connection = link.connection, None
        assert connection is not None
        if link is self._unary:
            self.forget_member()
        if not connection.ended:
            self._retired.append(connection)
            connection.close()
            for stream in list(connection.streams.values()) if leave else ():
                self.background.guard("a stream that should move", stream.on_retired, stream.cancel)

    def tick(self, now: float) -> None:
        """Looks at every deadline: calls that wait, keepalive."""
        self._unary.tick(now)
        self._streams.tick(now)
        self._retired = [connection for connection in self._retired if not connection.ended]
        for connection in self._retired:
            connection.tick(now)
        asked = self._unary.free()
        half = self.context.limits.keepalive_time / 2
        if asked is not None and not self._is_asking and asked.silence(now) > half:
            self._is_asking = True
            self.background.start(self._break_silence(asked, min(half, self.context.limits.keepalive_timeout)))
        self.context.flush()

    async def _break_silence(self, connection: ClientConnection, seconds: float) -> None:
        """Asks a member that has sent nothing for long, so that esp knows of a frozen member before a client's call.

        Not with a PING: etcd punishes PINGs while no call is open, and a member may answer PINGs and nothing else. esp
        leaves a member that does not answer, for the next one or until it answers again. Calls that the member has may
        still be answered.
        """
        try:
            with suppress(RpcError):  # that is an answer, too
                await ask_status(connection, seconds)
        except OSError as error:
            if connection is self._unary.connection and not connection.draining:
                log.warning("shard %s: leaving %s: %s", self.name, self.endpoint, error)
                connection.close()
        finally:
            self._is_asking = False
            self.context.flush()

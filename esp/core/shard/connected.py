"""The connections of one shard: kept up to one of its endpoints, with fail-over to the next.

A shard keeps one connection for unary calls and, once it is needed, one for long-lived streams, both to the same
endpoint. So watches never hold up a Put. When the connection breaks, the next endpoint is tried at once. When all
endpoints have failed, there is a pause that grows. Calls that come meanwhile wait for `max_waiting_seconds`. Then they
are refused, with the text after which etcd's clients try again: the calls were surely not sent.

esp leaves a member for the next one when the member says that it has no leader, hangs up, sends GOAWAY, or is silent
and does not answer a Status call (`pulse`). Calls that are open on the old connection finish there. esp uses a
connection only after the server has answered a Status call, and so has shown that it is not an esp (`member`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Final, Self

from esp.core import errors
from esp.core.auth_tokens import OwnParts
from esp.core.background import Background
from esp.core.config import Endpoint, ShardConfig, User
from esp.core.shard.cluster import Cluster
from esp.core.shard.common_name import CommonNameError, check_common_name
from esp.core.shard.dialler import Dialler, reason_of
from esp.core.shard.endpoint_state import EndpointState
from esp.core.shard.leader import NO_LEADER, Leaderless
from esp.core.shard.link import Link
from esp.core.shard.links import Links
from esp.core.shard.login import Login
from esp.core.shard.member import NotAnEtcd, UnfitError, ask_once, fault_of
from esp.core.shard.outage import Outages
from esp.core.shard.second_look import SecondLook
from esp.core.shard.secured import Secured
from esp.core.tls_files import TlsFiles
from esp.core.wire.call import BrokenCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wording import shard_called

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
        secured: the TLS of the connections; None if they are plain.
        unsafe: why esp must not use the shard with its certificate (`common_name`); "" if it may, as far as known.
        passed: the calls of clients that are passed on here; None if nobody wants to know how they end.
        outages: tells of losses and outages in the log, and counts them.
        failed_calls: the number of clients' calls that ended with an error of esp's own about this shard.
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
        secured: Secured | None = None,
    ) -> None:
        super().__init__(name)
        self.endpoints = tuple(endpoints)
        self.user = user
        self.secured = secured
        self.unsafe = ""
        self.context = context
        self.background = background
        self.states = {endpoint: EndpointState() for endpoint in self.endpoints}
        self.outages = Outages(self._tell, self._why_away, lambda: self.failed_calls)
        self.failed_calls = 0
        self.dialled = 0
        self._own_parts = OwnParts(name)
        self.passed = None if context.observer is None else context.observer.passed_to(name)
        self._login = None if user is None else Login(name, user, self._own_parts, self._ask_once, background)
        dialler = partial(Dialler, context, self._own_parts.of, secured=secured)
        self._links = Links(self, dialler(self.take_status, connection=self._new_connection), context, background)
        self._second_look = SecondLook(name, dialler, context)
        self._unary, self._streams = self._links.unary, self._links.streams
        self._esps: set[Endpoint] = set()
        self._moved_on = -LONGEST_PAUSE
        self._leaderless = Leaderless(context.limits.health_interval)
        self._told_leaderless = False
        self._tells_version = True
        self._asks_for_auth = False

    @classmethod
    def of(cls, shard: ShardConfig, context: WireContext, background: Background, files: TlsFiles) -> Self:
        """The client of a shard as the config has it; `files` gets the shard's certificates.

        Raises:
            TlsFileError: one of them cannot be used.
        """
        secured = Secured.of(shard.name, shard.tls, files)
        return cls(shard.name, shard.endpoints, context, background, shard.user, secured)

    def _new_connection(self, context: WireContext, authority: str) -> ClientConnection:
        return ClientConnection(context, authority)

    def may_become(self, shard: ShardConfig) -> bool:
        """Whether this client can `move` to a shard as the config has it: as the same user, with the same TLS."""
        tls = None if self.secured is None else self.secured.tls
        return (self.user, tls) == (shard.user, shard.tls) and not set(self.endpoints).isdisjoint(shard.endpoints)

    @property
    def troubles(self) -> dict[Endpoint, str]:
        """Why esp cannot use the endpoints, as far as they were tried; empty while the shard is connected."""
        if self.endpoint is not None:
            return {}
        return {endpoint: state.trouble for endpoint, state in self.states.items() if state.trouble}

    def move(self, endpoints: Sequence[Endpoint]) -> None:
        """Uses other endpoints of the same cluster. A connection to an endpoint that is no longer there is left.

        Calls that are open on that connection finish there.
        """
        if self.endpoints == tuple(endpoints):
            return
        self.endpoints = tuple(endpoints)
        self.states = {endpoint: self.states.get(endpoint) or EndpointState() for endpoint in endpoints}
        self._esps.intersection_update(endpoints)
        self._leave_if_gone()

    def _leave_if_gone(self) -> None:
        unary = self._unary.connection
        if unary is not None and self.endpoint is not None and self.endpoint not in self.endpoints:
            unary.close("it is no longer in the config")

    @property
    def trouble(self) -> str:
        """The reasons why esp cannot use the endpoints, each once and without addresses; "" while it can use one."""
        return ", ".join(dict.fromkeys(self.troubles.values()))

    @property
    def calls_sent(self) -> int:
        """The unary calls that were sent on the present connection, streams' aside."""
        connection = self._unary.connection
        return 0 if connection is None else connection.highest_stream_id() // 2

    @property
    def calls_waiting(self) -> int:
        """The calls that wait for a connection."""
        return sum(len(link.waiting) + len(link.standing) for link in (self._unary, self._streams))

    @property
    def calls_open(self) -> int:
        """The calls that are open on the connections in use, clients' and esp's own."""
        links = (self._unary, self._streams)
        return sum(len(link.connection.streams) for link in links if link.connection is not None)

    @property
    def streams_open(self) -> int:
        """Those of these that last: watches, keepalives, and what waits for locks."""
        connection = self._streams.connection
        return 0 if connection is None else len(connection.streams)

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
            unary.close(f"it says {status.message!r}")

    def wants_login(self, status: Status) -> bool:
        """Whether `status` is how the shard refuses a call for want of a token that is valid.

        To a caller without token whom it knows by a certificate, an etcd says that permission is denied.
        """
        is_nobody = self.secured is not None and not self.is_logged_in
        return status in errors.STALE_TOKEN or (is_nobody and status == errors.PERMISSION_DENIED)

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
            await self.background.again(shard_called(self.name), self._stay_connected)
        finally:
            self._links.close()
            await asyncio.sleep(0)  # the transports close in the loop's next turn

    async def _stay_connected(self) -> None:
        pause = 0.0
        turn = 0
        failures = 0
        refusals = 0
        self.outages.begin(monotonic())
        if not self.endpoints:
            self._links.bar(errors.not_in_config(self.name))
            await asyncio.Event().wait()
        while True:
            endpoint = self.endpoints[turn % len(self.endpoints)]
            state = self.states[endpoint]  # `move` may drop it meanwhile
            began = monotonic()
            held = False
            try:
                await self._serve(endpoint)
                held = monotonic() - began >= LONGEST_PAUSE
                refusals = 0
            except OSError as error:
                refusals += 1
                why = reason_of(error)
                # Of the last endpoint that fails, the outage tells.
                is_news = why != state.trouble and refusals < len(self.endpoints)
                level = logging.WARNING if is_news and isinstance(error, UnfitError) else logging.DEBUG
                log.log(level, "shard %s: cannot connect to %s: %s", self.name, endpoint, why)
                state.failed(why)
                if isinstance(error, CommonNameError):
                    self.unsafe = why
                if isinstance(error, NotAnEtcd):
                    self._found_esp(endpoint)
                else:
                    self._found_no_esp(endpoint)
                if refusals >= len(self.endpoints):
                    self.outages.all_failed(monotonic())
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
        if endpoint not in self.endpoints:
            return
        if endpoint not in self._esps:
            self._esps.add(endpoint)
            log.error("shard %s: %s cannot be used: %s", self.name, endpoint, self.states[endpoint].trouble)
        if self._esps.issuperset(self.endpoints):
            self._links.bar(errors.leads_to_esp(self.name, ", ".join(map(str, self.endpoints))))

    def _found_no_esp(self, endpoint: Endpoint) -> None:
        self._esps.discard(endpoint)
        self._links.bar(None)

    async def _serve(self, endpoint: Endpoint) -> None:
        """Connects to `endpoint` and returns when that connection takes no more calls.

        Raises:
            OSError: the endpoint takes no connection.
        """
        self._links.lost.clear()
        self._links.silent_since = None
        self.dialled += 1
        state = self.states[endpoint]
        state.connecting()
        connection = await self._links.dial(self._unary, endpoint, state)
        self.endpoint = endpoint
        self.unsafe = ""
        state.ready()
        self._leave_if_gone()
        self.outages.connected(str(endpoint), monotonic())
        self._found_no_esp(endpoint)
        self._leaderless.begin()
        self._tells_version = True
        streams = self.background.keep(
            f"{shard_called(self.name)}: its streams", partial(self._links.dial_streams, endpoint, state)
        )
        failed = self.background.keep(
            f"{shard_called(self.name)}: its failed endpoints", partial(self._second_look.at, lambda: self.states)
        )
        if not self.version_in_use:
            self._links.ask(self._unary, monotonic())
        try:
            await self._links.lost.wait()
        finally:
            await self.background.end([streams, failed])
            why = reason_of(OSError(connection.why_over or "a bug in esp"))
            self.endpoint = None
            state.failed(why)
            self.version_in_use = ""
            self._links.retire()
        self.outages.lost(why, monotonic(), self._links.silent_since)

    def tick(self, now: float) -> None:
        """Looks at every deadline: calls that wait, keepalive."""
        self._links.tick(now)
        self.outages.tick(now)
        self.context.flush()

    # Health.

    def on_health(self, link: Link, outcome: bytes | Exception, seconds: float) -> None:
        """The member in use has answered a Status call after so many seconds, or the call has failed."""
        if self.endpoint is None:
            return
        if self.secured is not None and not self._asks_for_auth and link is self._unary:
            self._asks_for_auth = True
            self.background.start(self._look_for_auth(self.secured), on_end=self._has_asked_for_auth)
        try:
            if isinstance(outcome, bytes):
                if (state := self.states.get(self.endpoint)) is not None:  # else `move` has dropped the endpoint
                    state.answered(seconds)
                self.take_status(outcome)
                self._look_for_leader()
                return
        except UnfitError as error:
            log.error("shard %s: %s", self.name, error)
            self._links.leave(link, str(error))
            return
        except RpcError as error:
            outcome = error
        assert isinstance(outcome, (RpcError, BrokenCall))
        if fault := fault_of(outcome):
            self._links.leave(link, str(fault))
        elif not self.version_in_use:
            self.background.start(self._ask_as_user(link, outcome, monotonic() - seconds))

    def _look_for_leader(self) -> None:
        """Leaves a member that has no leader, or tells of the only one."""
        if self._leaderless.is_to_be_left(self.has_leader, monotonic()):
            if len(self.endpoints) > 1:
                self._links.leave(self._unary, NO_LEADER)
            else:
                self._told_leaderless = True
                self.note(f"{self.endpoint} serves no writes: {NO_LEADER}")
        elif self.has_leader and self._told_leaderless:
            self._told_leaderless = False
            self.note(f"{self.endpoint} has a leader again")

    async def _ask_as_user(self, link: Link, refusal: Exception, asked: float) -> None:
        """Asks for the version again after a refusal, at once if esp has got a new token for that."""
        stale = isinstance(refusal, RpcError) and self.wants_login(refusal.status)
        if stale and await self.log_in(asked):
            self._links.ask(link, monotonic())
        elif self._tells_version:
            self._tells_version = False
            log.info("shard %s: does not tell its version: %s", self.name, refusal)

    def observe(self) -> None:
        """The observer wants to be told of other calls than before."""
        if self.passed is not None:
            self._links.observe(self.passed)

    async def _look_for_auth(self, secured: Secured) -> None:
        """Leaves connections that were made with a common name if auth was turned on since."""
        for link in (self._unary, self._streams):
            connection, asked = link.connection, self._unary.free()
            if connection is None or asked is None:
                return
            try:
                await check_common_name(secured, connection, asked, self.context.limits.health_timeout)
            except CommonNameError as error:
                if link.connection is connection:  # else the next one was checked when it was made
                    self.unsafe = str(error) if link is self._unary else self.unsafe
                    self._links.leave(link, str(error))
            except OSError as error:  # a silent member is found out elsewhere
                log.debug("shard %s: %s", self.name, error)

    def _has_asked_for_auth(self) -> None:
        self._asks_for_auth = False

    def on_refused(self) -> None:
        """A coroutine has waited for a client in vain."""
        self.failed_calls += 1

    def note(self, text: str) -> None:
        """Logs news that leave the shard connected."""
        self.outages.note(text, monotonic())

    def _tell(self, level: int, text: str) -> None:
        log.log(level, "shard %s: %s", self.name, text)

    def _why_away(self) -> str:
        return "; ".join(f"{endpoint}: {trouble}" for endpoint, trouble in self.troubles.items())

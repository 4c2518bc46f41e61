"""A process of a proxy registers on the anchor: it gets a number for its tokens, and is known to the other proxies.

With a silent anchor proxies serve on: a number once had is kept as long as it was granted (GRANT_SECONDS), and a
process that starts gets one of other numbers from another shard.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.auth_tokens import OWN
from esp.core.fleet import values
from esp.core.fleet.values import Fleet, Grant, Registered
from esp.core.own_keys import LEASES
from esp.core.pb import rpc_pb2
from esp.core.shard import LEASE_GRANT, LEASE_REVOKE, RANGE, TXN, Shard, ask_for_esp
from esp.core.tokens import TICKS_PER_SECOND, Tokens
from esp.core.wire.call import BrokenCall
from esp.core.wire.status import Code, RpcError
from esp.core.wording import shard_called

log = logging.getLogger("esp.fleet")

TTL_SECONDS: Final = 15
"""Seconds after which the registration of a process that has died ends."""
RENEW_SECONDS: Final = 4.0
PAUSE_SECONDS: Final = 0.2
"""Seconds between two looks, whatever changes."""
GRANT_SECONDS: Final = 3600
"""Seconds for which a number is granted, from each renewal on."""
CALL_SECONDS: Final = 3.0
_TRIES: Final = 8
"""How many numbers are tried in one round."""
_KEEP_ALIVE: Final = b"/etcdserverpb.Lease/LeaseKeepAlive"

Describe = Callable[[int], Registered]
"""Makes the registration with a number."""


class NoNumberError(Exception):
    """A shard gives no number; the text is a clause for people."""


class Registration:
    """The registration of this process.

    Args:
        shards: tells the shards in force, in the order of the map.
        anchor: tells the name of the anchor.
        guards: tells the guards of the shards, by the map in force.
        describe: makes the registration with a number.
        tokens: get the number.

    Attributes:
        number: the number of this process; None if it has none.
        shard: the name of the shard that has given the number; "" if none has.
        trouble: why this process is not registered on the anchor; "" if it is.
        others: the other processes, by number, as the anchor told last.
        secret: by which proxies know each other; b"" before it was read.
        looks: how often the anchor has told the others.
    """

    def __init__(
        self,
        shards: Callable[[], Mapping[str, Shard]],
        anchor: Callable[[], str],
        guards: Callable[[], Mapping[str, str]],
        describe: Describe,
        tokens: Tokens,
    ) -> None:
        self.number: int | None = None
        self.shard = ""
        self.trouble = "it has not begun to register"
        self.others: dict[int, Registered] = {}
        self.secret = b""
        self.looks = 0
        self._process = secrets.token_hex(8)
        self._shards = shards
        self._anchor = anchor
        self._guards = guards
        self._describe = describe
        self._tokens = tokens
        self._grant_at = 0  # the revision at which the grant was written
        self._until = 0
        self._written: Registered | None = None
        self._wanted = asyncio.Event()
        self._has_left = False
        self._turn = asyncio.Lock()  # a round, or the end: a round under way would register anew what has just left
        tokens.numbers = values.DRAWN

    @property
    def is_registered(self) -> bool:
        """Whether the anchor has given the number, and others know of this process."""
        return self.number is not None and self.shard == self._anchor()

    @property
    def has_told_to_leave(self) -> bool:
        """Whether the others can know that this process leaves."""
        return self._written is not None and self._written.leaves

    def want(self, _: object = None) -> None:
        """Has the registration written anew, and the others read, soon."""
        self._wanted.set()

    async def begin(self, seconds: float) -> None:
        """Registers for the first time, before there are clients; or gets a number elsewhere, or none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._round()
        if not self.is_registered:
            log.warning("not registered with the other proxies: %s; %s", self.trouble, self.numbered())

    def numbered(self) -> str:
        """Where the number comes from, for people."""
        if self.number is None:
            return "the number of its tokens was drawn"
        return f"the number of its tokens, {self.number}, is of {shard_called(self.shard)}"

    async def run(self) -> None:
        """Keeps the registration, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()
            was = self.is_registered, self.number
            await self._round()
            if (self.is_registered, self.number) != was:
                if self.is_registered:
                    log.info("registered with the other proxies as number %s", self.number)
                else:
                    log.warning("not registered with the other proxies any more: %s; %s", self.trouble, self.numbered())
            await asyncio.sleep(PAUSE_SECONDS)

    async def leave(self, seconds: float) -> None:
        """Ends the registration."""
        self._has_left = True
        with suppress(RpcError, TimeoutError):
            async with asyncio.timeout(seconds), self._turn:
                shard = self._shards().get(self.shard)
                if self.number is None or shard is None:
                    return
                last = max(self._tokens.last_tick, self._tokens.now())
                await self._ask_txn(shard, values.release(self._grant_at, self.number, last))
                await self._revoke(shard, self.number)
        self.number, self.shard = None, ""

    # One round.

    async def _round(self) -> None:
        async with self._turn:
            if not self._has_left:
                await self._register()

    async def _register(self) -> None:
        anchor = self._anchor()
        try:
            await self._keep(anchor)
        except (RpcError, BrokenCall, NoNumberError, DecodeError, TimeoutError) as error:
            self.trouble = f"{shard_called(anchor)} {_reason(error)}"
        else:
            self.trouble = ""
            return
        left = self._until - self._tokens.now()
        if self.number is not None and left > GRANT_SECONDS * TICKS_PER_SECOND // 4:
            return
        for name in self._shards():
            if name != anchor:
                with suppress(RpcError, BrokenCall, NoNumberError, DecodeError, TimeoutError):
                    await self._claim(self._shards()[name], values.ELSEWHERE)
                    return

    async def _keep(self, anchor: str) -> None:
        shard = self._ready(anchor)
        found = await self._look(shard)
        if not found.secret:
            await self._ask_txn(shard, values.first_secret(self._guard(shard), secrets.token_hex(32).encode()))
            found = await self._look(shard)
        self.secret = found.secret
        if self.shard != anchor or self.number is None:
            found = await self._claim(shard, values.AT_ANCHOR, found)
        elif not await self._renew(shard, found):
            found = await self._look(shard)
            grant, _ = found.grants.get(self.number, (Grant("", 0), 0))
            if grant.by != self._process:
                self.number = None  # it is somebody else's
            found = await self._claim(shard, values.AT_ANCHOR, found)
        self.others = {number: one for number, one in found.proxies.items() if number != self.number}
        self.looks += 1

    async def _renew(self, shard: Shard, found: Fleet) -> bool:
        """Renews the lease, and what is written; False if the registration has ended."""
        number = self.number
        assert number is not None, "it has one"
        grant, at = found.grants.get(number, (Grant("", 0), 0))
        if number not in found.proxies or grant.by != self._process or not await self._keep_alive(shard, number):
            return False
        record, now = self._describe(number), self._tokens.now()
        is_due = self._until - now < GRANT_SECONDS * TICKS_PER_SECOND // 2
        if record != self._written or is_due:
            until = now + GRANT_SECONDS * TICKS_PER_SECOND if is_due else self._until
            answer = await self._ask_txn(
                shard, values.renewal(self._guard(shard), at, record, Grant(self._process, until))
            )
            if not answer.succeeded:
                raise NoNumberError("has another guard than the map, or another process has the number")
            self._note(shard, record, answer.header.revision, 0, until)
        return True

    async def _claim(self, shard: Shard, numbers: range, found: Fleet | None = None) -> Fleet:
        """Takes one of these numbers.

        Raises:
            RpcError: the shard's.
            NoNumberError: all are taken.
        """
        if not shard.is_ready:
            raise NoNumberError("is not connected")
        before = self.shard, self.number
        found = found or await self._look(shard)
        now = self._tokens.now()
        for number in values.candidates(found, self._process, numbers, now)[:_TRIES]:
            if not await self._granted(shard, number):
                continue
            earlier = found.grants.get(number, (Grant("", 0), 0))[0]
            after = 0 if earlier.by == self._process else earlier.until
            until = max(now, after) + GRANT_SECONDS * TICKS_PER_SECOND
            record = self._describe(number)
            answer = await self._ask_txn(
                shard, values.claim(self._guard(shard), found, record, Grant(self._process, until))
            )
            if answer.succeeded:
                self._note(shard, record, answer.header.revision, after, until)
                await self._give_up(*before)
                return found
            await self._revoke(shard, number)
        raise NoNumberError(f"has given all {len(numbers)} numbers to others, or has another guard than the map")

    def _note(self, shard: Shard, record: Registered, at: int, after: int, until: int) -> None:
        self.number, self.shard, self._grant_at = record.number, shard.name, at
        self._written, self._until = record, until
        self._tokens.grant(record.number, after, until)

    async def _give_up(self, shard: str, number: int | None) -> None:
        """Gives back the number of before, which no token gets any more."""
        if number is not None and (shard, number) != (self.shard, self.number) and shard in self._shards():
            with suppress(RpcError):
                await self._revoke(self._shards()[shard], number)

    # The calls.

    def _guard(self, shard: Shard) -> bytes:
        return self._guards().get(shard.name, "").encode()

    def _ready(self, name: str) -> Shard:
        shard = self._shards().get(name)
        if shard is None or not shard.is_ready:
            raise NoNumberError("is not connected")
        return shard

    async def _look(self, shard: Shard) -> Fleet:
        answer = await ask_for_esp(shard, RANGE, values.look(), seconds=CALL_SECONDS)
        return values.read(answer.kvs)

    async def _ask_txn(self, shard: Shard, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        return await ask_for_esp(shard, TXN, request, seconds=CALL_SECONDS)

    async def _granted(self, shard: Shard, number: int) -> bool:
        """Grants the lease of a number; False if somebody else has it."""
        request = rpc_pb2.LeaseGrantRequest(ID=LEASES + number, TTL=TTL_SECONDS)
        try:
            await ask_for_esp(shard, LEASE_GRANT, request, seconds=CALL_SECONDS)
        except RpcError as error:
            if error.status.code != Code.FAILED_PRECONDITION:
                raise
            return False
        return True

    async def _revoke(self, shard: Shard, number: int) -> None:
        request = rpc_pb2.LeaseRevokeRequest(ID=LEASES + number)
        await ask_for_esp(shard, LEASE_REVOKE, request, seconds=CALL_SECONDS)

    async def _keep_alive(self, shard: Shard, number: int) -> bool:
        message = rpc_pb2.LeaseKeepAliveRequest(ID=LEASES + number).SerializeToString()
        async with asyncio.timeout(CALL_SECONDS):
            call = await shard.open((_KEEP_ALIVE, OWN), message, CALL_SECONDS)
            try:
                answer = await call.read()
            finally:
                call.cancel()
        return answer is not None and shard.parsed(rpc_pb2.LeaseKeepAliveResponse, answer).TTL > 0


async def registered(anchor: Shard, seconds: float) -> dict[int, Registered]:
    """The processes of proxies that are registered, by their numbers.

    Raises:
        RpcError: the anchor's, as it came.
    """
    return values.read((await ask_for_esp(anchor, RANGE, values.look(), seconds=seconds)).kvs).proxies


def _reason(error: Exception) -> str:
    if isinstance(error, RpcError):
        return f"does not answer: {errors.undecided(error.status).message}"
    return str(error) or "does not answer"

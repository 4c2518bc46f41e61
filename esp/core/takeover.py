"""The takeover: a new esp gets the listening sockets and the tokens of the running one, which then drains.

The new process asks through the control socket of the running one (`HandOver`), and gets a channel beside the
descriptors (`Predecessor`). The old one goes on as if nothing had happened, until the new one has asked whether it may
serve (`may_serve`), has got the answer, accepts clients, and says so (`serves`). Clients are not refused at any time:
both have the same sockets, with one queue of clients in the kernel. When the old process has ended the watches of its
clients, it sends their positions, so that clients can resume at the new one.

Both cannot serve for ever, nor can both end. The old process gives the new one up after a time, but not any more once
it has said that the new one may serve; from then on it only goes on if the new one is gone, which the channel shows.
And a new process without that answer ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from esp.core import sockets
from esp.core.background import Background
from esp.core.config import Listen
from esp.core.control import MAX_ANSWER_BYTES, Call, Client, DeniedError, NoneRunsError, RefusedError, size_of
from esp.core.former import Former
from esp.core.shared_tokens import Memory, Part, Ring, Ticks
from esp.core.sockets import Bound
from esp.core.workers import Channel, ChannelError

log = logging.getLogger("esp")

FORM: Final = 3
"""The form of the talk between the two; another one is refused."""
ANSWER_SECONDS: Final = 10.0
START_SECONDS: Final = 60.0
"""Seconds that the new process has until it serves."""
GIVEN_UP: Final = "cannot take over: the running esp has ended, or has given this process up; see its log"
POSITIONS_SECONDS: Final = 5.0
"""Seconds that clients of the old process wait at most until the new one knows where they were."""


Adopt = Callable[[Sequence[Mapping[str, Any]]], Awaitable[None]]
"""Takes positions of watches that have ended at the running process."""


class TakeoverError(Exception):
    """There is nothing to take over, or it cannot be done; the text is a sentence for people."""


class Tokens(Protocol):
    """The tokens of the running process, or of its workers."""

    async def shared(self) -> tuple[Sequence[Ring], Ticks, tuple[int, int]]:
        """Memory with all tokens that clients may have, the ticks, and the first and the number of the slots in use."""


class HandOver:
    """The side of the running process: serves the command `takeover`.

    Args:
        bound: the listening sockets.
        tokens: the tokens.
        reachable: names the shards that are connected.
        let_go: begins the drain; called with the id of the new process when that one serves.
        fingerprint: of the shard map in force. Raises DeniedError while another one may be about to be in force.
        former: the ranges that have moved.

    Attributes:
        is_given: the new process serves; this one drains.
    """

    def __init__(
        self,
        background: Background,
        bound: Sequence[Bound],
        tokens: Tokens,
        reachable: Callable[[], Sequence[str]],
        let_go: Callable[[int], None],
        fingerprint: Callable[[], str],
        former: Callable[[], Former],
    ) -> None:
        self.is_given = False
        self.predecessor: Predecessor | None = None
        self._background = background
        self._bound = bound
        self._tokens = tokens
        self._reachable = reachable
        self._let_go = let_go
        self._fingerprint = fingerprint
        self._former = former
        self._channel: Channel | None = None
        self._is_giving = False
        self._is_promised = False  # that the process of the channel may serve
        self._process = 0

    @property
    def is_under_way(self) -> bool:
        """Whether another process takes over or has done so, or the one before still drains: all have one map then."""
        if self.predecessor is not None and not self.predecessor.is_gone:
            return True
        return self._channel is not None and (self.is_given or not self._channel.gone.is_set())

    async def __call__(self, call: Call) -> Mapping[str, Any]:
        """Gives copies of everything to the process that asks.

        Raises:
            DeniedError: another takeover is under way, or that process has another shard map.
        """
        if call.request.get("form") != FORM:
            raise DeniedError("the running esp is of a version with another form of takeover; restart it instead")
        if self._is_giving or (self._channel is not None and not self._channel.gone.is_set()):
            raise DeniedError(f"process {self._process} is taking over already")
        if self.predecessor is not None and not self.predecessor.is_gone:
            raise DeniedError("the running esp has itself taken over, and the one before it still drains; try again")
        self._process = int(call.request.get("process", 0))
        self._is_giving = True  # the tokens may take a while, and the channel is there only then
        try:
            return await self._give(call)
        finally:
            self._is_giving = False

    async def _give(self, call: Call) -> Mapping[str, Any]:
        rings, ticks, slots = await self._tokens.shared()
        descriptors = [*(ring.memory.descriptor for ring in rings), ticks.memory.descriptor]
        if None in descriptors:
            raise DeniedError("this system cannot share the tokens; restart esp instead")
        if call.request.get("map") != self._fingerprint():  # a reload looks for keys and leases that have to move
            raise DeniedError(
                "the shard map differs from the one in force: put it in force first with esp reload, then take over; "
                "or restart esp"
            )
        former = self._former().dump()
        if size_of({"former": former}) > MAX_ANSWER_BYTES // 2:
            former = self._former().dump(0)
        ours, theirs = socket.socketpair()
        commands = {"may_serve": self._on_may_serve, "serves": self._on_serves, "fault": self._on_fault}
        self._is_promised = False
        self._channel = Channel(self._background, commands)
        await self._channel.open(ours)
        with theirs:
            listens = [str(one.listen) for one in self._bound]
            for one in self._bound:
                await call.tell({"socket": str(one.listen)}, [one.sock.fileno()])
            for descriptor in descriptors:
                await call.tell({"tokens": True}, [] if descriptor is None else [descriptor])
            await call.tell({"channel": True}, [theirs.fileno()])
        log.info("process %d begins to take over; this one goes on until that one serves", self._process)
        self._background.start(self._watch(self._channel))
        return {
            "listens": listens,
            "rings": len(rings),
            "slots": list(slots),
            "reachable": list(self._reachable()),
            "former": former,
        }

    async def _on_may_serve(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._channel is None or self._channel.gone.is_set():
            raise ChannelError("it has given this process up")
        self._is_promised = True
        return {}

    async def _on_serves(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._channel is None or self._channel.gone.is_set():
            return {}  # it has died since
        self.is_given = True
        log.info("process %d serves from now on", self._process)
        self._let_go(self._process)
        return {}

    async def _on_fault(self, told: Mapping[str, Any]) -> Mapping[str, Any]:
        log.error("process %d does not take over, and this one goes on: %s", self._process, str(told.get("text"))[:500])
        return {}

    async def _watch(self, channel: Channel) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await channel.gone.wait()
        if self._is_promised:
            await channel.gone.wait()
        if not self.is_given:
            log.error("process %d has not taken over; this one goes on", self._process)
            channel.close()

    def give_positions(self, dumped: Sequence[Mapping[str, Any]]) -> None:
        """Sends positions of watches that have ended."""
        if self._channel is not None and self.is_given:
            self._channel.tell("positions", positions=list(dumped))

    async def end_positions(self) -> None:
        """Says that all positions are sent, and waits until the other has them."""
        if self._channel is not None and self.is_given:
            with suppress(Exception):
                await self._channel.ask("positions_end", POSITIONS_SECONDS)


class Predecessor:
    """The side of the new process. Made before a loop runs, or anything else is begun.

    Attributes:
        bound: the sockets of the running process, each with its address.
        rings, ticks, slots: the tokens, and the slots that the running process uses.
        reachable: the shards that the running process reaches.
        former: the ranges that have moved in the life of the tokens.
        has_told: set when all positions have come, or no more will.
        is_complete: all have come.
        is_gone: the running process has ended.

    Args:
        client: asks the running process.
        fingerprint: of this process's shard map.

    Raises:
        TakeoverError: the running process does not hand over.
    """

    def __init__(self, client: Client, fingerprint: str) -> None:
        self.has_told = asyncio.Event()
        self.is_gone = self.is_complete = False
        try:
            with client:
                told = client.ask("takeover", seconds=ANSWER_SECONDS, form=FORM, process=os.getpid(), map=fingerprint)
                descriptors = client.take()
        except (NoneRunsError, RefusedError) as error:
            raise TakeoverError(f"cannot take over: {error}") from None
        sizes = len(told["listens"]) + told["rings"] + 2
        if len(descriptors) != sizes:
            for descriptor in descriptors:
                os.close(descriptor)
            raise TakeoverError("cannot take over: descriptors of the running esp are missing; raise ulimit -n")
        self._passed = [
            (text, socket.socket(fileno=descriptor))
            for text, descriptor in zip(told["listens"], descriptors, strict=False)
        ]
        memories = descriptors[len(self._passed) : -1]
        try:
            *rings, ticks = [Memory.of(descriptor) for descriptor in memories]
            self.rings = [Ring(memory) for memory in rings]
        except (OSError, ValueError) as error:
            raise TakeoverError(f"cannot take over: {error}; restart esp instead") from None
        self.ticks = Ticks(ticks)
        first, count = told["slots"]
        self.slots: tuple[int, int] = (first, count)
        self.reachable: list[str] = told["reachable"]
        self.former = Former.of_dumps([told["former"]])
        self._socket = socket.socket(fileno=descriptors[-1])
        self._channel: Channel | None = None

    def bind(self, addresses: Sequence[Listen]) -> list[Bound]:
        """The sockets of the running process for these addresses; addresses that it does not have are bound.

        Raises:
            OSError: as `sockets.bind` does.
        """
        bound: list[Bound] = []
        for text, sock in self._passed:
            listen = next((address for address in addresses if str(address) == text), None)
            if listen is None:
                sock.close()
            else:
                sock.setblocking(False)
                bound.append(Bound(sock, listen))
        self._passed = []
        taken = {one.listen for one in bound}
        return bound + sockets.bind([address for address in addresses if address not in taken])

    def close(self) -> None:
        """Closes what nobody has taken."""
        for _, sock in self._passed:
            sock.close()
        if self._channel is None:
            self._socket.close()

    def tokens(self, rings: Sequence[Ring]) -> list[Part]:
        """The part of each process with a new ring of its own; they all know the tokens of the running one too."""
        first = self.ticks.take(len(rings), beside=self.slots)
        self.slots_here = (first, len(rings))
        for ring in self.rings:
            rings[0].include(ring)
        return [Part(ring, self.ticks, first + number, [*rings, *self.rings]) for number, ring in enumerate(rings)]

    def check(self, missing: Sequence[str]) -> None:
        """Refuses to take over if a shard is missing here that the running process reaches.

        Raises:
            TakeoverError: there is such a shard, or the running process no longer waits for this one.
        """
        if self._channel is not None and self._channel.gone.is_set():
            raise TakeoverError(GIVEN_UP)
        if lost := [name for name in missing if name in self.reachable]:
            names = ", ".join(lost)
            raise TakeoverError(f"cannot take over: shards that the running esp reaches are not reachable: {names}")

    async def open(
        self, background: Background, adopt: Callable[[Sequence[Mapping[str, Any]]], Awaitable[None]]
    ) -> None:
        """Begins to listen to the running process; `adopt` gets the positions that it sends."""
        one_at_a_time = asyncio.Lock()  # the process before may say it twice
        self._has_lost = False

        async def on_positions(told: Mapping[str, Any]) -> Mapping[str, Any]:
            self._adopting.append(told["positions"])
            return {}

        async def on_end(_: Mapping[str, Any]) -> Mapping[str, Any]:
            async with one_at_a_time:
                while self._adopting and not self._has_lost:
                    try:
                        await adopt(self._adopting[0])
                    except Exception as error:
                        self._has_lost = True
                        log.error("positions of watches are lost, clients get compacted and list again: %s", error)
                    else:
                        del self._adopting[0]
                self.is_complete = not self._has_lost
                self.has_told.set()
            return {}

        self._adopting: list[Sequence[Mapping[str, Any]]] = []
        self._channel = Channel(background, {"positions": on_positions, "positions_end": on_end})
        await self._channel.open(self._socket)
        background.start(self._outlive(self._channel))

    async def _outlive(self, channel: Channel) -> None:
        await channel.gone.wait()
        self.has_told.set()
        self.is_gone = True

    async def may_serve(self) -> None:
        """Asks the running process whether it still waits for this one; from then on it does not give this one up.

        Raises:
            TakeoverError: it does not wait any more, or does not answer.
        """
        assert self._channel is not None
        try:
            await self._channel.ask("may_serve", ANSWER_SECONDS)
        except ChannelError as error:
            log.debug("the running esp: %s", error)
            raise TakeoverError(GIVEN_UP) from None

    def serves(self) -> None:
        """Tells the running process, after `may_serve`, that this one has begun to accept clients: that one drains."""
        assert self._channel is not None
        self._channel.tell("serves")

    async def fails(self, text: str) -> None:
        """Tells the running process why it has to go on."""
        if self._channel is not None:
            with suppress(Exception):
                await self._channel.ask("fault", ANSWER_SECONDS, text=text)

    async def is_doubtful(self, revision: int) -> bool:
        """Whether a client may have seen a revision last at the running process, which has not told the position.

        Waits until that process has told, POSITIONS_SECONDS at most.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(POSITIONS_SECONDS):
                await self.has_told.wait()
        return not self.is_complete and any(ring.may_have(revision) for ring in self.rings)

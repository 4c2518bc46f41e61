"""Calls that wait for a shard's connection; test_shard.py tests the rest of a link, with the shard."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

from esp.core import errors
from esp.core.background import Background
from esp.core.shard.link import Link, ParkedCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.status import RpcError, Status
from tests.core.wire.conversation import HOLD, Client, Server, call, data, headers, meet, message


def test_a_coroutine_that_waited_in_vain_leaves_nothing_to_the_garbage_collector() -> None:
    async def run() -> bool:
        link = Link(WireContext(Limits()), Background())
        task = asyncio.create_task(link.wait())
        await asyncio.sleep(0)
        (waiter,) = link.waiting
        gone = weakref.ref(waiter.future)  # type: ignore[union-attr]
        del waiter
        link.close()
        with contextlib.suppress(RpcError):
            await task
            return False
        del task
        return gone() is None

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(run())
    finally:
        gc.enable()


class Refusals:
    """Ends the calls that are refused, and remembers how often each client's were."""

    def __init__(self) -> None:
        self.of: dict[str, list[Status]] = {}

    def send(self, connection: ClientConnection, down: ServerStream, message: bytes | None, timeout: bytes) -> None:
        raise AssertionError("there is no connection")

    def refuse(self, down: ServerStream, status: Status) -> None:
        self.of.setdefault(down.peer, []).append(status)
        down.finish(status)


def park(link: Link, sender: Refusals, client: Client, server: Server, streams: range, size: int = 0) -> None:
    for stream in streams:
        client.sends(headers(stream, call(HOLD)), data(stream, message(), end=True))
        link.park(ParkedCall(sender, link, server.hold.streams[stream], bytes(size)))


def test_one_client_cannot_take_all_places_from_others() -> None:
    limits = Limits(max_waiting_requests=10)
    context = WireContext(limits)
    link, sender = Link(context, Background()), Refusals()
    greedy, modest = (meet(limits, context=context, peer=f"10.0.0.{n}:1") for n in (1, 2))
    park(link, sender, *greedy, range(1, 41, 2))
    assert sender.of == {"10.0.0.1:1": [errors.TOO_MANY_REQUESTS] * 10}
    park(link, sender, *modest, range(1, 21, 2))
    assert sender.of["10.0.0.2:1"] == [errors.TOO_MANY_REQUESTS] * 5, "half of the places are its own"
    assert len(link.waiting) == 10
    assert context.counters.limits["max_waiting_requests"] == 20
    link.close()
    assert not link.waiting
    assert context.buffers.used == 0


def test_many_connections_of_one_address_share_its_places() -> None:
    limits = Limits(max_waiting_requests=10)
    context = WireContext(limits)
    link, sender = Link(context, Background()), Refusals()
    for port in range(10):
        park(link, sender, *meet(limits, context=context, peer=f"10.0.0.1:{port}"), range(1, 2))
    park(link, sender, *meet(limits, context=context, peer="10.0.0.2:1"), range(1, 11, 2))
    assert "10.0.0.2:1" not in sender.of
    assert len(link.waiting) == 10


def test_a_call_whose_request_finds_no_memory_does_not_wait() -> None:
    limits = Limits(max_buffered_bytes=1000)
    context = WireContext(limits)
    link, sender = Link(context, Background()), Refusals()
    client, server = meet(limits, context=context, peer="10.0.0.1:1")
    park(link, sender, client, server, range(1, 6, 2), size=400)
    assert sender.of == {"10.0.0.1:1": [errors.TOO_MANY_REQUESTS]}
    assert len(link.waiting) == 2
    assert context.buffers.used == 800
    link.close()
    assert context.buffers.used == 0


def test_a_coroutine_gives_way_to_another_client() -> None:
    async def run() -> None:
        limits = Limits(max_waiting_requests=2)
        context = WireContext(limits)
        link, sender = Link(context, Background()), Refusals()
        waiting = [asyncio.create_task(link.wait("10.0.0.1:1")) for _ in range(2)]
        await asyncio.sleep(0)
        park(link, sender, *meet(limits, context=context, peer="10.0.0.2:1"), range(1, 2))
        assert not sender.of
        with contextlib.suppress(RpcError):
            await waiting[0]
            raise AssertionError("it has given way")
        link.close()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())

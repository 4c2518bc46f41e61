"""Another proxy that is asked, and does not answer."""

from __future__ import annotations

import asyncio

import pytest

from esp.core.fleet import Peer, PeerError, peer
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits


@pytest.mark.parametrize("seconds", [30.0, 0.1], ids=["no time to connect", "no time to ask"])
def test_a_connection_that_nobody_greets_is_ended(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(peer, "CONNECT_SECONDS", 0.1 if seconds > 1 else 30.0)

    async def main() -> None:
        has_ended = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # up to the end
            has_ended.set()
            writer.close()

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            other = Peer([f"http://127.0.0.1:{port}"], WireContext(Limits()), None)
            with pytest.raises(PeerError):
                await other.ask(b"secret", b"{}", seconds)
            async with asyncio.timeout(20):
                await has_ended.wait()

    asyncio.run(main())

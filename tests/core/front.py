"""A client in memory, in front of a real `Shard`: what test_shard.py and test_shard_faults.py ask through.

async with Front(etcd.endpoint) as front:
    stream = front.put(b"a=1")
    assert await front.outcome(stream) == OK
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Self

from hpack import Decoder

from esp.core.background import Background
from esp.core.config import Endpoint
from esp.core.services.handlers import PassStream, PassUnary, PassWaiting
from esp.core.shard import Shard
from esp.core.wire import frames
from esp.core.wire.frames import PREFACE, SETTINGS_ACK, settings
from esp.core.wire.limits import Limits
from esp.core.wire.message import decode_status_text
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler
from tests.core.wire.conversation import Server, call, data, headers, message, rst, split, window
from tests.harness import PATIENCE

PUT = b"/etcdserverpb.KV/Put"
RANGE = b"/etcdserverpb.KV/Range"
WATCH = b"/etcdserverpb.Watch/Watch"
LOCK = b"/v3lockpb.Lock/Lock"
CAMPAIGN = b"/v3electionpb.Election/Campaign"
OBSERVE = b"/v3electionpb.Election/Observe"


@dataclass
class Answer:
    """What the client was told of one call."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    over: bool = False
    reset: int | None = None

    @property
    def outcome(self) -> tuple[int, str]:
        """The code and the text of its status."""
        assert self.reset is None
        return int(self.fields[b"grpc-status"]), decode_status_text(self.fields.get(b"grpc-message", b""))


class Front:
    """esp with one shard, and its client.

    Attributes:
        waits: whether entering waits until the shard is connected.
    """

    def __init__(self, *endpoints: Endpoint, limits: Limits | None = None, waits: bool = True) -> None:
        self.client = Server(limits or Limits(), self._find)
        self.shard = Shard("s0", endpoints, self.client.context, Background())
        self.waits = waits
        self.answers: dict[int, Answer] = {}
        self._handlers: dict[bytes, Handler] = {
            PUT: PassUnary(self.shard, idempotent=False),
            RANGE: PassUnary(self.shard, idempotent=True),
            WATCH: PassStream(self.shard),
            LOCK: PassWaiting(self.shard, idempotent=False),
            CAMPAIGN: PassWaiting(self.shard, idempotent=False),
            OBSERVE: PassStream(self.shard),
        }
        self._next = 1
        self.says(PREFACE, settings({}), SETTINGS_ACK)

    def _find(self, head: RequestHead) -> Handler:
        head.forward = head.path, head.encode_metadata()
        return self._handlers[head.path]

    async def __aenter__(self) -> Self:
        self._others = asyncio.all_tasks()
        self.running = asyncio.create_task(self.shard.run())
        self._ticking = asyncio.create_task(self._tick())
        if self.waits:
            await self.until(lambda: self.shard.is_ready)
        return self

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.shard.tick(monotonic())
            self.client.tick(monotonic())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._ticking, self.running):
            task.cancel()
        done = await asyncio.gather(self._ticking, self.running, return_exceptions=True)
        if kind is None:
            assert all(isinstance(one, asyncio.CancelledError) for one in done), done
            left = [task for task in asyncio.all_tasks() - self._others if "Scripted" not in repr(task.get_coro())]
            assert not left
            self.client.holds_nothing()

    async def until(self, true: object) -> None:
        """Waits for it; fails the test when that takes too long."""
        async with asyncio.timeout(PATIENCE):
            for turn in count():
                if true():  # type: ignore[operator]
                    return
                await asyncio.sleep(0 if turn < 20 else 0.002 if turn < 50 else 0.01)

    # What the client says.

    def says(self, *said: bytes) -> None:
        self.client.hears(b"".join(said))

    def unary(self, path: bytes, content: bytes, *extra: tuple[bytes, bytes]) -> int:
        stream, self._next = self._next, self._next + 2
        whole = message(content)
        self.says(headers(stream, call(path, *extra)))
        for at in range(0, len(whole), 16_384):
            self.says(data(stream, whole[at : at + 16_384], end=at + 16_384 >= len(whole)))
        return stream

    def put(self, content: bytes = b"", *extra: tuple[bytes, bytes]) -> int:
        """The stream on which it is asked."""
        return self.unary(PUT, content, *extra)

    def range(self, content: bytes = b"", *extra: tuple[bytes, bytes]) -> int:
        return self.unary(RANGE, content, *extra)

    def watch(self, *extra: tuple[bytes, bytes]) -> int:
        stream, self._next = self._next, self._next + 2
        self.says(headers(stream, call(WATCH, *extra)))
        return stream

    def cancels(self, stream: int) -> None:
        self.says(rst(stream))

    # What the client hears.

    def listen(self, stream: int) -> Answer:
        """What it was told so far."""
        for frame in split(self.client.says()):
            answer = self.answers.setdefault(frame.stream, Answer())
            if frame.kind == frames.HEADERS:
                answer.fields.update(Decoder().decode(frame.payload, raw=True))
            elif frame.kind == frames.DATA and frame.payload:
                answer.body += frame.payload
                self.says(window(0, len(frame.payload)))
            elif frame.kind == frames.RST_STREAM and not answer.over:
                answer.reset = int.from_bytes(frame.payload, "big")
                answer.over = True
            if frame.kind in (frames.HEADERS, frames.DATA) and frame.flags & frames.END_STREAM:
                answer.over = True
        return self.answers.setdefault(stream, Answer())

    async def answer(self, stream: int) -> Answer:
        """The whole answer."""
        await self.until(lambda: self.listen(stream).over)
        return self.answers[stream]

    async def outcome(self, stream: int) -> tuple[int, str]:
        """How the call ended."""
        return (await self.answer(stream)).outcome

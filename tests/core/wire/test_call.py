"""Calls of coroutines: the results of `read` for the server's frames."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
from collections.abc import Coroutine
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esp.core.wire import frames
from esp.core.wire.call import BrokenCall, MessageCall, messages
from esp.core.wire.client_stream import STREAM_WINDOW
from esp.core.wire.frames import ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.server_stream import OVERLOADED
from esp.core.wire.status import Code, RpcError, Status
from tests.core.wire import upstream
from tests.core.wire.conversation import HEAD, data, goaway, headers, message, rst, split, trailers
from tests.core.wire.upstream import Caller, dial, forward
from tests.examples import tries

T = TypeVar("T")
OK = headers(1, trailers(), end=True)


@pytest.fixture(autouse=True, params=[False, True], ids=["decoded", "known"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this with a server whose header blocks are decoded, and with one whose blocks are looked up."""
    monkeypatch.setattr(upstream, "blocks_are_known", request.param)


def begin(esp: Caller, content: bytes = b"") -> MessageCall[bytes]:
    call = MessageCall(esp.connection, messages())
    esp.connection.call(call, forward(), b"", message(content), end=True)
    esp.context.flush()
    return call


async def beside(esp: Caller, reading: Coroutine[object, object, T], *said: bytes) -> T:
    """What `reading` gives when the server says this, piece by piece, while it waits."""
    task = asyncio.create_task(reading)
    for piece in said:
        await asyncio.sleep(0)
        esp.hears(piece)
    return await task


def reads(*said: bytes, before: bool = False) -> tuple[list[bytes], object]:
    """The messages read, and how it ended: None, a Status, or a BrokenCall."""
    esp = dial()
    call = begin(esp)
    messages: list[bytes] = []

    async def read_all() -> object:
        try:
            while (got := await call.read()) is not None:
                messages.append(got)
        except RpcError as error:
            return error.status
        except BrokenCall as error:
            return error
        return None

    async def run() -> object:
        if before:
            esp.hears(b"".join(said))
            return await read_all()
        return await beside(esp, read_all(), *said)

    ended = asyncio.run(run())
    esp.holds_nothing()
    return messages, ended


def only(*said: bytes) -> bytes:
    """What `read_only` gives."""
    esp = dial()

    async def run() -> bytes:
        return await beside(esp, begin(esp).read_only(), *said)

    return asyncio.run(run())


def failure(*said: bytes) -> Status:
    """How `read_only` fails."""
    with pytest.raises(RpcError) as caught:
        only(*said)
    return caught.value.status


@pytest.mark.parametrize("before", [True, False])
def test_messages_come_one_by_one_and_then_none(before: bool) -> None:
    said = (headers(1, HEAD), data(1, message(b"a") + message(b"bc")), data(1, message()), OK)
    assert reads(*said, before=before) == ([b"a", b"bc", b""], None)


@examples(max_examples=tries(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=50), max_size=6), st.data())
def test_messages_may_be_split_over_frames_anywhere(messages: list[bytes], draw: st.DataObject) -> None:
    whole = b"".join(message(m) for m in messages)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert reads(headers(1, HEAD), *(data(1, piece) for piece in pieces), OK) == (messages, None)


@pytest.mark.parametrize(
    "said",
    [
        headers(1, trailers(Status(Code.ABORTED, "no")), end=True),
        rst(1, ErrorCode.INTERNAL_ERROR),
        headers(1, HEAD) + data(1, b"\2\0\0\0\0"),
    ],
    ids=["status", "break", "bad prefix"],
)
def test_a_call_that_failed_leaves_nothing_to_the_garbage_collector(said: bytes) -> None:
    gone = []

    class Watched(MessageCall):
        """One that says when it is gone."""

        def __del__(self) -> None:
            gone.append(True)

    async def run() -> bool:
        esp = dial()
        call = Watched(esp.connection, messages())
        esp.connection.call(call, forward(), b"", message(), end=True)
        esp.context.flush()
        esp.hears(said)
        with contextlib.suppress(RpcError, BrokenCall):
            await call.read()
            return False
        del call
        return bool(gone)

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(run())
    finally:
        gc.enable()


def test_messages_that_came_before_an_error_are_read_first() -> None:
    said = (headers(1, HEAD), data(1, message(b"a")), headers(1, trailers(Status(Code.ABORTED, "no")), end=True))
    assert reads(*said, before=True) == ([b"a"], Status(Code.ABORTED, "no"))


def test_messages_that_came_before_a_break_are_read_first() -> None:
    messages, ended = reads(headers(1, HEAD), data(1, message(b"a")), rst(1, ErrorCode.INTERNAL_ERROR), before=True)
    assert messages == [b"a"]
    assert isinstance(ended, BrokenCall)
    assert ended.code == ErrorCode.INTERNAL_ERROR
    assert not ended.unprocessed


@pytest.mark.parametrize(
    ("said", "unprocessed"),
    [
        (rst(1, ErrorCode.REFUSED_STREAM), True),
        (goaway(0, ErrorCode.NO_ERROR), True),
        (rst(1, ErrorCode.CANCEL), False),
        (rst(1, ErrorCode.NO_ERROR), False),
        (data(1, b"before the head"), False),
        (headers(1, HEAD) + rst(1, ErrorCode.REFUSED_STREAM), False),
    ],
)
def test_a_broken_call_says_whether_the_server_acted_on_it(said: bytes, unprocessed: bool) -> None:
    _, ended = reads(said)
    assert isinstance(ended, BrokenCall)
    assert ended.unprocessed is unprocessed


def test_a_connection_that_is_lost_breaks_the_call() -> None:
    esp = dial()
    call = begin(esp)

    async def run() -> None:
        task = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        esp.connection.lost("connection reset by peer")
        await task

    with pytest.raises(BrokenCall, match="connection reset by peer") as caught:
        asyncio.run(run())
    assert not caught.value.unprocessed


def test_trailers_only() -> None:
    assert failure(headers(1, HEAD + trailers(Status(Code.NOT_FOUND, "no key")), end=True)) == Status(
        Code.NOT_FOUND, "no key"
    )


def test_an_http_error() -> None:
    assert failure(headers(1, [(b":status", b"503")]), data(1, b"<html>", end=True)).code == Code.UNAVAILABLE


def test_an_answer_that_is_not_grpc() -> None:
    said = headers(1, [(b":status", b"200"), (b"content-type", b"text/html")])
    assert failure(said, data(1, b"<html>", end=True)) == Status(Code.INTERNAL, "the answer is no gRPC")


def test_what_follows_an_http_error_is_not_wanted() -> None:
    esp = dial()
    call = begin(esp)
    esp.said()
    esp.hears(headers(1, [(b":status", b"404")]))
    esp.says(rst(1, ErrorCode.CANCEL))
    with pytest.raises(RpcError):
        asyncio.run(call.read())


def test_data_that_ends_without_trailers() -> None:
    assert failure(headers(1, HEAD), data(1, message(b"a"), end=True)).code == Code.INTERNAL


def test_an_answer_that_ends_within_a_message() -> None:
    messages, ended = reads(headers(1, HEAD), data(1, message(b"a") + message(b"bcd")[:-1]), OK)
    assert messages == [b"a"]
    assert ended == Status(Code.INTERNAL, "the answer ends within a message")


@pytest.mark.parametrize("count", [0, 2])
def test_a_unary_answer_has_exactly_one_message(count: int) -> None:
    assert only(headers(1, HEAD), data(1, message(b"a")), OK) == b"a"
    assert failure(headers(1, HEAD), data(1, message(b"a") * count), OK).code == Code.INTERNAL


def test_a_compressed_answer() -> None:
    packed = gzip.compress(b"hello")
    said = data(1, b"\1" + message(packed)[1:])
    assert only(headers(1, [*HEAD, (b"grpc-encoding", b"gzip")]), said, OK) == b"hello"


def test_a_compressed_message_without_an_encoding() -> None:
    esp = dial()
    call = begin(esp)
    esp.said()
    esp.hears(headers(1, HEAD), data(1, b"\1" + message(b"hello")[1:]))
    esp.says(rst(1, ErrorCode.CANCEL))
    with pytest.raises(RpcError) as caught:
        asyncio.run(call.read())
    assert caught.value.status.code == Code.INTERNAL
    esp.lives()


def test_a_message_of_an_unknown_kind() -> None:
    assert failure(headers(1, HEAD), data(1, b"\7" + message(b"hello")[1:])).code == Code.INTERNAL


def granted(esp: Caller) -> int:
    """What the server was granted on stream 1 since the last look."""
    return sum(
        int.from_bytes(frame.payload, "big")
        for frame in split(esp.said())
        if frame.kind == frames.WINDOW_UPDATE and frame.stream == 1
    )


def test_a_reader_that_waits_makes_the_server_wait() -> None:
    esp = dial()
    call = begin(esp)
    esp.hears(headers(1, HEAD))
    esp.said()
    piece = message(bytes(16384 - 5))
    for _ in range(STREAM_WINDOW // 16384):
        esp.hears(data(1, piece))
    assert granted(esp) == 0

    async def run() -> None:
        for _ in range(STREAM_WINDOW // 16384):
            await call.read()
        task = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        assert granted(esp) == STREAM_WINDOW
        esp.hears(data(1, message(b"more")))
        assert await task == b"more"

    asyncio.run(run())


def test_a_message_larger_than_the_window_comes_whole() -> None:
    """Nobody can read it before it is whole, so its bytes are given back as they come."""
    esp = dial()
    call = begin(esp)
    esp.hears(headers(1, HEAD))
    whole = message(bytes(3 * STREAM_WINDOW))
    room = STREAM_WINDOW
    esp.said()

    async def run() -> bytes | None:
        task = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        nonlocal room
        for start in range(0, len(whole), 16384):
            piece = whole[start : start + 16384]
            room -= len(piece)
            assert room >= 0, "the server would have to wait for ever"
            esp.hears(data(1, piece))
            room += granted(esp)
        return await task

    assert asyncio.run(run()) == whole[5:]


def test_a_request_for_which_there_is_no_memory() -> None:
    esp = dial(Limits(max_buffered_bytes=1000), server_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    call = begin(esp, bytes(2000))
    with pytest.raises(RpcError) as caught:
        asyncio.run(call.read())
    assert caught.value.status == OVERLOADED
    assert [frame.kind for frame in split(esp.said())] == [frames.HEADERS, frames.RST_STREAM]
    esp.holds_nothing()


def test_a_reader_that_is_cancelled_may_cancel_the_call() -> None:
    esp = dial()
    call = begin(esp)
    esp.said()

    async def run() -> None:
        task = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        call.cancel()
        esp.flush()

    asyncio.run(run())
    esp.says(rst(1, ErrorCode.CANCEL))
    esp.hears(headers(1, HEAD), data(1, message(b"late")), OK)
    esp.holds_nothing()
    esp.lives()


class Memory:
    """Who keeps what a call takes; it has so much."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def hold(self, size: int) -> bool:
        if self.held + size > self.limit:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size


def begin_for(esp: Caller, memory: Memory) -> MessageCall[bytes]:
    call = MessageCall(esp.connection, messages(), memory)
    esp.connection.call(call, forward(), b"", message(), end=True)
    esp.context.flush()
    return call


def test_a_message_is_held_until_the_next_is_read() -> None:
    async def run() -> None:
        esp, memory = dial(), Memory(10_000)
        call = begin_for(esp, memory)
        esp.hears(headers(1, HEAD), data(1, message(bytes(500))), data(1, message(bytes(300))[:200]))
        assert memory.held == 700
        assert await call.read() == bytes(500)
        assert memory.held == 700
        esp.hears(data(1, message(bytes(300))[200:]))
        assert await call.read() == bytes(300)
        assert memory.held == 300
        esp.hears(OK)
        assert await call.read() is None
        assert memory.held == 0

    asyncio.run(run())


def test_a_unary_answer_stays_held_and_what_is_cancelled_does_not() -> None:
    async def run() -> None:
        esp, memory = dial(), Memory(10_000)
        call = begin_for(esp, memory)
        esp.hears(headers(1, HEAD), data(1, message(bytes(500))), OK)
        assert await call.read_only() == bytes(500)
        call.cancel()
        assert memory.held == 500
        other = begin_for(esp, memory)
        esp.hears(headers(3, HEAD), data(3, message(bytes(500))[:400]))
        assert memory.held == 900
        other.cancel()
        assert memory.held == 500

    asyncio.run(run())


def test_an_answer_for_which_there_is_no_memory() -> None:
    async def run() -> None:
        esp, memory = dial(), Memory(1000)
        call = begin_for(esp, memory)
        esp.hears(headers(1, HEAD), *(data(1, message(bytes(2000))[at : at + 400]) for at in range(0, 2000, 400)))
        with pytest.raises(RpcError) as caught:
            await call.read()
        assert caught.value.status == OVERLOADED
        assert memory.held == 0
        esp.holds_nothing()

    asyncio.run(run())

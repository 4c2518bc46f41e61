"""A bug in esp ends the call or the connection that it came from, and no other."""

from __future__ import annotations

from typing import NoReturn

import pytest

from esp.core.wire import frames
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.response import ResponseHead

HEAD = encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = encode([(b"grpc-status", b"0")])


class Bug(Exception):
    pass


def fail(_: object) -> NoReturn:
    raise Bug


class Call(ClientStream):
    """Notes what it is told, and fails where it is told to."""

    __slots__ = ("fails_at", "told")

    def __init__(self, connection: ClientConnection, fails_at: str = "") -> None:
        super().__init__(connection)
        self.fails_at = fails_at
        self.told: list[str] = []

    def tell(self, what: str) -> None:
        self.told.append(what)
        if what == self.fails_at:
            raise Bug(what)

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        self.tell("trailers" if end else "head")

    def on_data(self, payload: bytes, end: bool) -> None:
        self.tell("data")

    def on_reset(self, code: int, reason: str) -> None:
        self.tell("reset")


def connected() -> ClientConnection:
    connection = ClientConnection(WireContext(Limits()), "etcd")
    connection.receive(frames.settings({}) + frames.SETTINGS_ACK)
    warm = Call(connection)  # header blocks are known from here on
    connection.call(warm, (b"/", b""), b"", prefix(b""), end=True)
    connection.receive(answer(1))
    again = Call(connection)
    connection.call(again, (b"/", b""), b"", prefix(b""), end=True)
    connection.receive(answer(3))
    return connection


def answer(stream_id: int, head: bytes = HEAD) -> bytes:
    return (
        frames.frame(frames.HEADERS, 4, stream_id, head)
        + frames.frame(frames.DATA, 0, stream_id, prefix(b"answer"))
        + frames.frame(frames.HEADERS, 5, stream_id, TRAILERS)
    )


@pytest.mark.parametrize("fails_at", ["head", "data", "trailers"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_bug_in_one_call_fails_that_call_and_no_other(fails_at: str, at_once: bool) -> None:
    connection = connected()
    bad, good = Call(connection, fails_at), Call(connection)
    for call in (bad, good):
        connection.call(call, (b"/", b""), b"", prefix(b""), end=True)
    arrives = answer(bad.id) + answer(good.id)
    for piece in [arrives] if at_once else [arrives[i : i + 1] for i in range(len(arrives))]:
        connection.receive(piece)
    assert not connection.ended
    assert good.told == ["head", "data", "trailers"]
    assert bad.told[-2:] == [fails_at, "reset"]
    assert not connection.streams


def test_a_bug_in_telling_one_call_of_the_end_leaves_none_untold() -> None:
    connection = connected()
    calls = [Call(connection, "reset"), Call(connection), Call(connection, "reset"), Call(connection)]
    for call in calls:
        connection.call(call, (b"/", b""), b"", prefix(b""), end=True)
    connection.lost("gone")
    assert [call.told for call in calls] == [["reset"]] * 4


@pytest.mark.parametrize("where", ["flush", "on_tick"])
def test_a_bug_in_housekeeping_ends_the_connection_it_is_in(where: str) -> None:
    bad = connected()
    good = ClientConnection(bad.context, "another etcd")
    written: list[bytes] = []
    good.on_flush = written.append
    bad.on_flush = written.append

    broken = ClientConnection(bad.context, "a third")
    if where == "flush":
        broken.on_flush = fail
        bad.context.flush()
    else:
        broken.on_flush = written.append
        late = Call(broken, "reset")
        broken.call(late, (b"/", b""), b"", bytes(frames.DEFAULT_WINDOW + 1), end=True)
        for now in (0.0, broken.limits.blocked_write_timeout + 1):
            for connection in (broken, good, bad):
                connection.tick(now)
        assert late.told == ["reset"]
    assert broken.ended
    assert not good.ended
    assert not bad.ended
    bad.context.unflushed.clear()


def test_a_connection_that_ends_while_it_reads_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    connection = connected()
    lost: list[str] = []

    class Last(Call):
        """Its reset ends the connection, as the last call of one that drains does."""

        def on_reset(self, code: int, reason: str) -> None:
            lost.append(reason)
            connection.lost("drained")

    last = Last(connection)
    connection.call(last, (b"/", b""), b"", prefix(b""), end=True)
    connection.receive(frames.rst_stream(last.id, frames.ErrorCode.CANCEL) + frames.ping(b"unheard!"))
    assert len(lost) == 1
    assert connection.ended
    assert not caplog.records, caplog.text
    connection.context.unflushed.clear()


def test_a_call_that_is_taken_back_before_it_left_never_leaves() -> None:
    """Requests that come with their own RST in one read make no work for a shard (CVE-2023-44487)."""
    connection = connected()
    connection.take_output()
    window = connection.send_window
    kept, taken_back, also_kept = Call(connection), Call(connection), Call(connection)
    for call in (kept, taken_back, also_kept):
        connection.call(call, (b"/", b""), b"", prefix(b"message"), end=True)
    taken_back.cancel()
    said = connection.take_output()
    opened, position = [], 0
    while position < len(said):
        word, _, stream_id = frames.unpack_header(said, position)
        position += 9 + (word >> 8)
        opened.append((word & 0xFF, stream_id))
    assert opened == [
        (frames.HEADERS, kept.id),
        (frames.DATA, kept.id),
        (frames.HEADERS, also_kept.id),
        (frames.DATA, also_kept.id),
    ]
    assert connection.send_window == window - 2 * len(prefix(b"message"))
    assert set(connection.streams) == {kept.id, also_kept.id}
    kept.cancel()
    assert connection.take_output() == frames.rst_stream(kept.id, frames.ErrorCode.CANCEL), "this one had left"


def test_output_that_a_flush_makes_leaves_with_it() -> None:
    """A connection that is flushed may make room for a watch, which then asks a shard for more."""
    context, done = WireContext(Limits()), []

    class Gathering:
        def flush(self) -> None:
            done.append("gathered")

        def on_bug(self) -> None:
            raise AssertionError

    class Unflushed(Gathering):
        def flush(self) -> None:
            context.gatherers.append(Gathering())
            done.append("flushed")

    context.unflushed.append(Unflushed())
    context.flush()
    assert done == ["flushed", "gathered"]

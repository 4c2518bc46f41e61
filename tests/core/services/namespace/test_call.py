"""A call in a namespace, between a client in memory and a handler that the test plays."""

from __future__ import annotations

from typing import Any

import pytest

from esp.core.namespace import Namespace
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.namespace import InNamespace
from esp.core.services.namespace.answer import AnswerReader
from esp.core.services.namespace.backlog import SENT_AT_ONCE
from esp.core.services.namespace.call import HALF, OUTSIDE, InnerCall
from esp.core.services.namespace.rewrite import STEP_BYTES
from esp.core.services.router import METHODS
from esp.core.wire import frames
from esp.core.wire.frames import SETTINGS_INITIAL_WINDOW_SIZE, ErrorCode
from esp.core.wire.handler import OVERLOADED
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.response import ENDING, OPENING
from esp.core.wire.server_stream import Handler, Refuse, ServerCall, ServerStream
from esp.core.wire.status import OK, Code, Status
from tests.core.wire.conversation import (
    HEAD,
    Client,
    Recorder,
    Server,
    Streaming,
    call,
    data,
    headers,
    meet,
    message,
    refusal,
    rst,
    split,
    trailers,
    window,
)

RANGE, WATCH, PUT = b"/etcdserverpb.KV/Range", b"/etcdserverpb.Watch/Watch", b"/etcdserverpb.KV/Put"


class World:
    """esp in the namespace `team/`, with handlers that note what they are told."""

    def __init__(self, limits: Limits | None = None, window: int = 65_535) -> None:
        self.saw: list[tuple[Any, ...]] = []
        self.unary, self.streaming = Recorder(self.saw), Streaming(self.saw)
        self.namespace = InNamespace(Namespace.of(b"team/"))
        self.client: Client
        self.server: Server
        settings = {SETTINGS_INITIAL_WINDOW_SIZE: window}
        self.client, self.server = meet(limits, find=self.find, client_settings=settings)

    def find(self, head: RequestHead) -> Handler:
        inner = self.streaming if head.path == WATCH else self.unary
        return self.namespace.around(head.path, METHODS.get(head.path), inner, is_own=True)

    def asks(self, path: bytes, content: bytes = b"", stream: int = 1) -> ServerStream:
        """The call as the handler sees it."""
        self.client.sends(headers(stream, call(path)), *in_frames(stream, message(content)))
        return self.unary.streams[stream]

    def watches(self) -> ServerStream:
        self.client.sends(headers(1, call(WATCH)))
        return self.streaming.streams[1]

    def heard(self) -> bytes:
        """The bytes of all messages that the client got, while it reads everything; on one stream."""
        got = b""
        while frame := self.server.frames(frames.DATA):
            for each in frame:
                got += each.payload
                if each.payload:
                    self.client.sends(window(0, len(each.payload)), window(each.stream, len(each.payload)))
        return got


def in_frames(stream: int, content: bytes) -> list[bytes]:
    pieces = [content[start : start + 16_384] for start in range(0, len(content), 16_384)]
    return [data(stream, piece, end=number == len(pieces)) for number, piece in enumerate(pieces, 1)]


def rows(count: int, size: int = 100, before: bytes = b"team/") -> bytes:
    kvs = [kv_pb2.KeyValue(key=before + b"%d" % number, value=b"v" * size) for number in range(count)]
    return rpc_pb2.RangeResponse(kvs=kvs, count=count).SerializeToString()


class TestRequests:
    def test_a_unary_request_gets_the_prefix(self) -> None:
        world = World()
        world.asks(RANGE, rpc_pb2.RangeRequest(key=b"a").SerializeToString())
        assert world.saw == [("message", 1, prefix(rpc_pb2.RangeRequest(key=b"team/a").SerializeToString()))]

    def test_a_large_one_in_steps(self) -> None:
        world = World()
        world.asks(PUT, rpc_pb2.PutRequest(key=b"a", value=b"v" * 5 * STEP_BYTES).SerializeToString())
        [(_, _, got)] = world.saw
        assert got == prefix(rpc_pb2.PutRequest(key=b"team/a", value=b"v" * 5 * STEP_BYTES).SerializeToString())

    def test_a_large_one_whose_time_is_over_meanwhile_does_not_begin(self) -> None:
        world = World()
        connection = world.server.connection
        connection.clock, connection.stop = (lambda: 1.0), 0.0  # each look at the clock ends the turn
        request = rpc_pb2.PutRequest(key=b"a", value=b"v" * 5 * STEP_BYTES).SerializeToString()
        world.client.sends(headers(1, call(PUT)), *in_frames(1, message(request)))
        turns = 0
        while world.server.context.buffers.used < 2 * len(request):  # until it is whole, and its steps begin
            connection.take(b"", 0.0)
            turns += 1
            assert turns < 100
        connection.streams[1].expire(OVERLOADED)
        while connection.take(b"", 0.0):
            pass
        world.server.flush()
        assert world.saw == []
        world.server.holds_nothing()

    def test_the_handler_may_say_when_its_bytes_have_left(self) -> None:
        """Their window was given back when they came."""
        world = World()
        stream = world.asks(PUT, rpc_pb2.PutRequest(key=b"a", value=b"v" * 50_000).SerializeToString())
        world.server.says()
        stream.consumed(50_020)
        world.server.flush()
        world.server.says_nothing()

    def test_one_that_protobuf_does_not_read_has_etcds_error(self) -> None:
        world = World()
        world.client.sends(headers(1, call(RANGE)), data(1, message(b"\x0a\x05a"), end=True))
        assert b"grpc: error unmarshalling request: Error" in world.server.says()
        assert world.saw == []

    def test_one_in_a_form_that_no_library_writes_is_refused(self) -> None:
        world = World()
        world.client.sends(headers(1, call(RANGE)), data(1, message(b"\x0a\x01k\xfb\x01\xfc\x01"), end=True))
        assert b"not in the form that protobuf libraries write" in world.server.says()

    def test_streamed_requests_come_one_by_one_whatever_their_pieces(self) -> None:
        world = World()
        world.watches()
        create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a", range_end=b"\0"))
        cancel = rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=3))
        said = message(create.SerializeToString()) + message(cancel.SerializeToString())
        for start in range(0, len(said), 4):
            world.client.sends(data(1, said[start : start + 4]))
        world.client.sends(data(1, b"", end=True))
        create.create_request.key, create.create_request.range_end = b"team/a", b"team0"
        assert world.saw[1:] == [
            ("data", 1, prefix(create.SerializeToString()), False),
            ("data", 1, prefix(cancel.SerializeToString()), False),
            ("data", 1, b"", True),
        ]

    def test_the_client_gets_back_the_window_of_its_own_bytes(self) -> None:
        """Not of those that the handler got: they are more."""
        world = World()
        stream = world.watches()
        said = message(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a")).SerializeToString())
        total = 0
        for _ in range(4000):
            world.client.sends(data(1, said))
            (*_, got, _) = world.saw[-1]
            assert len(got) > len(said)
            stream.consumed(len(got))
            total += len(said)
        given = sum(
            int.from_bytes(frame.payload, "big")
            for frame in split(world.server.says())
            if frame.kind == frames.WINDOW_UPDATE and frame.stream == 1
        )
        assert total - 32_768 <= given <= total

    def test_a_streamed_request_that_is_none_ends_the_call(self) -> None:
        world = World()
        world.watches()
        world.client.sends(data(1, message(b"\x0a\x05a")))
        assert world.saw[1][0] == "cancelled"
        assert b"error unmarshalling" in world.server.says()


class TestAnswers:
    def test_a_small_answer_goes_at_once(self) -> None:
        world = World()
        stream = world.asks(RANGE)
        assert stream.send_answer(OPENING, prefix(rows(3)), ENDING)
        world.server.flush()
        world.server.answers(headers(1, HEAD), data(1, message(rows(3, before=b""))), headers(1, trailers(), end=True))
        world.server.holds_nothing()

    def test_a_large_one_comes_when_it_is_whole(self) -> None:
        world = World(window=2**31 - 1)
        stream = world.asks(RANGE)
        whole = prefix(rows(20_000))
        stream.start()
        world.server.says()
        for start in range(0, len(whole), 16_384):
            assert world.heard() == b""
            assert world.server.context.buffers.used <= 1.2 * start + 20_000
            stream.send_data(whole[start : start + 16_384], False)
        stream.finish(OK)
        world.server.flush()
        assert world.heard() == message(rows(20_000, before=b""))
        world.server.holds_nothing()

    @pytest.mark.parametrize("window", [65_535, 2**31 - 1])
    def test_one_in_a_single_piece_leaves_in_steps_and_its_end_behind_it(self, window: int) -> None:
        world = World(window=window)
        stream = world.asks(RANGE)
        content = rows(20_000)
        assert len(content) > 4 * SENT_AT_ONCE
        stream.respond(content)
        assert stream.is_over
        world.server.flush()
        assert world.heard() == message(rows(20_000, before=b""))
        world.server.holds_nothing()

    def test_a_slow_client_holds_back_the_handler(self) -> None:
        world = World(window=1000)
        stream = world.watches()
        stream.start()
        event = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"team/a", value=b"v" * 400))
        told = prefix(rpc_pb2.WatchResponse(watch_id=1, events=[event]).SerializeToString())
        said = [stream.send_data(told, False) for _ in range(5)]
        assert said == [True, True, False, False, False]
        assert stream.pending is not None
        assert world.server.context.buffers.used > 0
        world.saw.clear()
        world.client.sends(window(1, 100_000))
        assert world.saw == [("drained", 1, 3 * len(told))]
        assert stream.pending is None
        event.kv.key = b"a"
        assert world.heard() == 5 * prefix(rpc_pb2.WatchResponse(watch_id=1, events=[event]).SerializeToString())
        assert world.server.context.buffers.used == 0
        assert stream.send_data(told, False)

    def test_without_memory_the_call_ends_with_the_cure(self) -> None:
        world = World(Limits(max_buffered_bytes=100_000))
        stream = world.asks(RANGE)
        stream.start()
        whole = prefix(rows(3000))
        for start in range(0, len(whole), 16_384):
            stream.send_data(whole[start : start + 16_384], False)
            world.server.flush()
        world.server.answers(headers(1, HEAD), headers(1, trailers(OVERLOADED), end=True))
        assert world.server.limits_reached["max_buffered_bytes"] == 1
        world.server.holds_nothing()

    def test_a_key_of_others_ends_the_call(self, caplog: pytest.LogCaptureFixture) -> None:
        world = World()
        stream = world.asks(RANGE)
        assert not stream.send_answer(OPENING, prefix(rows(1, before=b"theirs")), ENDING)
        assert stream.is_over
        world.server.flush()
        said = world.server.says()
        assert b"theirs" not in said
        assert OUTSIDE.message.encode() in said
        assert "outside of this proxy's namespace" in caplog.text
        world.server.holds_nothing()

    def test_it_is_read_in_short_steps_whatever_its_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fed: list[int] = []
        feed = AnswerReader.feed
        monkeypatch.setattr(AnswerReader, "feed", lambda self, data: fed.append(len(data)) or feed(self, data))
        world = World(window=2**31 - 1)
        content = rows(5000, size=1)
        world.asks(RANGE).respond(content)
        world.server.flush()
        assert max(fed) == STEP_BYTES
        assert sum(fed) == len(message(content))
        assert world.heard() == message(rows(5000, size=1, before=b""))

    def test_half_an_answer_is_none(self) -> None:
        world = World()
        stream = world.asks(RANGE)
        stream.start()
        stream.send_data(prefix(rows(3))[:-1], False)
        stream.finish(OK)
        world.server.flush()
        world.server.answers(headers(1, HEAD), headers(1, trailers(HALF), end=True))
        world.server.holds_nothing()

    def test_an_error_in_the_middle_is_passed_on(self) -> None:
        world = World()
        stream = world.asks(RANGE)
        stream.start()
        stream.send_data(prefix(rows(3))[:-1], False)
        stream.finish(Status(Code.UNAVAILABLE, "gone"))
        world.server.flush()
        world.server.answers(headers(1, HEAD), headers(1, trailers(Status(Code.UNAVAILABLE, "gone")), end=True))
        world.server.holds_nothing()

    @pytest.mark.parametrize("waits", [False, True])
    def test_a_client_that_goes_away_is_told_to_the_handler(self, waits: bool) -> None:
        world = World(window=10)
        stream = world.watches()
        stream.start()
        if waits:
            told = rpc_pb2.WatchResponse(watch_id=1, created=True, cancel_reason="long enough").SerializeToString()
            assert not stream.send_data(prefix(told), False)
        outer = world.server.connection.streams[1]
        assert outer.sink is stream
        world.client.sends(rst(1))
        assert [event for event, *_ in world.saw] == ["open", "cancelled"]
        assert stream.is_over
        assert stream.sink is outer.sink is None, "they refer to each other no more"
        assert stream.send_data(prefix(rows(1)), False)
        world.server.holds_nothing()

    def test_a_client_that_goes_away_before_the_rest_has_left(self) -> None:
        world = World(window=10)
        world.asks(RANGE).respond(rows(20_000))
        world.server.flush()
        world.client.sends(rst(1))
        world.server.holds_nothing()

    def test_a_refusal_needs_no_answer(self) -> None:
        world = World()
        world.asks(RANGE).finish(Status(Code.OUT_OF_RANGE, "no"))
        world.server.flush()
        world.server.answers(refusal(1, Code.OUT_OF_RANGE, "no"))
        world.server.holds_nothing()

    def test_a_bug_ends_the_call(self) -> None:
        world = World()
        stream = world.asks(RANGE)
        stream.on_bug()
        world.server.flush()
        assert b"esp: internal error" in world.server.says()
        world.server.holds_nothing()


class TestAround:
    def test_an_rpc_without_keys_has_its_own_handler(self) -> None:
        inner = Recorder([])
        path = b"/etcdserverpb.Lease/LeaseGrant"
        assert InNamespace(Namespace.of(b"x")).around(path, METHODS[path], inner, is_own=True) is inner

    @pytest.mark.parametrize(
        ("path", "is_own", "why"),
        [
            (b"/etcdserverpb.KV/Newest", False, "is unknown to esp, which cannot translate its keys"),
            (b"/etcdserverpb.Maintenance/Snapshot", True, "has the keys of all namespaces; ask a shard itself"),
        ],
    )
    def test_what_cannot_be_translated_is_refused(self, path: bytes, is_own: bool, why: str) -> None:
        handler = InNamespace(Namespace.of(b"x/")).around(path, METHODS.get(path), Recorder([]), is_own=is_own)
        assert isinstance(handler, Refuse)
        assert handler.status.code == Code.UNIMPLEMENTED
        assert handler.status.message == f'esp: this proxy has the namespace "x/", and {path[1:].decode()} {why}'

    def test_it_is_as_the_handler_inside(self) -> None:
        inner = Streaming([])
        inner.waits = inner.lasts = True
        inner.forwards = False
        around = InNamespace(Namespace.of(b"x/")).around(WATCH, METHODS[WATCH], inner, is_own=True)
        assert (around.streaming, around.waits, around.lasts, around.forwards) == (True, True, True, False)
        told: list[object] = []
        inner.recover = lambda *args: told.append(args) or True  # type: ignore[method-assign, func-returns-value]
        inner.on_large_answer = lambda *args: told.append(args)  # type: ignore[method-assign]
        stream: Any = object()
        assert around.recover(stream, b"m", OK)
        around.on_large_answer(stream, 5)
        assert told == [(stream, b"m", OK), (stream, 5)]


def test_each_name_of_a_call_is_one_of_the_call_inside_or_made_of_others() -> None:
    """A new one must not send past the namespace."""
    on_others = {"peer", "remaining", "remaining_timeout", "respond", "respond_at_once", "start", "forward"}
    names = {name for name in vars(ServerCall) if not name.startswith("_")}
    assert names - vars(InnerCall).keys() == on_others


def test_reset_from_inside() -> None:
    world = World()
    stream = world.watches()
    stream.reset(ErrorCode.REFUSED_STREAM)
    world.server.flush()
    assert rst(1, ErrorCode.REFUSED_STREAM) in world.server.says()
    world.server.holds_nothing()

"""The parts of messages that a client owes, its PINGs, and the heads and messages of its requests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from esp.core.wire.frames import ConnectionFault, ErrorCode
from esp.core.wire.handler import Handler, Refuse
from esp.core.wire.hpack import TooLarge
from esp.core.wire.owed_messages import OwedMessages
from esp.core.wire.ping_policy import PING_SECONDS, PING_SECONDS_IDLE, PING_STRIKES, PingPolicy
from esp.core.wire.request import RequestHead
from esp.core.wire.request_heads import RequestHeads, too_large
from esp.core.wire.request_message import RequestMessage
from esp.core.wire.status import Code, RpcError
from tests.core.wire.conversation import call, message, page


class TestPingPolicy:
    """Etcd's policy for PINGs."""

    @pytest.mark.parametrize(("has_calls", "pause"), [(True, PING_SECONDS), (False, PING_SECONDS_IDLE)])
    def test_early_ones_are_counted_until_there_are_too_many(self, has_calls: bool, pause: float) -> None:
        policy = PingPolicy()
        now = 100.0
        for _ in range(5):
            policy.came(now, after_output=False, has_calls=has_calls)
            now += pause
        for _ in range(PING_STRIKES):
            now -= 0.1
            policy.came(now, after_output=False, has_calls=has_calls)
        with pytest.raises(ConnectionFault, match="too_many_pings") as caught:
            policy.came(now, after_output=False, has_calls=has_calls)
        assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM

    def test_output_forgives(self) -> None:
        policy = PingPolicy()
        for _ in range(5):
            for number in range(PING_STRIKES + 1):
                policy.came(100.0, after_output=number == 0, has_calls=True)


@dataclass
class Half:
    """A call with message number `number` begun."""

    id: int
    number: int | None

    def half_request(self) -> int | None:
        return self.number


class TestOwedMessages:
    """The rest of messages that have begun."""

    def test_the_time_begins_with_the_message(self) -> None:
        owed = OwedMessages()
        for now in (100.0, 160.0, 170.0):
            assert look(owed, 0, now) == 100.0
            assert owed.since(Half(3, None), now, excused=False) == now, "it owes nothing"

    def test_each_message_has_its_own_time(self) -> None:
        owed = OwedMessages()
        for number in range(10):
            assert look(owed, number, 100.0 + 50 * number) == 100.0 + 50 * number

    def test_time_in_which_esp_did_not_read_does_not_count(self) -> None:
        owed = OwedMessages()
        assert look(owed, 0, 100.0) == 100.0
        assert look(owed, 0, 200.0, excused=True) == 200.0
        assert look(owed, 0, 261.0) == 200.0

    def test_a_call_that_has_ended_is_forgotten(self) -> None:
        owed = OwedMessages()
        assert look(owed, 0, 100.0) == 100.0
        owed.begin()
        assert look(owed, 0, 300.0) == 300.0


def look(owed: OwedMessages, number: int, now: float, *, excused: bool = False) -> float:
    """A round with a call that has sent a part of its message with this number."""
    owed.begin()
    return owed.since(Half(1, number), now, excused=excused)


class TestRequestMessage:
    """The pieces of a unary call's message."""

    def test_the_pieces_are_joined(self) -> None:
        request = RequestMessage(100, b"identity")
        whole = message(b"hello")
        for piece in (whole[:3], whole[3:7]):
            assert list(request.steps(piece)) == []
            assert not request.is_whole
        assert request.held > 0
        assert list(request.steps(whole[7:])) == []
        assert request.is_whole
        assert request.ended() == request.message == whole
        assert request.held == 5

    def test_the_bound_is_reached(self) -> None:
        assert list(RequestMessage(5, b"identity").steps(message(b"hello"))) == []
        with pytest.raises(RpcError) as caught:
            list(RequestMessage(4, b"identity").steps(message(b"hello")))
        assert caught.value.status.code == Code.RESOURCE_EXHAUSTED

    def test_there_is_one_message(self) -> None:
        request = RequestMessage(100, b"identity")
        assert list(request.steps(message(b"a"))) == []
        with pytest.raises(RpcError, match="more than one message"):
            list(request.steps(message(b"b")))

    @pytest.mark.parametrize("said", [b"", message(b"hello")[:-1], message(b"a") + b"\0"])
    def test_an_end_in_the_middle_is_an_error(self, said: bytes) -> None:
        request = RequestMessage(100, b"identity")
        assert list(request.steps(said)) == []
        with pytest.raises(RpcError, match="the request ended without a whole message"):
            request.ended()


class TestHeads:
    """The heads of requests."""

    def test_the_handler_is_found_once_for_each_head(self) -> None:
        asked: list[RequestHead] = []
        handler = Handler()

        def find(head: RequestHead) -> Handler:
            asked.append(head)
            return handler

        head = RequestHeads(find).make(call(b"/a/b"))
        assert asked == [head]
        assert head.handler is handler
        assert head.unary
        assert head.size > 0

    def test_nobody_routes_a_path_without_a_slash(self) -> None:
        def find(head: RequestHead) -> Handler:
            raise AssertionError

        head = RequestHeads(find).make(call(b"a/b"))
        assert isinstance(head.handler, Refuse)
        assert head.handler.status.code == Code.UNIMPLEMENTED

    @pytest.mark.parametrize("fields", [call(b"/a/b", (b"x", b"y" * 100)), page()])
    def test_a_head_that_is_too_large_is_refused_without_its_metadata(self, fields: list[tuple[bytes, bytes]]) -> None:
        head = too_large(TooLarge(fields, "takes 9 bytes", "max_header_list_bytes", 8))
        assert isinstance(head.handler, Refuse)
        assert head.handler.status.code == Code.RESOURCE_EXHAUSTED
        assert head.handler.status.message.startswith(
            "esp: the request's metadata takes 9 bytes, max_header_list_bytes is 8"
        )
        assert head.field(b"x") == b""

"""Calls like many before, which the frame loops take in fewer steps, and what nearly is such a call."""

from __future__ import annotations

from typing import Any

import pytest

from esp.core.wire import frames
from esp.core.wire.frames import MAX_STREAM_ID, ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.response import MOST_WHOLES
from tests.core.wire import upstream
from tests.core.wire.conversation import (
    ECHO,
    HEAD,
    HOLD,
    Client,
    Server,
    call,
    data,
    headers,
    meet,
    message,
    split,
    trailers,
    window,
)
from tests.core.wire.upstream import dial

LENGTH = (b"content-length", b"5")


def learnt() -> tuple[Client, Server, int]:
    """A client whose header table is gone, and whose last call is a usual one."""
    client, server = meet()
    client.gives_up_its_table()
    stream = server.connection._last_stream
    for _ in range(2):
        stream += 2
        client.sends(headers(stream, call()), data(stream, message(), end=True))
    server.says()
    assert server.connection._decoder.usual.block == encode(call())
    return client, server, stream + 2


def frames_at(stream: int) -> dict[str, bytes]:
    """What may come after a usual call, and nearly is one."""
    prefix = message(b"abc")
    other = [*call(ECHO)[:-1], (b"user-agent", b"tests")]
    return {
        "usual": headers(stream, call()) + data(stream, prefix, end=True),
        "another block of the same length": headers(stream, call(HOLD)) + data(stream, prefix, end=True),
        "another block": headers(stream, other) + data(stream, prefix, end=True),
        "all heads first": headers(stream, call()) + headers(stream + 2, call()) + data(stream, prefix, end=True)
        + data(stream + 2, message(), end=True),
        "no end": headers(stream, call()) + data(stream, prefix) + data(stream, end=True),
        "an end of its own": headers(stream, call()) + data(stream, end=True),
        "two messages": headers(stream, call()) + data(stream, prefix + message(b"x"), end=True),
        "half a message": headers(stream, call()) + data(stream, prefix[:-1], end=True),
        "compressed": headers(stream, call()) + data(stream, b"\1" + prefix[1:], end=True),
        "padded": headers(stream, call()) + data(stream, prefix, end=True, pad=3),
        "a window between": headers(stream, call()) + window(stream, 100) + data(stream, prefix, end=True),
        "data of a stream that never was": headers(stream, call()) + data(stream + 2, prefix, end=True),
        "an id from before": headers(stream - 2, call()) + data(stream - 2, prefix, end=True),
        "ids left out": b"".join(
            headers(i, call()) + data(i, prefix, end=True) for i in (stream + 4, stream + 6, stream + 12)
        ),
        "an even id": headers(stream + 1, call()) + data(stream + 1, prefix, end=True),
        "data after the end": headers(stream, call(HOLD)) + 2 * data(stream, prefix, end=True),
        "a time-out": headers(stream, call(ECHO, (b"grpc-timeout", b"5S"))) + data(stream, prefix, end=True),
        "no time left": headers(stream, call(ECHO, (b"grpc-timeout", b"0n"))) + data(stream, prefix, end=True),
        "the right length": headers(stream, call(ECHO, LENGTH)) + data(stream, message(), end=True),
        "a wrong length": headers(stream, call(ECHO, LENGTH)) + data(stream, prefix, end=True),
        "a frame above the limit": headers(stream, call())
        + data(stream, message(bytes(16380)), end=True),
    }  # fmt: skip


@pytest.mark.parametrize("name", frames_at(9))
def test_a_request_means_the_same_whether_it_comes_at_once_or_byte_by_byte(name: str) -> None:
    client, at_once, stream = learnt()
    second, in_pieces, _ = learnt()
    said = frames_at(stream)[name]
    client.sends(said)
    second.sends_in_pieces(1, said)
    assert at_once.says() == in_pieces.says()
    assert at_once.saw == in_pieces.saw
    assert at_once.connection.recv_window == in_pieces.connection.recv_window
    assert list(at_once.connection.streams) == list(in_pieces.connection.streams)


def pieces_at(stream: int) -> dict[str, bytes]:
    """What may come of a message in several large frames."""
    whole = message(bytes(range(256)) * 150)  # 38,405 bytes
    parts = [whole[:16_384], whole[16_384:20_000], whole[20_000:20_400], whole[20_400:25_000], whole[25_000:]]

    def frames_of(*fields: tuple[bytes, bytes], parts: list[bytes] = parts, **last: Any) -> bytes:
        *first, end = parts
        said = headers(stream, call(ECHO, *fields)) + b"".join(data(stream, part) for part in first)
        return said + data(stream, end, **(last or {"end": True}))

    usual = headers(stream + 2, call()) + data(stream + 2, message(), end=True)
    return {
        "usual": frames_of() + usual,
        "an end of its own": frames_of(parts=[*parts, b""]) + usual,
        "no end": frames_of(pad=0) + usual,
        "padded": frames_of(pad=9, end=True) + usual,
        "cut": frames_of(parts=parts[:3]) + usual,
        "another message": frames_of(parts=[*parts, message(bytes(5000))]) + usual,
        "a bit too much": frames_of(parts=[*parts[:-1], parts[-1] + b"\0"]) + usual,
        "the right length": frames_of((b"content-length", b"38405")) + usual,
        "less than the length": frames_of((b"content-length", b"38406")) + usual,
        "more than the length": frames_of((b"content-length", b"24000")) + usual,
        "more than the window": frames_of(parts=[message(bytes(200_000))[:16_384], *[bytes(16_384)] * 5]),
        "above the limit": frames_of(parts=[b"\0" + (1 << 31).to_bytes(4, "big") + bytes(9000), bytes(9000)]) + usual,
        "compressed": frames_of(parts=[b"\1" + whole[1:9000], whole[9000:18_000]]) + usual,
        "an answer before its end": headers(stream, call(b"/not/known"))
        + b"".join(data(stream, part) for part in parts),
    }  # fmt: skip


@pytest.mark.parametrize("name", pieces_at(9))
def test_a_message_in_large_frames_means_the_same_at_once_and_in_pieces(name: str) -> None:
    client, at_once, stream = learnt()
    second, in_pieces, _ = learnt()
    said = pieces_at(stream)[name]
    client.sends(said)
    second.sends_in_pieces(1499, said)
    assert set(split(at_once.says())) == set(split(in_pieces.says()))  # windows may be given back in other portions
    assert at_once.saw == in_pieces.saw
    assert at_once.connection.recv_window == in_pieces.connection.recv_window
    assert list(at_once.connection.streams) == list(in_pieces.connection.streams)
    assert at_once.context.buffers.used == in_pieces.context.buffers.used


def test_a_wrong_length_is_seen_with_a_head_that_is_known() -> None:
    client, server, stream = learnt()
    for number in range(2):
        client.sends(headers(stream + 2 * number, call(ECHO, LENGTH)), data(stream + 2 * number, message(), end=True))
    server.says()
    stream += 4
    client.sends(headers(stream, call(ECHO, LENGTH)), data(stream, message(b"more"), end=True))
    server.resets(stream, ErrorCode.PROTOCOL_ERROR)


def test_the_last_ids_of_a_connection_are_no_higher_than_others() -> None:
    client, server, _ = learnt()
    stream = MAX_STREAM_ID - 2
    client.sends(headers(stream, call()), data(stream, message(), end=True))
    client.sends(headers(stream + 2, call()), data(stream + 2, message(), end=True))
    assert [saw[1] for saw in server.saw[-2:]] == [stream, stream + 2]
    client.sends(headers(stream + 4, call()), data(stream + 4, message(), end=True))  # the bit above an id is ignored
    server.closes(ErrorCode.PROTOCOL_ERROR)


def test_more_messages_than_the_window_end_the_connection() -> None:
    client, server = meet(Limits(connection_window_bytes=65_535))
    client.gives_up_its_table()
    first = server.connection._last_stream + 2
    body = message(bytes(16_000))
    said = b"".join(headers(i, call(HOLD)) + data(i, body, end=True) for i in range(first, first + 2 * 9, 2))
    client.sends(said)
    assert server.connection.recv_window >= 0
    server.closes(ErrorCode.FLOW_CONTROL_ERROR)


def test_a_client_that_changes_its_table_again_is_not_taken_for_the_one_before() -> None:
    """Without a table the same bytes mean the same; with one, only as long as the table does not change."""
    client, server = meet()
    client.sends(headers(1, call()), data(1, message(), end=True))
    server.says()
    client.sends(headers(3, b"\x40\x01x\x01y" + encode(call())), data(3, message(), end=True))
    client.sends(headers(5, b"\xbe" + encode(call())), data(5, message(), end=True))
    assert not server.closed


class TestAnswers:
    @pytest.fixture(autouse=True)
    def known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upstream, "blocks_are_known", True)

    @pytest.mark.parametrize(
        "change",
        ["nothing", "other trailers", "other head", "padded", "end", "stream", "compressed", "empty", "large", "cut"],
    )
    def test_an_answer_means_the_same_at_once_and_in_pieces(self, change: str) -> None:
        told = []
        for piece in (1 << 20, 1):
            esp = dial()
            calls = [esp.calls(b"x") for _ in range(3)]
            esp.said()
            said = b"".join(self.answer(i, change if i == 3 else "nothing") for i in (1, 3, 5))
            for start in range(0, len(said), piece):
                esp.hears(said[start : start + piece])
            told.append(([c.told for c in calls], esp.said(), esp.closed, list(esp.connection.streams)))
        assert told[0] == told[1]

    def test_answers_may_have_any_length_in_any_order(self) -> None:
        lengths = [*range(MOST_WHOLES + 10), 3, 16_000, 3, 3, 16_000, 0, 7, MOST_WHOLES + 5, 1, *range(5)]
        esp = dial()
        calls = [esp.calls(b"x") for _ in lengths]
        esp.said()
        said = [
            headers(i, HEAD) + data(i, message(bytes(length))) + headers(i, trailers(), end=True)
            for i, length in zip(range(1, 2 * len(lengths), 2), lengths, strict=True)
        ]
        esp.hears(b"".join(said[:5]))
        for frame in said[5:100]:
            esp.hears(frame)
        esp.hears(b"".join(said[100:]))
        assert [call.told for call in calls] == [["head", message(bytes(length)), "OK"] for length in lengths]
        assert not esp.connection.streams
        assert 0 < len(esp.connection._decoder.usual.wholes) <= MOST_WHOLES

    def answer(self, stream: int, change: str) -> bytes:
        head, ending, body, end = headers(stream, HEAD), headers(stream, trailers(), end=True), message(b"ab"), False
        match change:
            case "other trailers":
                ending = headers(stream, [(b"grpc-status", b"5"), (b"grpc-message", b"")], end=True)
            case "other head":
                head = headers(stream, [(b":status", b"404"), *HEAD[1:]])
            case "padded":
                return head + data(stream, body, pad=2) + ending
            case "end":
                end = True
            case "stream":
                return head + data(stream + 2, body) + ending
            case "compressed":
                body = b"\1" + body[1:]
            case "empty":
                body = b""
            case "large":
                return head + frames.frame(frames.DATA, 0, stream, bytes(16_385)) + ending
            case "cut":
                return head + data(stream, body[:3]) + data(stream, body[3:]) + ending
        return head + data(stream, body, end=end) + ending


def test_before_the_first_answer_no_empty_block_is_taken_for_one() -> None:
    esp = dial()
    call = esp.calls(b"x")
    esp.hears(headers(1, []), data(1, message(b"ab")), headers(1, [], end=True))
    assert len(call.told) == 1
    assert isinstance(call.told[0], tuple)
    assert call.told[0][0] == "reset"
    esp.lives()

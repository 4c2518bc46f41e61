"""Requests whose heads are known, beside the same requests read by h11."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.wire.exchange import Exchange, Page, Serve
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.plain import LARGEST_HEAD, MOST_HEADS, HttpRequest, PlainHeads, head_in
from tests.core.wire.test_http1 import GET, HEALTHY, Talk

POST = b"POST /echo HTTP/1.1\r\nHost: esp\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nbody"


class Echo(Exchange):
    """Answers with the body; below /pieces in pieces, below /late when it is told to."""

    def __init__(self, request: HttpRequest, reply: Http1Connection) -> None:
        self.request = request
        self.reply = reply
        self.heard = b""
        self.is_gone = False

    def body(self, data: bytes) -> None:
        self.heard += data
        if b"too much" in self.heard:
            self.reply.refuse(413, "too much")

    def body_ended(self) -> None:
        if not self.request.target.startswith("/late"):
            self.give()

    def gone(self) -> None:
        self.is_gone = True

    def give(self) -> None:
        told = f"{self.request.method} {self.request.target} ".encode() + self.heard
        if self.request.target.startswith("/closed"):
            self.reply.close_soon()
        if self.request.target.startswith("/pieces"):
            self.reply.begin(200, [("Own", "1")], b"Line: 2\r\n")
            for start in range(0, len(told), 5):
                self.reply.send(told[start : start + 5])
            self.reply.finish()
        else:
            self.reply.answer(Page(200, told, headers=(("Own", "1"),), lines=b"Line: 2\r\n"))


class Forgetful(PlainHeads):
    """Knows no head."""

    __slots__ = ()

    def learn(self, head: bytes, request: HttpRequest) -> int:
        return 0


class Echoes(Serve):
    """Serves with `Echo`."""

    def __init__(self, *, remembers: bool = True) -> None:
        super().__init__()
        self.served: list[Echo] = []
        if not remembers:
            self.heads = Forgetful()

    def exchange(self, request: HttpRequest, reply: Http1Connection) -> Exchange:
        self.served.append(Echo(request, reply))
        return self.served[-1]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function: how often h11 has been given bytes."""
    count = 0
    receive = h11.Connection.receive_data

    def counted(self: Any, data: bytes) -> None:
        nonlocal count
        count += 1
        receive(self, data)

    monkeypatch.setattr(h11.Connection, "receive_data", counted)
    return lambda: count


def test_a_head_is_read_once(reads: Callable[[], int]) -> None:
    serve = Echoes()
    connections = [Http1Connection(serve) for _ in range(3)]
    answers = {connection.receive(POST) for connection in connections for _ in range(3)}
    assert reads() == 1
    assert len(answers) == 1
    assert all(connection.is_idle and connection.requests == 3 for connection in connections)
    plans = {id(one.request) for one in serve.served}
    assert len(plans) == 1  # so that what a server has found out from a head is found by the next


def test_of_a_plain_request_h11_reads_the_head_only(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    ask = h11.Connection.next_event

    def asked(self: Any) -> Any:
        events.append(ask(self))
        return events[-1]

    monkeypatch.setattr(h11.Connection, "next_event", asked)
    monkeypatch.setattr(h11.Connection, "send", lambda *_: pytest.fail("h11 is asked for an answer"))
    connection = Http1Connection(Echoes())
    for number in range(3):
        assert b"200 OK" in connection.receive(POST.replace(b"Host: esp", b"Host: esp%d" % number))
    assert [type(event) for event in events] == [h11.Request] * 3
    assert connection.is_idle


@pytest.mark.parametrize(
    "head",
    [
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTE: trailers\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.0\r\nHost: a\r\n\r\n",
        b"POST /x HTTP/1.1\nHost: a\nContent-Length: 4\n\nab\r\n\r\n",
        b"GET /x HTTP/1.1\nHost: a\n\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"x" * LARGEST_HEAD + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(13),
)
def test_a_head_that_is_not_plain_is_not_remembered(head: bytes) -> None:
    serve = Echoes()
    Http1Connection(serve).receive(head)
    assert len(serve.served) >= 1
    assert len(serve.heads) == 0


PIECES = [
    POST,
    GET,
    POST.replace(b"/echo", b"/pieces"),
    POST.replace(b"Content-Length: 4", b"Content-Length: 0")[:-4],
    POST.replace(b"4\r\n\r\nbody", b"8\r\n\r\ntoo much"),
    POST.replace(b"/echo", b"/closed"),
    b"POST /echo HTTP/1.1\r\nHost: esp\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    b"HEAD /echo HTTP/1.1\r\nHost: esp\r\n\r\n",
    b"\r\n" + POST,
    POST.replace(b"\r\n", b"\n"),
    b"nonsense\r\n\r\n",
]


@given(
    st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), min_size=2, max_size=4),
    st.lists(st.integers(1, 400), max_size=4),
)
def test_nobody_can_tell_whether_a_head_was_known(connections: list[list[bytes]], cuts: list[int]) -> None:
    """Each connection sends its requests, cut anywhere or one by one; all share a memory, or none has any."""

    def answers(serve: Serve) -> list[tuple[bytes, bool, bool]]:
        told = []
        for requests in connections:
            connection = Http1Connection(serve)
            said = b"".join(requests)
            places = sorted({cut % len(said) for cut in cuts})
            parts = [said[a:b] for a, b in zip([0, *places], [*places, None], strict=True)] if cuts else requests
            answer = b"".join([connection.receive(part) for part in parts if part and not connection.ended])
            told.append((answer, connection.ended, connection.ended or connection.is_idle))
        return told

    assert answers(Echoes()) == answers(Echoes(remembers=False))


@pytest.mark.parametrize("said", [POST + GET, POST + POST, POST + b"G", POST[:-1], POST[:-4]], ids=range(5))
def test_a_known_head_with_more_or_less_than_its_body_is_read_as_any_other(said: bytes) -> None:
    def told(serve: Serve) -> tuple[object, ...]:
        Http1Connection(serve).receive(POST)
        connection = Http1Connection(serve)
        return connection.receive(said), connection.requests, connection.is_idle, connection.receive(b"ET / HTTP")

    known = Echoes()
    assert told(known) == told(Echoes(remembers=False))
    assert known.heads.find(POST[:-4]) is not None


def test_an_answer_may_come_later() -> None:
    serve = Echoes()
    late: list[bytes] = []
    connection = Http1Connection(serve)
    connection.on_late = late.append
    request = POST.replace(b"/echo", b"/late")
    for _ in range(2):
        assert connection.receive(request) == b""
        assert not connection.is_idle
        assert connection.waits
        assert connection.receive(request) == b""  # sent ahead
        assert connection.unread_bytes == len(request)
        serve.served[-1].give()
        assert connection.behind
        assert connection.receive(b"") == b""
        serve.served[-1].give()
        assert connection.is_idle
        assert not connection.behind
    assert len(set(late)) == 1
    assert len(late) == len(serve.served) == 4


def test_a_client_that_goes_leaves_no_answer() -> None:
    serve = Echoes()
    for _ in range(2):  # at first h11 reads the head
        late: list[bytes] = []
        connection = Http1Connection(serve)
        connection.on_late = late.append
        assert connection.receive(POST.replace(b"/echo", b"/late")) == b""
        connection.lost()
        assert connection.ended
        assert not connection.is_served
        assert serve.served[-1].is_gone
        assert late == []


def test_the_memory_is_bounded_and_keeps_what_is_used() -> None:
    heads = PlainHeads()
    used = POST[: -len(b"body")]
    request = HttpRequest("POST", "/echo", [(b"content-length", b"4")])
    heads.learn(used, request)
    for number in range(5 * MOST_HEADS):
        heads.learn(b"%d" % number, request)
        assert heads.find(used) == (request, len(POST))
        assert len(heads) <= 2 * MOST_HEADS
    assert heads.generations >= 4
    assert heads.find(b"0") is None


def test_a_head_is_looked_for_in_few_bytes() -> None:
    assert head_in(POST) == POST[:-4]
    assert head_in(b"x" * LARGEST_HEAD + b"\r\n\r\n") == b""
    assert head_in(POST[:20]) == b""


def test_pages_are_served_from_memory_too(reads: Callable[[], int]) -> None:
    talk = Talk()
    for _ in range(3):
        assert talk.says(GET) == [HEALTHY]
    assert reads() == 1

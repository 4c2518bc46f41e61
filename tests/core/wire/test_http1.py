"""HTTP/1.1 on the same port, byte for byte."""

from __future__ import annotations

import pytest

from esp.core.wire.exchange import MAX_BODY_BYTES, AnswerPage, Page, ServePages
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.limits import Limits

CLOSE = b"Connection: close\r\n"


def find(method: str, target: str, answer: AnswerPage) -> None:
    answer(page(method, target))


def page(method: str, target: str) -> Page:
    if target == "/health":
        return Page(200, b'{"health":"true"}', "application/json")
    if target == "/empty":
        return Page(200, b"")
    if target == "/moved":
        return Page(405, b"no\n", headers=(("Allow", "GET"),))
    return Page(404, f"{method} {target}\n".encode())


class Talk:
    """One connection; `says` gives what is answered."""

    def __init__(self) -> None:
        self.server = Http1Connection(ServePages(find))

    def says(self, *said: bytes) -> list[bytes]:
        """The answers, one item per status line, each as status line and body."""
        raw = b"".join(self.server.receive(piece) for piece in said)
        return [self._short(b"HTTP/1.1 " + answer) for answer in raw.split(b"HTTP/1.1 ")[1:]]

    @staticmethod
    def _short(answer: bytes) -> bytes:
        head, _, body = answer.partition(b"\r\n\r\n")
        return b" ".join(head.split(b"\r\n")[0].split()[:2]) + b" | " + body


HEALTHY = b'HTTP/1.1 200 | {"health":"true"}'
GET = b"GET /health HTTP/1.1\r\nHost: esp\r\n\r\n"


def test_a_page() -> None:
    server = Http1Connection(ServePages(find))
    assert server.receive(GET) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n" + b'{"health":"true"}'
    )
    assert not server.ended


def test_a_page_byte_by_byte() -> None:
    talk = Talk()
    assert talk.says(*(GET[i : i + 1] for i in range(len(GET)))) == [HEALTHY]


def test_the_connection_is_kept_alive() -> None:
    talk = Talk()
    for _ in range(10):
        assert talk.says(GET) == [HEALTHY]
        assert not talk.server.ended


def test_requests_may_be_sent_ahead() -> None:
    talk = Talk()
    other = b"GET /x HTTP/1.1\r\nHost: esp\r\n\r\n"
    assert talk.says(GET + other + GET) == [HEALTHY, b"HTTP/1.1 404 | GET /x\n", HEALTHY]


@pytest.mark.parametrize(
    "request_", [b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"GET /health HTTP/1.0\r\n\r\n"]
)
def test_the_connection_ends_where_the_client_wants_it(request_: bytes) -> None:
    talk = Talk()
    assert talk.says(request_) == [HEALTHY]
    assert talk.server.ended


def test_head_has_no_body() -> None:
    server = Http1Connection(ServePages(find))
    answer = server.receive(b"HEAD /health HTTP/1.1\r\nHost: esp\r\n\r\n")
    assert b"Content-Length: 17\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    assert server.receive(GET).endswith(b'{"health":"true"}')


def test_an_empty_page() -> None:
    assert Talk().says(b"GET /empty HTTP/1.1\r\nHost: esp\r\n\r\n") == [b"HTTP/1.1 200 | "]


def test_a_page_with_headers_of_its_own() -> None:
    assert b"\r\nAllow: GET\r\n" in Http1Connection(ServePages(find)).receive(
        b"GET /moved HTTP/1.1\r\nHost: esp\r\n\r\n"
    )


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"])
def test_other_methods_reach_the_pages_with_their_body_ignored(method: bytes) -> None:
    talk = Talk()
    request = method + b" /etcdserverpb.KV/Put HTTP/1.1\r\nHost: esp\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0"
    assert talk.says(request + GET) == [b"HTTP/1.1 404 | " + method + b" /etcdserverpb.KV/Put\n", HEALTHY]


def test_a_body_in_chunks() -> None:
    talk = Talk()
    request = b"POST /x HTTP/1.1\r\nHost: esp\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert talk.says(request + GET) == [b"HTTP/1.1 404 | POST /x\n", HEALTHY]


def test_a_client_that_waits_for_100_gets_it() -> None:
    talk = Talk()
    head = b"POST /x HTTP/1.1\r\nHost: esp\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    assert talk.says(head) == [b"HTTP/1.1 100 | "]
    assert talk.says(b"abc") == [b"HTTP/1.1 404 | POST /x\n"]


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_too_large_is_refused(chunked: bool) -> None:
    talk = Talk()
    if chunked:
        head = b"POST /x HTTP/1.1\r\nHost: esp\r\nTransfer-Encoding: chunked\r\n\r\n"
        said = [head] + [b"1000\r\n" + bytes(4096) + b"\r\n"] * 20
    else:
        head = b"POST /x HTTP/1.1\r\nHost: esp\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
        said = [head, *[bytes(4096)] * 20]
    answers = []
    for piece in said:
        answers += talk.says(piece)
        if talk.server.ended:
            break
    assert answers == [b"HTTP/1.1 413 | request body too large\n"]
    assert talk.server.ended


def test_a_body_as_large_as_allowed_is_ignored() -> None:
    talk = Talk()
    head = b"POST /x HTTP/1.1\r\nHost: esp\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES
    assert talk.says(head + bytes(MAX_BODY_BYTES)) == [b"HTTP/1.1 404 | POST /x\n"]


def test_a_head_too_large_is_refused() -> None:
    talk = Talk()
    talk.server = Http1Connection(ServePages(find), limits=Limits(max_header_list_bytes=16384))
    said = [b"GET /x HTTP/1.1\r\nHost: esp\r\n", *[b"X: " + b"y" * 1000 + b"\r\n"] * 20]
    answers = []
    for piece in said:
        answers += talk.says(piece)
        if talk.server.ended:
            break
    assert answers[0].startswith(b"HTTP/1.1 431 | ")
    assert talk.server.ended


MALFORMED = {
    "a length and chunks": b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "a length that is none": b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "an encoding nobody knows": b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a space before a colon": b"GET /x HTTP/1.1\r\nHost : a\r\n\r\n",
    "a version nobody knows": b"GET /x HTTP/3.7\r\nHost: a\r\n\r\n",
    "no version": b"GET /x\r\n\r\n",
    "a NUL": b"GET /x HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "a target with a space": b"GET /x y HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target beyond ASCII": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "quotes": b'GET /it\'s "x" HTTP/1.1\r\nHost: a\r\n\r\n',
    "something else": b"GET \x00\x01\x02\r\n\r\n",
}


@pytest.mark.parametrize("said", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("before", [b"", GET, b"HEAD /health HTTP/1.1\r\nHost: esp\r\n\r\n"], ids=["", "get", "head"])
def test_a_malformed_request_is_refused_and_ends_the_connection(said: bytes, before: bytes) -> None:
    server = Http1Connection(ServePages(find))
    if before:
        server.receive(before)
    answer = server.receive(said)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 "))
    assert b"Connection: close\r\n" in answer
    assert server.ended


@pytest.mark.parametrize("said", MALFORMED.values(), ids=MALFORMED.keys())
def test_why_a_request_is_malformed_is_said_in_plain_words(said: bytes) -> None:
    answer = Http1Connection(ServePages(find)).receive(
        said.replace(b"\r\n\r\n", b"\r\nOther: " + b"x" * 5000 + b"\r\n\r\n")
    )
    text = answer.partition(b"\r\n\r\n")[2].decode("ascii")
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert 10 < len(text) < 80
    assert not set("'\"\\()") & set(text)


def test_a_malformed_chunk_ends_the_connection() -> None:
    talk = Talk()
    said = b"POST /x HTTP/1.1\r\nHost: esp\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert talk.says(said) == [b"HTTP/1.1 400 | illegal chunk header\n"]
    assert talk.server.ended


def test_an_upgrade_to_http2_is_ignored() -> None:
    talk = Talk()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
    said = b"GET /health HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n"
    assert talk.says(said) == [HEALTHY]
    assert talk.says(GET) == [HEALTHY]


def test_a_connect_is_a_page_that_is_not_there() -> None:
    talk = Talk()
    assert talk.says(b"CONNECT esp:80 HTTP/1.1\r\nHost: esp\r\n\r\n") == [b"HTTP/1.1 404 | CONNECT esp:80\n"]


def test_it_is_idle_between_requests_only() -> None:
    talk = Talk()
    assert not talk.server.is_idle
    talk.says(GET[:10])
    assert not talk.server.is_idle
    talk.says(GET[10:])
    assert talk.server.is_idle
    talk.says(b"G")
    assert not talk.server.is_idle
    talk.says(GET[1:])
    assert talk.server.is_idle
    talk.says(b"POST /x HTTP/1.1\r\nHost: esp\r\nContent-Length: 3\r\n\r\n")
    assert not talk.server.is_idle


class Late:
    """A connection whose pages come when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, AnswerPage]] = []
        self.said = b""
        self.server = Http1Connection(ServePages(lambda method, target, answer: self.asked.append((target, answer))))
        self.server.on_late = self._on_late

    def _on_late(self, answer: bytes) -> None:
        self.said += answer

    def answers(self, text: bytes) -> None:
        _, answer = self.asked.pop()
        answer(Page(200, text))


def test_a_page_may_come_later_and_what_was_sent_ahead_is_answered_after_it() -> None:
    late = Late()
    assert late.server.receive(GET + GET.replace(b"/health", b"/next")) == b""
    assert (late.server.waits, late.server.is_idle, late.server.behind) == (True, False, False)
    assert late.server.unread_bytes == len(GET) - 2
    assert late.server.receive(b"") == b""
    assert [target for target, _ in late.asked] == ["/health"]
    late.answers(b"one")
    assert late.said.endswith(b"\r\n\r\none")
    assert (late.server.waits, late.server.behind) == (False, True)
    assert late.server.receive(b"") == b""
    assert [target for target, _ in late.asked] == ["/next"]
    late.answers(b"two")
    assert late.said.endswith(b"\r\n\r\ntwo")
    assert late.server.is_idle


def test_what_comes_while_a_page_is_awaited_is_kept() -> None:
    late = Late()
    assert late.server.receive(GET) == b""
    assert late.server.receive(GET[:20]) == late.server.receive(GET[20:]) == b""
    late.answers(b"one")
    assert late.server.receive(b"") == b""
    late.answers(b"two")
    assert late.said.count(b"HTTP/1.1 200") == 2


def test_a_late_page_ends_the_connection_where_the_client_wants_it() -> None:
    late = Late()
    late.server.receive(b"GET /health HTTP/1.0\r\n\r\n")
    assert not late.server.ended
    late.answers(b"one")
    assert late.said.endswith(b"one")
    assert late.server.ended


def test_a_page_is_given_once() -> None:
    late = Late()
    late.server.receive(GET)
    _, answer = late.asked[0]
    for _ in range(3):
        answer(Page(200, b"one"))
    assert late.said.count(b"HTTP/1.1 200") == 1
    assert late.server.receive(GET) == b""
    answer(Page(200, b"one"))
    assert late.said.count(b"HTTP/1.1 200") == 1
    assert late.server.waits

"""Ends of calls: each is counted or told once, with its code, its server and its times."""

from __future__ import annotations

from time import monotonic

import pytest

from esp.core.wire.ended import UNKNOWN, EndedCall, Passed, Took
from esp.core.wire.frames import ErrorCode
from esp.core.wire.multiplexed import TOLD_AT_ONCE
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.splice import CountedCall, LateCall
from esp.core.wire.status import Code, Status
from tests.core.wire import upstream
from tests.core.wire.conversation import ECHO, HEAD, STREAM, data, headers, message, refusal, rst, trailers
from tests.core.wire.test_splice import Between, stream, unary


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[EndedCall] = []
        self.lists: dict[str, Passed] = {}

    def passed_to(self, name: str) -> Passed:
        return self.lists.setdefault(name, Passed(name, {ECHO}, slow=10.0))

    def joined_to(self, name: str) -> Passed:
        raise NotImplementedError

    def ended(self, call: EndedCall) -> None:
        assert call.opened <= call.at
        self.calls.append(call)

    def told(self) -> list[tuple[bytes, int, str, bool]]:
        """Path, code, server of each call, and whether it was sent; then forgets them."""
        told = [(call.path, call.code, call.server, bool(call.sent)) for call in self.calls]
        self.calls.clear()
        return told


class Observed(Between):
    """esp with one client and one etcd called a."""

    def __init__(self, *, client_settings: dict[int, int] | None = None) -> None:
        super().__init__(client_settings=client_settings)
        self.observer = self.context.observer = Told()
        self.etcd.connection.observe(self.observer.passed_to("a"))

    @property
    def took(self) -> dict[bytes, int]:
        """The number of calls in the lists of etcd a, by path."""
        return {path: len(taken) for path, taken in self.observer.lists["a"].took.lists.items()}

    def told(self) -> list[tuple[bytes, int, str, bool]]:
        return self.observer.told()


def answer(stream: int = 1, content: bytes = b"ho") -> tuple[bytes, ...]:
    return headers(stream, HEAD), data(stream, message(content)), headers(stream, trailers(), end=True)


def test_a_quick_answer_is_in_the_list_of_its_path_and_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "blocks_are_known", True)
    between = Observed()
    unary(between)
    between.etcd_says(*answer())
    assert (between.took, between.told()) == ({ECHO: 1}, [])
    (seconds,) = between.observer.lists["a"].took.lists[ECHO]
    assert 0 <= seconds < 10


def test_a_slow_answer_is_told_with_its_times_and_its_message() -> None:
    between = Observed()
    between.etcd.connection.slow = 0.0
    before = monotonic()
    unary(between, content=b"slow")
    between.etcd_says(*answer())
    (ended,) = between.observer.calls
    assert (ended.path, ended.code, ended.server, ended.message) == (ECHO, Code.OK, "a", message(b"slow"))
    assert before <= ended.sent == ended.opened <= ended.at <= monotonic()
    assert between.took == {}


@pytest.mark.parametrize("late", [LateCall, CountedCall])
def test_a_call_that_was_sent_later_tells_when(late: type[LateCall]) -> None:
    class Place:
        def comes(self, size: int) -> None: ...
        def wait_for_client(self) -> None: ...
        def close(self) -> None: ...

    between = Observed()

    def splice(down: ServerStream, message: bytes | None) -> None:
        down.opened -= 1.0
        more = (Place(),) if late is CountedCall else ()
        spliced = late(between.etcd.connection, down, message, between, *more)
        between.etcd.connection.call(spliced, down.head.forward, b"", message, end=True)

    between.splice = splice  # type: ignore[method-assign]
    unary(between)
    between.etcd_says(*answer())
    (ended,) = between.observer.calls
    assert ended.opened + 1.0 <= ended.sent <= ended.at
    assert (ended.code, ended.server, between.took) == (Code.OK, "a", {})


def test_an_error_of_the_server_is_told_with_its_code() -> None:
    between = Observed()
    unary(between)
    between.etcd_says(refusal(1, Code.NOT_FOUND, "no"))
    assert between.told() == [(ECHO, Code.NOT_FOUND, "a", True)]


def test_an_answer_in_pieces_is_told_once_even_if_the_client_then_resets_it() -> None:
    between = Observed(client_settings={4: 1})
    unary(between)
    between.etcd_says(*answer(content=b"more than the window"))
    assert between.told() == [(ECHO, Code.OK, "a", True)]
    between.client_says(rst(1, ErrorCode.CANCEL))
    assert between.told() == []
    assert between.took == {}


def test_the_clients_reset_is_canceled() -> None:
    between = Observed()
    unary(between)
    between.client_says(rst(1, ErrorCode.CANCEL))
    assert between.told() == [(ECHO, Code.CANCELLED, "a", True)]


def test_a_reset_after_the_deadline_is_deadline_exceeded() -> None:
    between = Observed()
    unary(between)
    between.client.connection.streams[1].deadline = monotonic() - 1
    between.client_says(rst(1, ErrorCode.CANCEL))
    assert between.told() == [(ECHO, Code.DEADLINE_EXCEEDED, "a", True)]


def test_a_call_that_esp_ends_is_told_with_the_server_that_had_it() -> None:
    between = Observed()
    unary(between)
    between.client.connection.streams[1].expire(Status(Code.UNAVAILABLE, "no time"))
    assert between.told() == [(ECHO, Code.UNAVAILABLE, "a", True)]


def test_a_call_whose_connection_breaks_upstream_is_told_once() -> None:
    between = Observed()
    unary(between)
    between.etcd.connection.lost("gone")
    assert between.told() == [(ECHO, Code.UNAVAILABLE, "", False)]


def test_calls_of_a_client_that_is_lost_are_canceled() -> None:
    between = Observed()
    unary(between)
    stream(between, 3)
    between.client.connection.lost("gone")
    assert sorted(between.told()) == [(ECHO, Code.CANCELLED, "a", True), (STREAM, Code.CANCELLED, "a", True)]


@pytest.mark.parametrize("known", [True, False])
def test_calls_of_a_lost_client_that_are_answered_before_they_are_told_are_told_once(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Only a few learn of the loss at once. An answer with new blocks comes in pieces, and is OK until then."""
    monkeypatch.setattr(upstream, "blocks_are_known", known)
    number = TOLD_AT_ONCE + 5
    between = Observed()
    for n in range(number):
        unary(between, 1 + 2 * n)
    between.client.connection.lost("gone")
    for n in range(TOLD_AT_ONCE, number):
        between.etcd.connection.receive(b"".join(answer(1 + 2 * n)))
    between.context.flush()
    in_pieces = 0 if known else 1
    codes = [Code.OK] * in_pieces + [Code.CANCELLED] * (number - in_pieces)
    assert (between.told(), between.took) == ([(ECHO, code, "a", True) for code in codes], {})


def test_a_stream_is_told_when_it_ends() -> None:
    between = Observed()
    stream(between)
    between.etcd_says(headers(1, HEAD), data(1, message(b"event")))
    assert between.told() == []
    between.etcd_says(headers(1, trailers(), end=True))
    assert between.told() == [(STREAM, Code.OK, "a", True)]


def test_an_answer_that_broke_off_is_what_its_client_sees() -> None:
    between = Observed()
    unary(between)
    down = between.client.connection.streams[1]
    between.etcd_says(headers(1, HEAD), data(1, message(b"half")[:-1]))
    down.abandon(Status(Code.RESOURCE_EXHAUSTED, "no memory"), ErrorCode.ENHANCE_YOUR_CALM)
    assert between.told() == [(ECHO, Code.RESOURCE_EXHAUSTED, "", False)]


def test_without_an_observer_all_is_as_ever() -> None:
    between = Between()
    unary(between)
    between.etcd_says(*answer())
    between.client_hears(*answer())
    between.holds_nothing()


def test_unknown_paths_share_one_list() -> None:
    took = Took({b"/known"})
    for path in (b"/known", b"/b", b"/c", b"/b"):
        took[path](1.0)
    assert took.lists == {b"/known": [1.0], UNKNOWN: [1.0, 1.0, 1.0]}
    assert set(took) == {b"/known", UNKNOWN}

"""A client's call as the handlers inside a namespace see it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from esp.core.services.namespace.answer import AnswerReader
from esp.core.services.namespace.backlog import SENT_AT_ONCE, Backlog
from esp.core.services.namespace.forms import Form, Malformed, Outside
from esp.core.services.namespace.request import RequestReader
from esp.core.services.namespace.rewrite import STEP_BYTES
from esp.core.wire.admission import Admission
from esp.core.wire.ended import Passed, Several
from esp.core.wire.frames import ErrorCode
from esp.core.wire.hpack import Fields
from esp.core.wire.pump import Pending
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import OVERLOADED, ServerCall, ServerStream, Sink
from esp.core.wire.status import Code, RpcError, Status

log = logging.getLogger("esp.service")

SLICE: Final = 0.001
"""Seconds of a turn in which DATA that waits is rewritten; a step of STEP_BYTES may take as long again."""
MALFORMED_REQUEST: Final = Status(
    Code.INTERNAL,
    "grpc: error unmarshalling request: esp: not in the form that protobuf libraries write",
)
MALFORMED_ANSWER: Final = Status(Code.INTERNAL, "esp: a shard's answer is not encoded as etcd does")
OUTSIDE: Final = Status(Code.INTERNAL, "esp: a shard's answer has a key outside of this proxy's namespace")
HALF: Final = Status(Code.INTERNAL, "esp: a shard's answer ended in the middle of a message")


class InnerCall(ServerCall, Sink):
    """Stands between a client's call and the handler that serves the call.

    To the handler a stream, whose answers lose the prefix before they go on to the client's stream. To the client's
    stream a sink, which gives the handler's sink requests with the prefix. The memory of what has to wait is the
    client's. `pending` is set while anything waits, here or there.

    The slots of `ServerCall` that can change belong to the client's stream, and are properties here. A method of
    `ServerCall` that this class lacks finds no slot to work on: it fails, and nothing goes past the namespace.
    """

    __slots__ = (
        "_answers",
        "_backlog",
        "_held",
        "_inner",
        "_is_on",
        "_outer",
        "_requests",
        "_sent",
        "deadline",
        "head",
        "id",
        "opened",
        "timeout",
        "trace",
    )

    def __init__(self, outer: ServerCall, requests: Form | None, answers: AnswerReader) -> None:
        """`requests` is the form of the requests of a streaming call."""
        self.id = outer.id
        self.head = outer.head
        self.timeout = outer.timeout
        self.trace = outer.trace
        self.opened = outer.opened
        self.deadline = outer.deadline
        self._outer = outer
        self._inner: Sink | None = None
        self._requests: RequestReader | None = None
        if requests is not None:
            self._requests = RequestReader(requests, outer.connection.limits.max_message_bytes, outer.head.encoding)
        self._answers = answers
        self._backlog: Backlog | None = None
        self._held = 0  # of the account, for the incomplete answer and the backlog
        self._is_on = False  # among those that go on in the next turn
        self._sent = False

    # The stream that the handler sees.

    @property
    def connection(self) -> Admission[ServerStream]:
        """The client's connection."""
        return self._outer.connection

    @property
    def sink(self) -> Sink | None:
        """The handler's sink."""
        return self._inner

    @sink.setter
    def sink(self, sink: Sink | None) -> None:
        self._inner = sink
        self._outer.sink = None if sink is None and self._backlog is None else self

    @property
    def is_within(self) -> bool:
        """True."""
        return True

    @property
    def responded(self) -> bool:
        """Whether the response has begun."""
        return self._outer.responded

    @responded.setter
    def responded(self, responded: bool) -> None:
        self._outer.responded = responded

    @property
    def retried(self) -> bool:
        """The request was sent upstream a second time."""
        return self._outer.retried

    @retried.setter
    def retried(self, retried: bool) -> None:
        self._outer.retried = retried

    @property
    def translated(self) -> bool:
        """As `ServerStream.translated`."""
        return self._outer.translated

    @translated.setter
    def translated(self, translated: bool) -> None:
        self._outer.translated = translated

    @property
    def local_open(self) -> bool:
        """Whether the handler may still send."""
        return self._outer.local_open and not self._is_ending

    @property
    def remote_open(self) -> bool:
        """Whether the client may still send."""
        return self._outer.remote_open

    @property
    def has_sent(self) -> bool:
        """Whether the handler has sent any DATA."""
        return self._sent

    @property
    def pending(self) -> Pending | None:
        """The DATA that waits for the client, here or in the client's stream; None if there is none."""
        backlog, outer = self._backlog, self._outer
        return outer.pending if backlog is None else backlog.pending(outer)

    @property
    def _is_ending(self) -> bool:
        return self._backlog is not None and self._backlog.ending is not None

    @property
    def is_over(self) -> bool:
        """Whether the answer is complete, or the client is gone."""
        return self._is_ending or self._outer.is_over

    @property
    def awaits_message(self) -> bool:
        """Whether the one message of a unary call has not come yet."""
        return self._outer.awaits_message

    def consumed(self, size: int) -> None:
        """Gives back the window of `size` bytes of requests, of which the client has sent fewer.

        The window of a call with one message was given back when the message had come.
        """
        if self._requests is not None:
            self._outer.consumed(self._requests.consumed(size))

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes that are kept for this call anywhere; False if there is no room."""
        return self._outer.hold(size)

    def may_hold(self, size: int) -> bool:
        """Whether `hold` would say yes."""
        return self._outer.may_hold(size)

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self._outer.release(size)

    def send_headers(self, block: bytes, end: bool) -> None:
        """Sends the response's head, or its trailers behind all that waits."""
        if not end:
            self._outer.send_headers(block, False)
        elif self._backlog is not None:
            self._backlog.ending = block
        elif self._answers.is_between:
            self._outer.send_headers(block, True)
        else:
            self.finish(HALF)

    def send_data(self, payload: bytes, end: bool) -> bool:
        """Takes DATA of the answers; False if `Sink.drained` will tell when it has left."""
        assert not end, "an answer ends with trailers"
        self._sent = True
        if self._outer.is_over:
            return True
        backlog = self._backlog
        if backlog is None and len(payload) <= STEP_BYTES:
            self._read(payload)
            if self._backlog is None:
                return True
            self._backlog.owed += len(payload)
            return False
        if self._hold_all(len(payload)):
            (backlog or self._begin_backlog()).add_raw(payload)
        return False

    def send_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> bool:
        """Sends a whole answer; False when it cannot go at once, or the call has ended for it."""
        try:
            pieces = self._answers.feed(payload)
        except (Malformed, Outside) as error:
            self._refuse(error)
            return False
        if not self._answers.is_between:
            self.finish(HALF)
            return False
        return self._outer.send_answer(head, pieces[0] if len(pieces) == 1 else b"".join(pieces), trailers)

    def finish(self, status: Status, extra: Fields | None = None, *, http_status: int = 200) -> None:
        """Ends the call behind all that waits, unless it is over."""
        if self.is_over:
            return
        if self._backlog is not None:
            self._backlog.ending = status, extra, http_status
            return
        if not status.code and not self._answers.is_between:
            status = HALF
        self._drop()
        self._outer.finish(status, extra, http_status=http_status)

    def expire(self, status: Status) -> None:
        """Ends the call at once."""
        self._outer.expire(status)

    def tell(self, code: int, server: Passed | Several | None = None, sent: float = 0.0, message: bytes = b"") -> None:
        """Tells the observer, once, that the call has ended."""
        self._outer.tell(code, server, sent, message)

    def on_bug(self) -> None:
        """Ends the call after a bug in esp."""
        self._outer.on_bug()

    def cut(self, stream: ServerCall | None = None) -> None:
        """Ends the call, because others need memory: for the handler, and as the sink of the client's stream."""
        if stream is None:
            self._outer.cut()
        elif self._inner is not None:
            self._inner.cut(self)
        else:
            self.abandon(OVERLOADED, ErrorCode.ENHANCE_YOUR_CALM)

    def on_buffers_full(self) -> None:
        """Ends the call: there is no memory for bytes that wait for the client."""
        self._outer.on_buffers_full()

    def abandon(self, status: Status, code: ErrorCode) -> None:
        """Drops what waits, and ends the call with `status`, or with a reset if a part of a message has left."""
        self._inner = None
        self._drop()
        self._outer.abandon(status, code)

    def drop(self) -> None:
        """Drops waiting DATA."""
        self._drop()
        self._outer.drop()

    def reset(self, code: int) -> None:
        """Ends the stream from here, if still open."""
        self._drop()
        self._outer.reset(code)

    # The sink that the client's stream sees.

    def request_data(self, payload: bytes, end: bool) -> None:
        """A piece of a streaming request: its messages get the prefix, in steps."""
        self.connection.do(self._translate(payload, end))

    def _translate(self, payload: bytes, end: bool) -> Iterator[None]:
        requests = self._requests
        assert requests is not None, "a streaming call"
        held = requests.held
        try:
            for message in requests.steps(payload):
                if not message:
                    yield
                elif self._inner is not None:
                    self._inner.request_data(message, False)
        except RpcError as error:
            if error.status.code == Code.RESOURCE_EXHAUSTED:
                self.connection.context.reached("max_message_bytes")
            self.expire(error.status)
            return
        except Malformed:
            self.expire(MALFORMED_REQUEST)
            return
        if self._inner is None or self._outer.is_over:
            return
        self._outer.consumed(requests.unused)
        if requests.held <= held:
            self._outer.release(held - requests.held)
        elif not self._outer.hold(requests.held - held):
            self._outer.on_buffers_full()
            return
        if end:
            self._inner.request_data(b"", True)

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        """The one server upstream that works on the call, if any."""
        return super().sent_to() if self._inner is None else self._inner.sent_to()

    def half_message(self) -> int | None:
        """The number of the request that has come only in part; None if there is none."""
        return None if self._requests is None else self._requests.half_message()

    def cancelled(self, code: int, reason: str) -> None:
        """The client is gone, or the wire has ended the call."""
        if self._inner is not None:
            self._inner.cancelled(code, reason)
        self._drop()
        self.sink = None  # both refer to each other, and would stay in memory for long

    def drained(self, size: int) -> None:
        """Bytes that the client's stream had to keep have left."""
        if self._outer.pending is None and not self._is_on:
            self._go_on(0.0)

    # The answers.

    def _read(self, payload: bytes) -> None:
        """Rewrites DATA, and sends what is whole, or puts it into the backlog."""
        try:
            pieces = self._answers.feed(payload)
        except (Malformed, Outside) as error:
            self._refuse(error)
            return
        outer, backlog = self._outer, self._backlog
        if pieces:
            size = sum(map(len, pieces))
            if backlog is None and size <= SENT_AT_ONCE:
                outer.send_data(pieces[0] if len(pieces) == 1 else b"".join(pieces), False)
                if outer.pending is not None and not outer.is_over:
                    self._begin_backlog()
            else:
                (backlog or self._begin_backlog()).add(pieces, size)
        if self._held or not self._answers.is_between or self._backlog is not None:
            self._hold_all(0)

    def _begin_backlog(self) -> Backlog:
        backlog = self._backlog = Backlog()
        self._outer.sink = self
        if self._outer.pending is None:
            self._soon()
        return backlog

    def _soon(self) -> None:
        if not self._is_on:
            self._is_on = True
            self.connection.context.put_off(self)

    def go_on(self) -> None:
        """The next turn has come."""
        self._is_on = False
        clock = self.connection.clock
        began = clock()
        self._go_on(began + SLICE)
        self.connection.charge(clock() - began)

    def flush(self) -> None:
        """Does nothing: `go_on` does the work."""

    def _go_on(self, until: float) -> None:
        """Sends what waits, or rewrites DATA until this time, and ends the call when all has left."""
        outer, backlog, clock = self._outer, self._backlog, self.connection.clock
        while backlog is not None and not outer.is_over:
            is_enough = bool(backlog.queue)
            if is_enough:
                backlog.send(outer)
            elif outer.pending is None and backlog.raw:
                self._read(backlog.step_of_raw())
            if outer.is_over or self._backlog is not backlog or not self._hold_all(0) or outer.pending is not None:
                return
            if not backlog.queue and not backlog.raw:
                self._end_backlog(backlog)
                return
            if is_enough or clock() >= until:
                self._soon()
                return

    def _end_backlog(self, backlog: Backlog) -> None:
        """All has left: the handler goes on, or the call ends."""
        self._backlog = None
        ending = backlog.ending
        if ending is None:
            self.sink = self._inner
            if self._inner is not None and backlog.owed:
                self._inner.drained(backlog.owed)
        else:
            self._outer.sink = None
            if isinstance(ending, bytes):
                self.send_headers(ending, True)
            else:
                self.finish(ending[0], ending[1], http_status=ending[2])

    def _hold_all(self, more: int) -> bool:
        """Accounts for all that is kept here, and for `more`; without memory the call ends, and the result is False."""
        held = self._answers.held + more
        if self._backlog is not None:
            held += self._backlog.held
        if held > self._held:
            if not self._outer.hold(held - self._held):
                if not self._outer.is_over:
                    self._outer.on_buffers_full()
                return False
        elif held < self._held:
            self._outer.release(self._held - held)
        self._held = held
        return True

    def _refuse(self, error: Exception) -> None:
        """Ends the call: a shard's answer cannot be passed on."""
        status = OUTSIDE if isinstance(error, Outside) else MALFORMED_ANSWER
        log.error("%s: %s: %s", self.peer, self.head.path.decode("ascii", "replace"), status.message)
        self._outer.expire(status)

    def _drop(self) -> None:
        """Drops what waits here."""
        self._backlog = None
        held, self._held = self._held, 0
        if held:
            self._outer.release(held)

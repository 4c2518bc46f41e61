"""One request of the gateway: its JSON becomes a gRPC call to this very process, and the call's answer becomes JSON."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Final

from esp.core.gateway.answer import Answer, unreadable
from esp.core.gateway.body import Body
from esp.core.gateway.errors import CANCELED, too_large
from esp.core.gateway.paths import WATCH
from esp.core.gateway.plan import Plan
from esp.core.gateway.printing import SMALL, Garbled, text_of
from esp.core.gateway.reading import NotTheMessage, read_small
from esp.core.gateway.values import NotJson
from esp.core.wire.budget import Account
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.exchange import Exchange, Page, Reply
from esp.core.wire.frames import ErrorCode, unpack_u32
from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.message import PREFIX_SIZE, format_timeout, prefix
from esp.core.wire.response import ResponseHead
from esp.core.wire.server_stream import INTERNAL_ERROR, OVERLOADED
from esp.core.wire.status import DEADLINE_EXCEEDED, Code, Status

SMALL_DATA: Final = 2048
"""Bytes of an answer that are printed as soon as they come; more wait for the client's turn."""
DEADLINE_SLACK: Final = 0.005
"""Seconds before its deadline in which an error is taken for the deadline's."""
COUNTED: Final = 4096
"""Bytes that a call may hold uncounted, like the rest of what a call takes."""

_CLOSED: Final = Status(Code.UNAVAILABLE, "esp: the call broke off, and may have been served")
_BROKEN: Final = {int(ErrorCode.INTERNAL_ERROR): INTERNAL_ERROR, int(ErrorCode.ENHANCE_YOUR_CALM): OVERLOADED}
_NO_ANSWER: Final = Status(Code.INTERNAL, "the call ended without an answer")


class GatewayCall(Exchange):
    """The server of one request."""

    # Defaults in the class: most calls need no others, and each assignment would be one for each request.
    _calls: LocalCalls | None = None
    _account: Account | None = None
    _body: Body | None = None  # None if nothing has come, or all was read at once
    _stream: _Stream | None = None
    _is_begun = False
    _deadline = inf
    _answer: Answer | None = None
    _status: Status | None = None
    _is_over = False

    def __init__(self, plan: Plan, reply: Reply) -> None:
        self._plan = plan
        self._rpc = plan.rpc
        self._reply = reply
        self._fault = plan.fault  # of the request

    # The request.

    def takes_whole(self, data: bytes) -> bool:
        """The JSON has come whole: begins the call at once if that is little work."""
        plan = self._plan
        if self._fault is not None or plan.rpc.takes_stream or len(data) > min(COUNTED, plan.most_bytes):
            return False
        message = read_small(plan.request, data) if data else b""
        if message is None:
            return False
        self._open(message)
        return True

    def body(self, data: bytes) -> None:
        """A piece of the JSON."""
        body = self._body_begun()
        if self._is_over or (body.is_stream and self._fault is not None):
            return
        body.add(data)
        if body.held > self._plan.most_bytes:
            self._reply.local_calls().context.reached("max_json_bytes")
            self._reply.close_soon()
            self._fault = self._fault or too_large(self._plan.most_bytes)
            self._conclude(too_large(self._plan.most_bytes), 413)
            return
        self._hold()
        if body.is_stream:
            self._read_stream(body)

    def body_ended(self) -> None:
        """Begins the call, or ends the stream of its requests."""
        body = self._body_begun()
        body.is_whole = True
        if self._is_over:
            return
        if self._fault is not None:
            if not self._is_begun:
                self._conclude(self._fault)
        elif body.is_stream:
            self._read_stream(body)
        else:
            message = body.read_at_once()
            if message is None:
                self.behind = True
            else:
                self._open(message)

    def _body_begun(self) -> Body:
        body = self._body
        if body is None:
            body = self._body = Body(self._plan)
        return body

    def _read_stream(self, body: Body) -> None:
        """Sends the requests that have come, in the client's turns."""
        if self._is_over:
            return
        if not self._is_begun:
            self._open(None)
        body.read_stream()
        self.behind = True

    def owed(self) -> int | None:
        """The body of a call with one request, or the rest of a value."""
        if self._is_begun and not self._rpc.takes_stream:
            return None
        body = self._body_begun()
        if body.is_whole or self.is_full or body.steps is not None:
            return None
        if not body.is_stream:
            return 0
        return body.parts if body.held else None

    # The call.

    def _open(self, message: bytes | None) -> None:
        """Begins the call, with its only request if there is one."""
        self._is_begun = True
        if self._body is not None:
            self._hold()
            if self._is_over:
                return
        calls = self._calls = self._reply.local_calls()
        stream = self._stream = _Stream(calls.client, self)
        data = None if message is None else prefix(message)
        timeout = b""
        seconds = self._plan.seconds
        if seconds is not None:
            timeout = format_timeout(seconds)
            self._deadline = monotonic() + seconds
        calls.call(stream, self._plan.forward, timeout, data, end=data is not None)

    def _send(self, data: bytes, *, end: bool) -> None:
        stream = self._stream
        if stream is not None and stream.local_open and not stream.send_data(data, end):
            self.is_full = bool(data)

    def request_left(self) -> None:
        """Requests that waited have left."""
        stream = self._stream
        if stream is not None and stream.pending is None and self.is_full:
            self.is_full = False
            self.behind = self.behind or (self._body is not None and self._body.steps is not None)
            self._reply.go_on()

    def answered(self, data: bytes) -> None:
        """A piece of the call's answer has come."""
        answer = self._answer_begun()
        answer.add(data)
        self._hold()
        if not self.behind and len(data) <= SMALL_DATA and not self._reply.is_full:
            self._print(answer, inf)
        if answer.waits:
            self._want_turn()

    def ended(self, status: Status) -> None:
        """The call has ended."""
        self._stream = None
        if status.code != Code.OK and monotonic() >= self._deadline - DEADLINE_SLACK:
            status = DEADLINE_EXCEEDED  # whatever the end of a call at its deadline looks like to a server
        self._status = status = self._fault or status
        if self._answer is None or not self._answer.waits:
            self._conclude(status)

    # Work in the client's turns.

    def _want_turn(self) -> None:
        self.behind = True
        self._reply.go_on()

    def work(self, stop: float) -> None:
        """Reads and prints."""
        self.behind = False
        body = self._body
        if body is not None and body.steps is not None and not self.is_full and not self._read(body, stop):
            self.behind = True
            return
        answer = self._answer
        if answer is None or not answer.waits or self._is_over or self._reply.is_full:
            return
        self._print(answer, stop)
        if answer.waits and not self._reply.is_full and not self._is_over:
            self.behind = True

    def _read(self, body: Body, stop: float) -> bool:
        """Goes on to read; False if the time `stop` has come."""
        clock = self._reply.clock
        assert body.steps is not None
        try:
            for message in body.steps:
                if message is not None and body.is_stream:
                    self._send(prefix(message), end=False)
                    self._hold()
                elif message is not None:
                    self._open(message)
                if self.is_full or self._is_over:
                    return True
                if clock() >= stop:
                    return False
        except (NotJson, NotTheMessage) as error:
            body.steps = None
            self._not_json(str(error))
            return True
        body.steps = None
        if body.is_stream and body.is_whole:
            self._send(b"", end=True)
        return True

    def _not_json(self, text: str) -> None:
        if not self._rpc.takes_stream:
            self._conclude(Status(Code.INVALID_ARGUMENT, text))
            return
        # etcd only notes this text in its log, and takes the requests for complete. A watch would then go on for ever.
        self._fault = Status(Code.INVALID_ARGUMENT, f"Failed to decode request: {text}")
        if self._rpc.path == WATCH:
            self._conclude(self._fault)
        else:
            self._send(b"", end=True)  # the answers to earlier requests come first

    # The answer.

    def _answer_begun(self) -> Answer:
        answer = self._answer
        if answer is None:
            answer = self._answer = Answer(self._plan, self._reply, self._printed)
        return answer

    def _print(self, answer: Answer, stop: float) -> None:
        """Prints what has come, until the time `stop`."""
        try:
            answer.print(stop)
        except Garbled as error:
            answer.drop()
            self._break(unreadable(self._rpc, error))
            return
        if self._is_over:
            return
        if answer.waits:
            self._hold()
        elif self._status is not None:
            self._conclude(self._status)

    def _printed(self, size: int) -> bool:
        if self._stream is not None:
            self._stream.consumed(size)
        self._hold()
        return not self._is_over

    def whole_answer(self, data: bytes) -> bool:
        """The call has ended well with `data`; False, and nothing done, if that is not one small message."""
        size = len(data) - PREFIX_SIZE
        is_only = self._answer is None and not self._rpc.gives_stream
        if not is_only or not 0 <= size <= SMALL or unpack_u32(data, 1)[0] != size:
            return False
        self._stream = None
        try:
            if data[0]:
                raise Garbled("a compressed message")
            text = text_of(self._plan.answer, data[PREFIX_SIZE:])
        except Garbled as error:
            self._conclude(unreadable(self._rpc, error))
            return True
        self._finish()
        self._reply.answer(Page(200, text.encode(), "", (), self._plan.good_lines))
        return True

    def _conclude(self, status: Status, code: int = 0) -> None:
        """Ends the answer."""
        if self._is_over:
            return
        self._cancel()
        answer = self._answer_begun()
        if status.code == Code.OK and not answer.messages and not self._rpc.gives_stream:
            status = _NO_ANSWER
        self._finish()
        if status.code == Code.OK:
            answer.end()
        else:
            answer.fail(status, code, is_begun=self._is_begun)

    def _break(self, status: Status) -> None:
        """Ends the answer inside of a message: nothing but the end of the connection tells that it is not whole."""
        if self._answer is not None and self._answer.began:
            self._cancel()
            self._finish()
            self._reply.abort()
        else:
            self._conclude(status)

    # The end.

    def resumed(self) -> None:
        """The client takes the answer again."""
        if self._answer is not None and self._answer.waits:
            self._want_turn()

    def sends_no_more(self) -> None:
        """The client has closed its side: a call that may last for hours ends, as in etcd."""
        if self._rpc.lasts:
            self._conclude(CANCELED)

    def gone(self) -> None:
        """The client is gone."""
        self._cancel()
        self._finish()

    def cut(self) -> None:
        """There is no memory for what the call holds."""
        self._account = None
        self._break(OVERLOADED)

    def _cancel(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    def _finish(self) -> None:
        self._is_over = True
        self.behind = False
        if self._body is not None:
            self._body.drop()
        if self._answer is not None:
            self._answer.drop()
        if self._account is not None:
            self._account.close()
            self._account = None

    def _hold(self) -> None:
        """Counts what the call keeps."""
        held = 0 if self._body is None else self._body.held
        if self._answer is not None:
            held += self._answer.held
        if held <= COUNTED and self._account is None:
            return
        if self._account is None:
            self._calls = self._calls or self._reply.local_calls()
            self._account = self._calls.account(self)
        self._account.give(self._account.held)
        if held and not self._account.take(held):
            self.cut()


class _Stream(ClientStream):
    """The call, as the client's end has it."""

    __slots__ = ("_gateway",)

    def __init__(self, client: ClientConnection, gateway: GatewayCall) -> None:
        super().__init__(client)
        self._gateway = gateway

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head or the trailers of the answer."""
        if end:
            self._gateway.ended(head.outcome())
        elif head.http_status != 200 or not head.is_grpc:
            self.cancel()
            self._gateway.ended(head.outcome())

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """A whole answer."""
        if not self._gateway.whole_answer(payload):
            super().on_answer(head, payload, trailers)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        self._gateway.answered(payload)
        if end:
            self._gateway.ended(_NO_ANSWER)

    def on_reset(self, code: int, reason: str) -> None:
        """The call has broken."""
        self._gateway.ended(_BROKEN.get(code, _CLOSED))

    def on_drained(self, size: int) -> None:
        """Requests that waited have left."""
        self._gateway.request_left()

"""Handlers around other handlers: everything that passes between clients and the handlers inside is translated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from esp.core.keys import format_key
from esp.core.namespace import Namespace
from esp.core.services.handlers import parse
from esp.core.services.namespace.answer import AnswerReader, Remembered, WatchReader
from esp.core.services.namespace.call import MALFORMED_REQUEST, InnerCall
from esp.core.services.namespace.fields import HOLDS_ALL, holds_keys
from esp.core.services.namespace.forms import Form, Forms, Malformed
from esp.core.services.namespace.rewrite import STEP_BYTES, rewritten, steps
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import OVERLOADED, Handler, Refuse, ServerCall
from esp.core.wire.status import Code, RpcError, Status

_WATCH: Final = "etcdserverpb.Watch.Watch"


class InNamespace:
    """Puts handlers into a namespace. Every handler that the router finds goes through `around`."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._requests = Forms.of_requests(namespace)
        self._answers = Forms.of_answers(namespace)
        self._remembered = Remembered()

    def around(self, path: bytes, method: MethodDescriptor | None, handler: Handler, *, is_own: bool) -> Handler:
        """The handler of calls to `path`: `handler` itself if the RPC has no keys, or a refusal.

        Args:
            path: the path of the call.
            method: the RPC; None if esp does not know it.
            handler: serves the call.
            is_own: esp serves the RPC itself, so an unknown RPC is none of etcd's.
        """
        if path in HOLDS_ALL:
            return Refuse(self._refusal(path, "has the keys of all namespaces; ask a shard itself"))
        if method is None:
            if is_own:
                return handler
            return Refuse(self._refusal(path, "is unknown to esp, which cannot translate its keys"))
        if not holds_keys(method.input_type) and not holds_keys(method.output_type):
            return handler
        answers = self._answers.form(method.output_type)
        reader: Callable[[], AnswerReader] = partial(AnswerReader, answers)
        if method.full_name == _WATCH:
            reader = partial(WatchReader, answers, self._remembered)
        return Translated(handler, method.input_type, self._requests.form(method.input_type), reader)

    def _refusal(self, path: bytes, why: str) -> Status:
        name, prefix = path[1:].decode("utf-8", "replace"), format_key(self.namespace.prefix)
        return Status(Code.UNIMPLEMENTED, f'esp: this proxy has the namespace "{prefix}", and {name} {why}')


def in_namespace(namespace: Namespace, request: Message) -> bytes:
    """A request as the handlers in the namespace get it, with its gRPC prefix."""
    descriptor: Any = request.DESCRIPTOR
    form = Forms.of_requests(namespace).form(descriptor)
    return rewritten(form, request.SerializeToString())


class Translated(Handler):
    """Serves calls in a namespace with the handler `inner`.

    Args:
        inner: the handler.
        request: the type of the requests.
        requests: their form.
        reader: makes the object that takes the prefix from the answers of one call.
    """

    def __init__(self, inner: Handler, request: Descriptor, requests: Form, reader: Callable[[], AnswerReader]) -> None:
        self.inner = inner
        self.streaming = inner.streaming
        self.is_page = inner.is_page
        self.idempotent = inner.idempotent
        self.forwards = inner.forwards
        self.waits = inner.waits
        self.lasts = inner.lasts
        self._request = request
        self._requests = requests
        self._reader = reader

    @property
    def within(self) -> Handler:
        """The handler inside."""
        return self.inner.within

    def on_open(self, stream: ServerCall) -> None:
        """A streaming call begins."""
        self.inner.on_open(InnerCall(stream, self._requests, self._reader()))

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """The request message of a call: gives it the prefix; a large one in steps."""
        if len(message) > STEP_BYTES:
            stream.connection.do(self._in_steps(stream, message))
            return
        try:
            translated = rewritten(self._requests, message[PREFIX_SIZE:])
        except Malformed:
            stream.finish(self._malformed(message))
            return
        self._go_on(stream, translated)

    def _in_steps(self, stream: ServerCall, message: bytes) -> Iterator[None]:
        size = 2 * len(message)
        if not stream.hold(size):
            stream.finish(OVERLOADED)
            return
        translated = b""
        try:
            for step in steps(self._requests, message, PREFIX_SIZE):
                if stream.is_over:
                    return
                translated = step
                yield
        except Malformed:
            stream.release(size)
            stream.finish(self._malformed(message))
            return
        stream.release(size)  # the next holder of the message counts it anew
        if not stream.is_over:
            self._go_on(stream, translated)

    def _go_on(self, stream: ServerCall, translated: bytes) -> None:
        self.inner.on_message(InnerCall(stream, None, self._reader()), translated)

    def _malformed(self, message: bytes) -> Status:
        """The status of a request that cannot be rewritten: etcd's own if protobuf does not read it either."""
        request: type[Message] = GetMessageClass(self._request)
        try:
            parse(request, message)
        except RpcError as error:
            return error.status
        return MALFORMED_REQUEST

    def recover(self, stream: ServerCall, message: bytes, status: Status) -> bool:
        """The server upstream refused `message`."""
        return self.inner.recover(stream, message, status)

    def on_large_answer(self, stream: ServerCall, size: int) -> None:
        """The answer begins to come."""
        self.inner.on_large_answer(stream, size)

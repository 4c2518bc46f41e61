"""The answer of a call as it goes to the client: pieces of messages become JSON, and at last the outcome.

A small answer that comes whole goes out at once (`GatewayCall.whole_answer`), and needs none of this.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from esp.core.gateway.errors import GRPC_LINE, JSON_LINE, error_line, error_page, http_status
from esp.core.gateway.paths import Rpc
from esp.core.gateway.plan import Plan
from esp.core.gateway.printing import Garbled, Printer, for_html
from esp.core.wire.exchange import Page, Reply
from esp.core.wire.status import Code, Status

log = logging.getLogger("esp.gateway")

SENT_AT_ONCE: Final = 16384
"""Bytes of printed text that leave together."""
LARGEST_CHUNK: Final = 4_194_304
"""Bytes of a stream's message that leave together: some clients take a chunk for a message, as it is in etcd."""


class Answer:
    """A call's answer.

    Args:
        plan: of the call.
        reply: takes the answer.
        on_piece: called with the size of each piece when it is printed; returns whether to go on.

    Attributes:
        began: the head has left.
        messages: how many there were, counting one that is printed in part.
    """

    __slots__ = (
        "_lines",
        "_on_piece",
        "_pieces",
        "_printer",
        "_printing",
        "_reply",
        "_streams",
        "_text",
        "_text_size",
        "began",
        "messages",
    )

    def __init__(self, plan: Plan, reply: Reply, on_piece: Callable[[int], bool]) -> None:
        self._reply = reply
        self._lines = plan.lines
        self._streams = plan.rpc.gives_stream
        self._on_piece = on_piece
        self._pieces: deque[bytes] = deque()
        self._printer = Printer(plan.answer, self._write, self._begin_message, self._end_message)
        self._printing: Iterator[None] | None = None
        self._text: list[str] = []
        self._text_size = 0
        self.began = False
        self.messages = 0

    @property
    def waits(self) -> bool:
        """Whether something has come that is not printed yet."""
        return bool(self._pieces) or self._printing is not None

    @property
    def held(self) -> int:
        """The bytes that have come and have not left."""
        return self._printer.held + sum(map(len, self._pieces)) + self._text_size

    @property
    def is_within(self) -> bool:
        """Whether a part of a message has been printed."""
        return self._printer.is_within

    def add(self, data: bytes) -> None:
        """Takes the next piece."""
        self._pieces.append(data)

    def drop(self) -> None:
        """Forgets what is not printed."""
        self._pieces.clear()
        self._printing = None

    def print(self, stop: float) -> None:
        """Prints what has come, until the time `stop` or until the client takes no more.

        Raises:
            Garbled: the pieces are no such messages.
        """
        reply, clock = self._reply, self._reply.clock
        while self.waits:
            if self._printing is None:
                self._printer.feed(self._pieces[0])
                self._printing = self._printer.steps()
            for _ in self._printing:
                if self._text_size >= (LARGEST_CHUNK if self._streams else SENT_AT_ONCE):
                    self._flush()
                if reply.is_full or clock() >= stop:
                    return
            self._printing = None
            if not self._on_piece(len(self._pieces.popleft())):
                return
        if not self._streams:
            self._flush()

    def _begin_message(self, is_whole: bool) -> None:
        self.messages += 1
        if self._streams:
            self._begin(200, GRPC_LINE)
            self._write('{"result":')
        elif self.messages > 1:
            raise Garbled("more than one answer")
        elif not is_whole:
            self._begin(200, GRPC_LINE)

    def _end_message(self) -> None:
        if self._streams:
            self._write("}\n")
            self._flush()

    def _write(self, text: str) -> None:
        self._text.append(text)
        self._text_size += len(text)

    def _begin(self, status: int, lines: bytes = b"") -> None:
        if not self.began:
            self.began = True
            self._reply.begin(status, lines=self._lines + lines)

    def _flush(self) -> None:
        """Sends what is printed; the only answer, if it is small, waits for the end of the call."""
        if self.began and self._text:
            text = "".join(self._text)
            self._text.clear()
            self._text_size = 0
            self._reply.send((for_html(text) if self._streams else text).encode())

    # The end.

    def end(self) -> None:
        """The call has ended well."""
        text = "".join(self._text).encode()
        if self._streams and not self.began:
            self.began = True
            self._reply.begin(200, lines=self._lines.removesuffix(JSON_LINE))
        if self.began:
            self._reply.send(text)
            self._reply.finish()
        else:
            self._reply.answer(Page(200, text, "", lines=self._lines + GRPC_LINE))

    def fail(self, status: Status, code: int, *, is_begun: bool) -> None:
        """The call has failed.

        Args:
            status: the outcome.
            code: the HTTP status code, 0 for that of `status`.
            is_begun: whether there has been a call at all.
        """
        if self.is_within or (self.began and not self._streams):
            self._reply.abort()  # only the end of the connection tells that the message is not whole
        elif self._streams and is_begun:
            self._begin(code or http_status(status))
            self._reply.send(error_line(status).encode())
            self._reply.finish()
        else:
            self._reply.answer(error_page(status, self._lines, code))


def unreadable(rpc: Rpc, error: Garbled) -> Status:
    """The outcome of a call whose answer is no such message, which is logged."""
    log.warning("%s: an answer that cannot be read: %s", rpc.path.decode(), error)
    return Status(Code.INTERNAL, f"esp: the answer cannot be read: {error}")

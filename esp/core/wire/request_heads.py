"""Heads of requests, each with its handler: the entries of the memo of header blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from esp.core.wire.handler import Handler, Refuse
from esp.core.wire.hpack import Fields, TooLarge
from esp.core.wire.request import LARGE_HEAD, RequestHead, malformed_method, parse_request
from esp.core.wire.status import Code, Status

_ESSENTIAL: Final = frozenset((b":method", b":scheme", b":path", b":authority", b"content-type"))


class RequestHeads:
    """Makes the head of each distinct request, once.

    Args:
        find: names the handler of a request.
    """

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[RequestHead], Handler]) -> None:
        self._find = find

    def make(self, fields: Fields) -> RequestHead:
        """The head with these fields, and the head's handler.

        Raises:
            StreamFault: the fields are malformed.
        """
        head = parse_request(fields)
        if head.is_grpc and head.path[:1] != b"/":
            handler: Handler = Refuse(malformed_method(head.path))  # here, so that no router sees such a path
        else:
            handler = self._find(head)
        head.handler = handler
        head.unary = not handler.streaming and not handler.is_page
        head.weigh()
        head.plain = head.unary and head.size <= LARGE_HEAD
        return head


def too_large(fault: TooLarge) -> RequestHead:
    """The head of a request with too much metadata: its handler refuses the request, and the connection goes on."""
    head = parse_request([field for field in fault.fields if field[0] in _ESSENTIAL])
    status = Status(Code.RESOURCE_EXHAUSTED, f"esp: {fault.text}; send less, or raise that in the config")
    head.handler = Refuse(status, http_status=200 if head.is_grpc else 431)
    return head

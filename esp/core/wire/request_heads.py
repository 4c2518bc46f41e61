"""Heads of requests, each with its handler: the entries of the memo of header blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

from esp.core.wire.frames import HEADERS
from esp.core.wire.handler import Handler, Refuse
from esp.core.wire.hpack import Fields, TooLarge
from esp.core.wire.request import LARGE_HEAD, NO_LENGTH, RequestHead, malformed_method, parse_request
from esp.core.wire.request_decoder import Request
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


class UsualRequest(NamedTuple):
    """The form of requests whose header block is as long as that of an earlier one.

    Attributes:
        front: unpacks the whole head, then the beginning of the DATA that may stand behind it, as `unpack_front` does.
        size: the bytes of that.
        word: length and type of the head, as `unpack_header` gives them.
        block: the header block of the earlier request.
        request: the earlier request.
    """

    front: Callable[[bytes, int], tuple[Any, ...]]
    size: int
    word: int
    block: bytes
    request: Request


def usual_request(block: bytes, request: Request) -> UsualRequest:
    """The form of requests like this one."""
    return UsualRequest(*_front(len(block)), len(block) << 8 | HEADERS, block, request)


@lru_cache(maxsize=256)
def _front(length: int) -> tuple[Callable[[bytes, int], tuple[Any, ...]], int]:
    front = Struct(f">IBI{length}sIBIBI")
    return front.unpack_from, front.size


NO_REQUEST: Final = usual_request(b"", (RequestHead(b"", b"", [], NO_LENGTH), b"", b""))
"""The form of no request: none has an empty header block."""


def too_large(fault: TooLarge) -> RequestHead:
    """The head of a request with too much metadata: its handler refuses the request, and the connection goes on."""
    head = parse_request([field for field in fault.fields if field[0] in _ESSENTIAL])
    status = Status(Code.RESOURCE_EXHAUSTED, f"esp: {fault.text}; send less, or raise that in the config")
    head.handler = Refuse(status, http_status=200 if head.is_grpc else 431)
    return head

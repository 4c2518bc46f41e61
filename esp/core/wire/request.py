"""The head of a request: validated, classified, and ready to be sent on (RFC 9113, section 8; gRPC over HTTP/2)."""

from __future__ import annotations

import re
from typing import Any, Final

from esp.core.wire.frames import ErrorCode, StreamFault
from esp.core.wire.hpack import Fields, encode
from esp.core.wire.message import quote
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, Status

_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$")
TIMEOUT_NAME: Final = b"grpc-timeout"
TRACE_NAME: Final = b"traceparent"
TRACE: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""A `traceparent` that differs in each call of a client that is traced (W3C Trace Context, section 3.2)."""
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_HOP_BY_HOP: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NOT_SENT_ON: Final = frozenset((b"te", b"content-type", b"content-length", b"host", b"grpc-accept-encoding"))
"""Fields that esp sets itself for the next hop. It leaves out accept-encoding, so that answers come uncompressed."""

NO_LENGTH: Final = -1
LARGE_HEAD: Final = 1024
"""A head of more bytes counts as memory that the call holds; most heads are smaller."""
_HEAD_BYTES: Final = 400
_FIELD_BYTES: Final = 140
"""Bytes of memory for a list's item, a tuple, and the heads of two byte strings."""


class RequestHead:
    """The content of the header block of a request.

    Attributes:
        method: the HTTP method.
        path: `/package.Service/Method` of a gRPC call, if it is well-formed; any path otherwise.
        fields: the regular fields, in order, without `grpc-timeout` and `traceparent`: equal heads may have different
            deadlines, and be of different traces. After `keep` only the fields that it names.
        is_grpc: whether it is a POST of `application/grpc`.
        encoding: the `grpc-encoding` of its messages.
        content_length: bytes of body promised, or NO_LENGTH.
        forward: the head for the next hop: the path, and the metadata that `encode_metadata` made.
        handler: the handler that the server's router found.
        unary: whether the handler takes one whole message.
        plain: `unary`, and the head is too small to be counted as memory.
        size: about the bytes of memory that the head took at the last `weigh`.
    """

    __slots__ = (
        "content_length",
        "encoding",
        "fields",
        "forward",
        "handler",
        "is_grpc",
        "method",
        "path",
        "plain",
        "size",
        "unary",
    )

    def __init__(self, method: bytes, path: bytes, fields: Fields, content_length: int) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.content_length = content_length
        self.is_grpc = method == b"POST" and is_grpc_type(self.field(b"content-type"))
        self.encoding = self.field(b"grpc-encoding") or b"identity"
        self.forward: Forward = (path, b"")
        self.handler: Any = None
        self.unary = self.plain = False
        self.size = _HEAD_BYTES

    def field(self, name: bytes) -> bytes:
        """The first value of field `name`, or b""."""
        for candidate, value in self.fields:
            if candidate == name:
                return value
        return b""

    def weigh(self) -> None:
        """Sets `size`, once the fields to keep and the head for the next hop are known."""
        kept = sum([len(name) + len(value) + _FIELD_BYTES for name, value in self.fields])
        self.size = _HEAD_BYTES + len(self.path) + len(self.forward[1]) + kept

    def keep(self, names: frozenset[bytes]) -> None:
        """Forgets all fields but these: a call that stays open would keep all of them in memory."""
        self.fields = [field for field in self.fields if field[0] in names]

    def encode_metadata(self, *, dropping: frozenset[bytes] = frozenset()) -> bytes:
        """The client's metadata in its order, without fields of the hop, encoded for the next hop."""
        return encode([f for f in self.fields if f[0] not in _NOT_SENT_ON and f[0] not in dropping])


def is_grpc_type(content_type: bytes) -> bool:
    """Whether `content_type` is that of a gRPC call."""
    return content_type == b"application/grpc" or content_type.startswith((b"application/grpc+", b"application/grpc;"))


def check_characters(fields: Fields) -> None:
    """Refuses names and values that a later hop could read in another way (RFC 9113, section 8.2.1).

    Raises:
        StreamFault: PROTOCOL_ERROR.
    """
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise _malformed("a field name that is no lower-case token")
        if value and _BAD_VALUE.search(value):
            raise _malformed("a field value with control characters or outer white space")


def check_fields(fields: Fields, *, trailers: bool = False) -> None:
    """Refuses fields that would have another meaning for the next hop (RFC 9113, sections 8.2 and 8.3).

    Raises:
        StreamFault: PROTOCOL_ERROR.
    """
    check_characters(fields)
    regular = trailers
    for name, value in fields:
        if name[0] == 0x3A:
            if regular:
                raise _malformed("a pseudo-field after a regular one or in trailers")
        else:
            regular = True
            if name in _HOP_BY_HOP:
                raise _malformed("a connection-specific field")
            if name == b"te" and value != b"trailers":
                raise _malformed("te other than trailers")


def _malformed(what: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, what)


def parse_request(fields: Fields) -> RequestHead:
    """The head that `fields` make.

    Raises:
        StreamFault: PROTOCOL_ERROR, the request is malformed.
    """
    check_fields(fields)
    pseudo: dict[bytes, bytes] = {}
    regular: Fields = []
    trace = trace_of(fields)
    for name, value in fields:
        if name[0] != 0x3A:
            if name != TIMEOUT_NAME and (name != TRACE_NAME or not trace):
                regular.append((name, value))
        elif name not in _PSEUDO or name in pseudo:
            raise _malformed("an unknown or repeated pseudo-field")
        else:
            pseudo[name] = value
    method = pseudo.get(b":method", b"")
    path = pseudo.get(b":path", b"")
    if not method or b":scheme" not in pseudo:
        raise _malformed("a request without :method or :scheme")
    hosts = [value for name, value in regular if name == b"host"]
    if len(hosts) > 1 or (hosts and pseudo.get(b":authority", hosts[0]) != hosts[0]):
        raise _malformed("authorities that disagree")
    head = RequestHead(method, path, regular, _content_length(regular))
    if path[:1] != b"/" and not head.is_grpc and not (path == b"*" and method == b"OPTIONS"):
        raise _malformed("no :path, or one that does not begin with a slash")
    return head


def timeout_of(fields: Fields) -> bytes:
    """The value of `grpc-timeout`; b"" without one.

    Raises:
        StreamFault: an empty value, or several.
    """
    values = [value for name, value in fields if name == TIMEOUT_NAME]
    if len(values) > 1 or b"" in values:
        raise _malformed("an empty grpc-timeout, or more than one")
    return values[0] if values else b""


def trace_of(fields: Fields) -> bytes:
    """The value of `traceparent`; b"" without one, or with a value or a number of values that the standard forbids."""
    values = [value for name, value in fields if name == TRACE_NAME]
    return values[0] if len(values) == 1 and TRACE.fullmatch(values[0]) else b""


def malformed_method(path: bytes) -> Status:
    """The refusal of a gRPC call whose path is not `/service/method` (grpc-go, server.go, handleStream)."""
    return Status(Code.UNIMPLEMENTED, f"malformed method name: {quote(path)}")


def _content_length(fields: Fields) -> int:
    values = [value for name, value in fields if name == b"content-length"]
    if not values:
        return NO_LENGTH
    if len(values) > 1 or not values[0].isdigit() or len(values[0]) > 18:
        raise _malformed("a content-length that is no number")
    return int(values[0])

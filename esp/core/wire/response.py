"""The head or the trailers of a response (gRPC over HTTP/2, Responses)."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple

from esp.core.wire.frames import BLOCK_FRONTS, LAST_BLOCK_FRONTS, SHORT_BLOCK, ErrorCode, StreamFault, pack_u32
from esp.core.wire.hpack import Fields, HeaderDecoder, encode
from esp.core.wire.message import cut_status_text, decode_status_text, encode_status_text, without_outer_blanks
from esp.core.wire.request import check_characters
from esp.core.wire.status import OK, Code, Status

_HTTP_TO_CODE: Final = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
"""The meaning of a response without `grpc-status`, by HTTP status (grpc/doc/http-grpc-status-mapping.md)."""

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"content-length")
)

MAX_STATUS_TEXT: Final = 4096
"""The most bytes of `grpc-message` for a client; some clients refuse header lists above 8 KiB."""


class ResponseHead:
    """A header block of a response: the head, or the trailers, or both in one (trailers-only).

    Attributes:
        http_status: `:status`, 0 in trailers.
        status: the call's outcome where the block carries one, else None.
        opens: whether the block is the head of a gRPC answer with messages to follow.
        succeeds: whether the block is the trailers of a call that ended well.
        forward: the block to send on, encoded without state.
        front: the five bytes in front of the stream id of a frame with `forward`, which ends the stream if it is
            trailers; b"" if `forward` is longer than SHORT_BLOCK.
        fields: the regular fields, in order.
    """

    __slots__ = ("fields", "forward", "front", "http_status", "is_grpc", "opens", "status", "succeeds")

    def __init__(self, http_status: int, fields: Fields) -> None:
        self.http_status = http_status
        self.fields = fields
        self.status: Status | None = None
        self.is_grpc = False
        text = b""
        for name, value in fields:
            if name == b"grpc-status":
                self.status = Status(int(value) if value.isdigit() and len(value) <= 4 else Code.UNKNOWN)
            elif name == b"grpc-message":
                text = value
            elif name == b"content-type":
                self.is_grpc = value.startswith(b"application/grpc")
        if self.status is not None and text:
            self.status = Status(self.status.code, decode_status_text(text))
        self.opens = http_status == 200 and self.is_grpc and self.status is None
        self.succeeds = http_status == 0 and self.status is not None and self.status.code == Code.OK
        pseudo = [(b":status", b"%d" % http_status)] if http_status else []
        self.forward = encode(pseudo + _sent_on(fields))
        fronts = BLOCK_FRONTS if http_status else LAST_BLOCK_FRONTS
        self.front = fronts[len(self.forward)] if len(self.forward) <= SHORT_BLOCK else b""

    @property
    def lacks_status(self) -> bool:
        """Whether a call that ends with this block has no gRPC status, although HTTP reports no error."""
        return self.status is None and self.http_status in (0, 200)

    @property
    def is_informational(self) -> bool:
        """Whether this is a 1xx head, before the real head."""
        return 100 <= self.http_status < 200

    def outcome(self) -> Status:
        """The status of a call that ends with this block."""
        if self.status is not None:
            return self.status
        if self.http_status in (0, 200):
            return Status(Code.UNKNOWN, "the server ended the call without a grpc-status")
        code = _HTTP_TO_CODE.get(self.http_status, Code.UNKNOWN)
        return Status(code, f"unexpected HTTP status code received from server: {self.http_status}")


Whole = tuple[Callable[[bytes, int], tuple[Any, ...]], int, int]
"""Unpacks an answer: of each of its three frames the first five bytes, the stream id and the payload. Then the bytes of
the answer, and those of the DATA."""
MOST_WHOLES: Final = 256
"""The most lengths of messages for which a connection keeps how to unpack their answers."""


class UsualAnswer(NamedTuple):
    """The form of a whole unary answer, but for its message: a head, one DATA frame, trailers.

    Attributes:
        head_front: the first five bytes of the head; b"" for no usual answer.
        head_block: the head's header block.
        head: the head.
        end_front, end_block, trailers: the same for the trailers.
        wholes: how to unpack an answer, by the first five bytes of its DATA frame, which tell the length.
        front, whole: the last one of these, probably that of the next answer.
    """

    head_front: bytes
    head_block: bytes
    head: ResponseHead
    end_front: bytes
    end_block: bytes
    trailers: ResponseHead
    wholes: dict[bytes, Whole]
    front: bytes
    whole: Whole


def _sent_on(fields: Fields) -> Fields:
    """`fields` for the client: without fields of the hop, a long error text cut, and its details dropped."""
    kept = []
    for name, value in fields:
        if name == b"grpc-message":
            kept.append((name, cut_status_text(value, MAX_STATUS_TEXT)))
        elif name not in _HOP_BY_HOP and not (name == b"grpc-status-details-bin" and len(value) > MAX_STATUS_TEXT):
            kept.append((name, value))
    return kept


def parse_response(fields: Fields) -> ResponseHead:
    """The head that `fields` make.

    Raises:
        StreamFault: PROTOCOL_ERROR, the response is malformed.
    """
    http_status = 0
    regular: Fields = []
    fields = [(n, without_outer_blanks(value) if n == b"grpc-message" else value) for n, value in fields]
    check_characters(fields)
    for name, value in fields:
        if name == b":status" and not http_status and not regular and value.isdigit() and len(value) == 3:
            http_status = int(value)
        elif name[:1] == b":":
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a pseudo-field that a response cannot have")
        else:
            regular.append((name, value))
    return ResponseHead(http_status, regular)


_NONE: Final = ResponseHead(0, [])
_NO_ANSWER: Final = UsualAnswer(b"", b"", _NONE, b"", b"", _NONE, {}, b"", (Struct("").unpack_from, 1 << 62, 0))
"""No answer has so many bytes."""


class ResponseDecoder(HeaderDecoder[ResponseHead]):
    """Header blocks to heads of responses.

    Attributes:
        usual: the form of the next answers, probably.
    """

    __slots__ = ("usual",)

    def __init__(self, max_list_bytes: int, max_fields: int) -> None:
        super().__init__(parse_response, max_list_bytes, max_fields)
        self.usual = _NO_ANSWER

    def expect(
        self, head_block: bytes, head: ResponseHead, length: int, end_block: bytes, trailers: ResponseHead
    ) -> None:
        """Expects further answers with this head, these trailers and such a message; both blocks are in the memo."""
        usual = self.usual
        heads, ends = len(head_block), len(end_block)
        if heads > SHORT_BLOCK or ends > SHORT_BLOCK:
            return
        same = usual.head_block == head_block and usual.end_block == end_block and len(usual.wholes) < MOST_WHOLES
        wholes = usual.wholes if same else {}
        front = pack_u32(length << 8) + b"\0"
        form = Struct(f">5sI{heads}s5sI{length}s5sI{ends}s")
        whole = wholes[front] = form.unpack_from, form.size, length
        self.usual = UsualAnswer(
            BLOCK_FRONTS[heads], head_block, head, LAST_BLOCK_FRONTS[ends], end_block, trailers, wholes, front, whole
        )

    def forget(self) -> None:
        """Empties the memo."""
        super().forget()
        self.usual = _NO_ANSWER


def _head_block(http_status: int) -> bytes:
    return encode([(b":status", b"%d" % http_status), (b"content-type", b"application/grpc")])


REQUEST_TIMEOUT_BLOCK: Final = encode([(b":status", b"408")])
"""The answer to a request for a page, if the request does not come to its end."""
OPENING: Final = parse_response([(b":status", b"200"), (b"content-type", b"application/grpc")])
"""The head of every response esp makes itself."""
ENDING: Final = parse_response([(b"grpc-status", b"0")])
"""The trailers of every call that esp itself has answered."""


def refusal(status: Status) -> ResponseHead:
    """The whole response with an error: head and trailers in one block."""
    text = encode_status_text(status.message, MAX_STATUS_TEXT)
    fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
    return parse_response([*fields, (b"grpc-status", b"%d" % status.code), (b"grpc-message", text)])


def trailers_block(status: Status, extra: Fields | None = None, *, http_status: int) -> bytes:
    """Trailers for `status`; with an `http_status` they are the response's only block, its head in front of them."""
    if status is OK and not extra and not http_status:
        return ENDING.forward
    fields: Fields = [(b"grpc-status", b"%d" % status.code)]
    if status.message:
        fields.append((b"grpc-message", encode_status_text(status.message, MAX_STATUS_TEXT)))
    if extra:
        fields += extra
    head = OPENING.forward if http_status == 200 else _head_block(http_status) if http_status else b""
    return head + encode(fields)

"""The plan of a call, made from the head of a request: the RPC, its metadata and its deadline."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import Final

from esp.core.gateway.errors import GRPC_LINE, JSON_LINE
from esp.core.gateway.paths import Rpc
from esp.core.gateway.shapes import shape_of
from esp.core.wire.hpack import encode
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, Status

_PREFIX: Final = b"grpc-metadata-"
_NOT_METADATA: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"content-type",
        b"grpc-encoding",
        b"grpc-message",
        b"grpc-message-type",
        b"grpc-status",
        b"grpc-timeout",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"user-agent",
    )
)
"""Names that gRPC's own clients do not send as metadata, or that belong to HTTP."""
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*")
_NAME: Final = re.compile(rb"[0-9a-z_.-]+")
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MOST_TIMEOUT: Final = 2**63 // 10**9


class Plan:
    """The call for which the head of a request asks.

    Attributes:
        rpc: the RPC.
        request, answer: the shapes of the messages.
        lines: the header lines that every answer has.
        good_lines: the header lines of an answer with a message.
        forward: the head of the call: its path, and its metadata, encoded.
        seconds: until the call's deadline, None for none.
        fault: why there can be no call, None if there can.
        most_bytes: the largest JSON value in the request.
    """

    __slots__ = ("answer", "fault", "forward", "good_lines", "lines", "most_bytes", "request", "rpc", "seconds")

    def __init__(self, rpc: Rpc, headers: Sequence[tuple[bytes, bytes]], lines: bytes, most_bytes: int) -> None:
        self.rpc = rpc
        self.lines = lines + JSON_LINE
        self.good_lines = self.lines + GRPC_LINE
        self.most_bytes = most_bytes
        self.request = shape_of(rpc.method.input_type)
        self.answer = shape_of(rpc.method.output_type)
        metadata = b""
        self.seconds: float | None = None
        self.fault: Status | None = None
        try:
            metadata, self.seconds = _metadata_of(headers)
        except _BadHeader as error:
            self.fault = error.status
        self.forward: Forward = rpc.path, metadata


class _BadHeader(Exception):
    """A header from which no call can be made; the text is grpc-gateway's, or that of Go's gRPC client."""

    def __init__(self, text: str, code: Code = Code.INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.status = Status(code, text)


def _metadata_of(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, float | None]:
    """The metadata of a call, encoded, and the seconds until its deadline; None without a deadline.

    Raises:
        _BadHeader: a header is malformed.
    """
    fields = []
    timeout = b""
    for name, value in headers:
        if name == b"authorization":
            if not _is_text(value):
                text = 'header key "authorization" contains value with non-printable ASCII characters'
                raise _BadHeader(text, Code.INTERNAL)
            fields.append((name, value))
        elif name == b"grpc-timeout":
            timeout = timeout or value
        elif name.startswith(_PREFIX):
            short = name[len(_PREFIX) :]
            if short.endswith(b"-bin"):
                _check_binary(name, value)
            if _NAME.fullmatch(short) and short not in _NOT_METADATA and _is_text(value):
                fields.append((short, value))
    return (encode(fields) if fields else b""), (_timeout(timeout) if timeout else None)


def _is_text(value: bytes) -> bool:
    return value.isascii() and value.decode().isprintable()


def _check_binary(name: bytes, value: bytes) -> None:
    try:
        b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except Base64Error:
        good = _BASE64.match(value)
        at = 0 if good is None else good.end()
        text = f"invalid binary header {name.decode().title()}: illegal base64 data at input byte {at}"
        raise _BadHeader(text) from None


def _timeout(value: bytes) -> float | None:
    """The seconds of a `Grpc-Timeout`; None if they are 0, and 0 if they are negative."""
    text = value.decode("ascii", "replace")
    unit, digits = _UNITS.get(text[-1:]), text[:-1]
    number = digits[1:] if digits[:1] in ("+", "-") else digits
    if unit is None or not number.isdecimal() or not number.isascii() or len(number) > 18:
        raise _BadHeader(f"invalid grpc-timeout: {text}")
    seconds = int(digits) * unit
    return min(max(seconds, 0.0), _MOST_TIMEOUT) if seconds else None

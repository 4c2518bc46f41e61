"""HTTP status codes and bodies for the outcomes of calls, as grpc-gateway v2 has them: those of etcd 3.6 and later."""

from __future__ import annotations

from typing import Final

from esp.core.gateway.printing import for_html, string
from esp.core.wire.exchange import Page
from esp.core.wire.status import Code, Status

_HTTP: Final = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

METHOD_NOT_ALLOWED: Final = Status(Code.UNIMPLEMENTED, "Method Not Allowed")
NOT_FOUND: Final = Status(Code.NOT_FOUND, "Not Found")
CANCELED: Final = Status(Code.CANCELLED, "context canceled")


JSON_LINE: Final = b"Content-Type: application/json\r\n"
GRPC_LINE: Final = b"Grpc-Metadata-Content-Type: application/grpc\r\n"
"""The header line that only answers with a message have."""


def too_large(most_bytes: int) -> Status:
    """The refusal of JSON above `max_json_bytes`."""
    text = f"esp: the JSON of the request has more than {most_bytes} bytes; raise max_json_bytes"
    return Status(Code.RESOURCE_EXHAUSTED, text)


def http_status(status: Status) -> int:
    """The HTTP status code for an outcome."""
    return _HTTP.get(status.code, 500)  # type: ignore[call-overload,no-any-return]


def error_text(status: Status) -> str:
    """An error as JSON: `google.rpc.Status` without details."""
    code = f'"code":{status.code}' if status.code else ""
    message = f'"message":{string(status.message)}' if status.message else ""
    return f"{{{code}{',' if code and message else ''}{message}}}"


def error_line(status: Status) -> str:
    """The line with which a stream of answers ends if it fails."""
    return for_html(f'{{"error":{error_text(status)}}}\n')


def error_page(status: Status, lines: bytes, code: int = 0) -> Page:
    """The answer of a call that has failed.

    Args:
        status: the outcome.
        lines: the header lines that every answer has.
        code: the HTTP status code, 0 for that of `status`.
    """
    headers: tuple[tuple[str, str], ...] = ()
    if status.code == Code.UNAUTHENTICATED:
        told = "".join(character if character.isprintable() else " " for character in status.message).strip()
        headers = (("WWW-Authenticate", told.encode("ascii", "replace").decode()),)
    return Page(code or http_status(status), error_text(status).encode(), "", headers, lines)

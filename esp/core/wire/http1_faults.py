"""Faults of HTTP/1.1 requests: those that h11 lets pass and esp does not, and h11's own in words."""

from __future__ import annotations

import re

import h11


def refused(event: h11.Request, most_fields: int) -> tuple[int, str] | None:
    """The HTTP status and the text with which a request is refused for its head; None for a good one."""
    headers = event.headers
    names = {name for name, _ in headers}
    if event.http_version not in (b"1.0", b"1.1"):
        return 505, "this server speaks HTTP/1.1 and HTTP/2"
    if len(headers) > most_fields:
        return 431, "too many header fields"
    if {b"content-length", b"transfer-encoding"} <= names:
        # A program that believes one of them reads another request than a program that believes the other.
        return 400, "both Content-Length and Transfer-Encoding"
    if event.http_version == b"1.0" and b"transfer-encoding" in names:
        return 400, "Transfer-Encoding in HTTP/1.0"  # which does not know it: to others this has no body
    if any(name == b"expect" and value.lower() != b"100-continue" for name, value in headers):
        return 417, "this server knows no other expectation than 100-continue"
    return None


def has_body(event: h11.Request) -> bool:
    """Whether the head says that a body follows."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in event.headers
    )


def in_words(error: h11.RemoteProtocolError) -> str:
    """The fault of a request, without the request's bytes, which h11 appends as Python writes them."""
    return re.split(r""":? (?:bytearray\(|b['"])""", str(error), maxsplit=1)[0]

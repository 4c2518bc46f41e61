"""Other protocols that come to a port, told by their first bytes: for the log, with the cure; and an answer to them."""

from __future__ import annotations

from typing import Final

from esp.core.wire.frames import PREFACE

HTTP1_METHODS: Final = (
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
)
_TLS: Final = b"\x16\x03"
_KNOWN: Final = (
    (_TLS, "a TLS ClientHello at a plain port: let the client use http://, or give esp a listen URL with https://"),
    (b"PROXY ", "a PROXY protocol header, which is not understood: leave out send-proxy in the load balancer"),
    (b"\r\n\r\n\0\r\nQUIT\n"[:8], "a PROXY protocol header, which is not understood: leave out send-proxy-v2"),
    (b"SSH-", "SSH: the client has the wrong port"),
)
_CURE: Final = "let the client use https://, or give esp a listen URL with http://"


def stranger(first: bytes) -> str:
    """The protocol of a connection whose first bytes, `first`, are neither HTTP/2 nor HTTP/1.1."""
    return _known(first) or "neither HTTP/2 nor HTTP/1.1"


def stranger_to_tls(first: bytes) -> str:
    """The protocol of a connection whose first bytes, `first`, are not TLS."""
    if PREFACE.startswith(first[:8]):
        return f"HTTP/2 without TLS at a TLS port: {_CURE}"
    if first.startswith(HTTP1_METHODS):
        return f"HTTP/1.1 without TLS at a TLS port: {_CURE}"
    return _known(first) or "not TLS"


def _known(first: bytes) -> str:
    return next((what for beginning, what in _KNOWN if first.startswith(beginning)), "")


def answer_with_tls(first: bytes) -> bytes:
    """An answer in the plain to a TLS client, which its user gets to see: Go's clients know that HTTP is no TLS."""
    return _in_http1("this port speaks no TLS; use http://") if first.startswith(_TLS) else b""


def answer_without_tls(first: bytes) -> bytes:
    """An answer to a client without TLS, which its user gets to see.

    HTTP/2 gets HTTP/1.1 as well: clients of gRPC say so and try again later. After SETTINGS and GOAWAY they would
    connect again at once, many times a second.
    """
    is_http = PREFACE.startswith(first[:8]) or first.startswith(HTTP1_METHODS)
    return _in_http1("this port speaks TLS; use https://") if is_http else b""


def _in_http1(text: str) -> bytes:
    head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(text) + 1}\r\n\r\n{text}\n".encode()

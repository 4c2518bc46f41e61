"""Other protocols that come to a port of HTTP/2 and HTTP/1.1, told by their first bytes: for the log, with the cure."""

from __future__ import annotations

from typing import Final

_KNOWN: Final = (
    (b"\x16\x03", "a TLS ClientHello at a plain port: let the client use http://, or end TLS in front of esp"),
    (b"PROXY ", "a PROXY protocol header, which is not understood: leave out send-proxy in the load balancer"),
    (b"\r\n\r\n\0\r\nQUIT\n"[:8], "a PROXY protocol header, which is not understood: leave out send-proxy-v2"),
    (b"SSH-", "SSH: the client has the wrong port"),
)


def stranger(first: bytes) -> str:
    """The protocol of a connection whose first bytes, `first`, are neither HTTP/2 nor HTTP/1.1."""
    for beginning, what in _KNOWN:
        if first.startswith(beginning):
            return what
    return "neither HTTP/2 nor HTTP/1.1"

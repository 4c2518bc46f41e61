"""Certificates for the tests of TLS, contexts with these, and a client's end in memory."""

from __future__ import annotations

import contextlib
import functools
import ssl
import tempfile
from pathlib import Path

from esp.core.local_tls import Authority, Pair

HOST = "esp.example"


@functools.cache
def authority(name: str = "the CA") -> Authority:
    """A CA of this name."""
    return Authority(name)


@functools.cache
def pair(*names: str, common_name: str = "") -> Pair:
    """A certificate of the CA."""
    return authority().issue(names, common_name=common_name)


def load(context: ssl.SSLContext, own: Pair) -> None:
    """Loads a pair into a context, by way of files: Python's ssl has no other."""
    with tempfile.TemporaryDirectory() as folder:
        context.load_cert_chain(*own.write(Path(folder), "own"))


@functools.cache
def server_context(*, asks: bool = False, only_newest: bool = False) -> ssl.SSLContext:
    """The context of a server with a certificate for HOST; with `asks`, clients need one of the CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, pair(HOST))
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.set_ciphers("ECDHE+AESGCM")
    if only_newest:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority().cert.decode())
    return context


def client_context(own: Pair | None = None, trusted: Authority | None = None) -> ssl.SSLContext:
    """The context of a client that trusts the CA, and has a certificate of its own if one is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=(trusted or authority()).cert.decode())
    context.set_alpn_protocols(["h2"])
    if own is not None:
        load(context, own)
    return context


class ClientEnd:
    """A client's end in memory."""

    def __init__(self, context: ssl.SSLContext | None = None, name: str = HOST) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or client_context()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.is_open = False
        self.plain = b""
        self.is_ended = False

    def hears(self, sealed: bytes) -> None:
        """Takes bytes of the server."""
        self.incoming.write(sealed)
        self._shake()
        try:
            while self.is_open:
                part = self.tls.read(65536)
                self.plain += part
                if not part:
                    self.is_ended = True
                    return
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # both ends have ended
            self.is_ended = True

    def shakes(self) -> bytes:
        """Goes on with the handshake; the bytes for the server."""
        self._shake()
        return self.outgoing.read()

    def _shake(self) -> None:
        if not self.is_open:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.is_open = True

    def says(self, *plain: bytes) -> bytes:
        """Sealed bytes: a record, or more, for each piece."""
        for piece in plain:
            self.tls.write(piece)
        return self.outgoing.read()

    def ends(self) -> bytes:
        """Sealed bytes: no more comes."""
        with contextlib.suppress(ssl.SSLError):  # the server has not ended yet
            self.tls.unwrap()
        return self.outgoing.read()

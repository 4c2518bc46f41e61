"""A TLS client for attacks: it shakes hands, and then seals bytes as no library would."""

from __future__ import annotations

import contextlib
import functools
import hmac
import socket
import ssl
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_CIPHERS: dict[str, tuple[str, int]] = {
    "TLS_AES_128_GCM_SHA256": ("sha256", 16),
    "TLS_AES_256_GCM_SHA384": ("sha384", 32),
}
"""The hash, and the bytes of a key."""


@functools.cache
def hello() -> bytes:
    """A ClientHello, always the same."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="esp.example").do_handshake()
    return outgoing.read()


class TlsClient:
    """A connection after its handshake."""

    def __init__(self, address: tuple[str, int]) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        with tempfile.TemporaryDirectory() as folder:
            keys = Path(folder, "keys")
            context.keylog_filename = str(keys)
            self.socket = socket.create_connection(address, 10)
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(self._incoming, self._outgoing)
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    self.socket.sendall(self._outgoing.read())
                    self._incoming.write(self.socket.recv(65536))
                else:
                    break
            self.socket.sendall(self._outgoing.read())
            [secret] = [line.split()[2] for line in keys.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC")]
        cipher = self._tls.cipher()
        assert cipher is not None
        self._hash, self._size = _CIPHERS[cipher[0]]
        self._secret = bytes.fromhex(secret)
        self.socket.setblocking(False)

    def one_by_one(self, plain: bytes) -> bytes:
        """A record for each byte."""
        for at in range(len(plain)):
            self._tls.write(plain[at : at + 1])
        return self._outgoing.read()

    def key_updates(self, plain: bytes) -> bytes:
        """As many records that change the client's keys as there are bytes; `one_by_one` has the wrong keys then."""
        return b"".join(self._key_update() for _ in plain)

    def _key_update(self) -> bytes:
        key, nonce = self._expanded(b"key", self._size), self._expanded(b"iv", 12)  # of the first record with these
        head = b"\x17\x03\x03" + (6 + 16).to_bytes(2, "big")
        sealed = AESGCM(key).encrypt(nonce, b"\x18\0\0\x01\0" + b"\x16", head)
        self._secret = self._expanded(b"traffic upd", len(self._secret))
        return head + sealed

    def _expanded(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446 section 7.1) for one block."""
        named = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes((len(named),)) + named + b"\0\x01"
        return hmac.digest(self._secret, info, self._hash)[:size]

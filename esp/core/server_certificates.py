"""The certificates that esp shows to its clients: one of several, by the name that the client asks for (SNI)."""

from __future__ import annotations

import ssl
from typing import Final

from esp.core.config import ListenTls
from esp.core.tls_files import Credentials, TlsFiles

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The ciphers for TLS 1.2 that HTTP/2 allows (RFC 9113 section 9.2.2); TLS 1.3 has no others."""
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class ServerCertificates:
    """The certificates of the listeners.

    Args:
        tls: the files, and the oldest version of TLS.
        files: reads the files, and reads them anew when they change.

    Raises:
        TlsFileError: a file cannot be used.
    """

    def __init__(self, tls: ListenTls, files: TlsFiles) -> None:
        self._version = _VERSIONS[tls.min_version]
        self._alpn = tls.alpn
        self._several = len(tls.files) > 1
        self._all = [files.server("listeners", each, self._prepare) for each in tls.files]

    def context(self) -> ssl.SSLContext:
        """The context for the next connection, as the newest usable files have it."""
        return self._all[0].context

    def _prepare(self, context: ssl.SSLContext) -> None:
        context.minimum_version = self._version
        context.set_alpn_protocols(list(self._alpn))
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION
        # A client knows best which cipher is cheap for it; all that are left are good.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if self._several:
            context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Gives a connection the certificate for the server's name that the client has sent."""
        chosen = self._for(name.lower().rstrip(".")) if name else None
        if chosen is not None:
            connection.context = chosen.context

    def _for(self, name: str) -> Credentials | None:
        wildcard = f"*.{name.partition('.')[2]}"
        exact = (each for each in self._all if name in each.names)
        return next(exact, None) or next((each for each in self._all if wildcard in each.names), None)

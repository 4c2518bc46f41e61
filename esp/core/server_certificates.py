"""The certificates that esp shows to its clients: one of several, by the name that the client asks for (SNI)."""

from __future__ import annotations

import logging
import ssl
from typing import Final

from esp.core.config import ListenTls
from esp.core.tls_files import Credentials, TlsFiles
from esp.core.tls_paths import TlsFileError

log = logging.getLogger("esp.tls")

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
        self._files = files
        self._tls = tls
        self._all = self._read()

    def _read(self) -> list[Credentials]:
        return [self._files.server("listeners", each, self._prepare) for each in self._tls.files]

    def install(self, tls: ListenTls) -> None:
        """Uses other certificates for new connections; if these cannot be used any more, the ones before stay."""
        before, self._tls = self._tls, tls
        try:
            read = self._read()
        except TlsFileError as error:
            self._tls = before
            log.error("listeners: %s; the certificates before stay in use", error)
        else:
            self._all = read
        self._files.keep_servers(self._all)

    def context(self) -> ssl.SSLContext:
        """The context for the next connection, as the newest usable files have it."""
        return self._all[0].context

    def _prepare(self, context: ssl.SSLContext) -> None:
        context.minimum_version = _VERSIONS[self._tls.min_version]
        context.set_alpn_protocols(list(self._tls.alpn))
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION
        # A client knows best which cipher is cheap for it; all that are left are good.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if len(self._tls.files) > 1:
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

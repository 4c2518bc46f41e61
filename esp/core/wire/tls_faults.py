"""Reasons why a client's TLS connection ends before its time, in words, with the cure."""

from __future__ import annotations

import ssl
from typing import Final

_UNTRUSTED: Final = "the client does not trust esp's certificate ({}): give the client the CA of the certificate, and "
_UNTRUSTED_CURE: Final = _UNTRUSTED + "call esp by a name that the certificate has"
_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "unknown CA",
    "SSLV3_ALERT_BAD_CERTIFICATE": "bad certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "certificate unknown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "expired",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "unsupported certificate",
}
_FAULTS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate, and client_ca asks for one: "
    "give the client a certificate and its key",
    "UNSUPPORTED_PROTOCOL": "the client speaks only versions of TLS below min_version: let it speak TLS 1.2 or 1.3",
    "VERSION_TOO_LOW": "the client speaks only versions of TLS below min_version: let it speak TLS 1.2 or 1.3",
    "CALLBACK_FAILED": "the client asks for a server whose name is not ASCII: let it use the name as DNS has it",
    "NO_SHARED_CIPHER": "the client speaks no cipher of TLS that esp does: let it speak TLS 1.3, "
    "or ECDHE with AES-GCM or ChaCha20",
}


class TlsFault(Exception):
    """A TLS connection cannot go on; the text is a clause for the log.

    Attributes:
        answer: bytes for a peer that speaks no TLS, so that it tells its user.
    """

    def __init__(self, text: str, answer: bytes = b"") -> None:
        super().__init__(text)
        self.answer = answer


def fault_of(error: ssl.SSLError) -> TlsFault:
    """The fault that OpenSSL has found at the server's end."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        cure = "give the client one that a CA of client_ca has signed"
        return TlsFault(f"the client's certificate is refused: {error.verify_message.rstrip('.')}: {cure}")
    if reason in _ALERTS:
        return TlsFault(_UNTRUSTED_CURE.format(_ALERTS[reason]))
    return TlsFault(_FAULTS.get(reason) or f"TLS: {(reason or str(error)).replace('_', ' ').lower()}")

"""TLS towards a shard's members: esp's credentials for them, and the faults of their handshakes in words."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

from esp.core.config import ShardTls
from esp.core.shard.member import UnfitError
from esp.core.tls_files import Credentials, TlsFiles, words
from esp.core.wording import shard_called

_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_OF_NO_CA: Final = frozenset((2, 18, 19, 20, 21))
_WRONG_NAME: Final = frozenset((62, 64))
_WRONG_PURPOSE: Final = 26
"""Numbers of OpenSSL's faults of certificates (x509_vfy.h)."""
_ALERTS_OF_CERTIFICATES: Final = frozenset(
    (
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "SSLV3_ALERT_BAD_CERTIFICATE",  # of etcd 3.5 and older, also if it gets none
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
    )
)
_OTHER_WORDS: Final = {
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no version of TLS that esp speaks, which are 1.2 and 1.3",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS that esp speaks, which are 1.2 and 1.3",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it shares no cipher with esp, or refuses the handshake; its log may say why",
    "TLSV1_UNRECOGNIZED_NAME": "it does not know the name by which esp asks for it; mend server_name",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "it speaks TLS but not HTTP/2, so it is no etcd; name an etcd's client URL",
}


@dataclass(frozen=True, slots=True)
class Secured:
    """TLS towards one shard.

    Attributes:
        credentials: for new connections.
        tls: the config from which the credentials come.
    """

    credentials: Credentials
    tls: ShardTls

    @classmethod
    def of(cls, shard: str, tls: ShardTls | None, files: TlsFiles) -> Secured | None:
        """The TLS towards a shard as the config has it; None for a plain shard.

        Raises:
            TlsFileError: a file cannot be used.
        """
        if tls is None:
            return None
        return cls(files.client(shard_called(shard), tls.files, verify=tls.verify), tls)

    def name_at(self, host: str) -> str:
        """The name that a member at `host` must show."""
        return self.tls.server_name or host

    def fault(self, error: ssl.SSLError, host: str) -> UnfitError | None:
        """The fault of a handshake with a member at `host`, as a clause with the cure.

        None if the other end may be no TLS server at all.
        """
        if isinstance(error, ssl.SSLCertVerificationError):
            return UnfitError(self._distrust(error, self.name_at(host)))
        reason = error.reason or ""
        if reason in _ALERTS_OF_CERTIFICATES:
            return UnfitError(self._distrusted(reason))
        if reason in _OTHER_WORDS:
            return UnfitError(_OTHER_WORDS[reason])
        if "ALERT" in reason:
            return UnfitError(f"it refuses the TLS handshake: {words(error)}")
        return None

    def _distrust(self, error: ssl.SSLCertVerificationError, name: str) -> str:
        code = error.verify_code
        if code in _OF_NO_CA:
            ca = self.credentials.files.ca
            where = "this machine's CAs" if ca is None else str(ca)
            return f"its certificate is of no CA in {where}; name its CA in the config (ca in shard_tls)"
        if code in _WRONG_NAME:
            cure = "make one that is, or name one of its names in the config (server_name in shard_tls)"
            return f'its certificate is not for "{name}"; {cure}'
        if code == _EXPIRED:
            return "its certificate has ended; renew it, or mend the clock of this machine"
        if code == _NOT_YET_VALID:
            return "its certificate is not valid yet; mend the clock of this machine or of the one that made it"
        if code == _WRONG_PURPOSE:
            return "its certificate, or its CA, is for another purpose than TLS servers; make a new one"
        return f"its certificate cannot be trusted: {error.verify_message}"

    def _distrusted(self, reason: str) -> str:
        cert = self.credentials.files.cert
        if cert is None:
            return "it wants a certificate of esp's; name one and its key in the config (cert and key in shard_tls)"
        return (
            f"it does not accept esp's certificate {cert} ({words_of_alert(reason)}); "
            "use one that is valid, for clients, and of the member's --trusted-ca-file"
        )


def words_of_alert(reason: str) -> str:
    """The name of a TLS alert, in words."""
    return reason.rpartition("ALERT_")[2].replace("_", " ").lower()

"""Throw-away certificates, for `esp serve --local N --tls` and for tests: a CA, and certificates that the CA signs.

Imported only where certificates are made: the package cryptography is large, and comes with the extra `local`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE: Final = timedelta(days=365)
_EARLIER: Final = timedelta(hours=1)
"""How long before now a certificate begins: the clocks of two machines differ."""
_USES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM form."""

    cert: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes `name.crt` and `name.key`, each in one step; only the owner may read the key. Returns their paths."""
        cert, key = folder / f"{name}.crt", folder / f"{name}.key"
        write_file(key, self.key)
        write_file(cert, self.cert)
        return cert, key


class Authority:
    """A CA whose key is kept in this object alone.

    Attributes:
        cert: the CA's certificate, in PEM form.
    """

    def __init__(self, name: str = "esp throw-away CA", life: timedelta = LIFE) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(name)
        uses = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = self._builder(self._key.public_key(), self._name, life)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.cert = self._signed(builder.add_extension(uses, critical=True))

    def issue(self, names: Sequence[str] = (), *, common_name: str = "", life: timedelta = LIFE) -> Pair:
        """A certificate for a server or a client.

        Args:
            names: the host names and IP addresses under which the owner serves.
            common_name: the owner's name, which an etcd may take for a user; "" for none.
            life: how long the certificate is valid; negative for a certificate that has ended.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(key.public_key(), _subject(common_name), life)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(_USES), critical=False)
        if names:
            # RFC 5280: critical if the subject is empty.
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
            builder = builder.add_extension(alternatives, critical=not common_name)
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return Pair(self._signed(builder), key.private_bytes(pem, form, serialization.NoEncryption()))

    def _builder(self, key: ec.EllipticCurvePublicKey, subject: x509.Name, life: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, now + life) - _EARLIER)
            .not_valid_after(now + life)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_all(folder: Path, names: Sequence[str]) -> None:
    """Makes the files of `esp serve --local N --tls`: a CA, a certificate of a server and one of a client, their keys.

    The client's certificate has no common name, so no etcd takes the client for a user. The CA's key is not kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority()
    authority.issue(names).write(folder, "server")
    authority.issue().write(folder, "client")
    write_file(folder / "ca.crt", authority.cert)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that only the owner may read. Whoever reads the path meanwhile sees the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    unfinished.replace(path)

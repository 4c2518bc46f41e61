"""The names and the end of a certificate, read from its file.

OpenSSL checks certificates; Python's `ssl` does not tell these facts of an own certificate. So only esp's own
files are read here, after OpenSSL has accepted them.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_PEM: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END (?:X509 |TRUSTED )?CERTIFICATE-----"
)
_COMMON_NAME: Final = bytes((0x55, 0x04, 0x03))  # the id 2.5.4.3
_ALTERNATIVE_NAMES: Final = bytes((0x55, 0x1D, 0x11))  # the id 2.5.29.17
# DER's tags.
_OCTETS: Final = 0x04
_OID: Final = 0x06
_UTC_TIME: Final = 0x17
_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_DNS_NAME: Final = 0x82
_WIDE: Final = {0x1E: "utf-16-be", 0x1C: "utf-32-be"}
"""The encodings of BMPString and UniversalString; all other texts are read as UTF-8."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate's own account.

    Attributes:
        common_name: the subject's common name as Go reads it, the last if there are several; "" without one. An etcd
            with auth and --client-cert-auth takes the name for a user.
        not_after: when the certificate ends, in seconds since 1970.
        names: the host names for which it is, in lower case; the first label may be "*".
    """

    common_name: str
    not_after: float
    names: tuple[str, ...] = ()


def certificates_in(pem: bytes) -> list[Certificate]:
    """The certificates in a PEM file, in order.

    Raises:
        ValueError: there is a block that is no certificate.
    """
    return [_certificate(binascii.a2b_base64(block)) for block in _PEM.findall(pem)]


def _certificate(der: bytes) -> Certificate:
    try:
        parts = _parts(_parts(_value(der, _SEQUENCE))[0][1])
        # version (may be missing), serial number, signature, issuer, validity, subject
        *_, validity, subject = parts[:6] if parts[0][0] == _VERSION else parts[:5]
        extensions = b"".join(value for tag, value in parts if tag == _EXTENSIONS)
        return Certificate(_common_name(subject[1]), _time(*_parts(validity[1])[1]), tuple(_names(extensions)))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("is no certificate") from error


def _common_name(subject: bytes) -> str:
    name = ""
    for _, relative in _parts(subject):
        for _, attribute in _parts(relative):
            (tag, kind), (text_tag, text) = _parts(attribute)[:2]
            if tag == _OID and kind == _COMMON_NAME:
                name = text.decode(_WIDE.get(text_tag, "utf-8"), errors="replace")
    return name


def _names(extensions: bytes) -> Iterator[str]:
    for _, each in _parts(extensions):
        for _, extension in _parts(each):
            (_, kind), *_, (tag, value) = _parts(extension)
            if kind == _ALTERNATIVE_NAMES and tag == _OCTETS:
                names = _parts(_value(value, _SEQUENCE))
                yield from (name.decode("ascii").lower() for tag, name in names if tag == _DNS_NAME)


def _time(tag: int, text: bytes) -> float:
    """A time as RFC 5280 has it: UTCTime from 1950 to 2049, GeneralizedTime else, both with seconds and a Z."""
    digits = text.decode("ascii").removesuffix("Z")
    if tag == _UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def _value(der: bytes, tag: int) -> bytes:
    (found, value), *_ = _parts(der)
    if found != tag:
        raise ValueError("is no certificate")
    return value


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """The tag and the value of each element in a constructed value."""
    parts = []
    position = 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length & 0x80:
            octets = length & 0x7F
            length = int.from_bytes(der[position : position + octets], "big")
            position += octets
        if position + length > len(der):
            raise ValueError("is cut off")
        parts.append((tag, der[position : position + length]))
        position += length
    return parts

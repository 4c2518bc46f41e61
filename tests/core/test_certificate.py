"""`esp.core.certificate`, compared with the package cryptography."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from esp.core.certificate import certificates_in
from esp.core.local_tls import Authority

CA = Authority("the CA")


def test_reads_the_common_name_and_the_end() -> None:
    for name in ("", "root", "Zoë", "a" * 64):
        pem = CA.issue(["example.com", "::1"], common_name=name).cert
        (found,) = certificates_in(pem)
        assert found.common_name == name
        assert found.not_after == x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def test_reads_the_host_names_but_no_addresses() -> None:
    (found,) = certificates_in(CA.issue(["A.example", "*.b.example", "127.0.0.1"]).cert)
    assert found.names == ("a.example", "*.b.example")
    (none,) = certificates_in(CA.issue(["::1"]).cert)
    assert none.names == ()


def test_reads_a_chain_in_order_and_what_stands_between() -> None:
    chain = b"subject=x\n" + CA.issue(common_name="leaf").cert + b"\n# the CA\n" + CA.cert
    assert [each.common_name for each in certificates_in(chain)] == ["leaf", "the CA"]
    assert certificates_in(b"") == []


@pytest.mark.parametrize("year", [1999, 2049, 2050, 9999])
def test_reads_both_forms_of_time(year: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "many parts"),
            x509.NameAttribute(NameOID.COMMON_NAME, "first"),
            x509.NameAttribute(NameOID.COMMON_NAME, "last", _type=x509.name._ASN1Type.BMPString),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "behind"),
        ]
    )
    end = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(2**150)
        .not_valid_before(end - timedelta(days=10_000))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    (found,) = certificates_in(cert.public_bytes(serialization.Encoding.PEM))
    assert (found.common_name, found.not_after) == ("last", end.timestamp())


def test_a_damaged_certificate_is_an_error() -> None:
    pem = CA.issue(common_name="x").cert
    for cut in (1, 10, 100):
        body = pem.splitlines()[1:-1]
        short = b"".join(body)[: -4 * cut]
        with pytest.raises(ValueError):
            certificates_in(b"-----BEGIN CERTIFICATE-----\n" + short + b"\n-----END CERTIFICATE-----\n")

"""`listen` with TLS and unix sockets, and `tls`: what they mean, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from esp.core.config import ConfigError, Listen, check_certificates, listen_of, parse
from esp.core.local_tls import Authority
from esp.core.tls_paths import Files

SHARDS = 'shards: [{endpoints: [127.0.0.1:1], ranges: [{start: "", end: ""}]}]\n'
CA = Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name in "ab":
        CA.issue([f"{name}.example"]).write(folder, name)
    (folder / "ca.crt").write_bytes(CA.cert)
    (folder / "both.pem").write_bytes((folder / "a.crt").read_bytes() + (folder / "a.key").read_bytes())
    (folder / "empty").write_bytes(b"")
    return folder


def test_listen_urls_of_every_kind(folder: Path) -> None:
    text = "listen: [http://h:1, 'https://[::1]:2', unix:/run/esp.sock, 'unixs:///run/tls.sock', unix:here]\n"
    config = parse(SHARDS + text + "tls: {cert: a.crt, key: a.key}", folder / "esp.yaml")
    assert config.listen == (
        Listen("h", 1),
        Listen("::1", 2, tls=True),
        Listen("", 0, path=Path("/run/esp.sock")),
        Listen("", 0, tls=True, path=Path("/run/tls.sock")),
        Listen("", 0, path=folder / "here"),
    )
    urls = ["http://h:1", "https://[::1]:2", "unix:/run/esp.sock", "unixs:/run/tls.sock", f"unix:{folder}/here"]
    assert list(map(str, config.listen)) == urls
    assert listen_of(urls) == config.listen


def test_the_certificates_and_the_ca_of_clients(folder: Path) -> None:
    def tls_of(text: str) -> object:
        return parse(f"{SHARDS}listen: [https://h:1]\n{text}", folder / "esp.yaml").tls

    ca = folder / "ca.crt"
    one = tls_of("tls: {cert: a.crt, key: a.key, client_ca: ca.crt, min_version: 1.3}")
    assert one == tls_of(f"tls: {{cert: {folder}/a.crt, key: {folder}/a.key, client_ca: {ca}, min_version: '1.3'}}")
    a, b = (Files(folder / f"{name}.crt", folder / f"{name}.key") for name in "ab")
    two = tls_of("tls: {cert: a.crt, key: a.key, certs: [{cert: b.crt, key: b.key}]}")
    assert two == tls_of("tls: {certs: [{cert: a.crt, key: a.key}, {cert: b.crt, key: b.key}]}")
    assert (two.files, two.min_version) == ((a, b), "1.2")  # type: ignore[attr-defined]
    assert one.files == (Files(a.cert, a.key, ca),)  # type: ignore[attr-defined]
    tls_of("tls: {cert: both.pem, key: both.pem}")


# ruff: noqa: E501
WRONG = {
    "cert: a.crt": '"tls": "cert" is given without "key"; write both, the same file if it has both',
    "key: a.key": '"tls": "key" is given without "cert"; write both, the same file if it has both',
    "client_ca: ca.crt": '"tls" has no "cert"; write tls: {cert: FILE, key: FILE}',
    "cert: '', key: a.key": '"tls": "cert" is empty; leave it out',
    "cert: a.crt, key: b.key": '"tls": "key": {folder}/b.key does not belong to the certificate {folder}/a.crt; name the pair',
    "cert: a.key, key: a.key": '"tls": "cert": {folder}/a.key is a private key; name the certificate',
    "cert: none.crt, key: a.key": '"tls": "cert": {folder}/none.crt cannot be read: no such file or directory',
    "cert: a.crt, key: empty": '"tls": "key": {folder}/empty is empty',
    "cert: a.crt, key: a.key, client_ca: empty": '"tls": "client_ca": {folder}/empty is empty',
    "cert: a.crt, key: a.key, min_version: 1.1": '"tls": "min_version" is "1.1"; write "1.2" or "1.3"',
    "cert: a.crt, key: a.key, certs: [{cert: b.crt}]": '"tls": "cert" is given without "key"; write both, the same file if '
    "it has both",
    "cert: a.crt, key: a.key, ca: ca.crt": '"tls": unknown field "ca"; the fields here are cert, key, client_ca, min_version, alpn, certs',
    "cert: a.crt, key: a.key, alpn: [h3]": '"tls": "alpn" has the protocols "h2" and "http/1.1", the best first; write one or both',
    "cert: a.crt, key: a.key, alpn: []": '"tls": "alpn" has the protocols "h2" and "http/1.1", the best first; write one or both',
    "certs: [{cert: a.crt, keys: a.key}]": '"certs" item 1: unknown field "keys"; did you mean "key"?',
    "cert: [a.crt], key: a.key": '"tls": "cert" must be text, not a list',
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_its_line_and_the_cure(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{SHARDS}listen: [https://h:1]\ntls: {{{text}}}", folder / "esp.yaml")
    assert (caught.value.line, caught.value.text) == (3, WRONG[text].replace("{folder}", str(folder)))


def test_a_certificate_without_a_listener_and_a_listener_without_a_certificate(folder: Path) -> None:
    tls = "tls: {cert: a.crt, key: a.key}\n"
    with pytest.raises(ConfigError, match=r'3: no listen URL uses "tls"; write listen: .* or leave "tls" out'):
        parse(f"{SHARDS}listen: [http://h:1]\n{tls}", folder / "esp.yaml")
    with pytest.raises(
        ConfigError, match=r"2: listen URL unixs:/a needs a certificate; write tls: {cert: FILE, key: FILE}"
    ):
        parse(f"{SHARDS}listen: [http://h:1, unixs:/a]\n", folder / "esp.yaml")
    config = parse(SHARDS + tls, folder / "esp.yaml")  # the URLs may come from the command line
    check_certificates(config)
    with pytest.raises(ConfigError, match="listen URL https://h:1 needs a certificate"):
        check_certificates(dataclasses.replace(config, listen=listen_of(["https://h:1"]), tls=None))


def test_a_certificate_that_has_ended_is_taken_and_warned_of_later(folder: Path) -> None:
    """A refusal would keep all of esp from starting, plain listeners too; clients refuse it themselves."""
    CA.issue(["old"], life=timedelta(days=-1)).write(folder, "old")
    parse(f"{SHARDS}listen: [https://h:1]\ntls: {{cert: old.crt, key: old.key}}", folder / "esp.yaml")

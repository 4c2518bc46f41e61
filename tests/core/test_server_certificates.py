"""The listeners' certificates: one of several by name, and what is agreed with clients."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from esp.core.config import Config, ListenTls, parse
from esp.core.proxy import Proxy
from esp.core.server_certificates import ServerCertificates
from esp.core.tls_files import TlsFiles
from esp.core.tls_paths import Files
from esp.core.wire.tls import Tls
from tests.core.wire.certificates import ClientEnd, authority, client_context, pair
from tests.core.wire.test_tls import fails, talks


def written(folder: Path, *names: str) -> Files:
    return Files(*pair(*names).write(folder, names[0].replace("*", "any")))


@pytest.fixture
def several(tmp_path: Path) -> ListenTls:
    files = [written(tmp_path, *names) for names in (("a.example",), ("*.b.example",), ("c.b.example", "d.example"))]
    return ListenTls(tuple(files))


def shown(context: ssl.SSLContext, name: str) -> set[str]:
    """The names in the certificate that a client is shown which asks for `name`."""
    trusting = client_context()
    trusting.check_hostname = False
    client, server = ClientEnd(trusting, name), Tls(context)
    talks(client, server)
    assert client.is_open
    found = client.tls.getpeercert()
    assert found is not None
    return {value for _, value in found["subjectAltName"]}


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a.example", {"a.example"}),
        ("A.Example", {"a.example"}),
        ("x.b.example", {"*.b.example"}),
        ("c.b.example", {"c.b.example", "d.example"}),  # not the one for any
        ("d.example", {"c.b.example", "d.example"}),
        ("x.y.b.example", {"a.example"}),
        ("b.example", {"a.example"}),
        ("127.0.0.1", {"a.example"}),  # clients send no addresses
    ],
)
def test_a_client_is_shown_the_certificate_for_the_name_it_asks_for_else_the_first(
    several: ListenTls, name: str, names: set[str]
) -> None:
    assert shown(ServerCertificates(several, TlsFiles()).context(), name) == names


def test_a_new_file_is_shown_to_the_next_client_whichever_certificate_it_replaces(
    several: ListenTls, tmp_path: Path
) -> None:
    files = TlsFiles()
    certificates = ServerCertificates(several, files)
    for names in (("a.example", "new.example"), ("*.b.example", "new.b")):
        pair(*names).write(tmp_path, names[0].replace("*", "any"))
    asyncio.run(files.look())
    assert files.reloads == 2
    assert shown(certificates.context(), "new.example") == {"a.example", "new.example"}
    assert shown(certificates.context(), "x.b.example") == {"*.b.example", "new.b"}


def agreed(context: ssl.SSLContext, *protocols: str) -> str | None:
    """The protocol that is agreed on with a client that offers these."""
    offering = client_context()
    offering.set_alpn_protocols(protocols)
    client = ClientEnd(offering)
    talks(client, Tls(context))
    return client.tls.selected_alpn_protocol()


def test_http2_and_http1_are_spoken_and_no_old_versions_or_ciphers(tmp_path: Path) -> None:
    files = (written(tmp_path, "esp.example"),)
    context = ServerCertificates(ListenTls(files), TlsFiles()).context()
    assert agreed(context, "h2") == "h2"
    assert agreed(context, "http/1.1") == "http/1.1"
    assert agreed(context, "h2", "http/1.1") == "http/1.1"  # a client of JSON; gRPC has no use for HTTP/1.1
    assert agreed(context, "spdy/1") is None
    best_first = ServerCertificates(ListenTls(files, alpn=("h2", "http/1.1")), TlsFiles()).context()
    assert agreed(best_first, "http/1.1", "h2") == "h2"
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert {each["protocol"] for each in context.get_ciphers()} == {"TLSv1.2", "TLSv1.3"}
    assert all("GCM" in each["name"] or "CHACHA20" in each["name"] for each in context.get_ciphers())
    older = client_context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    client = ClientEnd(older)
    talks(client, Tls(context))
    assert client.tls.version() == "TLSv1.2"
    newest = ServerCertificates(ListenTls(files, "1.3"), TlsFiles()).context()
    assert fails(ClientEnd(older), Tls(newest)).startswith("the client speaks only versions of TLS below min_version")


def test_with_a_ca_clients_need_a_certificate_for_every_name(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority().cert)
    files = [written(tmp_path, name) for name in ("a.example", "b.example")]
    tls = ListenTls(tuple(Files(each.cert, each.key, ca) for each in files))
    context = ServerCertificates(tls, TlsFiles()).context()
    for name in ("a.example", "b.example", "c.example"):
        trusting = client_context()
        trusting.check_hostname = False
        assert fails(ClientEnd(trusting, name), Tls(context)).startswith("the client shows no certificate")
    client, server = ClientEnd(client_context(pair("client")), "b.example"), Tls(context)
    talks(client, server)
    assert server.is_open


def test_a_reload_puts_other_certificates_in_use_and_forgets_the_ones_before(tmp_path: Path) -> None:
    for name in ("a.example", "b.example"):
        written(tmp_path, name)
    shards = "shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\nlisten: [https://127.0.0.1:0]\n"

    def config(name: str, more: str = "") -> Config:
        return parse(f"{shards}tls: {{cert: {name}.crt, key: {name}.key{more}}}", tmp_path / "esp.yaml")

    async def test() -> None:
        async with Proxy(config("a.example")) as proxy:
            assert shown(proxy._server_context(), "x") == {"a.example"}
            new = config("b.example", ", min_version: 1.3")
            proxy.install(proxy.layout_of(new), new)
            context = proxy._server_context()
            assert shown(context, "x") == {"b.example"}
            assert context.minimum_version is ssl.TLSVersion.TLSv1_3
            assert [each.files.cert for each in proxy.tls_files.all] == [tmp_path / "b.example.crt"]
            again = config("a.example")
            (tmp_path / "a.example.key").unlink()
            proxy.install(proxy.layout_of(again), again)
            assert shown(proxy._server_context(), "x") == {"b.example"}
            assert [each.files.cert for each in proxy.tls_files.all] == [tmp_path / "b.example.crt"]

    asyncio.run(test())


def test_a_layout_that_is_not_installed_leaves_no_certificates_behind(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(authority().cert)
    for name in ("a.example", "b.example"):
        written(tmp_path, name)

    def config(name: str) -> Config:
        shards = "shards: [{endpoints: [https://127.0.0.1:1], ranges: [{start: '', end: ''}]}]\nlisten: [http://127.0.0.1:0]\n"
        return parse(f"{shards}shard_tls: {{ca: ca.pem, cert: {name}.crt, key: {name}.key}}", tmp_path / "esp.yaml")

    async def test() -> None:
        async with Proxy(config("a.example")) as proxy:
            for seconds in (None, 0.01):
                layout = proxy.layout_of(config("b.example"))
                if seconds is not None:
                    await proxy.running.prepare(layout, seconds)
                assert len(proxy.tls_files.all) == 2
                await proxy.running.forget(layout, proxy.routing.layout)
                assert [each.files.cert for each in proxy.tls_files.all] == [tmp_path / "a.example.crt"]

    asyncio.run(test())


def test_a_layout_that_is_about_to_be_prepared_keeps_its_certificates_while_an_older_one_leaves(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(authority().cert)
    for name in ("a.example", "b.example", "c.example"):
        written(tmp_path, name)

    def config(name: str) -> Config:
        shards = "shards: [{endpoints: [https://127.0.0.1:1], ranges: [{start: '', end: ''}]}]\ndrain_seconds: 0\n"
        return parse(f"{shards}shard_tls: {{ca: ca.pem, cert: {name}.crt, key: {name}.key}}", tmp_path / "esp.yaml")

    async def test() -> None:
        async with Proxy(config("a.example")) as proxy:

            def known() -> list[str]:
                return [each.files.cert.stem for each in proxy.tls_files.all if each.files.cert is not None]

            proxy.install(proxy.layout_of(config("b.example")))
            layout = proxy.layout_of(config("c.example"))
            async with asyncio.timeout(20):
                while "a.example" in known():  # noqa: ASYNC110 - the client of the former shard ends
                    await asyncio.sleep(0.01)
            assert known() == ["b.example", "c.example"]
            await proxy.running.prepare(layout, 0.01)
            proxy.install(layout)
            assert "c.example" in known()

    asyncio.run(test())

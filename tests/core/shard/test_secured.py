"""Shards with TLS: etcds that can be used, and every wrong certificate and wrong port told by its name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

from esp.core.background import Background, all_of
from esp.core.config import Endpoint, ShardConfig, ShardTls, User, parse
from esp.core.local import LocalEtcd
from esp.core.local_tls import write_file
from esp.core.pb import rpc_pb2
from esp.core.proxy import Proxy
from esp.core.shard import RANGE, Method, Shard, ask, ask_for_esp
from esp.core.shard.common_name import check_common_name
from esp.core.shard.secured import Secured
from esp.core.tls_files import TlsFiles
from esp.core.tls_paths import Files
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.status import RpcError
from tests.core.scripted_etcd import ScriptedEtcd
from tests.core.shard.secured_etcds import Certificates, endpoint, in_each_loop, running, start, trouble, until
from tests.harness import newest_etcd

ALL_KEYS = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is no reason not to find out who answers."""
    monkeypatch.setattr("esp.core.shard.strangers.MOST_SECONDS", 20.0)
    monkeypatch.setattr("esp.core.shard.strangers.MORE_SECONDS", 1.0)


class World(NamedTuple):
    certificates: Certificates
    plain: LocalEtcd
    secured: LocalEtcd


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["old", "new"])
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    certificates: Certificates,
    etcd_binary: Path,
) -> Iterator[World]:
    """An etcd without TLS and one with it: of the tests' version, which is old, and of the newest."""
    binary = etcd_binary if request.param == "old" else newest_etcd() or pytest.skip("no newer etcd: see scripts/peers")
    folder = tmp_path_factory.mktemp("etcds")
    etcds = []
    try:
        for name, tls in (("plain", None), ("secured", certificates.server)):
            etcds.append(start(folder, name, binary, tls))
        yield World(certificates, *etcds)
    finally:
        for etcd in etcds:
            etcd.kill()


@in_each_loop
async def test_an_etcd_with_tls_is_a_shard_as_any_other(world: World) -> None:
    at = endpoint(world.secured, tls=True)
    async with running(at, ShardTls(world.certificates.client)) as shard:
        assert shard.troubles == {}
        assert (await ask(shard, RANGE, ALL_KEYS)).header.revision >= 1


@in_each_loop
async def test_the_name_is_that_of_the_endpoint_or_of_the_config(world: World) -> None:
    client = ShardTls(world.certificates.client)
    assert await trouble(endpoint(world.secured, tls=True, host="localhost"), client) == ""
    assert await trouble(endpoint(world.secured, tls=True), replace(client, server_name="localhost")) == ""
    other = replace(client, server_name="etcd.example")
    assert await trouble(endpoint(world.secured, tls=True), other) == (
        'its certificate is not for "etcd.example"; make one that is, or name one of its names in the config '
        "(server_name in shard_tls)"
    )


@in_each_loop
async def test_a_certificate_that_is_not_trusted_is_told(world: World) -> None:
    certificates = world.certificates
    at = endpoint(world.secured, tls=True)
    stranger = replace(certificates.client, ca=certificates.other_ca)
    cure = "name its CA in the config (ca in shard_tls)"
    told = await trouble(at, ShardTls(stranger))
    assert told == f"its certificate is of no CA in {certificates.other_ca}; {cure}"
    told = await trouble(at, ShardTls(replace(stranger, ca=None)))
    assert told == f"its certificate is of no CA in this machine's CAs; {cure}"
    skipped = ShardTls(replace(stranger, ca=None), "etcd.example", verify=False)
    assert await trouble(at, skipped) == ""


@in_each_loop
async def test_esp_s_own_certificate_is_missing_or_not_accepted(world: World) -> None:
    certificates = world.certificates
    at = endpoint(world.secured, tls=True)
    assert await trouble(at, ShardTls(Files(ca=certificates.ca))) == (
        "it wants a certificate of esp's; name one and its key in the config (cert and key in shard_tls)"
    )
    told = await trouble(at, ShardTls(certificates.foreign))
    assert told.startswith(f"it does not accept esp's certificate {certificates.foreign.cert} (")
    assert told.endswith("); use one that is valid, for clients, and of the member's --trusted-ca-file")
    told = await trouble(at, ShardTls(certificates.make("ended", days=-1)))
    assert told.startswith(f"it does not accept esp's certificate {certificates.folder}/ended.crt (")


@in_each_loop
async def test_a_plain_etcd_behind_https_and_the_other_way_round(world: World) -> None:
    at = endpoint(world.plain, tls=True)
    told = await trouble(at, ShardTls(world.certificates.client))
    assert told == f"it is an etcd without TLS; write http://127.0.0.1:{at.port}"
    at = endpoint(world.secured, tls=False)
    assert await trouble(at, None) == f"it speaks TLS; write https://127.0.0.1:{at.port}"


@in_each_loop
async def test_a_port_for_grpc_alone_that_has_no_tls() -> None:
    """As of an etcd with --listen-client-http-urls."""
    async with ScriptedEtcd() as etcd:
        at = replace(etcd.endpoint, tls=True)
        assert await trouble(at, ShardTls()) == f"it speaks HTTP/2 without TLS; write http://127.0.0.1:{at.port}"


@in_each_loop
async def test_the_port_of_the_members(world: World) -> None:
    """Up to 3.5 it answers most calls of clients."""
    tls = ShardTls(world.certificates.client)
    peer_port = "it is etcd's peer port, which is for members only; name the client URL, such as "
    for etcd, secured, told in (
        (world.plain, False, peer_port + world.plain.endpoint),
        (world.plain, True, peer_port + world.plain.endpoint),
        (world.secured, True, peer_port + world.secured.endpoint),
        (world.secured, False, f"it speaks TLS; write https://127.0.0.1:{world.secured.peer_port}"),
    ):
        at = endpoint(etcd, tls=secured, peer=True)
        assert await trouble(at, tls if secured else None) == told, at


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def version_string(self) -> str:
        return "nginx/1.2"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(params=["http", "https"])
def http_server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Endpoint]:
    server = HTTPServer(("127.0.0.1", 0), _Page)
    secured = request.param == "https"
    if secured:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert certificates.server.cert
        context.load_cert_chain(certificates.server.cert, certificates.server.key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Endpoint("127.0.0.1", server.server_port, secured)
    server.shutdown()
    thread.join()
    server.server_close()


@in_each_loop
async def test_an_http_server(http_server: Endpoint, certificates: Certificates) -> None:
    tls = ShardTls(certificates.client)
    right = (
        f"it is an {'HTTPS' if http_server.tls else 'HTTP'} server (nginx/1.2), and no etcd; name an etcd's client URL"
    )
    assert await trouble(http_server, tls if http_server.tls else None) == right
    wrong = replace(http_server, tls=not http_server.tls)
    assert await trouble(wrong, tls if wrong.tls else None) == (
        f"it speaks TLS; write https://127.0.0.1:{wrong.port}"
        if http_server.tls
        else "it speaks no TLS and is an HTTP server (nginx/1.2), and no etcd; name an etcd's client URL"
    )


@in_each_loop
async def test_an_esp_behind_https_is_called_an_esp(certificates: Certificates) -> None:
    text = 'listen: ["http://127.0.0.1:0"]\nshards: [{endpoints: ["127.0.0.1:1"], ranges: [{start: "", end: ""}]}]'
    async with Proxy(parse(text, None)) as proxy:
        at = Endpoint("127.0.0.1", proxy.bound[0][1], tls=True)
        async with running(at, ShardTls(certificates.client)) as shard:
            assert shard.troubles[at] == "it is an esp, this one or another, and no etcd; name the etcds themselves"
            assert shard.barred is not None


@in_each_loop
async def test_a_server_that_hangs_up_or_says_nothing_is_no_stranger_by_name(certificates: Certificates) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        assert await trouble(Endpoint("127.0.0.1", port), None) in ("closed at once", "connection reset by peer")
        told = await trouble(Endpoint("127.0.0.1", port, tls=True), ShardTls(certificates.client))
        assert told in (
            "the TLS handshake fails: unexpected eof while reading",
            "it hangs up in the TLS handshake",
        )
    finally:
        server.close()


@in_each_loop
async def test_a_wrong_endpoint_beside_a_right_one_is_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    caplog.set_level(logging.WARNING, "esp.shard")
    wrong, right = endpoint(world.plain, tls=False, peer=True), endpoint(world.plain, tls=False)
    async with running((wrong, right)) as shard:
        await until(lambda: shard.is_ready)
        for _ in range(2):
            connection = shard.free_connection()
            assert connection is not None
            connection.close("not wanted any more")
            await until(lambda: shard.free_connection() not in (None, connection))  # noqa: B023
    told = [record.getMessage() for record in caplog.records if "cannot connect" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(f"shard s: cannot connect to {wrong}: it is etcd's peer port")


@in_each_loop
async def test_new_files_are_for_new_connections_and_end_no_old_one(world: World) -> None:
    certificates, files = world.certificates, TlsFiles()
    own = certificates.make("own")
    async with running(endpoint(world.secured, tls=True), ShardTls(own), files) as shard:
        first = shard.free_connection()
        certificates.make("own", days=-1)  # no new connection could be made with it
        await files.look()
        assert (await ask(shard, RANGE, ALL_KEYS)).header.revision >= 1
        assert files.reloads == 0
        certificates.make("own", days=5)
        await files.look()
        assert files.reloads == 1
        assert (await ask(shard, RANGE, ALL_KEYS)).header.revision >= 1
        assert shard.free_connection() is first
        assert first is not None
        first.close()
        await until(lambda: shard.free_connection() not in (None, first))
        assert (await ask(shard, RANGE, ALL_KEYS)).header.revision >= 1


PUT = Method(b"/etcdserverpb.KV/Put", rpc_pb2.PutResponse, idempotent=False)


@in_each_loop
async def test_large_requests_and_answers(world: World) -> None:
    value = bytes(range(256)) * 5_000
    async with running(endpoint(world.secured, tls=True), ShardTls(world.certificates.client)) as shard:
        keys = [b"large-%d" % number for number in range(4)]
        await all_of([ask(shard, PUT, rpc_pb2.PutRequest(key=key, value=value)) for key in keys])
        answers = await all_of([ask(shard, RANGE, rpc_pb2.RangeRequest(key=key)) for key in keys])
        assert [answer.kvs[0].value for answer in answers] == [value] * 4


class Wire:
    """Passes bytes on between a client and an etcd.

    Attributes:
        spoil: whether the next bytes of the etcd are changed on their way.
        at: the endpoint for clients.
    """

    def __init__(self, etcd: LocalEtcd) -> None:
        self._etcd = etcd
        self._writers: list[asyncio.StreamWriter] = []
        self.spoil = False

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.at = Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1], tls=True)
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader_there, writer_there = await asyncio.open_connection("127.0.0.1", self._etcd.client_port)
        self._writers += [writer, writer_there]
        await all_of([self._pass(reader, writer_there, False), self._pass(reader_there, writer, True)])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_spoil: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if may_spoil and self.spoil:
                    self.spoil = False
                    data = data[:-1] + bytes((data[-1] ^ 1,))
                writer.write(data)
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        self._server.close()


@in_each_loop
async def test_bytes_that_are_changed_on_the_way_break_the_connection_and_nothing_else(world: World) -> None:
    async with Wire(world.secured) as wire, running(wire.at, ShardTls(world.certificates.client)) as shard:
        before = shard.free_connection()
        wire.spoil = True
        assert (await ask(shard, RANGE, ALL_KEYS)).header.revision >= 1  # asked again on the next connection
        assert shard.free_connection() is not before
        assert before is not None
        assert "decryption failed or bad record mac" in before.why_over.lower().replace("_", " ")


def test_a_client_serves_on_under_another_config_with_the_same_tls(certificates: Certificates) -> None:
    here, there = Endpoint("a", 1, tls=True), Endpoint("b", 1, tls=True)
    before = ShardConfig("s", (here,), (), None, ShardTls(certificates.client))
    shard = Shard.of(before, WireContext(Limits()), Background(), TlsFiles())
    assert shard.may_become(replace(before, endpoints=(there, here)))
    for other in (
        replace(before, tls=ShardTls()),
        replace(before, tls=ShardTls(certificates.client, "x")),
        replace(before, tls=None, endpoints=(replace(here, tls=False),)),
        replace(before, user=User("u", certificates.ca)),
        replace(before, endpoints=(there,)),
    ):
        assert not shard.may_become(other)


# A certificate with a common name.


async def reason(shard: Shard) -> str:
    """Why the shard refuses to tell all keys; "" if it does not."""
    try:
        await ask(shard, RANGE, ALL_KEYS, seconds=5)
    except RpcError as error:
        return error.status.message
    return ""


@pytest.fixture
def guarded(tmp_path: Path, etcd_binary: Path, certificates: Certificates) -> Iterator[LocalEtcd]:
    """An etcd of a test's own, of which auth may be turned on."""
    etcd = start(tmp_path, "guarded", etcd_binary, certificates.server)
    yield etcd
    etcd.kill()


USER_ADD = Method(b"/etcdserverpb.Auth/UserAdd", rpc_pb2.AuthUserAddResponse, idempotent=False)
USER_GRANT = Method(b"/etcdserverpb.Auth/UserGrantRole", rpc_pb2.AuthUserGrantRoleResponse, idempotent=False)
ENABLE = Method(b"/etcdserverpb.Auth/AuthEnable", rpc_pb2.AuthEnableResponse, idempotent=False)


async def enable_auth(shard: Shard) -> None:
    await ask(shard, USER_ADD, rpc_pb2.AuthUserAddRequest(name="root", password="r"))
    await ask(shard, USER_GRANT, rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"))
    await ask(shard, ENABLE, rpc_pb2.AuthEnableRequest())


def test_a_certificate_with_a_common_name_is_refused_where_auth_is_on(
    guarded: LocalEtcd, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    named = certificates.make("named", common_name="root")
    at = endpoint(guarded, tls=True)
    refusal = (
        f'auth is on, and esp\'s certificate {named.cert} has the common name "root": every client without a token '
        "would act as that user; make a certificate without common name (openssl req -subj /)"
    )

    async def scenario() -> None:
        async with running(at, ShardTls(named)) as shard, running(at, ShardTls(certificates.client)) as nameless:
            assert await reason(shard) == ""
            assert shard.unsafe == ""
            await enable_auth(nameless)
            await until(lambda: not shard.is_ready and shard.troubles != {})
            assert shard.unsafe == refusal
            await until(lambda: refusal in caplog.text)
            await until(lambda: shard.troubles == {at: refusal})
            assert await reason(nameless) == "etcdserver: permission denied"  # as this etcd says to all with TLS
            assert nameless.is_ready
        async with running(at, ShardTls(named)) as later:
            assert (later.unsafe, later.troubles) == (refusal, {at: refusal})
        certificates.make("named")  # as an operator would mend it
        async with running(at, ShardTls(named)) as mended:
            assert (mended.unsafe, mended.troubles) == ("", {})
        write_file(certificates.folder / "password", b"r")
        own = User("root", certificates.folder / "password")
        async with running(at, ShardTls(certificates.client), user=own) as user:
            assert (await ask_for_esp(user, RANGE, ALL_KEYS)).header.revision >= 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[ClientConnection]:
    """The connections that were checked after they were made, each when the check is over."""
    checked: list[ClientConnection] = []

    async def check(
        secured: Secured | None, connection: ClientConnection, asked: ClientConnection, seconds: float
    ) -> None:
        try:
            await check_common_name(secured, connection, asked, seconds)
        finally:
            checked.append(connection)

    monkeypatch.setattr("esp.core.shard.connected.check_common_name", check)
    return checked


def test_a_common_name_that_was_rotated_away_is_refused_on_the_connection_that_was_made_with_it(
    guarded: LocalEtcd, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rotated = certificates.make("rotated", common_name="root")
    at, files = endpoint(guarded, tls=True), TlsFiles()

    async def scenario() -> None:
        async with running(at, ShardTls(rotated), files) as shard, running(at, ShardTls(certificates.client)) as other:
            before = shard.free_connection()
            certificates.make("rotated")
            await files.look()
            assert files.reloads == 1
            assert shard.free_connection() is before
            await enable_auth(other)
            await until(lambda: shard.is_ready and shard.free_connection() is not before)
            assert 'has the common name "root"' in caplog.text
            assert (shard.unsafe, shard.troubles) == ("", {})
            assert await reason(shard) == "etcdserver: permission denied"

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_new_common_name_harms_no_connection_that_was_made_without(
    guarded: LocalEtcd, certificates: Certificates, checks: list[ClientConnection]
) -> None:
    renewed = certificates.make("renewed")
    at, files = endpoint(guarded, tls=True), TlsFiles()

    async def scenario() -> None:
        async with running(at, ShardTls(renewed), files) as shard, running(at, ShardTls(certificates.client)) as other:
            before = shard.free_connection()
            assert before is not None
            await enable_auth(other)
            certificates.make("renewed", common_name="root")
            await files.look()
            assert files.reloads == 1
            checks.clear()
            await until(lambda: checks.count(before) >= 2)
            assert shard.free_connection() is before
            before.close("as if the member had hung up")
            await until(lambda: at in shard.troubles and "auth is on" in shard.troubles[at])  # a new one is checked

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_common_name_of_the_connection_for_streams_alone_is_refused_there_alone(
    guarded: LocalEtcd, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mixed = certificates.make("mixed")
    at, files = endpoint(guarded, tls=True), TlsFiles()

    async def scenario() -> None:
        async with running(at, ShardTls(mixed), files) as shard, running(at, ShardTls(certificates.client)) as other:
            unary = shard.free_connection()
            certificates.make("mixed", common_name="root")
            await files.look()
            shard._links.wanted_streams.set()
            await until(lambda: shard._links.streams.free() is not None)
            await enable_auth(other)
            await until(lambda: shard._links.streams.connection is None)
            assert "left the connection for streams: auth is on" in caplog.text
            assert shard.free_connection() is unary
            assert shard.unsafe == ""

    asyncio.run(asyncio.wait_for(scenario(), 60))

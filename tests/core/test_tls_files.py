"""Certificates that are read anew when their files change."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import time

import pytest
from cryptography.hazmat.primitives import serialization

from esp.core.local_tls import Authority, Pair, write_file
from esp.core.tls_files import DAY, TlsFiles
from esp.core.tls_paths import Files, TlsFileError

CA = Authority()
OTHER = Authority("another CA")
NAMES = ["localhost", "127.0.0.1"]


def pair_in(folder: Path, pair: Pair | None = None) -> Files:
    cert, key = (pair or CA.issue(NAMES)).write(folder, "server")
    return Files(cert, key)


def ca_in(folder: Path, ca: Authority = CA) -> Path:
    write_file(folder / "ca.crt", ca.cert)
    return folder / "ca.crt"


def shown_by(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    """The certificate that a server with this context shows to the client, after a whole handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    done = [False, False]
    for _ in range(10):
        for number, end in enumerate((ours, theirs)):
            try:
                end.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
    assert done == [True, True]
    der = ours.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der).encode()


def look(files: TlsFiles) -> None:
    asyncio.run(files.look())


def client_of(files: TlsFiles, folder: Path) -> ssl.SSLContext:
    return files.client("shards", Files(ca=ca_in(folder))).context


def test_a_new_pair_is_used_for_new_connections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = TlsFiles()
    first, second = CA.issue(NAMES), CA.issue(NAMES)
    credentials = files.server("listener", pair_in(tmp_path, first), lambda context: None)
    client, before = client_of(files, tmp_path), credentials.context
    with caplog.at_level(logging.INFO):
        look(files)
        assert credentials.context is before
        pair_in(tmp_path, second)
        look(files)
    assert "listener: new certificates are in use, until 2" in caplog.text
    assert (files.reloads, files.refusals, credentials.loads) == (1, 0, 2)
    assert shown_by(before, client) == first.cert
    assert shown_by(credentials.context, client) == second.cert


def test_each_new_context_is_prepared(tmp_path: Path) -> None:
    files = TlsFiles()
    prepared: list[ssl.SSLContext] = []
    credentials = files.server("listener", pair_in(tmp_path), prepared.append)
    assert prepared == [credentials.context]
    pair_in(tmp_path)
    look(files)
    assert prepared[1:] == [credentials.context]


def test_while_a_pair_is_half_replaced_the_old_one_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = TlsFiles()
    first, second = CA.issue(NAMES), CA.issue(NAMES)
    credentials = files.server("listener", pair_in(tmp_path, first), lambda context: None)
    client = client_of(files, tmp_path)
    write_file(tmp_path / "server.crt", second.cert)
    look(files)
    assert shown_by(credentials.context, client) == first.cert
    assert credentials.trouble == caplog.text == ""
    write_file(tmp_path / "server.key", second.key)
    look(files)
    assert shown_by(credentials.context, client) == second.cert
    assert (files.reloads, files.refusals, credentials.trouble) == (1, 0, "")


def test_files_replaced_between_two_looks_of_one_reading_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = TlsFiles()
    newest = CA.issue(NAMES)
    changes = iter([CA.issue(NAMES), newest])

    def prepare(context: ssl.SSLContext) -> None:
        if credentials is not None and (pair := next(changes, None)):
            pair_in(tmp_path, pair)

    credentials = None
    credentials = files.server("listener", pair_in(tmp_path), prepare)
    before = credentials.context
    pair_in(tmp_path)
    for _ in range(2):
        look(files)
        assert credentials.context is before
    look(files)
    assert shown_by(credentials.context, client_of(files, tmp_path)) == newest.cert


def damaged(folder: Path) -> None:
    write_file(folder / "server.crt", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")


def emptied(folder: Path) -> None:
    write_file(folder / "server.key", b"")


def gone(folder: Path) -> None:
    (folder / "server.crt").unlink()


def of_another_pair(folder: Path) -> None:
    write_file(folder / "server.key", CA.issue(NAMES).key)


def ended(folder: Path) -> None:
    CA.issue(NAMES, life=timedelta(days=-1)).write(folder, "server")


def key_for_certificate(folder: Path) -> None:
    write_file(folder / "server.crt", (folder / "server.key").read_bytes())


def certificate_for_key(folder: Path) -> None:
    write_file(folder / "server.key", (folder / "server.crt").read_bytes())


def encrypted(folder: Path) -> None:
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    form, method = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    write_file(folder / "server.key", key.private_bytes(serialization.Encoding.PEM, form, method))


def a_folder(folder: Path) -> None:
    (folder / "server.crt").unlink()
    (folder / "server.crt").mkdir()


FAULTS = {
    damaged: "server.crt has a damaged certificate; copy the file again",
    emptied: "server.key is empty",
    gone: "server.crt cannot be read: no such file or directory",
    of_another_pair: "server.key does not belong to the certificate",
    ended: "server.crt has ended on",
    key_for_certificate: "server.crt is a private key; name the certificate",
    certificate_for_key: "server.key has a certificate and no key; name the key",
    encrypted: "server.key is encrypted; decrypt it, as with openssl pkey -in KEY -out NEW",
    a_folder: "server.crt cannot be read: is a directory",
}


@pytest.mark.parametrize(("fault", "text"), FAULTS.items())
def test_broken_new_files_keep_the_old_ones_and_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Callable[[Path], None], text: str
) -> None:
    files = TlsFiles()
    credentials = files.server("listener", pair_in(tmp_path), lambda context: None)
    before = credentials.context
    fault(tmp_path)
    for _ in range(5):
        look(files)
    assert credentials.context is before
    assert text in credentials.trouble
    assert [record.getMessage().count(text) for record in caplog.records] == [1]
    assert caplog.text.endswith("; the files read before stay in use\n")
    assert (files.reloads, files.refusals) == (0, 1)
    if fault is a_folder:
        (tmp_path / "server.crt").rmdir()
    pair_in(tmp_path)
    look(files)
    assert credentials.context is not before
    assert (files.reloads, files.refusals, credentials.trouble) == (1, 1, "")


@pytest.mark.parametrize(("fault", "text"), FAULTS.items())
def test_at_the_start_a_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, fault: Callable[[Path], None], text: str
) -> None:
    names = pair_in(tmp_path)
    fault(tmp_path)
    if fault is ended:  # whoever has no other certificate may as well begin with that one: it is warned of
        TlsFiles().server("listener", names, lambda context: None)
        return
    with pytest.raises(TlsFileError, match=text.replace(".", "[.]")) as raised:
        TlsFiles().server("listener", names, lambda context: None)
    assert raised.value.path in (names.cert, names.key)


def test_secrets_as_kubernetes_replaces_them(tmp_path: Path) -> None:
    """The names are links into a folder that is itself reached by a link, and only this link is turned."""
    first, second = CA.issue(NAMES), CA.issue(NAMES)
    for name, pair in (("..2026_1", first), ("..2026_2", second)):
        (tmp_path / name).mkdir()
        pair.write(tmp_path / name, "server")
    (tmp_path / "..data").symlink_to("..2026_1")
    for name in ("server.crt", "server.key"):
        (tmp_path / name).symlink_to(Path("..data", name))
    files = TlsFiles()
    names = Files(tmp_path / "server.crt", tmp_path / "server.key")
    credentials = files.server("listener", names, lambda context: None)
    look(files)
    assert files.reloads == 0
    (tmp_path / "..data_tmp").symlink_to("..2026_2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    look(files)
    assert shown_by(credentials.context, client_of(files, tmp_path)) == second.cert


def test_a_file_that_is_written_in_place_is_seen_even_with_the_old_size(tmp_path: Path) -> None:
    files = TlsFiles()
    names = Files(ca=ca_in(tmp_path))
    credentials = files.client("shards", names)
    path = tmp_path / "ca.crt"
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    look(files)
    assert credentials.loads == 2


def test_a_new_ca_is_trusted_and_the_old_one_no_longer(tmp_path: Path) -> None:
    files = TlsFiles()
    server = files.server("listener", pair_in(tmp_path, OTHER.issue(NAMES)), lambda context: None)
    client = files.client("shards", Files(ca=ca_in(tmp_path)))
    with pytest.raises(ssl.SSLCertVerificationError):
        shown_by(server.context, client.context)
    ca_in(tmp_path, OTHER)
    look(files)
    shown_by(server.context, client.context)


def test_without_verifying_every_server_is_trusted(tmp_path: Path) -> None:
    files = TlsFiles()
    server = files.server("listener", pair_in(tmp_path, OTHER.issue(["elsewhere"])), lambda context: None)
    shown_by(server.context, files.client("shards", Files(), verify=False).context)


def test_a_name_that_stands_only_in_the_common_name_does_not_count(tmp_path: Path) -> None:
    """As for every client that is written in Go."""
    files = TlsFiles()
    server = files.server("listener", pair_in(tmp_path, CA.issue(common_name="localhost")), lambda context: None)
    with pytest.raises(ssl.SSLCertVerificationError):
        shown_by(server.context, client_of(files, tmp_path))


def test_a_listener_with_a_ca_wants_a_certificate(tmp_path: Path) -> None:
    files = TlsFiles()
    names = pair_in(tmp_path)
    server = files.server("listener", Files(names.cert, names.key, ca_in(tmp_path)), lambda context: None)
    shown_by(server.context, files.client("shards", Files(names.cert, names.key, ca_in(tmp_path))).context)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shown_by(server.context, client_of(files, tmp_path))


def test_the_oldest_tls_is_1_2(tmp_path: Path) -> None:
    files = TlsFiles()
    old = client_of(files, tmp_path)
    server = files.server("listener", pair_in(tmp_path), lambda context: None)
    for context in (old, server.context):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_shards_with_the_same_files_share_them(tmp_path: Path) -> None:
    files = TlsFiles()
    names = Files(ca=ca_in(tmp_path))
    assert files.client("shard a", names) is files.client("shard a", Files(ca=tmp_path / "ca.crt"))
    assert files.client("shard a", names).use == "shard a"
    assert files.client("shard b", names).use == "shards"
    assert files.client("c", names, verify=False) is not files.client("a", names)
    kept = files.client("c", names, verify=False)
    listener = files.server("listener", pair_in(tmp_path), lambda context: None)
    files.keep_clients([kept])
    assert files.all == [kept, listener]


def test_the_ends_of_all_certificates_are_told(tmp_path: Path) -> None:
    files = TlsFiles()
    pair = CA.issue(NAMES, common_name="esp", life=timedelta(days=3))
    names = pair_in(tmp_path, Pair(pair.cert + Authority(life=timedelta(days=2)).cert, pair.key))
    bundle = tmp_path / "bundle.crt"
    write_file(bundle, Authority(life=timedelta(days=5)).cert + Authority(life=timedelta(days=-5)).cert)
    credentials = files.client("shard a", Files(names.cert, names.key, bundle))
    assert credentials.common_name == "esp"
    told = [(expiry.use, expiry.path.name, round((expiry.not_after - time()) / DAY)) for expiry in files.expiries()]
    assert told == [("shard a", "server.crt", 2), ("shard a", "bundle.crt", 5)]
    assert files.client("system", Files()).expiries() == []
    for _ in range(2):  # two certificates of a listener with the CA of its clients
        files.server("listener", Files(names.cert, names.key, bundle), lambda context: None)
    assert len(files.expiries()) == 4


def test_a_certificate_is_warned_of_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = TlsFiles()
    files.server("listener", pair_in(tmp_path, CA.issue(NAMES, life=timedelta(days=20))), lambda context: None)

    def told(days: float) -> list[str]:
        caplog.clear()
        files.warn(time() + days * DAY)
        return [f"{record.levelname} {record.getMessage().partition(' UTC')[2]}" for record in caplog.records]

    assert told(0) == told(5) == []
    assert told(7) == ["WARNING ; renew it"]
    assert told(7.5) == []
    assert told(8.1) == ["WARNING ; renew it"]
    assert told(21) == ["ERROR ; renew it"]
    assert told(21.5) == []


def test_the_watch_sees_a_change_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esp.core.tls_files.LOOK_SECONDS", 0.01)
    files = TlsFiles()
    credentials = files.server("listener", pair_in(tmp_path), lambda context: None)
    before = credentials.context
    pair_in(tmp_path)

    async def watch() -> None:
        watching = asyncio.ensure_future(files.watch())
        async with asyncio.timeout(30):
            while credentials.context is before:  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(watch())

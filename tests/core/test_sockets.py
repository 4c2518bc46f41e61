"""Binding apart from accepting."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from esp.core import sockets
from esp.core.config import Listen, parse
from esp.core.proxy import Proxy

CONFIG = "listen: [http://127.0.0.1:{port}]\nshards: [{{endpoints: [127.0.0.1:1], ranges: [{{start: '', end: ''}}]}}]"


def test_the_sockets_are_bound_and_nobody_listens_yet() -> None:
    bound = sockets.bind([Listen("127.0.0.1", 0), Listen("127.0.0.1", 0)])
    try:
        addresses = [one.address for one in bound]
        assert [one.host for one in addresses] == ["127.0.0.1"] * 2
        assert len({one.port for one in addresses} - {0}) == 2
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(addresses[0][:2])
    finally:
        sockets.close(bound)


def test_no_socket_is_left_when_a_later_address_cannot_be_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = len(list(Path("/proc/self/fd").iterdir()))
        addresses = [Listen("127.0.0.1", 0), Listen("127.0.0.1", taken.getsockname()[1])]
        with pytest.raises(OSError, match=r"cannot listen on http://127.*: the port is in use; stop") as caught:
            sockets.bind(addresses)
        assert caught.value.errno == errno.EADDRINUSE
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_proxy_that_is_second_to_listen_says_so_and_leaves_nothing_open() -> None:
    async def test() -> None:
        [first] = sockets.bind([Listen("127.0.0.1", 0)])
        port = first.address[1]
        second = sockets.bind([Listen("127.0.0.1", port)])
        with first.sock:
            first.sock.listen()
            proxy = Proxy(parse(CONFIG.format(port=port), None), second)
            with pytest.raises(OSError, match=f"cannot listen on http://127.0.0.1:{port}: the port is in use"):
                await proxy.__aenter__()
            assert second[0].sock.fileno() == -1
            assert not proxy.background.tasks

    asyncio.run(test())


def test_a_proxy_serves_on_the_sockets_that_it_is_given_and_closes_them_at_the_end() -> None:
    async def test() -> None:
        bound = sockets.bind([Listen("127.0.0.1", 0)])
        async with Proxy(parse(CONFIG.format(port=1), None), bound) as proxy:
            assert proxy.bound == [bound[0].address]
            reader, writer = await asyncio.open_connection(*bound[0].address[:2])
            writer.write(b"GET /livez HTTP/1.1\r\nHost: esp\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
        assert bound[0].sock.fileno() == -1

    asyncio.run(test())


def test_a_unix_socket_is_served_and_takes_the_place_of_one_that_nobody_serves(tmp_path: Path) -> None:
    async def test() -> None:
        listen = Listen("", 0, path=tmp_path / "esp.sock")
        for _ in range(2):  # the first leaves its file
            bound = sockets.bind([listen])
            assert [one.address for one in bound] == [listen]
            async with Proxy(parse(CONFIG.format(port=1), None), bound):
                reader, writer = await asyncio.open_unix_connection(listen.path)
                writer.write(b"GET /livez HTTP/1.1\r\nHost: esp\r\nConnection: close\r\n\r\n")
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
                writer.close()
                with pytest.raises(OSError, match=f"cannot listen on {listen}: another process listens there; stop it"):
                    sockets.bind([listen])

    asyncio.run(test())


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(OSError, match=f"cannot listen on unix:{path}: there is a file that is no socket; remove it or"):
        sockets.bind([Listen("", 0, path=path)])
    assert path.read_text() == "precious"
    missing = Listen("", 0, path=tmp_path / "no" / "folder")
    with pytest.raises(OSError, match=f"cannot listen on {missing}: no such file or directory"):
        sockets.bind([missing])


def test_a_check_leaves_no_socket(tmp_path: Path) -> None:
    sockets.check([Listen("127.0.0.1", 0), Listen("", 0, path=tmp_path / "esp.sock")])
    assert not list(tmp_path.iterdir())


def test_one_path_under_two_names_is_refused(tmp_path: Path) -> None:
    twice = [Listen("", 0, path=tmp_path / "s"), Listen("", 0, tls=True, path=tmp_path / "s")]
    with pytest.raises(OSError, match=r"it is the address of unix:.*, which is listed too; remove one"):
        sockets.bind(twice)


def test_a_client_of_a_unix_socket_is_known_by_user_and_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        listen = Listen("", 0, path=tmp_path / "esp.sock")
        async with Proxy(parse(CONFIG.format(port=1), None), sockets.bind([listen])):
            reader, writer = await asyncio.open_unix_connection(listen.path)
            writer.write(b"SSH-2.0-x\r\n")
            assert await reader.read() == b""
            writer.close()
        name = f"{listen}, user {os.getuid()}:{os.getpid()}"
        assert f"{name}: closing: SSH: the client has the wrong port" in caplog.text

    asyncio.run(test())

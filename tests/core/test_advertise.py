"""The URLs that a proxy advertises by itself."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from esp.core.advertise import faults, urls_of
from esp.core.config import Listen


@pytest.mark.parametrize(
    ("bound", "urls"),
    [
        ([("127.0.0.1", 2379)], ("http://127.0.0.1:2379",)),
        ([("127.0.0.1", 1), ("::1", 2)], ("http://127.0.0.1:1", "http://[::1]:2")),
        ([("10.0.0.5", 2379), ("127.0.0.1", 2379)], ("http://10.0.0.5:2379",)),
        ([("fd00::1", 2379)], ("http://[fd00::1]:2379",)),
        ([("0.0.0.0", 2379)], ()),
        ([("::", 2379), ("127.0.0.1", 2380)], ()),
        ([("0.0.0.0", 2379), ("10.0.0.5", 2380)], ("http://10.0.0.5:2380",)),
        ([], ()),
    ],
)
def test_urls_are_those_at_which_clients_of_other_machines_arrive(
    bound: list[tuple[str, int]], urls: tuple[str, ...]
) -> None:
    assert urls_of([Listen(*one) for one in bound]) == urls


def test_urls_have_https_where_clients_need_it_and_unix_sockets_count_without_anything_else() -> None:
    sock = Listen("", 0, path=Path("/run/esp.sock"))
    assert urls_of([Listen("10.0.0.5", 1, tls=True), Listen("10.0.0.5", 2), sock]) == (
        "https://10.0.0.5:1",
        "http://10.0.0.5:2",
    )
    assert urls_of([sock]) == ("unix:/run/esp.sock",)
    assert urls_of([sock, Listen("::", 1)]) == ()


def test_a_url_that_is_answered_is_no_fault_and_one_that_is_not_is_told_with_the_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        assert asyncio.run(faults([url], [Listen("127.0.0.1", port)])) == []
        [fault] = asyncio.run(faults([url], [Listen("0.0.0.0", port)]))
        assert fault == (
            f"advertise URL {url} leads clients on other machines to themselves; write a name or address that they know"
        )
    [fault] = asyncio.run(faults([url], [Listen("127.0.0.1", port)]))
    assert fault.startswith(f"advertise URL {url} cannot be reached from here: ")
    assert fault.endswith("; correct it, or the way to it")


def test_nothing_to_advertise_is_told_with_the_cure() -> None:
    [fault] = asyncio.run(faults([], [("0.0.0.0", 2379)]))
    assert fault.endswith("write advertise: [http://HOST:PORT]")

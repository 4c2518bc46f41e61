"""Host names of shards at the start, with a name server that the test plays."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from esp.core import config, names
from esp.core.config import Config, ConfigError

KNOWN = [(socket.AF_INET, 1, 6, "", ("192.0.2.1", 0))]


class NameServer:
    """Answers as `answers` says: addresses, or the number of an error; a name that is not there does not exist."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: None, **_: Any) -> Any:
        self.asked.append(host)
        answer = self.answers.get(host, socket.EAI_NONAME)
        if isinstance(answer, int):
            raise socket.gaierror(answer, "it fails")
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    return server


def config_of(folder: Path, first: str, second: str) -> Config:
    path = folder / "esp.yaml"
    path.write_text(
        f"shards:\n- {{name: a, endpoints: [{first}], ranges: [{{start: '', end: m}}]}}\n"
        f"- {{name: b, endpoints: [{second}], ranges: [{{start: m, end: ''}}]}}\n"
    )
    return config.load(path)


def check(found: Config) -> None:
    asyncio.run(names.check(found, 20))


def faults(found: Config) -> list[str]:
    async def all_of_them() -> list[str]:
        return [f"{where}{shard}: {fault}" async for where, shard, fault in names.faults(found, 20)]

    return asyncio.run(all_of_them())


def test_a_config_without_any_name_that_exists_is_refused_with_its_first_line(
    server: NameServer, tmp_path: Path
) -> None:
    found = config_of(tmp_path, "one:1, two:1", "one:2")
    with pytest.raises(ConfigError) as refused:
        check(found)
    assert str(refused.value) == (
        f'{tmp_path}/esp.yaml:2: no endpoint of any shard can be used, the first is of shard "a": '
        'the host name "one" is not known; correct it or use an address'
    )
    assert server.asked == ["one", "two"], "each once"


@pytest.mark.parametrize("answer", [KNOWN, socket.EAI_AGAIN])
def test_one_name_that_exists_or_may_exist_is_enough(server: NameServer, tmp_path: Path, answer: object) -> None:
    """Name servers may be away while a machine starts."""
    server.answers["two"] = answer
    check(config_of(tmp_path, "one:1", "two:1, three:1"))
    assert server.asked == ["one", "two"]


def test_where_there_is_an_address_nothing_is_looked_up(server: NameServer, tmp_path: Path) -> None:
    found = config_of(tmp_path, "one:1", "two:1, 192.0.2.1:1")
    assert names.has_address(found)
    check(found)
    assert server.asked == []


def test_each_name_that_is_not_known_is_told_once_with_its_line(server: NameServer, tmp_path: Path) -> None:
    server.answers = {"two": KNOWN, "three": socket.EAI_AGAIN}
    path = tmp_path / "esp.yaml"
    assert faults(config_of(tmp_path, "one:1, two:1", "three:1, one:2, 192.0.2.1:1")) == [
        f'{path}:2: a: the host name "one" is not known; correct it or use an address',
        f'{path}:3: b: the host name "three" cannot be looked up: it fails; '
        "look at /etc/resolv.conf, or use an address",
    ]

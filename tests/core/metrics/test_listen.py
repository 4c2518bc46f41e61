"""Addresses that have only pages, beside those of clients."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from esp.core import config as configs
from esp.core.config import ConfigError
from esp.core.proxy import Proxy

ONE = "shards: [{name: a, endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\n"


def parse(text: str) -> configs.Config:
    return configs.parse(ONE + text, Path("esp.yaml"))


def status_of(address: object, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_pages_are_where_the_config_says() -> None:
    config = parse(
        "listen: ['http://127.0.0.1:0']\nmetrics_listen: ['http://127.0.0.1:0']\nmetrics_for_clients: false\n"
    )

    async def main() -> list[int]:
        async with Proxy(config) as proxy:
            [client], [pages] = proxy.bound, proxy.metrics_bound
            asked = [(client, "/metrics"), (client, "/livez"), (pages, "/metrics"), (pages, "/livez"), (pages, "/v3/x")]
            found = [await asyncio.to_thread(status_of, *one) for one in asked]
            assert proxy.advertised() == (str(client),)
            return found

    assert asyncio.run(main()) == [404, 200, 200, 200, 404]


def test_an_address_of_both_kinds_is_two_sockets_and_one_of_a_shard_is_refused() -> None:
    config = parse("metrics_listen: ['http://127.0.0.1:9090', 'http://[::1]:0']")
    assert [listen.only_pages for listen in config.all_listen] == [False, True, True]
    assert configs.check_no_loop(config) is None
    with pytest.raises(ConfigError, match="is where esp itself listens"):
        configs.check_no_loop(parse("metrics_listen: ['http://127.0.0.1:1']"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("metrics_listen: ['127.0.0.1:9090']", "http://127.0.0.1:9090"),
        ("metrics_listen: ['http://127.0.0.1:2379']", "listen URL http://127.0.0.1:2379 is listed twice; remove one"),
        ("metrics_listen: ['http://a:1', 'http://a:1']", "listen URL http://a:1 is listed twice; remove one"),
        ("metrics_listen: ['https://a:1']", "tls"),
    ],
)
def test_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        configs.check_certificates(parse(text))

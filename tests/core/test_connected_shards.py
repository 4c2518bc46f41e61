"""How long commands wait for shards."""

from __future__ import annotations

import asyncio

import pytest

from esp.core import config as configs
from esp.core import connected_shards
from esp.core.connected_shards import UnreachableError, connected
from esp.core.local import LocalEtcd


async def names(text: str) -> list[str]:
    async with connected(configs.parse(text, None)) as shards:
        return list(shards)


def test_a_config_can_have_commands_wait_longer(etcd: LocalEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be so busy that a shard does not answer within the seconds that are usual."""
    shard = f"{{name: a, endpoints: ['{etcd.endpoint}'], ranges: [{{prefix: ''}}]}}"
    text = f"shards: [{shard}]\nlimits: {{connect_timeout: %s}}"
    monkeypatch.setattr(connected_shards, "CONNECT_SECONDS", 0)
    assert asyncio.run(names(text % 30)) == ["a"]
    with pytest.raises(UnreachableError, match='shard "a" cannot be reached'):
        asyncio.run(names(text.replace(str(etcd.client_port), "1") % 0.2))

"""The refusals of RPCs that concern one cluster: a command for each shard, and no longer than a client takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from esp.core.config import Endpoint
from esp.core.services.elsewhere import COMMANDS, refusals

SNAPSHOT = b"/etcdserverpb.Maintenance/Snapshot"
HASH = b"/etcdserverpb.Maintenance/HashKV"


def shards(count: int, members: int = 1) -> Any:
    """As much of a layout's shards as a refusal looks at."""
    return {
        f"s{number}": SimpleNamespace(
            name=f"s{number}", endpoints=[Endpoint(f"etcd-{number}-{member}", 2379) for member in range(members)]
        )
        for number in range(count)
    }


def test_the_command_names_every_member_where_it_takes_several() -> None:
    handlers = refusals(shards(1, members=3), {})
    all_three = "etcdctl --endpoints=http://etcd-0-0:2379,http://etcd-0-1:2379,http://etcd-0-2:2379 endpoint hashkv"
    assert all_three in handlers[HASH].status.message
    assert "etcdctl --endpoints=http://etcd-0-0:2379 snapshot save FILE (shard s0)" in handlers[SNAPSHOT].status.message


@pytest.mark.parametrize("count", [2, 16, 300])
@pytest.mark.parametrize("members", [1, 3, 40])
def test_the_text_stays_short_however_many_shards_there_are(count: int, members: int) -> None:
    for path, handler in refusals(shards(count, members), {HASH: "do without"}).items():
        text = handler.status.message
        assert len(text) < 1500
        shown = text.count("(shard s")
        assert shown
        assert shown == count or "; and so on for " in text
        assert f"; where esp's config is: esp exec SHARD -- etcdctl {COMMANDS[path]}; or name" in text
        assert text.endswith("; or name a shard in the metadata key esp-shard, or do without") == (path == HASH)


def test_each_has_a_command() -> None:
    assert set(refusals(shards(2), {})) == set(COMMANDS)

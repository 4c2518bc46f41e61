"""etcdctl over three shards, where its output is not as at one etcd; test_etcdctl_matrix.py has the rest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any, cast

import pytest

from esp.core.local import LocalEtcd
from tests.harness import EspProcess

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _empty(empty_shards: list[LocalEtcd]) -> None:
    pass


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stdout.splitlines()


def put_all(etcdctl: Etcdctl, esp: EspProcess, **pairs: str) -> None:
    for key, value in pairs.items():
        assert etcdctl(esp, "put", key, value).stdout == "OK\n"


def test_three_keys_are_shown_as_one_and_each_is_on_its_own_shard(
    esp: EspProcess, shards: list[LocalEtcd], etcdctl: Etcdctl
) -> None:
    put_all(etcdctl, esp, a="1", j="2", z="3")
    assert lines(etcdctl(esp, "get", "", "--from-key")) == ["a", "1", "j", "2", "z", "3"]
    alone = [lines(etcdctl(shard, "get", "", "--from-key")) for shard in shards]
    assert alone == [["a", "1"], ["j", "2"], ["z", "3"]]


def test_every_byte_that_a_shell_can_give_is_a_key(esp: EspProcess, etcdctl: Etcdctl) -> None:
    keys = ["\u00e9", "i\udc80", "~", "\udcff\udcff"]
    for key in keys:
        etcdctl(esp, "put", key, "here")
        assert etcdctl(esp, "get", key).stdout == f"{key}\nhere\n"
    assert lines(etcdctl(esp, "get", "", "--from-key", "--keys-only"))[::2] == sorted(
        keys, key=lambda key: key.encode("utf-8", "surrogateescape")
    )


def test_endpoint_status_speaks_for_all_shards(esp: EspProcess, shards: list[LocalEtcd], etcdctl: Etcdctl) -> None:
    put_all(etcdctl, esp, a="1", j="2", z="3")

    def status(server: EspProcess | LocalEtcd) -> dict[str, Any]:
        (told,) = json.loads(etcdctl(server, "endpoint", "status", "-w", "json").stdout)
        return cast("dict[str, Any]", told["Status"])

    alone = [status(shard) for shard in shards]
    whole = status(esp)
    assert whole["dbSize"] == sum(each["dbSize"] for each in alone)
    assert whole["version"] == min(each["version"] for each in alone)
    assert whole["leader"] == whole["header"]["member_id"]
    assert not whole.get("errors")
    token = whole["header"]["revision"]
    put_all(etcdctl, esp, a="2", z="4")
    assert lines(etcdctl(esp, "get", "", "--from-key", f"--rev={token}")) == ["a", "1", "j", "2", "z", "3"]
    table = etcdctl(esp, "endpoint", "status", "-w", "table").stdout
    assert "true" in table


def test_a_list_is_read_and_compacted_at_the_revision_that_was_told(esp: EspProcess, etcdctl: Etcdctl) -> None:
    put_all(etcdctl, esp, a="1", j="2", z="3")
    token = json.loads(etcdctl(esp, "get", "", "--from-key", "-w", "json").stdout)["header"]["revision"]
    put_all(etcdctl, esp, a="x", j="x", z="x")
    at = f"--rev={token}"
    assert lines(etcdctl(esp, "get", "", "--from-key", "--limit=2", at)) == ["a", "1", "j", "2"]
    assert lines(etcdctl(esp, "get", "z", at)) == ["z", "3"]
    new = json.loads(etcdctl(esp, "get", "", "--from-key", "-w", "json").stdout)["header"]["revision"]
    assert lines(etcdctl(esp, "compact", str(new))) == [f"compacted revision {new}"]
    done = etcdctl(esp, "get", "", "--from-key", at, check=False)
    assert "etcdserver: mvcc: required revision has been compacted" in done.stderr
    refused = etcdctl(esp, "compact", "5", check=False)
    assert "esp: a compaction spans the shards s0, s1, s2" in refused.stderr

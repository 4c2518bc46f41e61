"""etcdctl over three shards, where its output is not as at one etcd; test_etcdctl_matrix.py has the rest."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

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

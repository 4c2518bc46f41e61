"""A newcomer's first steps with etcdctl, through esp over three shards: below "i", from "i", from "r"."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import product
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


def test_a_txn_inside_one_shard_runs(esp: EspProcess, etcdctl: Etcdctl) -> None:
    put_all(etcdctl, esp, j="2")
    swap = 'value("j") = "2"\n\nput j 20\nget k\n\nget j\n\n'
    assert lines(etcdctl(esp, "txn", text=swap))[:3] == ["SUCCESS", "", "OK"]
    assert lines(etcdctl(esp, "txn", text=swap)) == ["FAILURE", "", "j", "20"]


def test_a_txn_over_two_shards_is_refused_and_changes_nothing(esp: EspProcess, etcdctl: Etcdctl) -> None:
    done = etcdctl(esp, "txn", text="\nput a 1\nput z 3\n\n\n", check=False)
    assert done.returncode != 0
    assert "code = FailedPrecondition desc = esp: " in done.stderr
    assert etcdctl(esp, "get", "", "--from-key").stdout == ""


def test_del_prefix_deletes_on_every_shard_and_only_the_prefix(esp: EspProcess, etcdctl: Etcdctl) -> None:
    put_all(etcdctl, esp, h1="", i1="", i2="", j1="")
    assert lines(etcdctl(esp, "del", "i", "--prefix")) == ["2"]
    assert lines(etcdctl(esp, "get", "", "--from-key", "--keys-only"))[::2] == ["h1", "j1"]
    assert lines(etcdctl(esp, "del", "", "--from-key", "--prev-kv")) == ["2", "h1", "", "j1", ""]
    assert etcdctl(esp, "get", "", "--from-key").stdout == ""


def test_compaction_with_a_shards_own_revision_is_refused(esp: EspProcess, etcdctl: Etcdctl) -> None:
    put_all(etcdctl, esp, a="1")
    done = etcdctl(esp, "compaction", "2", check=False)
    assert done.returncode != 0
    assert "code = FailedPrecondition desc = esp: " in done.stderr


def test_get_at_a_revision_works_in_one_shard_and_is_refused_over_several(
    esp: EspProcess, shards: list[LocalEtcd], etcdctl: Etcdctl
) -> None:
    put_all(etcdctl, esp, j="old")
    # -w fields prints the revision as etcd wrote it: `"ModRevision" : 12`.
    field = next(
        line for line in lines(etcdctl(shards[1], "get", "j", "-w", "fields")) if line.startswith('"ModRevision"')
    )
    revision = field.rpartition(" ")[2]
    put_all(etcdctl, esp, j="new")
    assert lines(etcdctl(esp, "get", "j", "--rev", revision)) == ["j", "old"]
    assert lines(etcdctl(esp, "get", "j", "k", "--rev", revision)) == ["j", "old"]
    assert lines(etcdctl(esp, "get", "j")) == ["j", "new"]
    refused = etcdctl(esp, "get", "a", "z", "--rev", revision, check=False)
    assert refused.returncode != 0
    assert "code = FailedPrecondition desc = esp: " in refused.stderr


def test_sorting_is_as_of_one_etcd(esp: EspProcess, empty_etcd: LocalEtcd, etcdctl: Etcdctl) -> None:
    for server in (esp, empty_etcd):
        etcdctl(server, "put", "a", "z")
        for value in ("-", "m"):
            etcdctl(server, "put", "j", value)
        for value in ("-", "-", "a"):
            etcdctl(server, "put", "z", value)
    more = ([], ["--limit=2"], ["--keys-only"], ["--limit=1", "--keys-only"])
    for order, target, options in product(("ASCEND", "DESCEND"), ("KEY", "VERSION", "VALUE"), more):
        question = ["get", "", "--from-key", f"--order={order}", f"--sort-by={target}", *options]
        assert etcdctl(esp, *question).stdout == etcdctl(empty_etcd, *question).stdout, question


@pytest.mark.parametrize("target", ["CREATE", "MODIFY"])
def test_sorting_by_revisions_of_different_shards_is_refused(esp: EspProcess, etcdctl: Etcdctl, target: str) -> None:
    put_all(etcdctl, esp, a="1", z="3")
    done = etcdctl(esp, "get", "", "--from-key", "--order=ASCEND", f"--sort-by={target}", check=False)
    assert done.returncode != 0
    assert "code = FailedPrecondition desc = esp: " in done.stderr
    assert lines(etcdctl(esp, "get", "r", "--from-key", "--order=ASCEND", f"--sort-by={target}")) == ["z", "3"]


def test_count_only_counts_all_shards(esp: EspProcess, etcdctl: Etcdctl) -> None:
    put_all(etcdctl, esp, a="1", b="1", j="2", z="3")
    counted = etcdctl(esp, "get", "", "--from-key", "--count-only", "-w", "fields")
    assert '"Count" : 4' in lines(counted)


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

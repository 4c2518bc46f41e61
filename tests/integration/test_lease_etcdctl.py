"""Leases with etcdctl, through esp over three shards."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from typing import Self

import pytest

from esp.core.local import LocalEtcd
from tests.harness import EspProcess, Server, program, wait_until

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _empty(empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd) -> None:
    pass


def grant(etcdctl: Etcdctl, server: Server, ttl: int = 60) -> str:
    out = etcdctl(server, "lease", "grant", str(ttl)).stdout
    match = re.fullmatch(r"lease ([0-9a-f]{16}) granted with TTL\((\d+)s\)\n", out)
    assert match is not None, out
    assert int(match[2]) == ttl
    return match[1]


def test_keep_alive_goes_on_until_the_lease_is_gone(esp: EspProcess, shards: list[LocalEtcd], etcdctl: Etcdctl) -> None:
    lease = grant(etcdctl, esp, 2)
    with subprocess.Popen(
        [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", esp.address, "lease", "keep-alive", lease],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = f"lease {lease} keepalived with TTL(2)\n"
        assert [process.stdout.readline() for _ in range(5)] == [line] * 5
        etcdctl(esp, "lease", "revoke", lease)
        *more, last = process.stdout.read().splitlines(keepends=True)
        assert set(more) <= {line}
        assert last == f"lease {lease} expired or revoked.\n"
        assert process.wait(60) == 0


class Background:
    """An etcdctl that runs until it is told to stop; what it prints is read line by line."""

    def __init__(self, server: Server, *arguments: str) -> None:
        command = [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", server.address, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ends(self, sig: signal.Signals) -> int:
        self.process.send_signal(sig)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def keys_of(etcdctl: Etcdctl, server: Server, name: str) -> list[str]:
    return etcdctl(server, "get", "--prefix", f"{name}/", "--keys-only").stdout.split()


@pytest.mark.parametrize("name", ["a", "job", "z"])
class TestLock:
    """Whichever shard owns the name: its keys lie under it, so in one shard, and its lease on all."""

    def test_one_has_it_at_a_time_and_lets_it_go_at_the_end(self, esp: EspProcess, etcdctl: Etcdctl, name: str) -> None:
        with Background(esp, "lock", name) as first:
            assert first.line().startswith(f"{name}/")
            with Background(esp, "lock", name) as second:
                # The second is in the queue once its key is there.
                wait_until(lambda: len(keys_of(etcdctl, esp, name)) == 2)
                assert first.ends(signal.SIGINT) == 0
                assert second.line().startswith(f"{name}/")
                assert second.ends(signal.SIGINT) == 0
        assert etcdctl(esp, "get", "--prefix", f"{name}/").stdout == ""

    def test_the_next_has_it_when_the_lease_of_a_killed_one_has_ended(
        self, esp: EspProcess, etcdctl: Etcdctl, name: str
    ) -> None:
        with Background(esp, "lock", "--ttl", "2", name) as first:
            lines = [first.line()]
            with Background(esp, "lock", name) as second:
                first.ends(signal.SIGKILL)
                lines.append(second.line())
                assert lines[0] != lines[1]
                assert second.ends(signal.SIGINT) == 0

    def test_a_command_runs_under_it_and_its_exit_code_is_that_of_etcdctl(
        self, esp: EspProcess, etcdctl: Etcdctl, name: str
    ) -> None:
        done = etcdctl(esp, "lock", name, "--", "sh", "-c", "echo $ETCD_LOCK_KEY; exit 3", check=False)
        assert done.returncode == 3
        assert done.stdout.startswith(f"{name}/")

    def test_an_election_has_one_leader_at_a_time_and_is_seen_by_all(
        self, esp: EspProcess, etcdctl: Etcdctl, name: str
    ) -> None:
        with Background(esp, "elect", name, "one") as first:
            assert [first.line().startswith(f"{name}/"), first.line()] == [True, "one"]
            with Background(esp, "elect", "--listen", name) as listener:
                assert [listener.line().startswith(f"{name}/"), listener.line()] == [True, "one"]
                with Background(esp, "elect", name, "two") as second:
                    wait_until(lambda: len(keys_of(etcdctl, esp, name)) == 2)
                    first.ends(signal.SIGINT)
                    assert [second.line().startswith(f"{name}/"), second.line()] == [True, "two"]
                    assert [listener.line().startswith(f"{name}/"), listener.line()] == [True, "two"]
                    second.ends(signal.SIGINT)

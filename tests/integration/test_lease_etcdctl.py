"""What etcdctl does with leases, through esp over three shards."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from esp.core.local import LocalEtcd
from tests.harness import EspProcess, Server, program

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


def test_a_lease_from_its_grant_to_its_end_reads_as_on_one_etcd(
    esp: EspProcess, etcd: LocalEtcd, etcdctl: Etcdctl
) -> None:
    said = []
    for server in (esp, etcd):
        lease = grant(etcdctl, server)
        for key in ("a", "j", "z"):
            etcdctl(server, "put", key, "1", f"--lease={lease}")
        lines = [
            etcdctl(server, "lease", "list").stdout,
            etcdctl(server, "lease", "keep-alive", "--once", lease).stdout,
            etcdctl(server, "lease", "timetolive", lease).stdout,
            etcdctl(server, "lease", "timetolive", lease, "--keys").stdout,
            etcdctl(server, "get", "", "--from-key").stdout,
            etcdctl(server, "lease", "revoke", lease).stdout,
            etcdctl(server, "get", "", "--from-key").stdout,
            etcdctl(server, "lease", "timetolive", lease).stdout,
            etcdctl(server, "lease", "list").stdout,
        ]
        text = "".join(lines).replace(lease, "LEASE")
        text = re.sub(r"remaining\(\d+s\)", "remaining", text)
        said.append(re.sub(r"keys\(\[(.*)\]\)", lambda match: str(sorted(match[1].split())), text))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "command",
    [
        ["lease", "revoke", "1234"],
        ["lease", "keep-alive", "--once", "1234"],
        ["lease", "keep-alive", "1234"],
        ["lease", "timetolive", "1234", "--keys"],
        ["lease", "grant", "9000000001"],
        ["put", "j", "1", "--lease=1234"],
    ],
    ids=" ".join,
)
def test_what_goes_wrong_reads_as_on_one_etcd(
    esp: EspProcess, etcd: LocalEtcd, etcdctl: Etcdctl, command: list[str]
) -> None:
    mine, right = (etcdctl(server, *command, check=False) for server in (esp, etcd))
    assert (mine.returncode, mine.stdout) == (right.returncode, right.stdout)
    assert _error(mine.stderr) == _error(right.stderr)


def _error(stderr: str) -> str:
    """What the server said, without the client's log lines."""
    return stderr.splitlines()[-1].partition('"error":')[2] if '"error":' in stderr else stderr


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

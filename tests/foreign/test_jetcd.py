"""jetcd, the Java client of etcd, through esp over three shards."""

from __future__ import annotations

import subprocess

from esp.core.local import LocalEtcd
from tests.harness import EspProcess, Server, foreign

KEYS = ("a", "b", "j", "k", "s", "t")


def jetcd(server: Server) -> list[str]:
    java = foreign("java")
    done = subprocess.run(
        ["java", "-cp", f"{java}/classes:{java}/lib/*", "Jetcd", f"http://{server.address}", *KEYS],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_is_told_what_one_etcd_tells(empty_etcd: LocalEtcd, esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    across = jetcd(esp)
    rows = [f"{key} value of {key}" for key in KEYS]
    assert across == ["count 6 more false", *rows, "again 6", "counted 6", "deleted 6"]
    assert across == jetcd(empty_etcd)

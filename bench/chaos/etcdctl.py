"""etcdctl against members of a shard: how an operator works on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.chaos.accounts import APP, ESP, READER, ROOT
from bench.chaos.member import Member
from bench.chaos.registers import PREFIXES
from bench.etcd import etcd_binary
from bench.processes import BenchError


def etcdctl_binary() -> Path:
    """The etcdctl beside the etcd, else the one on PATH.

    Raises:
        BenchError: there is none.
    """
    beside = etcd_binary().with_name("etcdctl")
    found = beside if beside.exists() else shutil.which("etcdctl")
    if found is None:
        raise BenchError("etcdctl missing: put one on PATH, or beside the etcd")
    return Path(found)


def etcdctl(members: Sequence[Member], *command: str, user: bool = True, seconds: int = 10, text: str = "") -> bool:
    """Runs etcdctl against members of a shard; whether it succeeded."""
    return bool(ask_etcdctl(members, *command, user=user, seconds=seconds, text=text)[0])


def ask_etcdctl(
    members: Sequence[Member], *command: str, user: bool = True, seconds: int = 10, text: str = ""
) -> tuple[bool, str]:
    """Runs etcdctl against members of a shard; whether it succeeded, and its output."""
    account = ["--user", f"{ROOT.name}:{ROOT.password}"] if user else []
    endpoints = ",".join(member.endpoint for member in members)
    done = subprocess.run(
        [
            str(etcdctl_binary()),
            f"--endpoints={endpoints}",
            f"--cacert={members[0].certificates.ca}",
            f"--command-timeout={seconds}s",
            *account,
            *command,
        ],
        capture_output=True,
        text=True,
        input=text,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    return done.returncode == 0, done.stdout


def add_users(members: Sequence[Member]) -> None:
    """Adds the users, gives them their roles, and switches auth on.

    Raises:
        BenchError: the shard refuses a step.
    """
    first = PREFIXES[0].decode()
    steps = [
        ("user", "add", f"{ROOT.name}:{ROOT.password}"),
        ("user", "grant-role", ROOT.name, "root"),
        ("user", "add", f"{ESP.name}:{ESP.password}"),
        ("user", "grant-role", ESP.name, "root"),
        ("role", "add", "app"),
        ("role", "grant-permission", "app", "readwrite", "--prefix", ""),
        ("user", "add", f"{APP.name}:{APP.password}"),
        ("user", "grant-role", APP.name, "app"),
        ("role", "add", "reader"),
        ("role", "grant-permission", "reader", "read", "--prefix", first),
        ("user", "add", f"{READER.name}:{READER.password}"),
        ("user", "grant-role", READER.name, "reader"),
        ("auth", "enable"),
    ]
    for step in steps:
        if not etcdctl(members, *step, user=False):
            raise BenchError(f"etcdctl {' '.join(step)} fails on {members[0].name}")

"""The same etcds without esp, behind esp as one shard, and behind esp as three, to compare what clients see."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import CACHE, Server, connect, etcd_of, running_esps, running_etcds, wipe
from tests.stubs import rpc_pb2_grpc

KEYS: Final = {"a": "1", "b": "2", "j": "3", "z": "4"}
"""The keys of an empty rig: two in the first shard, one in each of the others."""
MIXED: Final = "mixed"
"""An upgrade that goes from shard to shard. The judge has the lowest version, which is what esp says of the whole."""
_MIX: Final = ("3.4", "3.5", "3.7")
BOUNDARIES: Final = ["i/m", "r"]
"""Between the shards. The first divides the keys under `i/`."""


class Rig(NamedTuple):
    """Etcds of one version, and what stands in front of them.

    Attributes:
        version: that of the etcds, such as 3.4.23, or `MIXED`.
        judge: an etcd to which clients speak without esp.
        one: esp in front of `shard`.
        several: esp in front of `shards`.
    """

    version: str
    judge: LocalEtcd
    shard: LocalEtcd
    shards: list[LocalEtcd]
    one: Server
    several: Server


class Rigs:
    """Starts a rig of each version when it is asked for, in place of the one before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = ""
        self._running = contextlib.ExitStack()
        self._rig: Rig | None = None

    def __call__(self, version: str) -> Rig:
        """The rig of an etcd that `etcd_of` knows, reset. In `MIXED` each of the three shards has another version."""
        if self._rig is None or version != self._version:
            self.close()
            first, *others = _MIX if version == MIXED else [version] * 3
            binary = etcd_of(first)
            folder = self._folder / version
            folder.mkdir()
            etcds = self._running.enter_context(running_etcds(folder, binary))
            esps = self._running.enter_context(running_esps(folder, binary))
            cheap = "--bcrypt-cost=4"
            judge, shard, *shards = etcds.several(3, cheap)
            shards += [etcds(cheap, binary=etcd_of(other)) for other in others]
            name = MIXED if version == MIXED else version_of(binary)
            self._rig = Rig(name, judge, shard, shards, esps([shard]), esps(shards, BOUNDARIES))
            self._version = version
        reset(self._rig)
        return self._rig

    def close(self) -> None:
        """Stops the rig that runs; each esp must end well."""
        self._rig = None
        self._running.close()


def write_record(name: str, record: object) -> None:
    """Leaves for scripts/compatibility what a run has seen."""
    file = CACHE / "compatibility" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")


def version_of(program: Path) -> str:
    """The version of an etcd or an etcdctl, such as 3.4.23."""
    flag = "--version" if "etcdctl" not in program.name else "version"
    told = subprocess.run([program, flag], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version: (\S+)", told, re.IGNORECASE)
    assert found, told
    return found[1]


def reset(rig: Rig) -> None:
    """Leaves `KEYS` everywhere, and no lease, user or role."""
    for etcd in (rig.judge, rig.shard, *rig.shards):
        _end_accounts(etcd)
        wipe(etcd)
    for server in (rig.judge, rig.one, rig.several):
        with connect(server) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            for key, value in KEYS.items():
                kv.Put(rpc_pb2.PutRequest(key=key.encode(), value=value.encode()), timeout=30)


def _end_accounts(etcd: LocalEtcd) -> None:
    """Ends auth, if root's password is `pw`."""
    with connect(etcd) as channel:
        auth = rpc_pb2_grpc.AuthStub(channel)
        try:
            users = auth.UserList(rpc_pb2.AuthUserListRequest(), timeout=30).users
        except grpc.RpcError:  # nobody may ask without a token
            token = auth.Authenticate(rpc_pb2.AuthenticateRequest(name="root", password="pw"), timeout=30).token
            auth.AuthDisable(rpc_pb2.AuthDisableRequest(), timeout=30, metadata=[("token", token)])
            users = auth.UserList(rpc_pb2.AuthUserListRequest(), timeout=30).users
        for user in users:
            auth.UserDelete(rpc_pb2.AuthUserDeleteRequest(name=user), timeout=30)
        for role in auth.RoleList(rpc_pb2.AuthRoleListRequest(), timeout=30).roles:
            auth.RoleDelete(rpc_pb2.AuthRoleDeleteRequest(role=role), timeout=30)

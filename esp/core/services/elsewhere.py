"""RPCs that concern one etcd cluster. Over several shards esp refuses them, and names the commands for each shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from esp.core.services.metadata import SHARD
from esp.core.shard import Shard
from esp.core.wire.server_stream import Refuse
from esp.core.wire.status import Code, Status
from esp.core.wording import counted, shard_called

_CLUSTER: Final = "/etcdserverpb.Cluster/"
_MAINTENANCE: Final = "/etcdserverpb.Maintenance/"
COMMANDS: Final[dict[bytes, str]] = {
    path.encode(): command
    for path, command in (
        (_CLUSTER + "MemberAdd", "member add NAME --peer-urls=URL"),
        (_CLUSTER + "MemberRemove", "member remove ID"),
        (_CLUSTER + "MemberUpdate", "member update ID --peer-urls=URL"),
        (_CLUSTER + "MemberPromote", "member promote ID"),
        (_MAINTENANCE + "Defragment", "defrag"),
        (_MAINTENANCE + "Hash", "endpoint hashkv"),
        (_MAINTENANCE + "HashKV", "endpoint hashkv"),
        (_MAINTENANCE + "Snapshot", "snapshot save FILE"),
        (_MAINTENANCE + "MoveLeader", "move-leader ID"),
        (_MAINTENANCE + "Downgrade", "downgrade ACTION VERSION"),
    )
}
"""The arguments with which etcdctl makes the call, by path."""

_ONE_ENDPOINT: Final = frozenset((b"/etcdserverpb.Maintenance/Snapshot",))
"""RPCs for which etcdctl takes only one endpoint."""
_ENDPOINTS_SHOWN: Final = 5
_MOST_CHARACTERS: Final = 1200
"""The most characters of a text: clients take only some kilobytes of metadata in an answer."""


def refusals(shards: Mapping[str, Shard], cures: Mapping[bytes, str]) -> dict[bytes, Refuse]:
    """The handler of each RPC in `COMMANDS`, by path.

    Args:
        shards: the shards of the layout, by name.
        cures: the config that makes esp serve the RPC, by path.
    """
    return {path: Refuse(_refusal(path, shards.values(), cures.get(path, ""))) for path in COMMANDS}


def _refusal(path: bytes, shards: Iterable[Shard], cure: str) -> Status:
    names = f"name a shard in the metadata key {SHARD.decode()}"
    ends = f"; where esp's config is: esp exec SHARD -- etcdctl {COMMANDS[path]}; or {names}"
    ends += f", or {cure}" if cure else ""
    method = path.rpartition(b"/")[2].decode()
    text = f"esp: {method} concerns one etcd cluster, and this proxy stands for several; run it on a shard itself: "
    commands = [_command(path, shard) for shard in shards]
    shown: list[str] = []
    while commands and len(text) + sum(map(len, shown)) + len(commands[0]) < _MOST_CHARACTERS:
        shown.append(commands.pop(0))
    if commands:
        shown.append(f"and so on for {counted(len(commands), 'more shard')}")
    return Status(Code.UNIMPLEMENTED, text + "; ".join(shown) + ends)


def _command(path: bytes, shard: Shard) -> str:
    endpoints = shard.endpoints[: 1 if path in _ONE_ENDPOINT else _ENDPOINTS_SHOWN]
    return f"etcdctl --endpoints={','.join(map(str, endpoints))} {COMMANDS[path]} ({shard_called(shard.name)})"

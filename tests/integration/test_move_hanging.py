"""A mover that is gone between the cut and the opening: a proxy gives the move up, and calls that waited are served."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from esp.core.pb import rpc_pb2
from esp.core.shard import TXN, ask_for_esp
from esp.core.shared_map import GUARD_KEY, MAP_KEY, Next, Phase, cutting, decode, go_over
from tests.harness import Esps, Etcds, connect, wait_until
from tests.integration.mapped import Mapped
from tests.integration.test_move import RANGE, decided, put, reached, write
from tests.stubs import rpc_pb2_grpc


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["i", "r"], tmp_path / "esp.yaml")


async def cut(mapped: Mapped) -> Next:
    """A move whose source is cut, and whose mover is gone."""
    async with reached(mapped) as shards:
        change = await decided(mapped, shards, RANGE, "s2", pause=300)
        assert change.move is not None
        to = change.with_move(replace(change.move, phase=Phase.CUT))
        await go_over(shards["s0"], change, to)
        assert (await ask_for_esp(shards["s0"], TXN, cutting(to), seconds=20)).succeeded
        return to


def test_a_proxy_gives_up_a_move_whose_mover_is_gone(mapped: Mapped, start_esp: Esps) -> None:
    write(mapped, "s0", put(b"b1", b"1"))
    esp = start_esp.launch("-c", mapped.path, config=mapped.path)
    esp.wait_ready()
    change = asyncio.run(cut(mapped))
    assert mapped.read("s0", GUARD_KEY)[0][1].decode() == change.after.guards["s0"]
    wait_until(lambda: decode(mapped.read("s1", MAP_KEY)[0][1]).epoch == 3)
    for name in mapped.etcds:
        shared = decode(mapped.read(name, MAP_KEY)[0][1])
        assert (shared.epoch, shared.map.owner(b"b1")) == (3, "s0")
        assert mapped.read(name, GUARD_KEY)[0][1].decode() == shared.guards[name]
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        kv.Put(rpc_pb2.PutRequest(key=b"b1", value=b"2"), timeout=20, wait_for_ready=True)
    assert mapped.read("s0", b"b1") == [(b"b1", b"2")]
    wait_until(lambda: "nobody went on with that" in esp.log())

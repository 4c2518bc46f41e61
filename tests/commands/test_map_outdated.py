"""Commands that have read the map of the shards before it changed, or while keys move: they do no harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core import config as configs
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError
from esp.core.export import Existing, ExportError, Import
from esp.core.export.lines import FORMAT, Header, Trailer, header_line, trailer_line
from esp.core.health import How, MendError, mend
from esp.core.keys import KeyRange
from esp.core.lease_survey import LeaseOnShard, LeaseView, revoke_orphans
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.shared_map import (
    COPIES_KEY,
    GUARD_KEY,
    MAP_KEY,
    NEXT_KEY,
    Move,
    Next,
    Phase,
    SharedMap,
    decode,
    moved_to,
    served,
)
from tests.harness import connect, write_config
from tests.stubs import rpc_pb2_grpc


@pytest.fixture
def kvs(empty_shards: list[LocalEtcd]) -> Iterator[list[rpc_pb2_grpc.KVStub]]:
    channels = [connect(shard) for shard in empty_shards]
    yield [rpc_pb2_grpc.KVStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture
def config(tmp_path: Path, empty_shards: list[LocalEtcd]) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


def esp(config: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments, "-c", str(config)])
    return result.exit_code, result.stdout, result.stderr


def map_of(stub: rpc_pb2_grpc.KVStub) -> SharedMap:
    return decode(stub.Range(rpc_pb2.RangeRequest(key=MAP_KEY)).kvs[0].value)


@pytest.fixture
def stale(config: Path, kvs: list[rpc_pb2_grpc.KVStub]) -> Config:
    """The config of a command that has read the map before keys moved from the last shard to the first."""
    assert esp(config, "map", "init", "--yes")[0] == 0
    before = map_of(kvs[0])
    known = served(configs.load(config), before)
    keys = KeyRange(b"x/", b"x0")
    after = moved_to(before, keys, "s0", at="2026-11-30T16:00:00Z", by="tests", moves=())
    for name, stub in zip(after.names, kvs, strict=True):
        stub.Put(rpc_pb2.PutRequest(key=GUARD_KEY, value=after.guards[name].encode()))
        stub.Put(rpc_pb2.PutRequest(key=MAP_KEY, value=after.encode()))
    return known


def test_a_command_that_has_read_the_map_of_before_writes_and_deletes_nothing(
    stale: Config, kvs: list[rpc_pb2_grpc.KVStub], tmp_path: Path
) -> None:
    put = rpc_pb2.PutRequest
    kvs[0].Put(put(key=b"x/stray", value=b"v"))  # a stray by the map of before
    with pytest.raises(MendError, match="the map of the shards has changed meanwhile; what is done is done: run"):
        asyncio.run(mend(stale, How.DELETE, lambda *_: None, apply=True))
    assert kvs[0].Range(rpc_pb2.RangeRequest(key=b"x/stray")).count == 1
    file = tmp_path / "all.jsonl"
    file.write_bytes(exported(stale, [("x/1", "v")]))
    for existing in Existing:
        with file.open("rb") as source, pytest.raises(ExportError, match="the map of the shards has changed meanwhile"):
            asyncio.run(Import(stale, source, existing, lambda *_: None).run())
    assert kvs[2].Range(rpc_pb2.RangeRequest(key=b"x/1")).count == 0
    orphan = LeaseView(7, {"s0": None, "s1": None, "s2": LeaseOnShard(9, 9, 1)})
    with pytest.raises(UnreachableError, match="the map of the shards has changed meanwhile; what is done is done"):
        asyncio.run(revoke_orphans(stale, [orphan], 1, lambda *_: None))


def test_an_import_that_the_map_has_stopped_goes_on(
    stale: Config, config: Path, kvs: list[rpc_pb2_grpc.KVStub], tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    file.write_bytes(exported(stale, [("x/1", "v"), ("a", "v")]))
    with file.open("rb") as source, pytest.raises(ExportError):
        asyncio.run(Import(stale, source, Existing.RESUME, lambda *_: None).run())
    mapped = tmp_path / "mapped.yaml"
    mapped.write_text("map: shards\n" + config.read_text())
    code, out, err = esp(mapped, "import", str(file), "--resume")
    assert (code, "wrote" in out) == (0, True), err
    assert [stub.Range(rpc_pb2.RangeRequest(key=b"x/1")).count for stub in kvs] == [1, 0, 0]


def test_what_a_move_copies_and_leaves_is_no_stray_that_could_be_moved(
    config: Path, kvs: list[rpc_pb2_grpc.KVStub], tmp_path: Path
) -> None:
    assert esp(config, "map", "init", "--yes")[0] == 0
    mapped = tmp_path / "mapped.yaml"
    mapped.write_text("map: shards\n" + config.read_text())
    before, keys = map_of(kvs[0]), KeyRange(b"x/", b"x0")
    after = moved_to(before, keys, "s0", at="2026-11-30T16:00:00Z", by="tests", moves=())
    move = Move("0123456789ab", keys, "s2", "s0", Phase.COPY, "0" * 32, 1000)
    kvs[0].Put(rpc_pb2.PutRequest(key=NEXT_KEY, value=Next(before, after, move).encode()))
    kvs[2].Put(rpc_pb2.PutRequest(key=b"x/1", value=b"v"))
    kvs[0].Put(rpc_pb2.PutRequest(key=b"x/1", value=b"v"))  # a copy
    assert "stray" not in esp(mapped, "check", "--keys")[1]
    kvs[0].Put(rpc_pb2.PutRequest(key=b"y", value=b"v"))
    assert '1 stray key in ["x0", end), which shard s2 owns: "y"' in esp(mapped, "check", "--keys")[1]
    for how in ("move", "delete"):
        code, _, err = esp(mapped, "check", "--fix-strays", how, "--apply")
        assert (code, "no key is touched" in err, "is half done" in err) == (1, True, True), err
    kvs[0].DeleteRange(rpc_pb2.DeleteRangeRequest(key=NEXT_KEY))
    kvs[0].Put(rpc_pb2.PutRequest(key=COPIES_KEY, value=b"1"))
    code, _, err = esp(mapped, "check", "--fix-strays", "delete", "--apply")
    assert (code, "keys are being copied to shard s0 by esp move" in err) == (1, True), err
    kvs[0].DeleteRange(rpc_pb2.DeleteRangeRequest(key=COPIES_KEY))
    for name, stub in zip(after.names, kvs, strict=True):
        stub.Put(rpc_pb2.PutRequest(key=GUARD_KEY, value=after.guards[name].encode()))
        stub.Put(rpc_pb2.PutRequest(key=MAP_KEY, value=after.encode()))
    kvs[0].DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"x/1"))  # by a client, after the move
    assert "a move may have left them; esp check --fix-strays delete deletes them" not in esp(mapped, "check")[1]
    text = esp(mapped, "check", "--keys")[1]
    assert (
        '1 stray key in ["x/", "x0"), which shard s0 owns: "x/1"; no client sees them there; a move may have left'
        in text
    )
    code, out, err = esp(mapped, "check", "--fix-strays", "move", "--apply", "-o", "json")
    fates = [fate for part in json.loads(out)["ranges"] for fate, count in part["fates"].items() if count]
    assert (code, sorted(fates)) == (1, ["left", "left"]), err
    assert kvs[0].Range(rpc_pb2.RangeRequest(key=b"x/1")).count == 0
    assert kvs[2].Range(rpc_pb2.RangeRequest(key=b"y")).count == 0  # it may be a copy of a move that was given up
    assert esp(mapped, "check", "--fix-strays", "delete", "--apply")[0] == 0
    assert kvs[2].Range(rpc_pb2.RangeRequest(key=b"x/1")).count == 0


def exported(config: Config, keys: list[tuple[str, str]]) -> bytes:
    """An export with these keys, of shards without them."""
    rows = [f'{{"key":"{key}","value":"{value}"}}\n'.encode() for key, value in keys]
    header = header_line(
        Header(
            esp_export=FORMAT,
            esp="1",
            time="2026-11-30T16:00:00.000+00:00",
            moment="each",
            seconds=0,
            map=config.shard_map.fingerprint,
            shards=[],
            start="",
            end=None,
        )
    )
    digest = sha256(b"".join([header, *rows])).hexdigest()
    return b"".join([header, *rows, trailer_line(Trailer(keys=len(keys), leases=0, sha256=digest))])

"""`esp map` on real shards: what it prints, what it changes, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.commands import map_change
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcd
from esp.core.pb import auth_pb2, rpc_pb2
from esp.core.shared_map import GUARD_KEY, MAP_KEY, NEXT_KEY, Next, SharedMap, decode
from tests.core.shared_map.made import after
from tests.harness import Etcds, connect, frozen, peer, write_config
from tests.stubs import rpc_pb2_grpc

Run = Callable[..., tuple[int, str, str]]
MAP = b"\0esp/"


def run_esp(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["map", *arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def kvs(empty_shards: list[LocalEtcd]) -> Iterator[list[rpc_pb2_grpc.KVStub]]:
    channels = [connect(shard) for shard in empty_shards]
    yield [rpc_pb2_grpc.KVStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture
def config(tmp_path: Path, empty_shards: list[LocalEtcd]) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


@pytest.fixture
def run(config: Path) -> Run:
    return lambda command, *more: run_esp(command, "-c", str(config), *more)


def value_of(stub: rpc_pb2_grpc.KVStub, key: bytes = MAP_KEY) -> bytes | None:
    found = stub.Range(rpc_pb2.RangeRequest(key=key)).kvs
    return found[0].value if found else None


def map_of(stub: rpc_pb2_grpc.KVStub) -> SharedMap:
    data = value_of(stub)
    assert data is not None
    return decode(data)


def write_shards(path: Path, shards: dict[str, LocalEtcd], ranges: dict[str, str] | None = None) -> Path:
    """A config in which the shards hold the map."""
    lines = ["map: shards", "shards:"]
    for name, etcd in shards.items():
        lines.append(f"  - {{name: {name}, endpoints: [{etcd.endpoint}]")
        lines[-1] += f", ranges: {ranges[name]}}}" if ranges and name in ranges else "}"
    path.write_text("\n".join([*lines, ""]))
    return path


def test_the_first_map(run: Run, kvs: list[rpc_pb2_grpc.KVStub]) -> None:
    code, out, err = run("init", "--yes")
    assert (code, err) == (0, "")
    shared = map_of(kvs[0])
    assert out == (
        f"The first map, fingerprint {shared.map.fingerprint}; shard s0 decides on later changes.\n"
        "SHARD  KEYS\n"
        's0     ["", "i")\n'
        's1     ["i", "r")\n'
        's2     ["r", end)\n'
        "Proxies that run go on with their files. Then write map: shards into the config of each, and start it "
        "anew; with map: file none starts.\n"
        "shard s0 has got the map and a guard\n"
        "shard s1 has got the map and a guard\n"
        "shard s2 has got the map and a guard\n"
        "shard s0 has noted that the change is carried out\n"
        f"The map is now of epoch 1, fingerprint {shared.map.fingerprint}.\n"
    )
    for number, stub in enumerate(kvs):
        assert map_of(stub) == shared
        assert value_of(stub, GUARD_KEY) == shared.guards[f"s{number}"].encode()
        assert value_of(stub, NEXT_KEY) is None
    assert run("init", "--yes") == (
        0,
        f"Nothing to do: the map is of epoch 1, fingerprint {shared.map.fingerprint}.\n",
        "",
    )
    assert map_of(kvs[0]) == shared


def test_show_and_history(run: Run, kvs: list[rpc_pb2_grpc.KVStub], config: Path) -> None:
    for command in ("show", "history", "finish"):
        assert run(command) == (
            1,
            "",
            "esp: the shards hold no map; esp map init puts the first one there\n",
        )
    run("init", "--yes")
    shared = map_of(kvs[0])
    code, out, err = run("show")
    assert (code, err) == (0, "")
    assert re.sub(r"1-[0-9a-f]{10}", "GUARD-------", out) == (
        f"Map of epoch 1, fingerprint {shared.map.fingerprint}; shard s0 decides on changes.\n"
        "\n"
        "SHARD  KEYS        GUARD         STANDS\n"
        's0     ["", "i")   GUARD-------  holds it\n'
        's1     ["i", "r")  GUARD-------  holds it\n'
        's2     ["r", end)  GUARD-------  holds it\n'
    )
    shown = json.loads(run("show", "-o", "json")[1])
    assert shown["changes"][0].pop("by").count("@") == 1
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown["changes"][0].pop("at"))
    assert shown == {
        "config": str(config),
        "epoch": 1,
        "map": shared.map.fingerprint,
        "anchor": "s0",
        "whole": True,
        "next": None,
        "shards": [
            {
                "name": name,
                "guard": shared.guards[name],
                "holds": 1,
                "error": None,
                "fenced": True,
                "ranges": [{"start": key(start), "end": None if end is None else key(end)}],
            }
            for name, start, end in (("s0", "", "i"), ("s1", "i", "r"), ("s2", "r", None))
        ],
        "changes": [{"epoch": 1, "what": "the first map, of 3 shards", "fingerprint": shared.map.fingerprint}],
    }
    code, out, err = run("history")
    assert (code, err) == (0, "")
    assert re.match(r"EPOCH +AT +BY +CHANGE +FINGERPRINT\n1 +20\S+Z +\S+@\S+ +the first map, of 3 shards +\w+\n", out)
    assert len(json.loads(run("history", "-o", "json")[1])["changes"]) == 1


def key(text: str) -> dict[str, str]:
    return {"text": text, "base64": base64.b64encode(text.encode()).decode()}


def test_nothing_is_done_without_a_yes(run: Run, kvs: list[rpc_pb2_grpc.KVStub]) -> None:
    code, out, err = run("init")
    assert code == 2
    assert "The first map" in out
    assert err == "esp: nothing is done without a yes; to do it without a question, add --yes\n"
    assert all(value_of(stub) is None and value_of(stub, NEXT_KEY) is None for stub in kvs)


def test_a_no_is_a_no(run: Run, kvs: list[rpc_pb2_grpc.KVStub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_change, "confirming", lambda yes: lambda question: False)
    code, _, err = run("init")
    assert (code, err) == (1, "esp: nothing was done\n")
    assert all(value_of(stub, NEXT_KEY) is None for stub in kvs)


def test_another_map_is_refused_where_one_is(
    run: Run, tmp_path: Path, empty_shards: list[LocalEtcd], kvs: list[rpc_pb2_grpc.KVStub]
) -> None:
    run("init", "--yes")
    shared = map_of(kvs[0])
    other = write_config(tmp_path / "other.yaml", empty_shards, ["i", "k"])
    code, out, err = run_esp("init", "--yes", "-c", str(other))
    assert (code, out) == (1, "")
    assert f"the shards hold a map already (epoch 1, fingerprint {shared.map.fingerprint})" in err
    assert map_of(kvs[0]) == shared


def test_keys_that_would_become_esps_own_are_refused(run: Run, kvs: list[rpc_pb2_grpc.KVStub]) -> None:
    kvs[1].Put(rpc_pb2.PutRequest(key=b"\0mine"))
    code, _, err = run("init", "--yes")
    assert code == 1
    assert err == (
        "esp: shard s1 has 1 key beginning with a zero byte; such keys become esp's own, so rename or delete them "
        "first\n"
    )
    assert all(value_of(stub, NEXT_KEY) is None for stub in kvs)


def test_one_cluster_under_two_names_is_refused(tmp_path: Path, empty_shards: list[LocalEtcd]) -> None:
    twice = f"localhost:{empty_shards[0].client_port}"
    config = write_shards(tmp_path / "twice.yaml", {"a": empty_shards[0]}, {"a": "[{start: '', end: i}]"})
    config.write_text(config.read_text() + f"  - {{name: b, endpoints: [{twice}], ranges: [{{start: i, end: ''}}]}}\n")
    code, _, err = run_esp("init", "--yes", "-c", str(config))
    assert (code, err) == (1, "esp: shards a and b are one etcd cluster; name each cluster once\n")


def test_a_half_done_first_map_is_gone_on_with_by_the_same_config_only(
    run: Run, tmp_path: Path, empty_shards: list[LocalEtcd], kvs: list[rpc_pb2_grpc.KVStub]
) -> None:
    run("init", "--yes")
    shared = map_of(kvs[0])
    for stub in kvs[1:]:
        stub.DeleteRange(rpc_pb2.DeleteRangeRequest(key=MAP, range_end=b"\0esp0"))
    kvs[0].Put(rpc_pb2.PutRequest(key=NEXT_KEY, value=Next(None, shared).encode()))
    code, _, err = run("show")
    assert code == 1
    assert err == "esp: a change to epoch 1 is half done; esp map finish carries it out\n"
    checked = CliRunner().invoke(app, ["check", "-o", "json", "-c", str(tmp_path / "esp.yaml")])
    problems = [(one["shards"], one["text"].partition(";")[0]) for one in json.loads(checked.stdout)["problems"]]
    assert ([], "a change of the map on the shards to epoch 1 is half done") in problems
    other = write_config(tmp_path / "other.yaml", empty_shards, ["i", "k"])
    code, _, err = run_esp("init", "--yes", "-c", str(other))
    assert code == 1
    assert f"another first map is half done (fingerprint {shared.map.fingerprint}, by " in err
    code, out, err = run("init")  # it is decided: no question
    assert (code, err) == (0, "")
    assert "shard s1 has got the map and a guard\nshard s2 has got the map and a guard\n" in out
    assert run("show")[0] == 0
    assert map_of(kvs[2]) == shared


def test_shards_are_added_and_left_out(
    run: Run, tmp_path: Path, empty_shards: list[LocalEtcd], kvs: list[rpc_pb2_grpc.KVStub]
) -> None:
    one, two, three = empty_shards
    owners = {"a": "[{start: '', end: m}]", "b": "[{start: m, end: ''}]"}
    both = write_shards(tmp_path / "esp.yaml", {"a": one, "b": two}, owners)
    assert run_esp("init", "--yes", "-c", str(both))[0] == 0
    before = map_of(kvs[0])
    with_c = write_shards(tmp_path / "c.yaml", {"a": one, "b": two, "c": three})
    code, out, err = run_esp("apply", "--yes", str(with_c))
    assert (code, err) == (0, "")
    assert out == (
        "From epoch 1 to 2: added c. No keys move.\n"
        "shard c has got the map and a guard\n"
        "shard b has got the map\n"
        "shard a has noted that the change is carried out\n"
        f"The map is now of epoch 2, fingerprint {map_of(kvs[2]).map.fingerprint}.\n"
    )
    now = map_of(kvs[2])
    assert (now.epoch, now.names, now.map.owners) == (2, ("a", "b", "c"), ["a", "b"])
    assert {name: now.guards[name] for name in "ab"} == before.guards
    assert run_esp("apply", str(with_c))[1].startswith("Nothing to do: the map is of epoch 2")
    code, out, err = run_esp("apply", "--yes", "-o", "json", str(both))
    done = json.loads(out)
    assert (code, err) == (
        0,
        "esp: shard c is not told (the config does not name it); the change is in force without it\n",
    )
    assert done == {
        "epoch": 3,
        "map": before.map.fingerprint,
        "steps": [
            {"step": "dismiss", "shard": "c", "how": "waits", "why": "the config does not name it"},
            {"step": "tell", "shard": "b", "how": "done", "why": None},
            {"step": "finish", "shard": "a", "how": "done", "why": None},
        ],
        "granted": [],
    }
    assert [change.what for change in map_of(kvs[0]).changes] == ["the first map, of 2 shards", "added c", "left out c"]
    code, _, err = run_esp("apply", "--yes", str(with_c))
    assert (code, err) == (1, "esp: shard c holds a guard of another map, and cannot get a second one\n")
    code, _, err = run_esp("apply", "--yes", str(write_shards(tmp_path / "a.yaml", {"a": one})))
    assert (code, err) == (1, "esp: the map has keys of shard b, so b cannot be left out\n")
    moved = {"a": "[{start: '', end: k}]", "b": "[{start: k, end: ''}]"}
    code, _, err = run_esp("apply", "--yes", str(write_shards(tmp_path / "m.yaml", {"a": one, "b": two}, moved)))
    assert code == 1
    assert err == (
        'esp: the key "k" belongs to shard a, and in the file to b; ranges do not move by this command, so write them '
        "as they are, or leave them out with map: shards\n"
    )
    swapped = write_shards(tmp_path / "swapped.yaml", {"a": two, "b": one})
    code, _, err = run_esp("apply", "--yes", str(swapped))
    assert code == 1
    assert "a, b have not the guard of this map" in err


def test_a_silent_shard_is_told_later(run: Run, empty_shards: list[LocalEtcd], kvs: list[rpc_pb2_grpc.KVStub]) -> None:
    run("init", "--yes")
    shared = map_of(kvs[0])
    following = after(shared, "s0", "s1", "s2")
    kvs[0].Put(rpc_pb2.PutRequest(key=NEXT_KEY, value=Next(shared, following).encode()))
    with frozen(empty_shards[2]):
        code, out, err = run("finish")
        assert code == 1
        assert "The map is now of epoch 2" in out
        assert re.search(r"esp: shard s2 is not told \((?!the config).+\); the change is in force without it\n", err)
        assert "esp: s2 does not tell what it holds" in err
        code, out, err = run("show")
        assert code == 1
        assert re.search(r's1 +\["i", "r"\) +\S+ +holds it\ns2 .* does not tell: ', out)
    code, out, err = run("show")
    assert (code, err) == (1, "esp: s2 has an older map; esp map finish brings the newest there\n")
    code, out, err = run("finish")
    assert (code, err) == (0, "")
    assert out.startswith("shard s2 has got the map\nThe map is now of epoch 2")
    assert run("show")[0] == 0


def test_a_config_without_ranges_makes_no_first_map(tmp_path: Path, empty_shards: list[LocalEtcd]) -> None:
    config = write_shards(tmp_path / "esp.yaml", {"a": empty_shards[0]})
    code, _, err = run_esp("init", "--yes", "-c", str(config))
    assert (code, err) == (2, f"esp: {config} has no ranges; the first map is made from those of its shards\n")


def test_a_boundary_among_esps_own_keys_makes_no_first_map(tmp_path: Path, empty_shards: list[LocalEtcd]) -> None:
    owners = {"a": "[{start: '', end: 'hex:00ff'}]", "b": "[{start: 'hex:00ff', end: ''}]"}
    config = write_shards(tmp_path / "esp.yaml", {"a": empty_shards[0], "b": empty_shards[1]}, owners)
    code, _, err = run_esp("init", "--yes", "-c", str(config))
    assert code == 2
    assert "a boundary begins with a zero byte, as esp's own keys" in err


def test_all_commands_that_need_the_map_read_it_from_the_shards(
    tmp_path: Path, empty_shards: list[LocalEtcd], kvs: list[rpc_pb2_grpc.KVStub]
) -> None:
    shards = {"a": empty_shards[0], "b": empty_shards[1]}
    path = write_shards(tmp_path / "esp.yaml", shards, {"a": "[{start: '', end: m}]", "b": "[{start: m, end: ''}]"})
    for command in ("serve", "check", "route a", "export", "lease-sync"):
        code, _, err = esp(path, *command.split())
        assert code == 1, command
        assert "the shards hold no map; esp map init puts the first one there" in err, command
    assert run_esp("init", "--yes", "-c", str(path))[0] == 0
    bare = write_shards(tmp_path / "bare.yaml", shards)  # the ranges are on the shards
    kvs[0].Put(rpc_pb2.PutRequest(key=b"a"))
    kvs[1].Put(rpc_pb2.PutRequest(key=b"z"))
    assert 'shard "b" owns all of it' in esp(bare, "route", "z")[1]
    assert esp(bare, "check")[0] == 0
    assert "stray" not in esp(bare, "check", "--keys")[1]
    assert esp(bare, "lease-sync")[0] == 0
    code, out, _ = esp(bare, "export")
    assert (code, out.count('"key"')) == (0, 2), out
    assert "the map is on the shards" in esp(bare, "config", "show")[1]


def esp(config: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments, "-c", str(config)])
    return result.exit_code, result.stdout, result.stderr


def test_the_keys_of_a_map_are_no_stray_keys(run: Run, config: Path, kvs: list[rpc_pb2_grpc.KVStub]) -> None:
    """Else esp check would tell to move the guards of all shards to the first, or to delete them."""
    run("init", "--yes")
    assert "stray" not in esp(config, "check", "--keys")[1]
    for key in (b"\0esp", b"\0esp0"):
        kvs[1].Put(rpc_pb2.PutRequest(key=key))
    assert (
        '2 stray keys in ["", "i"), which shard s0 owns: "\\x00esp", "\\x00esp0";' in esp(config, "check", "--keys")[1]
    )
    code, out, _ = esp(config, "check", "--fix-strays", "move", "--apply", "-o", "json")
    assert (code, [part["fates"]["moved"] for part in json.loads(out)["ranges"]]) == (0, [2])
    assert "No stray keys" in esp(config, "check", "--fix-strays", "delete", "--apply")[1]
    assert run("show")[0] == 0


def test_no_stray_key_is_touched_while_a_shard_does_not_stand_to_the_map(
    run: Run, config: Path, kvs: list[rpc_pb2_grpc.KVStub]
) -> None:
    """Half-way through a change the former owner has the only copy of keys that are strays by the newest map."""
    run("init", "--yes")
    kvs[0].Put(rpc_pb2.PutRequest(key=b"z", value=b"v"))
    own = kvs[1].Range(rpc_pb2.RangeRequest(key=GUARD_KEY)).kvs[0].value
    kvs[1].Put(rpc_pb2.PutRequest(key=GUARD_KEY, value=b"1-of-another-map"))
    for how in ("move", "delete"):
        code, _, err = esp(config, "check", "--fix-strays", how, "--apply")
        assert (code, "no key is touched" in err, "has not the guard" in err) == (1, True, True)
    assert kvs[0].Range(rpc_pb2.RangeRequest(key=b"z")).count == 1
    kvs[1].Put(rpc_pb2.PutRequest(key=GUARD_KEY, value=own))
    assert esp(config, "check", "--fix-strays", "delete", "--apply")[0] == 0
    assert kvs[0].Range(rpc_pb2.RangeRequest(key=b"z")).count == 0


def test_no_export_has_the_keys_of_a_map_and_no_import_writes_them(
    run: Run, config: Path, kvs: list[rpc_pb2_grpc.KVStub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", "--yes")
    for stub, own in zip(kvs, (b"\0esp", b"k", b"z"), strict=True):
        stub.Put(rpc_pb2.PutRequest(key=own, value=b"v"))
    file = tmp_path / "all.jsonl"
    assert esp(config, "export", "--to", str(file))[0] == 0
    keys = [line.get("key", line.get("key64")) for line in map(json.loads, file.read_text().splitlines())]
    assert [key for key in keys if key] == ["\0esp", "k", "z"]
    before = map_of(kvs[0])
    other = tmp_path / "other.jsonl"
    with monkeypatch.context() as as_by_others:
        as_by_others.setattr("esp.core.export.exporting.HELD_KEYS", KeyRange(b"\xff", b"\xff\0"))
        assert esp(config, "export", "--to", str(other))[0] == 0
    code, _, err = esp(config, "import", str(other), "--overwrite")
    assert code == 1
    assert "the file has keys under which shards hold a map" in err
    assert map_of(kvs[0]) == before
    assert run("show")[0] == 0


@pytest.fixture
def with_auth(start_etcd: Etcds, tmp_path: Path) -> Iterator[tuple[Path, rpc_pb2_grpc.AuthStub, LocalEtcd]]:
    """A config with one shard, of the newest etcd, with auth on; its Auth service as root; the shard."""
    etcd = start_etcd(binary=peer("etcd"))
    (tmp_path / "password").write_text("secret")
    config = write_shards(tmp_path / "esp.yaml", {"a": etcd}, {"a": "[{start: '', end: ''}]"})
    config.write_text(config.read_text() + "auth: {user: root, password_file: password}\n")
    with connect(etcd) as channel:
        yield config, rpc_pb2_grpc.AuthStub(channel), etcd


def test_roles_get_the_right_to_have_the_guard_compared(
    with_auth: tuple[Path, rpc_pb2_grpc.AuthStub, LocalEtcd],
) -> None:
    config, auth, etcd = with_auth
    wide = auth_pb2.Permission(permType=auth_pb2.Permission.READ, key=b"\0", range_end=b"\0")
    own = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"mine")
    for role, permission in (("root", None), ("reader", wide), ("writer", own)):
        auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name=role))
        if permission is not None:
            auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name=role, perm=permission))
    for user, role in (("root", "root"), ("ann", "writer")):
        auth.UserAdd(rpc_pb2.AuthUserAddRequest(name=user, password="secret"))
        auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user=user, role=role))
    auth.AuthEnable(rpc_pb2.AuthEnableRequest())
    code, out, err = run_esp("init", "--yes", "-c", str(config))
    assert (code, err) == (0, "")
    assert "shard a: 1 role may read the guard now: writer\n" in out
    with connect(etcd) as channel:
        token = auth.Authenticate(rpc_pb2.AuthenticateRequest(name="ann", password="secret")).token
        stub = rpc_pb2_grpc.KVStub(channel)
        fenced = rpc_pb2.TxnRequest(
            compare=[rpc_pb2.Compare(key=GUARD_KEY, target=rpc_pb2.Compare.VALUE, value=b"other")],
            success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"mine"))],
        )
        assert stub.Txn(fenced, metadata=(("token", token),)).succeeded is False
        for request in (rpc_pb2.RangeRequest(key=MAP_KEY), rpc_pb2.RangeRequest(key=MAP, range_end=b"\0esp0")):
            with pytest.raises(grpc.RpcError) as error:
                stub.Range(request, metadata=(("token", token),))
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "may read" not in run_esp("init", "--yes", "-c", str(config))[1]

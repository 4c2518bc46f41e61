"""etcdctl of each generation through esp over one shard, and over three, of each generation of etcd.

The judge is the same etcdctl at an etcd without esp. Ids, sizes and times differ; revisions count from the beginning of
a script. CI runs all scripts with the newest etcdctl and etcd, a few with older ones and with shards of three versions.
`scripts/test --etcd 3.4 --etcdctl all` runs all of them with that etcd and each etcdctl.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from google.protobuf import text_format

from esp.core.pb import rpc_pb2
from tests.harness import (
    Server,
    connect,
    etcdctl_of,
)
from tests.integration.etcdctl_rows import FEW, FEW_MIXED, ROWS
from tests.integration.rigs import MIXED, Rig, version_of, write_record
from tests.stubs import rpc_pb2_grpc

GENERATIONS: Final = ("3.4", "3.5", "3.7")
IN_CI: Final = {"3.4": FEW, "3.5": FEW, "3.7": ROWS, MIXED: FEW_MIXED}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each script with each etcdctl and etcd that were chosen; those of one etcd one after another."""
    etcd, etcdctl = (metafunc.config.getoption(name) for name in ("--etcd", "--etcdctl"))
    pairs = [
        (etcd_version, etcdctl_version, script)
        for etcd_version in ([etcd] if etcd else [*GENERATIONS, MIXED])
        for etcdctl_version in (
            GENERATIONS if etcdctl == "all" else [etcdctl or ("3.7" if etcd or etcd_version == MIXED else etcd_version)]
        )
        for script in (ROWS if etcd or etcdctl else IN_CI[etcd_version])
    ]
    metafunc.parametrize(
        ("rig", "etcdctl_version", "script"),
        pairs,
        indirect=["rig"],
        ids=[
            f"{script}-etcdctl{etcdctl_version}-etcd{etcd_version}" for etcd_version, etcdctl_version, script in pairs
        ],
    )


Seen = dict[tuple[str, str], dict[str, dict[str, int]]]
"""By etcd and etcdctl, and script: how many commands do over several shards as at an etcd, or something else."""


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """What was seen. Written to the cache for each pair with which all scripts were tried."""
    seen: Seen = defaultdict(dict)
    yield seen
    for (etcd, etcdctl), scripts in seen.items():
        if len(scripts) == len(ROWS):
            record = {"etcd": etcd, "etcdctl": etcdctl, "scripts": scripts}
            write_record(f"etcdctl-{etcdctl}-etcd-{etcd}", record)


class Line(NamedTuple):
    """A command of a script; etcdctl_rows.py describes each part."""

    command: str
    since: tuple[int, int]
    lines: int
    unordered: bool
    stdin: str
    refused: str
    own: str


_LINE: Final = re.compile(
    r"(?:(?P<since>\d\.\d):)? *(?:! (?P<stdin>.*?)(?<!\|)\| )?(?:\[(?P<lines>\d+)(?P<sorted> sorted)?\])? *"
    r"(?P<command>.*?)(?: => (?P<refused>.*))?(?: =~ (?P<own>.*))?"
)


def parse(script: str) -> list[Line]:
    lines = []
    for text in filter(None, map(str.strip, script.splitlines())):
        found = _LINE.fullmatch(text)
        assert found, text
        part = {name: value or "" for name, value in found.groupdict().items()}
        major, minor = map(int, (part["since"] or "3.0").split("."))
        stdin = part["stdin"].replace("\\n", "\n")
        lines.append(
            Line(
                part["command"], (major, minor), int(part["lines"] or 0), bool(part["sorted"]), stdin,
                part["refused"], part["own"],
            )
        )  # fmt: skip
    return lines


class Done(NamedTuple):
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Said(NamedTuple):
    """The same in lines, with names in place of what differs between any two clusters."""

    code: int
    stdout: list[str]
    stderr: list[str]


_REVISIONS: Final = re.compile(
    r'("(?:revision|create_revision|mod_revision|compact_revision)":|"(?:Revision|CreateRevision|ModRevision)" : '
    r"|(?:compacted revision|revision:|_revision:) ?)(\d+)"
)
_MASKED: Final = (
    (re.compile(r"127\.0\.0\.1:\d{5}"), "SERVER"),
    (re.compile(r"\betcd-\d\b"), "NAME"),
    (re.compile(r"0x[0-9a-f]+"), "POINTER"),
    (re.compile(r"\b[\d.]+(?:µs|ms|s)\b"), "TIME"),
    (re.compile(r"remaining\(TIME\)|\"ttl\":\d+"), "REMAINING"),
    (re.compile(r"[\d.]+ [kMG]?B\b"), "SIZE"),
    (re.compile(r"\b\d+%"), "PERCENT"),
    (re.compile(r"(?<=saved at )\S+"), "FILE"),
    (re.compile(r"member ID already exist"), "Peer URLs already exists"),  # the id is made of the URL and the second
    (re.compile(r'^ETCD_INITIAL_CLUSTER=".*'), "MEMBERS"),  # in the order of their ids
    (re.compile(r"progress notify: \d+"), "progress notify"),
    (re.compile(r"[─-]{3,}"), "-"),
    (re.compile(r" {2,}"), " "),
    (re.compile(r'("(?:raft\w+|Raft\w+|db\w+|DB\w+|hash|Hash|TTL)" ?: ?)\d+'), r"\1N"),
    (re.compile(r"(?<=, )\d+(?=, )|(?<=, )\d{5,}$|(?<=[│|] )\d+(?= [│|])"), "N"),
    (re.compile(r'((?:"storageVersion":|"StorageVersion" : )"|3\.\d+\.\d+(?:,| │) )3\.[5-9]\.0\b'), r"\1STORED"),
)
_HEADERS: Final = re.compile(r'("(?:cluster_id|member_id)":"?|"(?:ClusterID|MemberID)" : )\w+')
_KEYS_OF_LEASE: Final = re.compile(r"((?:\"keys\":|attached keys\()\[)(.*?)(?=\])")
"""etcd tells them in any order."""
_IDS: Final = re.compile(r"\b(?:[0-9a-f]{11,16}|\d{17,20})\b")


class Person:
    """Runs the commands of one script at one server, and remembers what later commands refer to."""

    def __init__(self, etcdctl: Path, server: Server, folder: Path) -> None:
        folder.mkdir()
        self._command = [str(etcdctl), "--endpoints", server.address]
        self._known = {"ID": "1234", "DIR": str(folder)}

    def runs(self, line: Line) -> Done:
        line = line._replace(stdin=_REFERENCE.sub(self._referred, line.stdin))
        command = _REFERENCE.sub(self._referred, line.command)
        arguments = [*self._command, *shlex.split(command)]
        if line.lines:
            code, out, err = _interrupted(line, arguments)
        else:
            run = subprocess.run(
                arguments, input=line.stdin.encode(), capture_output=True, timeout=60, env=_ENVIRONMENT, check=False
            )
            code, out, err = run.returncode, run.stdout, run.stderr
        done = Done(code, _decoded(out, command), err.decode("utf-8", "surrogateescape"))
        for name, pattern in _REMEMBERED.items():
            if found := re.search(pattern, done.out):
                self._known[name] = found[1]
        return done

    def _referred(self, match: re.Match[str]) -> str:
        name, more = match.groups()
        if name not in self._known:  # of the shell
            return match[0]
        return str(int(self._known[name]) + int(more)) if more else self._known[name]


_REFERENCE: Final = re.compile(r"\$([A-Z]+)(?:\+(\d+))?")
_ENVIRONMENT: Final = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
_REMEMBERED: Final = {
    "REV": r'^{"header":{[^}]*"revision":(\d+)',
    "MOD": r'"mod_revision":(\d+)',
    "LEASE": r"lease ([0-9a-f]+) granted",
    "ID": r"Member +([0-9a-f]+) added",
}


def _interrupted(line: Line, arguments: list[str]) -> tuple[int, bytes, bytes]:
    """What a command has written when it is interrupted after `line.lines` lines, or after some seconds."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, env=_ENVIRONMENT
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(line.stdin.encode())
        process.stdin.flush()
        late = threading.Timer(6, process.kill)
        late.start()
        out = b"".join(process.stdout.readline() for _ in range(line.lines))
        late.cancel()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.stdin.close()
    return 0 if out.count(b"\n") == line.lines else 1, out, b""


def _decoded(out: bytes, command: str) -> str:
    kind = {"get": "Range", "put": "Put", "del": "DeleteRange"}.get(command.split()[0])
    if kind and "-w protobuf" in command:
        return text_format.MessageToString(getattr(rpc_pb2, f"{kind}Response").FromString(out))
    return out.decode("utf-8", "surrogateescape")


def _sorted_members(lines: Iterable[str]) -> list[str]:
    """Members are listed by their ids, which differ between clusters."""
    done = list(lines)
    return sorted(done) if len(done) > 1 and all(re.match(r"ID\d+, (un)?started", line) for line in done) else done


class Names:
    """Names for what differs between clusters: the same for the same thing, in the order in which things appear.

    `base` is the revision from which revisions count; None if they are not comparable, nor the ids in headers.
    """

    def __init__(self, base: int | None = None) -> None:
        self._base = base
        self._ids: dict[int, str] = {}

    def said(self, done: Done) -> Said:
        # Lines that are JSON are the log of etcd's client.
        errors = [line for line in done.err.splitlines() if not line.startswith("{")]
        lines = [
            line for line in done.out.splitlines() if not line.startswith("Server version ")
        ]  # told a while after start
        return Said(done.code, _sorted_members(map(self._line, lines)), list(map(self._line, errors)))

    def _line(self, text: str) -> str:
        text = _REVISIONS.sub(self._revision, text)
        if self._base is None:
            text = _HEADERS.sub(r"\1H", text)
        text = _IDS.sub(self._id, text)
        text = _KEYS_OF_LEASE.sub(lambda match: f"{match[1]}{sorted(re.split('[ ,]', match[2]))}", text)
        for pattern, name in _MASKED:
            text = pattern.sub(name, text)
        return text.strip()

    def _revision(self, match: re.Match[str]) -> str:
        return match[1] + ("R" if self._base is None else f"+{int(match[2]) - self._base}")

    def _id(self, match: re.Match[str]) -> str:
        numbers = _numbers(match[0])
        known = next((number for number in numbers if number in self._ids), numbers[-1])
        return self._ids.setdefault(known, f"ID{len(self._ids)}")


def _numbers(shown: str) -> list[int]:
    """What an id may be, which is shown in hex here and in decimal there: a small one in decimal looks like hex."""
    decimal = [int(shown)] if shown.isdecimal() else []
    return decimal + [int(shown, 16)] * (len(shown) <= 16)


def revision_of(server: Server) -> int:
    with connect(server) as channel:
        return rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"a"), timeout=30).header.revision


def test_a_script_goes_as_at_an_etcd(rig: Rig, etcdctl_version: str, script: str, tmp_path: Path, seen: Seen) -> None:
    etcdctl = etcdctl_of(etcdctl_version)
    people = [Person(etcdctl, server, tmp_path / str(n)) for n, server in enumerate((rig.judge, rig.one, rig.several))]
    exact, exact_of_one = Names(revision_of(rig.judge)), Names(revision_of(rig.shard))
    loose, loose_of_several = Names(), Names()
    wrong = []
    counts = Counter[str]()
    for line in parse(ROWS[script]):
        if tuple(map(int, etcdctl_version.split("."))) < line.since:
            continue
        right, by_one, by_several = (person.runs(line) for person in people)
        assert not (line.lines and right.code), (
            f"{line.command} ends before it has written {line.lines} lines: {right.out}"
        )
        if exact_of_one.said(by_one) != exact.said(right):
            wrong.append(f"one shard, {line.command}\n   {by_one}\n   {right}")
        if not as_expected(line, by_several, loose_of_several.said(by_several), loose.said(right)):
            wrong.append(f"several, {line.command}\n   {by_several}\n   {line.refused or line.own or right}")
        counts["refused" if line.refused else "own" if line.own else "same"] += 1
    assert not wrong, "\n".join(wrong)
    seen[rig.version, version_of(etcdctl)][script] = counts


def as_expected(line: Line, done: Done, said: Said, right: Said) -> bool:
    """Whether a command over several shards did what its line says; `right` is what it does at an etcd."""
    if line.refused:
        pattern = ".*".join(map(re.escape, line.refused.split(" ... ")))
        return done.code != 0 and re.search(pattern, done.out + done.err, re.DOTALL) is not None
    if line.own:
        return done.code == 0 and any(re.fullmatch(line.own, each) for each in done.out.splitlines())
    if line.unordered:
        return sorted(said.stdout) == sorted(right.stdout)
    return said == right

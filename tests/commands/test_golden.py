"""What each command prints, byte by byte: at terminals of 80 and 120 columns, and as JSON: tests/commands/golden.

Each line of a command runs as a real process, at a real terminal of that width, and by typer's runner in this process;
both must print the same. `ESP_GOLDEN=1 scripts/test tests/commands/test_golden.py` writes the files anew; look at the
difference before you keep it: scripts read the JSON, so that it only ever gets more fields (docs/json.md).

`esp check` and `esp top` tell what no two runs have alike; their pages are made of fixed figures, in
test_check_golden.py and test_top.py. Here, what real processes tell must have the form of those files.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import termios
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
from typer.testing import CliRunner

from esp import __version__, build
from esp.cli.whole import app
from esp.commands import bench, plan_json, plan_view
from esp.commands.bench import Options
from esp.commands.described import described
from esp.commands.output import Format
from esp.commands.plan_config import config_text
from esp.commands.top_view import as_json
from esp.core.export import Etcd
from esp.core.keys import KeyRange
from esp.core.load import Measured, Plan, Workload, keys_in
from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2
from esp.core.plan import Measure, Survey, Wish, propose, weights_of
from esp.core.plan import Plan as Made
from esp.core.plan.tally import Tally
from esp.core.shard_map import ShardMap
from tests.commands.test_top import seen
from tests.harness import EspProcess, Etcds, connect, prefork, running_esps, write_config
from tests.stubs import rpc_pb2_grpc

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests/commands/golden"
GROUP = typer.main.get_command(app)
WIDTHS = (80, 120)
TXN = 'mod("a") > "0"\n\nput a 1\nget j\n\nget a\n\n'
WRONG = """\
listen: [2379]
shards:
  - {name: a, endpoints: ["127.0.0.1"], ranges: [{prefix: a}]}
limits: {max_token: 5, max_connections: many}
drain_second: 3
"""
GOOD = """\
listen: [http://10.0.0.1:2379]
shards:
  - {name: events, endpoints: [http://10.0.0.2:2379, http://10.0.0.3:2379], ranges: [{prefix: /registry/events/}]}
  - {name: main, endpoints: [http://10.0.0.4:2379], ranges: [{start: "", end: ""}]}
limits: {max_tokens: 5}
log: {level: debug}
control: off
"""


class Case(NamedTuple):
    """A command line; `code` is its exit code, `widths` are those of terminals that it is shown at."""

    name: str
    line: str
    code: int = 0
    has_json: bool = True


CASES = [
    Case("route", "route a"),
    Case("route-range", "route a z --explain"),
    Case("route-each", "route --each a j --prefix"),
    Case("route-txn", "route --txn txn.txt", 1),
    Case("config-check", "config check wrong.yaml", 1),
    Case("config-check-good", "config check good.yaml"),
    Case("config-show", "config show good.yaml --workers 2"),
    Case("lease-sync", "lease-sync", 1),
    Case("fix-strays", "check --fix-strays move", 1),
    Case("reload-check", "reload --check"),
    Case("exec", "exec s1 -- env", has_json=False),
    Case("help-route", "help route", has_json=False),
    Case("usage", "route a --nope", 2, has_json=False),
]
"""What changes nothing, so that each can run several times."""


class Scene(NamedTuple):
    """Three shards with keys, leases and a stray, an esp in front of them, and a folder with configs."""

    folder: Path
    etcds: list[LocalEtcd]
    esp: EspProcess


@pytest.fixture(scope="module")
def scene(module_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("golden")
    etcds = module_etcds.several(3)
    for etcd in etcds:
        with connect(etcd) as channel:
            leases, kv = rpc_pb2_grpc.LeaseStub(channel), rpc_pb2_grpc.KVStub(channel)
            leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=0x7001, TTL=90_000))
            if etcd is etcds[1]:
                leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=0x7002, TTL=90_000))
            if etcd is etcds[0]:
                kv.Put(rpc_pb2.PutRequest(key=b"a", value=b"1", lease=0x7001))
                kv.Put(rpc_pb2.PutRequest(key=b"j/stray", value=b"2"))
                kv.Put(rpc_pb2.PutRequest(key=b"k\n\xff", value=b"3"))
            if etcd is etcds[1]:
                kv.Put(rpc_pb2.PutRequest(key=b"j/stray", value=b"live"))
    config = write_config(folder / "esp.yaml", etcds, ["i", "r"], "control: esp.sock\nlimits: {connect_timeout: 30}")
    (folder / "txn.txt").write_text(TXN)
    (folder / "wrong.yaml").write_text(WRONG)
    (folder / "good.yaml").write_text(GOOD)
    with running_esps(folder, etcd_binary) as esps:
        esp = esps.launch("-c", "esp.yaml", config=config)
        esp.wait_ready()
        config.write_text(
            config.read_text().replace("_timeout: 30", "_timeout: 30, max_tokens: 9") + "leases: strict\n"
        )
        yield Scene(folder, etcds, esp)


def environment(columns: int | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ESP_")}
    size = {} if columns is None else {"COLUMNS": str(columns), "LINES": "50"}
    return {name: value for name, value in kept.items() if name not in ("COLUMNS", "LINES")} | size | {"TERM": "dumb"}


class Terminal(io.StringIO):
    """An output of this process that passes for a terminal."""

    def isatty(self) -> bool:
        return True


def by_runner(words: Sequence[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code, and output as a terminal shows it."""
    out = Terminal()
    for name, value in environment(columns).items():
        monkeypatch.setenv(name, value)
    with redirect_stdout(out), redirect_stderr(out), pytest.raises(SystemExit) as ended:
        GROUP.main(args=list(words), prog_name="esp")
    return int(ended.value.code or 0), out.getvalue()


def by_process(folder: Path, words: Sequence[str], columns: int, until: bytes | None = None) -> tuple[int, str]:
    """The same of a process at a terminal of its own, to which Ctrl-C is given once it has written `until`."""
    terminal, output = pty.openpty()
    try:
        fcntl.ioctl(output, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = prefork().start(words, cwd=folder, env=environment(), output=output)
        os.close(output)
        told = b""
        while True:
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            told += chunk
            if until is not None and until in told:
                process.send_signal(signal.SIGINT)
                until = None
        return process.wait(60), told.decode().replace("\r\n", "\n")
    finally:
        os.close(terminal)


def even(text: str, scene: Scene) -> str:
    """The text without what no two runs have alike: ports, the folder, progress, and the rest of a TTL.

    Of the fields that a config does not name only the first is left: each version has more; docs/config.md has all.
    """
    text = re.sub(r"[^\n]*\r", "", text)
    text = re.sub(r"(?m)^(?!tls )[\w.]+ +default .*\n(    .*\n)?", "", text)
    text = re.sub(r' {4}\{\s+"name": "(?!tls")[^{}]+\{\s+"kind": "default"\s+\}\s+\},?\n', "", text)
    text = re.sub(r",\n  \]", "\n  ]", text)
    for number, etcd in enumerate(scene.etcds):
        text = re.sub(rf"\b{etcd.client_port}\b", f"{10_001 + number}", text)
    text = re.sub(rf"\b{scene.esp.port}\b", "10000", text).replace(str(scene.folder), "/golden")
    return re.sub(r"\b(89\d\d\d|90000)\b", "90000", text)


def is_as_it_was(name: str, told: str) -> None:
    path = GOLDEN / name
    if os.environ.get("ESP_GOLDEN"):
        path.write_text(told)
    assert told == path.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_command_prints_what_it_printed(case: Case, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene.folder)
    words = case.line.split()
    transcript = f"$ esp {case.line}\n[exit code {case.code}]\n"
    for columns in WIDTHS:
        found = by_process(scene.folder, words, columns)
        if case.name != "exec":  # which becomes its command
            code, told = by_runner(words, columns, monkeypatch)
            assert (code, even(told, scene)) == (found[0], even(found[1], scene))
        told = even(found[1], scene)
        if case.name == "exec":
            told = "".join(sorted(line for line in told.splitlines(keepends=True) if line.startswith("ETCDCTL_")))
        assert found[0] == case.code, told
        transcript += f"\n[{columns} columns]\n{told}"
    if case.has_json:
        result = CliRunner().invoke(app, [*words, "-o", "json"])
        assert result.exit_code == case.code
        transcript += f"\n[-o json]\n{even(result.stdout, scene)}"
    is_as_it_was(f"{case.name}.txt", transcript)


def by_pipe(folder: Path, line: str) -> tuple[int, str]:
    """As `by_process`, into a pipe: no progress is shown there."""
    reader, output = os.pipe()
    process = prefork().start(line.split(), cwd=folder, env=environment(), output=output)
    os.close(output)
    with open(reader, encoding="utf-8") as told:
        text = told.read()
    return process.wait(60), text


def run(line: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, line.split())
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("config example", "tests/commands/golden/config-example.yaml"),
        ("config schema", "tests/commands/golden/config-schema.json"),
        ("completion bash", "completions/esp.bash"),
        ("completion zsh", "completions/_esp"),
        ("completion fish", "completions/esp.fish"),
    ],
)
def test_what_is_for_files_is_the_same_at_every_terminal(
    line: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, told = by_pipe(tmp_path, line)
    assert code == 0
    if file.startswith("tests"):
        is_as_it_was(Path(file).name, told)
    assert told == (ROOT / file).read_text()
    for columns in WIDTHS:
        assert by_process(tmp_path, line.split(), columns) == (0, told)
        assert by_runner(line.split(), columns, monkeypatch) == (0, told)


def test_the_first_lines_of_a_proxy_and_its_last(scene: Scene, tmp_path: Path) -> None:
    transcript = ""
    config = (scene.folder / "esp.yaml").read_text().replace("control: esp.sock", "control: off")
    (tmp_path / "esp.yaml").write_text(config)
    silent = "shards: [{name: a, endpoints: [127.0.0.1:1], ranges: [{prefix: ''}]}]\nlimits: {connect_timeout: 0.5}\n"
    (tmp_path / "silent.yaml").write_text(silent)
    for line, until in (
        ("serve -c esp.yaml", " ready on "),
        ("serve -c esp.yaml --log-format json", "ready on "),
        ("serve -c silent.yaml", " ready on "),
        ("serve --local 2 --data-dir two", "the keys stay."),
    ):
        for columns in WIDTHS:
            port = free_port()
            words = [*line.split(), "--listen", f"http://127.0.0.1:{port}"]
            code, told = by_process(tmp_path, words, columns, until.encode())
            told = even(told.replace(str(port), "2379").replace(str(tmp_path), "/golden"), scene)
            told = re.sub(r"\b\d\d:\d\d:\d\d\b", "12:00:00", told)
            told = re.sub(r'("time":")[^"]+', r"\g<1>2026-11-30T12:00:00.000Z", told)
            told = told.replace(f"esp {__version__} ({build()})", "esp 0.1.0 (interpreted)")
            told = told.replace(
                f'"version":"{__version__}","build":"{build()}"', '"version":"0.1.0","build":"interpreted"'
            )
            told = re.sub(r"(shard-(\d)  http://127.0.0.1:)\d+", r"\g<1>1000\2", told)
            told = re.sub(r"etcds \(\S+\)", "etcds (/usr/bin/etcd)", told)
            told = re.sub(r"/\S+ (route|check) ", r"/usr/bin/esp \1 ", told)
            transcript += f"$ esp {line}\n[exit code {code}]\n\n[{columns} columns]\n{told}\n"
    is_as_it_was("serve.txt", transcript)


def test_export_and_import(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene.folder)
    transcript = ""

    def printed(line: str, way: Callable[[str], tuple[int, str]]) -> tuple[int, str]:
        if line.startswith("export"):
            (scene.folder / "all.jsonl").unlink(missing_ok=True)
        code, told = way(line)
        return code, even(re.sub(r'("seconds": )[\d.e-]+', r"\g<1>0.001", told), scene)

    for line in (
        "export --to all.jsonl",
        "export --to all.jsonl -o json",
        "import all.jsonl --skip-existing --no-leases",
        "import all.jsonl --skip-existing --no-leases -o json",
    ):
        found = printed(line, run)
        assert found == printed(line, lambda line: by_pipe(scene.folder, line))
        transcript += f"$ esp {line}\n[exit code {found[0]}]\n\n{found[1]}\n"
        for columns in () if line.endswith("-o json") else WIDTHS:
            code, told = printed(line, lambda line, columns=columns: by_process(scene.folder, line.split(), columns))  # type: ignore[misc]
            assert code == found[0]
            transcript += f"[{columns} columns]\n{told}\n"
    is_as_it_was("export-import.txt", transcript)


def test_bench(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fixed figures; a real run has JSON of the same form."""
    latencies = [number / 10_000 for number in range(1, 2001)]
    measured = [
        Measured("put", "http://10.0.0.1:2379", [1000.5, 1100.25, 900.0], latencies, Counter(), 0.31),
        Measured("put", "http://10.0.0.2:2379", [500.0, 550.0, 450.0], latencies, Counter({"no space": 2}), 0.92),
    ]
    keys = keys_in("0123abcd")
    options = Options(
        [], [Workload.PUT], [], Etcd([], "", "", "", "", ""), Plan(8, 16, 5.0, 1.0, 3, 1000, 256), None, Format.TABLE
    )
    transcript = ""
    for columns in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", "50")
        monkeypatch.setenv("TERM", "dumb")
        out = Terminal()
        with redirect_stdout(out):
            bench._write_text(options, keys, measured)
        transcript += f"[{columns} columns]\n{out.getvalue()}\n"
    told = Terminal()
    with redirect_stdout(told):
        bench._write_json(options, keys, measured)
    is_as_it_was("bench.txt", f"{transcript}[-o json]\n{told.getvalue()}")
    few = "--load put --seconds 0.1 --warm-up 0 --rounds 1 --connections 1 --keys 9"
    urls = " ".join(etcd.endpoint for etcd in scene.etcds[:2])
    code, real = by_pipe(scene.folder, f"bench {urls} {few} -o json")
    assert code == 0
    assert forms(json.loads(real)) == forms(json.loads(told.getvalue())) - {"measured[].errors.no space"}


def planned(measure: Measure) -> Made:
    """Of fixed keys: a Kubernetes cluster, prefixes of another program, a lock."""
    tally = Tally(b"/", 4, [b"i", b"r"])
    resources = {"events": 900, "leases": 100, "minions": 20, "pods": 700, "secrets": 300, "example.com/widgets": 60}
    keys = {f"/registry/{name}/ns/o{number:04d}": 500 for name, many in resources.items() for number in range(many)}
    keys |= {f"app/users/{number:04d}": 100 for number in range(600)} | {"locks/backup/7001": 20}
    for key in sorted(keys):
        tally.add(key.encode(), keys[key], int(key.startswith("app")), lease=0x7001 if key.startswith("locks") else 0)
    counted = tally.finish()
    found = Survey(counted, {"s0": 2681, "s1": 17, "s2": 1}, 61, 600, 600, 10.0, [])
    today = ShardMap.build(
        [("s0", KeyRange(b"", b"i")), ("s1", KeyRange(b"i", b"r")), ("s2", KeyRange(b"r", None))], ["s0", "s1", "s2"]
    )
    wish = Wish(4, measure, b"/", 2, [], [], [b"/registry/"])
    return Made(found, wish, propose(counted, wish, today), today, weights_of(counted, today))


def test_plan(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fixed keys; a real run has JSON of the same form."""
    endpoints = {name: [f"http://10.0.0.{number}:2379"] for number, name in enumerate(("s0", "s1", "s2"), 1)}
    transcript = ""
    for measure in (Measure.KEYS, Measure.WRITES):
        plan = planned(measure)
        text = config_text(plan.proposal, endpoints)
        for columns in WIDTHS:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("LINES", "50")
            monkeypatch.setenv("TERM", "dumb")
            out = Terminal()
            with redirect_stdout(out):
                plan_view.write_plan(plan, endpoints, text, measure is Measure.WRITES)
            transcript += f"[by {measure}, {columns} columns]\n{out.getvalue()}\n"
    told = Terminal()
    with redirect_stdout(told):
        plan_json.write_plan(plan, endpoints, text, False)
    is_as_it_was("plan.txt", f"{transcript}[-o json]\n{told.getvalue()}")
    code, real = by_pipe(scene.folder, "plan --watch 0.1 --against -o json")
    assert code == 0
    known = forms(json.loads(told.getvalue()))
    assert [place for place in forms(json.loads(real)) if not any(one.startswith(place) for one in known)] == []


def test_real_checks_and_tops_have_the_form_that_is_shown(scene: Scene) -> None:
    """Every field of what real processes tell is in the files of fixed figures, and every field of the first level."""
    for name, line in (
        ("check.json", "check -o json --keys"),
        ("top.json", f"top {scene.esp.url} -n 1 -i 0.2 -o json"),
        ("version.json", "version -o json"),
    ):
        known = json.loads((GOLDEN / name).read_text())
        code, told = by_pipe(scene.folder, line)
        real = json.loads("".join(row for row in told.splitlines(keepends=True) if not row.startswith("esp: ")))
        assert code == (1 if name == "check.json" else 0)  # for the stray key
        assert list(real) == list(known)
        places = {place for place in forms(real) if ".numbers." not in place}  # those are whatever there is
        new = [place for place in places if not any(one.startswith(place) for one in forms(known))]
        assert new == [], name


OF_OTHERS = ("numbers", "dependencies", "errors", "shards")
"""Fields with names that are not esp's: of metrics, packages, errors, or (`differences[].shards`) shards."""


def names_in(value: object) -> Iterator[str]:
    """The names of all fields, without those that are not esp's."""
    if isinstance(value, dict):
        for name, here in value.items():
            yield name
            yield from () if name in OF_OTHERS and isinstance(here, dict) else names_in(here)
    elif isinstance(value, list):
        for one in value:
            yield from names_in(one)


def test_every_field_is_documented() -> None:
    for path in GOLDEN.iterdir():
        if path.name == "config-schema.json":  # its form is that of JSON schemas
            continue
        page = "logs.md" if path.name == "serve.txt" else "json.md"
        text = re.sub(r"(?s)```.*?```", "", (ROOT / "docs" / page).read_text())
        quoted = re.findall("`([^`]+)`", text)
        documented = {word for text in quoted for word in [text, *re.findall(r"[\w-]+", text)]}
        for told in re.findall(r"(?ms)^\{[^\n]*\}$|^\{$.*?^\}$", path.read_text()):
            assert set(names_in(json.loads(told))) - documented == set(), path.name


def forms(value: object, place: str = "") -> set[str]:
    """The places of all plain values, such as `shards[].name`."""
    if isinstance(value, dict):
        return {found for name, one in value.items() for found in forms(one, f"{place}.{name}".lstrip("."))}
    if isinstance(value, list):
        return {found for one in value for found in forms(one, f"{place}[]")}
    return {place}


def test_the_versions() -> None:
    code, told = run("version -o json")
    found = json.loads(told)
    assert code == 0
    found |= {"version": "0.1.0", "build": "interpreted", "python": "3.11.7", "platform": "Linux"}
    found["dependencies"] = dict.fromkeys(found["dependencies"], "1.0")
    is_as_it_was("version.json", json.dumps(found, indent=2) + "\n")
    code, told = run("version")
    assert code == 0
    is_as_it_was("version.txt", re.sub(r"\d+\.\d+\.\S+ \((interpreted|compiled)\)", "0.1.0 (interpreted)", told))


def test_reloads(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After those that show what a reload would do; each round begins with the config that the esp began with."""
    monkeypatch.chdir(scene.folder)
    config = scene.folder / "esp.yaml"
    text = config.read_text()
    transcript = ""
    for columns in (*WIDTHS, None):
        transcript += f"== {columns} columns ==\n\n" if columns else "== -o json ==\n\n"
        for title, written in (
            ("a limit and a field", text),
            ("nothing", text),
            ("a boundary", text.replace('"r"', '"s"')),
            ("the boundary, back again", text),
            ("a field that is fixed", f"{text}workers: 2\n"),
        ):
            config.write_text(written)
            words = ["reload", *(() if columns else ("-o", "json"))]
            line = " ".join(words)
            code, told = by_process(scene.folder, words, columns) if columns else by_pipe(scene.folder, line)
            told = re.sub(r"at revision [\d,]+, below s1 at [\d,]+", "at revision 1, below s1 at 2", told)
            transcript += f"$ esp {line}  # changed: {title}\n[exit code {code}]\n\n{even(told, scene)}\n"
        config.write_text(text.replace(", max_tokens: 9", "").replace("leases: strict\n", ""))
        assert run("reload")[0] == 0
    config.write_text(text)
    assert run("reload")[0] == 0
    is_as_it_was("reload.txt", transcript)


def test_the_map_on_the_shards(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all others in this file: the shards get keys."""
    monkeypatch.chdir(scene.folder)
    transcript = ""
    for line in ("map show", "map init --yes", "map show", "map show -o json", "map history -o json"):
        if "init" not in line:
            assert run(line) == by_pipe(scene.folder, line)
        code, told = run(line)
        transcript += f"$ esp {line}\n[exit code {code}]\n\n{even(told, scene)}\n"
    assert run("map history") == by_pipe(scene.folder, "map history")
    for columns in WIDTHS:
        code, told = by_process(scene.folder, ["map", "show"], columns)
        transcript += f"$ esp map show\n[exit code {code}]\n\n[{columns} columns]\n{even(told, scene)}\n"
    for line in ("map fence --yes s1", "map fence --yes s0", "map remove --yes"):
        code, told = run(line)
        transcript += f"$ esp {line}\n[exit code {code}]\n\n{even(told, scene)}\n"
    transcript = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+", "2026-11-30T12:00:00", transcript)
    transcript = re.sub(r'("by": ")[^"]+', r"\1root@host", transcript)
    is_as_it_was("map.txt", re.sub(r"\b1-[0-9a-f]+", lambda guard: "1-" + "a" * (len(guard[0]) - 2), transcript))


PLACES = {
    "check": "test_check_golden.py",
    "top": "test_top.py",
    "map init": "test_map_golden.py",
    "map history": "test_map_golden.py",
    "map apply": "test_map_golden.py",
    "map finish": "test_map_golden.py",
    "map fence": "test_map_golden.py",
    "map remove": "test_map_golden.py",
    "move": "test_move_golden.py",
}
"""Where commands are shown that are not in this file."""


def test_every_command_is_shown() -> None:
    here = Path(__file__).read_text()
    leaves = [one.words for one in described(app) if not one.commands]
    for words in leaves:
        command = " ".join(words)
        assert command in PLACES or re.search(rf'["(]{command}\b', here), command
    assert all((Path(__file__).parent / place).exists() for place in PLACES.values())


def test_the_json_of_top() -> None:
    is_as_it_was("top.json", as_json([seen()]) + "\n")

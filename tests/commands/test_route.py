from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app

CONFIG = """\
shards:
- name: events
  endpoints: [http://127.0.0.1:12379]
  ranges: [{prefix: /registry/events/}]
- name: main
  endpoints: [http://127.0.0.1:22379, 127.0.0.1:22389]
  ranges: [{start: "", end: ""}]
"""
MAIN = "http://127.0.0.1:22379,http://127.0.0.1:22389"
EVENTS = "http://127.0.0.1:12379"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESP_CONFIG", raising=False)
    path = tmp_path / "esp.yaml"
    path.write_text(CONFIG)
    return path


def route(*arguments: str, stdin: str | bytes | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(app, ["route", *arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_one_key() -> None:
    expected = f"""\
SHARD   KEY                    RANGE_END  ENDPOINTS
events  "/registry/events/x1"  (one key)  {EVENTS}

A Txn over this key is possible: shard "events" owns all of it.
"""
    assert route("/registry/events/x1") == (0, expected, "")


class TestNamespace:
    @pytest.fixture(autouse=True)
    def in_namespace(self, config: Path) -> None:
        config.write_text(CONFIG + "namespace: /registry/\n")

    def test_a_clients_key_is_shown_as_it_is_in_the_shards(self) -> None:
        expected = f"""\
SHARD   KEY                    RANGE_END  ENDPOINTS
events  "/registry/events/x1"  (one key)  {EVENTS}

These are the keys in the shards, with the prefix of the namespace: "/registry/".
A Txn over this key is possible: shard "events" owns all of it.
"""
        assert route("events/x1") == (0, expected, "")

    def test_all_keys_end_with_the_namespace(self) -> None:
        code, out, _ = route("", "--from-key", "-o", "json")
        told = json.loads(out)
        assert code == 0
        assert (told["key"]["text"], told["range_end"]["text"]) == ("\0", "\0")
        assert told["namespace"]["text"] == "/registry/"
        assert [(part["name"], part["key"]["text"], part["range_end"]["text"]) for part in told["shards"]] == [
            ("main", "/registry/\0", "/registry/events/"),
            ("events", "/registry/events/", "/registry/events0"),
            ("main", "/registry/events0", "/registry0"),
        ]


def test_a_prefix_inside_one_shard() -> None:
    expected = f"""\
SHARD  KEY                RANGE_END          ENDPOINTS
main   "/registry/pods/"  "/registry/pods0"  {MAIN}

A Txn over this range is possible: shard "main" owns all of it.
"""
    assert route("/registry/pods/", "--prefix") == (0, expected, "")


def test_a_prefix_over_boundaries_is_clipped_at_each() -> None:
    expected = f"""\
SHARD   KEY                  RANGE_END            ENDPOINTS
main    "/registry/"         "/registry/events/"  {MAIN}
events  "/registry/events/"  "/registry/events0"  {EVENTS}
main    "/registry/events0"  "/registry0"         {MAIN}

A Txn over this range can only read: another shard begins at "/registry/events/".
"""
    assert route("/registry/", "--prefix") == (0, expected, "")


@pytest.mark.parametrize("option", ["--prefix", "--from-key"])
def test_the_empty_key_with_prefix_or_from_key_is_all_keys(option: str) -> None:
    expected = f"""\
SHARD   KEY                  RANGE_END            ENDPOINTS
main    "\\x00"               "/registry/events/"  {MAIN}
events  "/registry/events/"  "/registry/events0"  {EVENTS}
main    "/registry/events0"  "\\x00" (open end)    {MAIN}

A Txn over this range can only read: another shard begins at "/registry/events/".
"""
    assert route("", option) == (0, expected, "")


def test_from_a_key_on() -> None:
    expected = f"""\
SHARD  KEY  RANGE_END          ENDPOINTS
main   "x"  "\\x00" (open end)  {MAIN}

A Txn over this range is possible: shard "main" owns all of it.
"""
    assert route("x", "--from-key") == (0, expected, "")


def test_an_inverted_range_is_empty_and_has_one_shard_to_answer_it() -> None:
    expected = f"""\
SHARD   KEY                   RANGE_END  ENDPOINTS
events  "/registry/events/b"  "/a"       {EVENTS}

The range holds no key: its end is not above its start. Shard "events" answers it.
A Txn over this range is possible: shard "events" owns all of it.
"""
    assert route("/registry/events/b", "--range-end", "/a") == (0, expected, "")


def test_columns_line_up_under_wide_characters() -> None:
    _, out, _ = route("鍵")
    assert out.startswith('SHARD  KEY   RANGE_END  ENDPOINTS\nmain   "鍵"  (one key)  http')


def test_keys_in_hex_and_base64() -> None:
    keys = (b"/registry/events/", b"/registry/events/\xff")
    as_hex = route(keys[0].hex(), "--range-end", keys[1].hex(), "--hex")
    first, second = (base64.b64encode(key).decode() for key in keys)
    assert route(first, "--range-end", second, "--base64") == as_hex
    expected = f"""\
SHARD   KEY                  RANGE_END                ENDPOINTS
events  "/registry/events/"  "/registry/events/\\xff"  {EVENTS}

A Txn over this range is possible: shard "events" owns all of it.
"""
    assert as_hex == (0, expected, "")


def test_two_keys_are_the_ends_of_a_range() -> None:
    assert route("a", "k") == route("a", "--range-end", "k")
    assert route("a", "") == route("a")


class TestManyKeys:
    EXPECTED = """\
SHARD   KEYS
main    "a"
events  "/registry/events/x"

1 in main, 1 in events.
A Txn over all of them can only read: several shards own them.
"""

    def test_as_arguments(self) -> None:
        assert route("--each", "a", "/registry/events/x") == (0, self.EXPECTED, "")

    @pytest.mark.parametrize("end", ["", "\n"])
    def test_on_stdin(self, end: str) -> None:
        assert route("-", stdin=f"a\n/registry/events/x{end}") == (0, self.EXPECTED, "")

    def test_of_one_shard_can_be_in_one_txn(self) -> None:
        code, out, _ = route("--each", "a", "b")
        assert (code, out.splitlines()[-2:]) == (
            0,
            ["2 in main.", 'A Txn over all of them is possible: shard "main" owns them.'],
        )

    def test_of_stdin_may_have_any_byte_but_a_line_break(self) -> None:
        assert '\nmain    "\\xff \\x00"\n' in route("-", stdin=b"\xff \x00\n")[1]

    def test_of_stdin_may_be_none(self) -> None:
        assert route("-", stdin="") == (0, "", "")

    def test_may_be_prefixes(self) -> None:
        _, out, _ = route("--each", "--prefix", "/registry/events/", "b")
        assert 'events  "/registry/events/"  "/registry/events0"\nmain    "b"  "c"\n' in out

    def test_are_objects_in_lines_as_json(self) -> None:
        lines = route("-", "-o", "json", stdin="a\n/registry/events/x\n")[1].splitlines()
        assert [json.loads(line) for line in lines] == [
            json.loads(route(key, "-o", "json")[1]) for key in ("a", "/registry/events/x")
        ]

    def test_an_empty_line_is_refused_with_its_number_after_what_came_before(self) -> None:
        code, out, err = route("-", stdin="a\n\nb\n")
        assert (code, out.splitlines()[-1]) == (2, 'main    "a"')
        assert err == "esp: line 2 of standard input is empty, and no key is; take it out\n"

    def test_a_closed_stdin_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.stdin", None)
        with pytest.raises(SystemExit) as ended:
            app(["route", "-"])
        assert ended.value.code == 2
        assert capsys.readouterr().err == "esp: standard input is closed; give keys as arguments\n"


class TestExplain:
    def test_of_a_key(self) -> None:
        told = route("/registry/events/x", "--explain")[1].partition("owns all of it.\n")[2]
        assert (
            told
            == """
Why these shards:
  esp.yaml:4: shard events has ["/registry/events/", "/registry/events0")
      narrower than ["", end) of shard main (line 7)

What is sent to whom:
CALL                            SHARDS  HOW
Range, Put, DeleteRange, Watch  events  passed on whole
Txn that only reads             events  passed on whole
Txn that writes                 events  passed on whole
"""
        )

    def test_of_a_range_over_shards(self) -> None:
        told = route("/registry/", "--prefix", "--explain")[1].partition('"/registry/events/".\n')[2]
        assert (
            told
            == """
Why these shards:
  esp.yaml:7: shard main has ["", end)
  esp.yaml:4: shard events has ["/registry/events/", "/registry/events0")
      narrower than ["", end) of shard main (line 7)
  esp.yaml:7: shard main has ["", end)

What is sent to whom:
CALL                 SHARDS        HOW
Range                main, events  in 3 parts, each at its own moment (range_reads)
Watch                main, events  in 3 parts, as one watch
DeleteRange          main, events  one shard after another, not atomic
Txn that only reads  main, events  read in parts, all at one moment (txn_reads)
Txn that writes      -             refused

esp: a transaction spans the shards main, events (boundary "/registry/events/"); keep what a transaction touches, \
in both branches, inside one shard

In a resource of a kube-apiserver that uses this proxy esp refuses all these (across_shards: auto).
"""
        )

    def test_names_what_the_config_refuses(self, config: Path) -> None:
        config.write_text(CONFIG + "across_shards: refuse\n")
        told = json.loads(route("/registry/", "--prefix", "--explain", "-o", "json")[1])["explain"]
        refused = (
            'spans the shards main, events (boundary "/registry/events/"); this proxy is configured to refuse that'
        )
        assert {call["call"]: (call["how"], call["shards"]) for call in told["calls"]} == {
            "Range": ("refused (across_shards)", []),
            "Watch": ("refused (across_shards)", []),
            "DeleteRange": ("refused (across_shards)", []),
            "Txn that only reads": ("refused", []),
            "Txn that writes": ("refused", []),
        }
        assert all(refused in call["refused"] for call in told["calls"][:4])
        config.write_text(CONFIG + "deletes_across_shards: refuse\n")
        told = json.loads(route("/registry/", "--prefix", "--explain", "-o", "json")[1])["explain"]
        assert [call["call"] for call in told["calls"] if call["refused"]] == ["DeleteRange", "Txn that writes"]

    def test_has_lines_and_ranges_as_json(self) -> None:
        told = json.loads(route("/registry/events/x", "--explain", "-o", "json")[1])["explain"]["ranges"]
        everything = {"start": {"text": "", "base64": ""}, "end": None}
        events = {
            "start": {"text": "/registry/events/", "base64": "L3JlZ2lzdHJ5L2V2ZW50cy8="},
            "end": {"text": "/registry/events0", "base64": "L3JlZ2lzdHJ5L2V2ZW50czA="},
        }
        assert [(one["shard"], one["line"], one["written"]) for one in told] == [("events", 4, events)]
        assert told[0]["wider"] == [{"shard": "main", "line": 7, "written": everything}]

    def test_the_widest_of_three_comes_last(self, config: Path) -> None:
        more = "- {name: deep, endpoints: [h:1], ranges: [{prefix: /registry/events/x}]}\n"
        config.write_text(CONFIG + more)
        told = json.loads(route("/registry/events/x", "--explain", "-o", "json")[1])["explain"]["ranges"]
        assert [[one["shard"], *(wider["shard"] for wider in one["wider"])] for one in told] == [
            ["deep", "events", "main"]
        ]


class TestTxn:
    ONE_SHARD = 'mod("/registry/events/a") > "0"\n\nput /registry/events/b 1\n\nget /registry/events/c\n'

    def test_in_one_shard_goes_there_whole(self, tmp_path: Path) -> None:
        (tmp_path / "txn").write_text(self.ONE_SHARD)
        expected = """\
LINE  PART     REQUEST                          SHARDS
1     compare  mod("/registry/events/a") > "0"  events
3     success  put /registry/events/b 1         events
5     failure  get /registry/events/c           events

The Txn can run: shard events gets it whole.
"""
        assert route("--txn", "txn") == route("--txn", "-", stdin=self.ONE_SHARD) == (0, expected, "")

    def test_over_shards_is_refused_with_the_text_of_the_proxy(self) -> None:
        code, out, err = route("--txn", "-", stdin="\nput a 1\nput /registry/events/b 1\n")
        assert (code, err) == (1, "esp: the transaction cannot run\n")
        assert out.endswith(
            "The Txn cannot run; its client gets FailedPrecondition:\n"
            'esp: a transaction spans the shards events, main (boundary "/registry/events0"); keep what a transaction '
            "touches, in both branches, inside one shard\n"
        )

    def test_that_only_reads_runs_over_shards(self, config: Path) -> None:
        text = "\nget a\nget /registry/events/b\n"
        assert route("--txn", "-", stdin=text)[1].endswith(
            "The Txn can run: it only reads, all shards at one moment (txn_reads: snapshot). Shards: events, main.\n"
        )
        config.write_text(CONFIG + "txn_reads: each\n")
        told = json.loads(route("--txn", "-", "-o", "json", stdin=text)[1])
        assert (told["possible"], told["how"], [one["name"] for one in told["shards"]]) == (
            True,
            "each",
            ["events", "main"],
        )

    def test_that_etcd_refuses_cannot_run(self) -> None:
        code, out, _ = route("--txn", "-", "-o", "json", stdin="\nput a 1\ndel a\n")
        told = json.loads(out)
        assert (code, told["possible"]) == (1, False)
        message = "etcdserver: duplicate key given in txn request"
        assert told["error"] == {"code": "InvalidArgument", "message": message}

    def test_in_a_namespace_is_checked_with_its_prefix(self, config: Path) -> None:
        config.write_text(CONFIG + "namespace: /registry/\n")
        told = json.loads(route("--txn", "-", "-o", "json", stdin="\nput events/b 1\nget events/ --prefix\n")[1])
        assert (told["how"], [one["name"] for one in told["shards"]]) == ("whole", ["events"])
        assert told["parts"][0]["key"]["text"] == "events/b"

    def test_of_nothing_asks_all(self) -> None:
        told = json.loads(route("--txn", "-", "-o", "json", stdin="\n\n\n")[1])
        assert (told["how"], len(told["shards"]), told["parts"]) == ("nothing", 2, [])

    def test_that_is_none_is_one_line_with_its_place(self) -> None:
        assert route("--txn", "-", stdin="\nput a 1\nputt b\n") == (
            2,
            "",
            "esp: standard input:3: invalid txn request: putt b; write put KEY VALUE, get KEY [END] or del KEY [END]\n",
        )


def test_a_range_end_of_the_zero_byte_is_open() -> None:
    assert route("78", "--range-end", "00", "--hex") == route("x", "--from-key")


def test_json_of_a_range_over_boundaries() -> None:
    def key(text: str) -> dict[str, str]:
        return {"text": text, "base64": base64.b64encode(text.encode()).decode()}

    code, out, err = route("/registry/", "--range-end", "/registry/events/m", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "key": key("/registry/"),
        "range_end": key("/registry/events/m"),
        "namespace": None,
        "empty": False,
        "shards": [
            {
                "name": "main",
                "key": key("/registry/"),
                "range_end": key("/registry/events/"),
                "endpoints": ["http://127.0.0.1:22379", "http://127.0.0.1:22389"],
            },
            {
                "name": "events",
                "key": key("/registry/events/"),
                "range_end": key("/registry/events/m"),
                "endpoints": ["http://127.0.0.1:12379"],
            },
        ],
        "txn": {"possible": False, "boundary": key("/registry/events/")},
    }


def test_json_of_a_key_that_is_not_text() -> None:
    code, out, _ = route("fffe", "--hex", "--output", "json")
    assert code == 0
    assert out == (
        """\
{
  "key": {
    "base64": "//4="
  },
  "range_end": {
    "text": "",
    "base64": ""
  },
  "namespace": null,
  "empty": false,
  "shards": [
    {
      "name": "main",
      "key": {
        "base64": "//4="
      },
      "range_end": {
        "text": "",
        "base64": ""
      },
      "endpoints": [
        "http://127.0.0.1:22379",
        "http://127.0.0.1:22389"
      ]
    }
  ],
  "txn": {
    "possible": true,
    "boundary": null
  }
}
"""
    )


def test_json_of_an_inverted_range() -> None:
    document = json.loads(route("b", "--range-end", "a", "-o", "json")[1])
    assert document["empty"] is True
    assert [(shard["name"], shard["key"]["text"], shard["range_end"]["text"]) for shard in document["shards"]] == [
        ("main", "b", "a")
    ]
    assert document["txn"] == {"possible": True, "boundary": None}


HEX_CURE = "write two digits (0-9, a-f) for each byte"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([""], "etcdserver: key is not provided; for all keys add --from-key"),
        (["", "--range-end", "z"], "etcdserver: key is not provided; for all keys add --from-key"),
        (["6g", "--hex"], 'KEY is "6g", which is not hex; ' + HEX_CURE),
        (["61", "--hex", "--range-end", "6"], 'END is "6", which is not hex; ' + HEX_CURE),
        (["é", "--hex"], 'KEY is "é", which is not hex; ' + HEX_CURE),
        (
            ["YQ", "--base64"],
            'KEY is "YQ", which is not base64; write groups of four letters (A-Z, '
            "a-z, 0-9, +, /), the last filled up with =",
        ),
        (["a", "--hex", "--base64"], "--hex and --base64 exclude each other; give one"),
        (["a", "--prefix", "--from-key"], "--prefix, --from-key and --range-end exclude each other; give one"),
        (["a", "--range-end", "", "--prefix"], "--prefix, --from-key and --range-end exclude each other; give one"),
        ([], "no key is given; esp route KEY, or - for keys on stdin, or --txn FILE"),
        (
            ["a", "b", "--prefix"],
            "two keys are the ends of a range; give one key with --prefix; for keys of their own add --each",
        ),
        (["a", "b", "--range-end", "c"], "two keys are the ends of a range; give one key with --range-end"),
        (["a", "b", "c"], "3 keys: a range has two ends; for keys of their own add --each"),
        (["a", "-"], '"-" stands for keys on stdin and goes alone; for the key "-" write --hex 2d'),
        (["-", "--range-end", "c"], "--range-end is for one key or range; give one"),
        (["--each", "a", "--explain"], "--explain is for one key or range; give one"),
        (["--each", "a", ""], "etcdserver: key is not provided; for all keys add --from-key"),
        (["a", "--txn", "x"], "--txn takes the place of keys and of their options; leave those out"),
        (["--txn", "none"], "none cannot be read: no such file or directory; name a file with a transaction"),
        (["a", "-c", "none.yaml"], "none.yaml: cannot be read: no such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], error: str) -> None:
    assert route(*arguments) == (2, "", f"esp: {error}\n")


def test_a_wrong_config_is_one_line_and_exit_2(config: Path) -> None:
    config.write_text(CONFIG.replace(":12379", ""))
    assert route("a") == (
        2,
        "",
        'esp: esp.yaml:3: shard "events": endpoint "http://127.0.0.1" has no port; write http://127.0.0.1:2379\n',
    )


def test_the_config_named_in_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.yaml").write_text(CONFIG.replace("name: main", "name: rest"))
    monkeypatch.setenv("ESP_CONFIG", "other.yaml")
    assert '\nrest   "a"' in route("a")[1]
    assert '\nmain   "a"' in route("a", "-c", "esp.yaml")[1]

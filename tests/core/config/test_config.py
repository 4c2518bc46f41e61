# ruff: noqa: E501 - a table of errors reads best with one on each line
from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.config import (
    AcrossShards,
    Compaction,
    Config,
    ConfigError,
    Endpoint,
    Listen,
    ShardConfig,
    find,
    listen_of,
    load,
    parse,
)
from esp.core.config import control as field_control
from esp.core.control import place
from esp.core.keys import KeyRange
from esp.core.namespace import Namespace
from esp.core.shard_map import ShardMap
from esp.core.wire.limits import Limits
from tests.examples import tries

PATH = Path("esp.yaml")

ONE = """\
shards:
- name: main
  endpoints: [127.0.0.1:12379]
  ranges: [{start: "", end: ""}]
"""

ORIGINAL = """\
shards:
- start: ""
  end: i
  address: 127.0.0.1:12379
- start: i
  end: s
  address: 127.0.0.1:22379
- start: s
  end: ""
  address: 127.0.0.1:32379
"""


ALL = '{start: "", end: ""}'


def three(*ranges: str) -> str:
    """Shards a, b, c, ... with these ranges, on lines 2, 4, 6, ..."""
    shards = [
        f"- {{name: {chr(97 + index)}, endpoints: [h:{index + 1}],\n   ranges: [{text}]}}\n"
        for index, text in enumerate(ranges)
    ]
    return "shards:\n" + "".join(shards)


# What is accepted


def test_a_config_with_every_field() -> None:
    text = """\
listen: [http://0.0.0.0:2379, "http://[::1]:2379"]
advertise: [http://proxy-1:2379/, https://proxy.example:443]
cors: [http://a.example, http://b.example:8080]
host_whitelist: [a.example]
whole: [/locks/]
compaction: {revisions_of: /clock}
across_shards: {refuse: [/tenants/, {start: a, end: b}]}
deletes_across_shards: refuse
defragment: sequential
leases: strict
range_reads: snapshot
txn_reads: each
drain_seconds: 2.5
limits: {max_connections: 20, connect_timeout: 0.5, keepalive_time: 12}
control: run/esp.sock
watch_config: true
shards:
  - name: events
    endpoints: [http://127.0.0.1:12379]
    ranges: [{kubernetes: events}]
  - name: main
    endpoints: [http://127.0.0.1:22379, "[::1]:22389", Etcd-3.example:22399]
    ranges: [{start: "", end: ""}]
"""
    events = KeyRange(b"/registry/events", b"/registry/events0")
    below, above = KeyRange(b"", events.start), KeyRange(b"/registry/events0", None)
    assert parse(text, PATH) == Config(
        path=PATH,
        listen=(Listen("0.0.0.0", 2379), Listen("::1", 2379)),
        advertise=("http://proxy-1:2379", "https://proxy.example:443"),
        cors=("http://a.example", "http://b.example:8080"),
        host_whitelist=("a.example",),
        shards=(
            ShardConfig("events", (Endpoint("127.0.0.1", 12379),), (events,)),
            ShardConfig(
                "main",
                (Endpoint("127.0.0.1", 22379), Endpoint("::1", 22389), Endpoint("etcd-3.example", 22399)),
                (below, above),
            ),
        ),
        shard_map=ShardMap.build([("events", events), ("main", below), ("main", above)], ("events", "main")),
        across_shards=AcrossShards((KeyRange(b"/tenants/", b"/tenants0"), KeyRange(b"a", b"b"))),
        compaction=Compaction(b"/clock", takes_any=True),
        deletes_across_shards="refuse",
        defragment="sequential",
        kubernetes=(b"/registry/",),
        leases="strict",
        range_reads="snapshot",
        txn_reads="each",
        drain_seconds=2.5,
        limits=Limits(max_connections=20, connect_timeout=0.5, keepalive_time=12),
        control=PATH.parent / "run" / "esp.sock",
        watch_config=True,
        whole=(KeyRange(b"/locks/", b"/locks0"),),
    )


def test_what_is_not_said_has_a_default() -> None:
    config = parse(ONE, None)
    assert config.path is None
    assert config.listen == (Listen("127.0.0.1", 2379),)
    assert config.advertise == ()
    assert config.cors == config.host_whitelist == ("*",)
    assert config.across_shards == AcrossShards(refused=(), protects_kubernetes=True)
    assert config.compaction == Compaction(b"compact_rev_key", takes_any=False)
    assert config.deletes_across_shards == "serve"
    assert config.defragment == "refuse"
    assert config.kubernetes == ()
    assert config.leases == "tolerant"
    assert config.range_reads == "default"
    assert config.txn_reads == "snapshot"
    assert config.drain_seconds == 10
    assert config.limits == Limits()
    assert config.control == "auto"
    assert config.watch_config is False


@pytest.mark.parametrize(
    ("text", "control"),
    [("off", None), ("'off'", None), ("auto", "auto"), ("/run/x.sock", Path("/run/x.sock"))],
)
def test_the_control_socket_is_a_path_or_derived_or_none(text: str, control: object) -> None:
    assert parse(ONE + f"control: {text}", PATH).control == control


def test_both_modules_agree_on_the_longest_path_of_a_socket() -> None:
    assert field_control.MAX_PATH_BYTES == place.MAX_PATH_BYTES


def test_shards_without_a_name_are_numbered() -> None:
    text = "shards: [{endpoints: [h:1], ranges: [{prefix: a}]}, {endpoints: [h:2], ranges: [{start: '', end: ''}]}]"
    assert parse(text, PATH).shard_map.names == ("shard-0", "shard-1")


def test_json_is_read_too() -> None:
    value = {"shards": [{"name": "main", "endpoints": ["h:1"], "ranges": [{"start": "", "end": ""}]}]}
    assert parse(json.dumps(value), PATH).shards == (ShardConfig("main", (Endpoint("h", 1),), (KeyRange(b"", None),)),)


def test_json_escapes_of_one_character_make_one_character() -> None:
    config = parse(three('{start: "", end: ""}', r'{prefix: "\ud83d\udd11"}'), PATH)
    assert config.shards[1].ranges[0].start == "\N{KEY}".encode()


@pytest.mark.parametrize(
    "boundary", ["hex:fF00", "!!binary /wA=", '!!binary "/wA="'], ids=["hex", "binary", "quoted binary"]
)
def test_keys_that_are_not_text(boundary: str) -> None:
    config = parse(three(f'{{start: "", end: {boundary}}}', f'{{start: {boundary}, end: ""}}'), PATH)
    assert config.shard_map.starts == [b"", b"\xff\x00"]


def test_a_key_that_looks_like_a_date_or_begins_with_hex() -> None:
    config = parse(three('{start: "", end: ""}', "{prefix: 2024-01-01}", '{prefix: !!binary "aGV4Og=="}'), PATH)
    assert config.shards[1].ranges == (KeyRange(b"2024-01-01", b"2024-01-02"),)
    assert config.shards[2].ranges == (KeyRange(b"hex:", b"hex;"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", AcrossShards()),
        ("serve", AcrossShards(protects_kubernetes=False)),
        ("refuse", AcrossShards((KeyRange(b"", None),))),
        ('{refuse: [""]}', AcrossShards((KeyRange(b"", None),))),
        ("{refuse: [{kubernetes: pods}]}", AcrossShards((KeyRange(b"/registry/pods", b"/registry/pods0"),))),
    ],
)
def test_what_becomes_of_requests_over_several_shards(text: str, expected: AcrossShards) -> None:
    assert parse(ONE + f"across_shards: {text}", PATH).across_shards == expected


def test_compactions_at_plain_revisions_can_be_refused() -> None:
    assert parse(ONE + "compaction: refuse", PATH).compaction == Compaction(None)


def test_a_namespace_is_a_prefix_and_the_place_of_kubernetes_defaults() -> None:
    config = parse(ONE + "namespace: /team/", PATH)
    assert config.namespace == Namespace.of(b"/team/")
    assert config.compaction == Compaction(b"/team/compact_rev_key")
    assert config.compact_key == b"/team/compact_rev_key"
    assert config.apiserver_roots == (b"/team//registry/",)
    assert parse(ONE + "namespace: hex:ff", PATH).namespace == Namespace(b"\xff", b"\0")
    assert parse(ONE, PATH).namespace is None
    named = parse(ONE + "namespace: n/\ncompaction: {revisions_of: k}", PATH)
    assert named.compaction == Compaction(b"k", takes_any=True), "keys in the file are those of the shards"


def test_a_kubernetes_resource_is_its_key_and_all_below() -> None:
    config = parse(three("{kubernetes: pods}", "{kubernetes: nodes, etcd_prefix: k8s/}", ALL), PATH)
    assert config.shards[0].ranges == (KeyRange(b"/registry/pods", b"/registry/pods0"),)
    assert config.shards[1].ranges == (KeyRange(b"/k8s/minions", b"/k8s/minions0"),)
    assert config.kubernetes == (b"/registry/", b"/k8s/")


def test_what_must_be_whole_may_lie_between_boundaries_and_at_them() -> None:
    text = three("{start: '', end: m}", "{start: m, end: ''}") + "whole: [a, m, {start: b, end: m}, {kubernetes: pods}]"
    assert parse(text, PATH).shard_map.starts == [b"", b"m"]


def test_endpoints_and_listens_are_written_as_urls() -> None:
    assert str(Endpoint("::1", 2379)) == "http://[::1]:2379"
    assert str(Listen("localhost", 0)) == "http://localhost:0"
    assert listen_of(["http://[::1]:0"]) == (Listen("::1", 0),)


def test_the_original_format_works_as_it_is() -> None:
    config = parse(ORIGINAL, PATH)
    assert config.shards == (
        ShardConfig("shard-0", (Endpoint("127.0.0.1", 12379),), (KeyRange(b"", b"i"),)),
        ShardConfig("shard-1", (Endpoint("127.0.0.1", 22379),), (KeyRange(b"i", b"s"),)),
        ShardConfig("shard-2", (Endpoint("127.0.0.1", 32379),), (KeyRange(b"s", None),)),
    )


def test_the_original_format_ignores_the_first_start_and_the_last_end() -> None:
    changed = ORIGINAL.replace('start: ""', "start: c").replace('end: ""', "end: z")
    assert parse(changed, PATH).shard_map == parse(ORIGINAL, PATH).shard_map


@pytest.mark.parametrize("data", ["[105]", "aQ==", "!!binary aQ=="])
def test_the_original_format_reads_bytes_where_the_text_is_empty(data: str) -> None:
    changed = ORIGINAL.replace("end: i", f"endBytes: {data}").replace("start: i", f'start: ""\n  startBytes: {data}')
    assert parse(changed, PATH).shard_map == parse(ORIGINAL, PATH).shard_map


def test_the_original_format_prefers_text_to_bytes() -> None:
    changed = ORIGINAL.replace("end: i", "end: i\n  endBytes: [1]")
    assert parse(changed, PATH).shard_map == parse(ORIGINAL, PATH).shard_map


boundaries = st.sets(st.binary(min_size=1, max_size=5).filter(lambda key: key != b"\0"), max_size=6).map(sorted)


@settings(max_examples=tries(50))
@given(boundaries, st.data())
def test_any_map_can_be_written_and_read_back(cuts: list[bytes], data: st.DataObject) -> None:
    ends = [*cuts, None]
    pieces = [KeyRange(low, high) for low, high in zip([b"", *cuts], ends, strict=True)]
    owners = [data.draw(st.integers(0, 2)) for _ in pieces]
    used = sorted(set(owners))
    layout = [(f"shard-{used.index(owner)}", piece) for owner, piece in zip(owners, pieces, strict=True)]
    write = data.draw(st.sampled_from([lambda key: f'"hex:{key.hex()}"', binary]))
    shards = [
        "- endpoints: [h:{}]\n  ranges:\n{}".format(
            shard + 1,
            "".join(
                f"  - {{start: {write(piece.start)}, end: {write(piece.end or b'')}}}\n"
                for owner, piece in layout
                if owner == f"shard-{shard}"
            ),
        )
        for shard in range(len(used))
    ]
    names = [f"shard-{shard}" for shard in range(len(used))]
    assert parse("shards:\n" + "".join(shards), PATH).shard_map == ShardMap.build(layout, names)


def binary(key: bytes) -> str:
    return f'!!binary "{base64.b64encode(key).decode()}"'


# What is refused, word for word

FIELDS = (
    "the fields here are listen, tls, advertise, namespace, cors, host_whitelist, map, shards, auth, shard_tls, whole, across_shards, compaction, "
    "deletes_across_shards, defragment, leases, range_reads, txn_reads, drain_seconds, workers, limits, control, watch_config, log, traces, metrics_for_clients, metrics_listen, ui, hot_prefixes"
)
NO_SHARDS = 'no shards; write shards: [{endpoints: [http://127.0.0.1:12379], ranges: [{start: "", end: ""}]}]'
RANGE = "a range is {prefix: ...}, {start: ..., end: ...} or {kubernetes: ...}"
COMPACTION = "write kubernetes, refuse or {revisions_of: KEY}"
ACROSS = "write auto, serve, refuse or {refuse: [PREFIX, ...]}"

REFUSED = {
    "empty namespace": (ONE + 'namespace: ""', '5: "namespace" is empty; write a prefix, such as team-a/, or leave it out'),
    "a number as namespace": (ONE + "namespace: 5", '5: "namespace" is a number to YAML; quote it'),
    # The file as YAML
    "not closed": ("a: [1", "1: not YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"),
    "nul": ("a: 1\nb: \0", "2: not YAML: the character '\\x00' is not allowed"),
    "alias": ("a: *b", "1: YAML anchors and aliases are not read here; write the value out"),
    "anchor": ("a: &b 1", "1: YAML anchors and aliases are not read here; write the value out"),
    "field twice": (ONE + "drain_seconds: 1\ndrain_seconds: 2", '6: field "drain_seconds" is given twice (first on line 5); keep one'),
    "second document": (ONE + "---\na: 1", "5: a second YAML document begins here; keep one"),
    "number as field": ("5: 1", "1: a field name must be text; quote it"),
    "deep": ("[" * 100_000, "1: nested more than 20 deep"),
    "many": ("[" + "a," * 100_001 + "]", "1: more than 100000 values"),
    "tag": ("a: !foo b", '1: unknown YAML tag "!foo"'),
    "tag on a list": ("a: !foo [b]", '1: unknown YAML tag "!foo"'),
    "wrong tag": ("a: !!int x", '1: "x" is not what its tag says; quote it if it is text'),
    "equals sign": ("a: =", '1: "=" means something else in YAML; quote it'),
    "base 60": ("a: 1:30", '1: "1:30" is a base 60 number to YAML; quote it'),
    "bad base64": ("a: !!binary x", "1: !!binary needs base64 text"),
    # Shapes
    "empty": ("", "1: " + NO_SHARDS),
    "no shards": ("drain_seconds: 1", "1: " + NO_SHARDS),
    "shards empty": ("drain_seconds: 1\nshards: []", "2: " + NO_SHARDS),
    "list": ("[]", "1: the file must be a mapping, not a list"),
    "shards no list": ("shards: 5", '1: "shards" must be a list, not a number'),
    "shard no mapping": ("shards: [5]", '1: "shard-0" must be a mapping, not a number'),
    "unknown field": (ONE + "paint: red", f'5: unknown field "paint"; {FIELDS}'),
    "misspelt field": (ONE + "drain_second: 1", '5: unknown field "drain_second"; did you mean "drain_seconds"?'),
    "misspelt shard field": ("shards: [{nam: x}]", '1: "shard-0": unknown field "nam"; did you mean "name"?'),
    "misspelt range field": (three("{prefx: a}"), '3: shard "a": a range: unknown field "prefx"; did you mean "prefix"?'),
    "endpoint a number": ("shards: [{endpoints: [1]}]", '1: "shard-0": endpoint 1 is not text; write http://127.0.0.1:1'),
    "range a text": (three("a"), '3: shard "a": a range must be a mapping, not text'),
    "listen no list": (ONE + "listen: http://h:1", '5: "listen" must be a list, not text'),
    "listen empty": (ONE + "listen: []", '5: "listen" is empty; write listen: [http://127.0.0.1:2379]'),
    # What may be cut
    "whole": (
        three('{start: "", end: /locks/m}', '{start: /locks/m, end: ""}') + "whole:\n- /x/\n- /locks/",
        '8: ["/locks/", "/locks0") must be whole, but is cut at "/locks/m" (line 5) between the shards a, b; '
        "move that boundary out of it, or give the range itself to one shard",
    ),
    "whole nested": (
        three("{prefix: /locks/m/}", ALL) + "whole: [{prefix: /locks/}]",
        '6: ["/locks/", "/locks0") must be whole, but is cut at "/locks/m/" (line 3) between the shards b, a; '
        "move that boundary out of it, or give the range itself to one shard",
    ),
    "whole at its end": (
        three("{start: '', end: /locks/m}", "{start: /locks/m, end: ''}") + "whole: [{start: /locks, end: /locks/n}]",
        '6: ["/locks", "/locks/n") must be whole, but is cut at "/locks/m" (line 5) between the shards a, b; '
        "move that boundary out of it, or give the range itself to one shard",
    ),
    "whole a number": (ONE + "whole: [5]", '5: "whole": "prefix" is a number to YAML; quote it'),
    "whole no list": (ONE + "whole: /locks/", '5: "whole" must be a list, not text'),
    "whole empty": (ONE + "whole: [{start: b, end: a}]", '5: "whole": a range holds no key; its end must be above its start'),
    "whole half": (ONE + "whole: [{start: b}]", '5: "whole": a range has no "end"; write end: "" for the last key there is'),
    "compaction": (ONE + "compaction: never", f'5: "compaction" is "never"; {COMPACTION}'),
    "compaction of more": (ONE + "compaction: {revisions_of: a, b: c}", f'5: "compaction" is a mapping of another form; {COMPACTION}'),
    "compaction key": (ONE + "compaction: {revisions_of: 5}", '5: "compaction": "revisions_of" is a number to YAML; quote it'),
    "across": (ONE + "across_shards: never", f'5: "across_shards" is "never"; {ACROSS}'),
    "across empty": (ONE + "across_shards: {refuse: []}", f'5: "across_shards" is a mapping of another form; {ACROSS}'),
    "across more": (ONE + "across_shards: {refuse: [a], serve: [b]}", f'5: "across_shards" is a mapping of another form; {ACROSS}'),
    "across a list": (ONE + "across_shards: [a]", '5: "across_shards" must be text or a mapping, not a list'),
    "across range": (ONE + "across_shards: {refuse: [{prefx: a}]}", '5: "across_shards": a range: unknown field "prefx"; did you mean "prefix"?'),
    "resource": (three("{kubernetes: /registry/pods/}"), '3: shard "a": a range: "/registry/pods/" is no resource; write pods, apps/deployments or example.com/widgets'),
    "resource a number": (three("{kubernetes: 5}"), '3: shard "a": a range: "kubernetes" must be text, not a number; quote it'),
    "resource and prefix": (three("{kubernetes: pods, prefix: a}"), f'3: shard "a": {RANGE}'),
    "etcd_prefix alone": (three("{prefix: a, etcd_prefix: /k8s}"), f'3: shard "a": {RANGE}'),
    # Single fields
    "deletes": (ONE + "deletes_across_shards: no way", '5: "deletes_across_shards" is "no way"; write serve or refuse'),
    "range_reads": (ONE + "range_reads: exact", '5: "range_reads" is "exact"; write default or snapshot'),
    "map elsewhere": (ONE + "map: etcd", '5: "map" is "etcd"; write file or shards'),
    "txn_reads": (ONE + "txn_reads: exact", '5: "txn_reads" is "exact"; write snapshot or each'),
    "control empty": (ONE + "control: ''", '5: "control" is ""; write auto, off or the path of a socket'),
    "control true": (ONE + "control: on", '5: "control" is true or false; write auto, off or the path of a socket'),
    "control long": (ONE + f"control: /{'x' * 100}", f'5: "control": /{"x" * 100} is longer than 100 bytes, the most for a socket; write a shorter path'),
    "watch_config": (ONE + "watch_config: 1", '5: "watch_config" must be true or false, not a number'),
    "leases": (ONE + "leases: lax", '5: "leases" is "lax"; write tolerant or strict'),
    "deletes a truth": (ONE + "deletes_across_shards: no", '5: "deletes_across_shards" must be text, not true or false; quote it'),
    "drain": (ONE + "drain_seconds: .inf", '5: "drain_seconds" is "inf"; write a number of seconds from 0 to 86400'),
    "drain negative": (ONE + "drain_seconds: -1", '5: "drain_seconds" is "-1"; write a number of seconds from 0 to 86400'),
    "drain a text": (ONE + "drain_seconds: long", '5: "drain_seconds" is "long"; write a number of seconds from 0 to 86400'),
    "drain with an exponent": (ONE + "drain_seconds: 1e30", '5: "drain_seconds" is "1e30"; write a number of seconds from 0 to 86400'),
    "a tab": (ONE + "limits:\n\tmax_connections: 1", "6: not YAML: a tab where only blanks may stand; indent with blanks"),
    "listen twice": (ONE + "listen: ['http://h:1', 'http://H:1/']", "5: listen URL http://h:1 is listed twice; remove one"),
    "limit": (ONE + "limits:\n  keepalive_tim: 9", '6: limits: unknown field "keepalive_tim"; did you mean "keepalive_time"?'),
    "limit low": (ONE + "limits: {keepalive_time: 9}", '5: limits: "keepalive_time" is 9; it must be between 10 and 2147483647'),
    "limit zero": (ONE + "limits: {max_connections: 0}", '5: limits: "max_connections" is 0; it must be above 0 and at most 2147483647'),
    "limit nan": (ONE + "limits: {connect_timeout: .nan}", '5: limits: "connect_timeout" is nan; it must be above 0 and at most 2147483647'),
    "limit window": (ONE + "limits: {stream_window_bytes: 65534}", '5: limits: "stream_window_bytes" is 65534; it must be between 65535 and 2147483647'),
    "limit within a frame": (ONE + "limits: {max_message_bytes: 16383}", '5: limits: "max_message_bytes" is 16383; it must be between 16384 and 2147483647'),
    "limit fraction": (ONE + "limits: {max_connections: 1.5}", '5: limits: "max_connections" must be a whole number, not 1.5'),
    "limit with an exponent": (ONE + "limits: {max_buffered_bytes: 1e9}", '5: limits: "max_buffered_bytes" must be a whole number, not "1e9"; write 1000000000'),
    "limit with a point": (ONE + "limits: {max_connections: 4.0}", '5: limits: "max_connections" must be a whole number, not 4.0; write 4'),
    "limit with a unit": (ONE + "limits: {max_buffered_bytes: 64MB}", '5: limits: "max_buffered_bytes" must be a whole number, not "64MB"'),
    "limit far too large": (ONE + "limits: {max_buffered_bytes: 1e300}", '5: limits: "max_buffered_bytes" must be a whole number, not "1e300"'),
    "limit empty": (ONE + "limits: {max_connections: }", '5: limits: "max_connections" must be a whole number, not empty'),
    "limit a list": (ONE + "limits: {connect_timeout: [1]}", '5: limits: "connect_timeout" must be a number, not a list'),
    "limit of seconds with an exponent": (ONE + "limits: {connect_timeout: 1e-1}", '5: limits: "connect_timeout" must be a number, not "1e-1"; write 0.1'),
    "limit truth": (ONE + "limits: {connect_timeout: yes}", '5: limits: "connect_timeout" must be a number, not true or false'),
    "limit order": (ONE + "limits: {max_output_hard_bytes: 10}", '5: limits: "max_output_hard_bytes" is 10; it must be at least max_output_bytes'),
    # URLs
    "listen tls": (ONE + "listen: [https://h:1]", '5: listen URL https://h:1 needs a certificate; write tls: {cert: FILE, key: FILE}'),
    "listen with a blank": (ONE + "listen: ['http://a b:1']", '5: listen URL "http://a b:1" has a blank in it; write http://ab:1'),
    "listen with a blank for a colon": (ONE + "listen: ['http://127.0.0.1 2379']", '5: listen URL "http://127.0.0.1 2379" has a blank in it; write http://127.0.0.1:2379'),
    "listen several": (ONE + "listen: ['http://a:1 http://b:1']", '5: listen URL "http://a:1 http://b:1" is 2 in one; write each as an entry of its own: http://a:1, http://b:1'),
    "listen several with a comma": (ONE + "listen: ['http://a, b:1']", '5: listen URL "http://a, b:1" is 2 in one; write each as an entry of its own: http://a:2379, http://b:1'),
    "listen unix without a path": (ONE + "listen: ['unix://']", '5: listen URL "unix://" names no file; write unix:/run/esp.sock'),
    "listen unix with a long path": (ONE + f"listen: ['unix:/{'a' * 107}']", f'5: listen URL "unix:/{"a" * 107}" has a path above 107 bytes; name a shorter one'),
    "advertise unix": (ONE + "advertise: ['unix:///x']", '5: advertise URL "unix:///x": esp has no use for a unix socket here; write http://127.0.0.1:2379'),
    "listen on one port with and without tls": (ONE + "listen: [http://h:1, https://h:1]", "5: listen URL https://h:1 is listed twice; remove one"),
    "listen on one socket with and without tls": (ONE + "listen: [unix:/a, unixs:/a]", "5: listen URL unixs:/a is listed twice; remove one"),
    "listen no scheme": (ONE + "listen: ['h:1']", '5: listen URL "h:1" has no scheme; write http://h:1'),
    "an origin that is none": (
        ONE + "cors: [http://a, 5]",
        '5: "cors" has 5; write an origin such as http://example.com, or "*" for any',
    ),
    "an origin without a scheme": (
        ONE + "cors: [a.example]",
        '5: "cors" has "a.example"; write an origin such as http://example.com, or "*" for any',
    ),
    "an origin with a path": (
        ONE + "cors: [http://a.example/]",
        '5: "cors" has "http://a.example/"; write an origin such as http://example.com, or "*" for any',
    ),
    "a host that is none": (
        ONE + "host_whitelist: ['a b']",
        '5: "host_whitelist" has "a b"; write a name without port, or "*"',
    ),
    "a host with a port": (
        ONE + "host_whitelist: ['::1', 'a.example:80']",
        '5: "host_whitelist" has "a.example:80"; write a name without port, or "*"',
    ),
    "a URL for a host": (
        ONE + "host_whitelist: [http://a.example]",
        '5: "host_whitelist" has "http://a.example"; write a name without port, or "*"',
    ),
    "advertise wildcard": (
        ONE + "advertise: ['http://0.0.0.0:2379']",
        '5: advertise URL "http://0.0.0.0:2379" is where a server listens, and no client can connect to it; '
        "write the name or an address of this machine, as clients know it",
    ),
    "advertise wildcard of IPv6": (
        ONE + "advertise:\n- http://a:1\n- http://[::]:2379",
        '7: advertise URL "http://[::]:2379" is where a server listens, and no client can connect to it; '
        "write the name or an address of this machine, as clients know it",
    ),
    "advertise twice": (
        ONE + "advertise:\n- http://a:1\n- http://a:1/",
        "7: advertise URL http://a:1 is listed twice; remove one",
    ),
    "defragment": (ONE + "defragment: all", '5: "defragment" is "all"; write refuse or sequential'),
    "advertise no scheme": (ONE + "advertise:\n- h:1", '6: advertise URL "h:1" has no scheme; write http://h:1'),
    "advertise port": (ONE + "advertise: ['http://h:65536']", '5: advertise URL "http://h:65536": there is no port 65536; write one from 1 to 65535'),
    "endpoint no port": (ONE.replace(":12379", ""), '3: shard "main": endpoint "127.0.0.1" has no port; write http://127.0.0.1:2379'),
    "endpoint port zero": (ONE.replace("12379", "0"), '3: shard "main": endpoint "127.0.0.1:0": there is no port 0; write one from 1 to 65535'),
    "endpoint port a name": (ONE.replace("12379", "etcd"), '3: shard "main": endpoint "127.0.0.1:etcd" is not an address; write http://127.0.0.1:2379'),
    "endpoint scheme": (ONE.replace("127", "etcd://127"), '3: shard "main": endpoint "etcd://127.0.0.1:12379": unknown scheme "etcd"; write http://127.0.0.1:12379'),
    "endpoint path": (ONE.replace("12379", "12379/v3"), '3: shard "main": endpoint "127.0.0.1:12379/v3" has a path; write http://127.0.0.1:12379'),
    "endpoint bare ipv6": (ONE.replace("127.0.0.1:12379", "'::1:2379'"), '3: shard "main": endpoint "::1:2379" has an IPv6 address without brackets; write http://[::1]:2379'),
    "endpoint in two shards": (three("{prefix: a}", ALL).replace("h:2", "http://H:1/"), '4: shard "b": endpoint http://h:1 is listed in shard "a" already; remove it from one'),
    # Shards
    "no endpoints": ("shards: [{name: x}]", '1: shard "x" has no endpoints; write endpoints: [http://127.0.0.1:12379]'),
    "no ranges": ("shards:\n- endpoints: [h:1]", '2: "shard-0" has no ranges; write ranges: [{start: "", end: ""}] for all keys'),
    "same name": (three("{prefix: a}", ALL).replace("name: b", "name: a"), '4: two shards are named "a" (the first on line 2); rename one'),
    "name a number": ("shards: [{name: 5}]", '1: shard 1: "name" must be text, not a number; quote it'),
    "name a mapping": ("shards: [{name: {a: 1}}]", '1: shard 1: "name" must be text, not a mapping'),
    "name a list": ("shards: [{name: [a]}]", '1: shard 1: "name" must be text, not a list'),
    "name with a line break": ('shards: [{name: "a\\nb"}]', '1: shard name "a\\nb": use at most 63 letters, digits, ".", "_" and "-", the first a letter or a digit'),
    # Ranges
    "key a number": (three('{start: 5, end: ""}'), '3: shard "a": "start" is a number to YAML; quote it'),
    "key a truth": (three("{prefix: on}"), '3: shard "a": "prefix" is true or false to YAML; quote it'),
    "key null": (three('{start: , end: ""}'), '3: shard "a": "start" is empty; write "" if that is meant'),
    "key a list": (three("{prefix: [1]}"), '3: shard "a": "prefix" is a list; write text, hex: or !!binary'),
    "key bad hex": (three('{prefix: "hex:f"}'), '3: shard "a": "prefix" is "hex:f"; after hex: write two hexadecimal digits for each byte'),
    "key half a pair": (three(r'{prefix: "\ud800"}'), '3: "\\ud800" is not text in UTF-8; keys may be written as hex: or !!binary'),
    "no end": (three("{start: a}"), '3: shard "a": a range has no "end"; write end: "" for the last key there is'),
    "no start": (three("{end: a}"), '3: shard "a": a range has no "start"; write start: "" for the first key there is'),
    "no keys": (three("{}"), f'3: shard "a": {RANGE}'),
    "prefix and end": (three("{prefix: a, end: b}"), f'3: shard "a": {RANGE}'),
    "inverted": (three("{start: b, end: a}"), '3: ["b", "a") of shard "a" holds no key: its end must be above its start'),
    "zero byte": (
        three('{start: "", end: "hex:00"}', '{start: "hex:00", end: ""}'),
        '3: ["", "\\x00") of shard "a" has the single zero byte as a boundary, which etcd reads as an open end; '
        "use the empty key, or a longer one",
    ),
    "gap": (
        three('{start: "", end: m}', '{start: p, end: ""}'),
        '3: no shard owns ["m", "p"), between ["", "m") of shard "a" and ["p", end) of shard "b" (line 5); '
        "extend a range over it",
    ),
    "gap below": (three('{start: b, end: ""}'), '3: no shard owns ["", "b"), next to ["b", end) of shard "a"; extend a range over it'),
    "gap above": (three('{start: "", end: b}'), '3: no shard owns ["b", end), next to ["", "b") of shard "a"; extend a range over it'),
    "overlap": (
        three('{start: "", end: m}', '{start: l, end: ""}'),
        '5: ["l", end) of shard "b" overlaps ["", "m") of shard "a" (line 3); let them meet at one boundary',
    ),
    "same range": (
        three(ALL, "{prefix: a}", "{start: a, end: b}"),
        '7: ["a", "b") of shard "c" is the same as ["a", "b") of shard "b" (line 5); keep one of them',
    ),
    "nothing left": (
        three(ALL, '{start: "", end: m}', '{start: m, end: ""}'),
        '2: shard "a" owns no key, narrower ranges take all of its own; widen it or remove it',
    ),
    # The original's format
    "two formats": (
        ORIGINAL + "  endpoints: []",
        '11: "endpoints" and "start" are of two formats; '
        "give every shard endpoints and ranges, or every shard address, start and end",
    ),
    "original no address": (ORIGINAL.replace("address: 127.0.0.1:22379", ""), '5: "shard-1" has no address; write address: 127.0.0.1:12379'),
    "original misspelt": (ORIGINAL.replace("address: 127.0.0.1:2", "adress: 127.0.0.1:2"), '7: "shard-1": unknown field "adress"; did you mean "address"?'),
    "original no port": (ORIGINAL.replace(":22379", ""), '7: "shard-1": endpoint "127.0.0.1" has no port; write http://127.0.0.1:2379'),
    "original no end": (ORIGINAL.replace("end: s", "end:"), '6: "shard-1": only the last shard may have no "end"; write the start of the next'),
    "original no start": (ORIGINAL.replace("start: s", 'start: ""'), '8: "shard-2": only the first shard may have no "start"; write the end of the one before'),
    "original number": (ORIGINAL.replace("start: s", "start: 5"), '8: "shard-2": "start" is a number to YAML; quote it'),
    "original gap": (
        ORIGINAL.replace("start: s", "start: t"),
        '5: no shard owns ["s", "t"), between ["i", "s") of "shard-1" and ["t", end) of "shard-2" (line 8); '
        "extend a range over it",
    ),
    "original nested": (
        ORIGINAL.replace("start: s", "start: j"),
        '8: ["j", end) of "shard-2" overlaps ["i", "s") of "shard-1" (line 5); '
        "let them meet at one boundary",
    ),
    "original base64": (ORIGINAL.replace("end: i", "endBytes: '105'"), '3: "shard-0": "endBytes" is "105", which is not base64; text goes into "end"'),
    "original bytes": (ORIGINAL.replace("end: i", "endBytes: [300]"), '3: "shard-0": "endBytes" must be a list of numbers from 0 to 255'),
    "original byte": (ORIGINAL.replace("end: i", "endBytes: 5"), '3: "shard-0": "endBytes" is a number; write a list of bytes, base64 or !!binary'),
}  # fmt: skip


@pytest.mark.parametrize(("text", "error"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_told_in_one_line_with_file_and_cure(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    assert str(caught.value) == "esp.yaml:" + error


def test_a_long_value_does_not_make_a_long_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("drain_seconds: " + "1" * 100_000, PATH)
    assert len(str(caught.value)) < 600


@settings(max_examples=tries(200))
@given(st.text(max_size=40) | st.text("-?:,[]{}#&*!|>'\"%@` \nabc1=~<", max_size=40))
def test_any_text_is_a_config_or_a_config_error_of_one_line(text: str) -> None:
    try:
        parse(text, PATH)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["", "a", "h:1"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("shards", "endpoints", "ranges", "start", "end", "prefix", "address", "endBytes", "name"),
                    *("limits", "whole", "across_shards", "kubernetes", "etcd_prefix", "refuse", "compaction"),
                ]
            ),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=tries(200))
@given(values)
def test_any_values_are_a_config_or_a_config_error_of_one_line(value: object) -> None:
    try:
        parse(json.dumps(value), PATH)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


# Files


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml")
    assert str(caught.value) == f"{tmp_path}/none.yaml: cannot be read: no such file or directory"


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:2: is not UTF-8; save it as UTF-8, and write other bytes as hex: or !!binary"


def test_a_file_that_is_too_big(tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: is larger than 1 MiB; a config is a few kilobytes, is this the right file?"


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_text(ONE)
    assert load(path) == parse(ONE, path)


def test_the_config_named_first_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "esp.core.config.file.LOOKED_AT", (Path("esp.yaml"), Path(".esp/esp.yaml"), tmp_path / "etc.yaml")
    )
    env = {"ESP_CONFIG": "named.yaml"}
    with pytest.raises(ConfigError) as caught:
        find(None, {"ESP_CONFIG": ""})
    assert str(caught.value) == (
        f"no config file: looked at esp.yaml, .esp/esp.yaml, {tmp_path}/etc.yaml; "
        "name one with -c or ESP_CONFIG, or try esp serve --local 3"
    )
    found = []
    (tmp_path / ".esp").mkdir()
    for path in (tmp_path / "etc.yaml", tmp_path / ".esp/esp.yaml", tmp_path / "esp.yaml"):
        path.touch()
        found.append(find(None, {}))
    assert found == [tmp_path / "etc.yaml", Path(".esp/esp.yaml"), Path("esp.yaml")]
    assert find(None, env) == Path("named.yaml")
    assert find(Path("given.yaml"), env) == Path("given.yaml")

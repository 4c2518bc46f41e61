"""All faults of a file at once, and hints that are right themselves."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.config import ConfigError, parse
from esp.core.config.fields import MOST_FAULTS
from esp.core.config.file import FileShape
from esp.core.config.schema import schema

SHARDS = 'shards: [{name: a, endpoints: [http://h:1], ranges: [{start: "", end: ""}]}]\n'


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse(text, Path("/x/esp.yaml"))
    return [f"{fault.line}: {fault.text}" for fault in (refused.value, *refused.value.others)]


def test_one_file_tells_all_its_faults_and_nothing_that_only_follows_from_them() -> None:
    text = """\
listn: [x]
listen: [":2379", "http://a:1", "2379"]
drain_seconds: 1e30
leases: tolerent
limits: {max_tokens: many, max_tokenz: 1, sample_seconds: -1}
log: {format: xml, level: loud, slow_seconds: 0}
traces: {sample: 2}
cors: [x y]
whole: [{prefix: 1}]
shards:
- name: a
  endpoint: [h:1]
  ranges: [{prefix: 1}, {strat: a, end: b}]
- name: a
  endpoints: [":1", "h:2"]
- {name: c, endpoints: ["h:2"], tls: {ca: none}, ranges: [{start: "a"}]}
"""
    assert sorted(faults(text), key=lambda told: int(told.partition(":")[0])) == [
        '1: unknown field "listn"; did you mean "listen"?',
        '2: listen URL ":2379" has no host; write http://0.0.0.0:2379',
        '2: listen URL "2379" is only a port; write http://0.0.0.0:2379',
        '3: "drain_seconds" is "1e30"; write a number of seconds from 0 to 86400',
        '4: "leases" is "tolerent"; write tolerant or strict',
        '5: limits: "max_tokens" must be a whole number, not "many"',
        '5: limits: unknown field "max_tokenz"; did you mean "max_tokens"?',
        '5: limits: "sample_seconds" is -1; it must be above 0 and at most 2147483647',
        '6: log: "format" is "xml"; write text or json',
        '6: log: "level" is "loud"; write debug, info, warning or error',
        '6: log: "slow_seconds" is 0; write a number of seconds above 0, at most 86400, or off',
        '7: traces: "endpoint" is missing; write the URL of a collector, such as http://127.0.0.1:4318/v1/traces',
        '7: traces: "sample" is 2; write a number from 0 to 1, such as 0.01',
        '8: "cors" has "x y"; write an origin such as http://example.com, or "*" for any',
        '12: shard "a": unknown field "endpoint"; did you mean "endpoints"?',
        '13: shard "a": "prefix" is a number to YAML; quote it',
        '13: shard "a": a range: unknown field "strat"; did you mean "start"?',
        '14: two shards are named "a" (the first on line 11); rename one',
        '14: shard "a" has no ranges; write ranges: [{start: "", end: ""}] for all keys',
        '15: shard "a": endpoint ":1" has no host; write http://127.0.0.1:1',
        '16: shard "c" has "tls", but endpoint http://h:2 is plain; write https://h:2, or leave out "tls"',
        '16: shard "c": a range has no "end"; write end: "" for the last key there is',
    ]


def test_several_divided_ranges_are_all_told() -> None:
    ranges = '[{endpoints: [h:1], ranges: [{start: "", end: m}]}, {endpoints: [h:2], ranges: [{start: m, end: ""}]}]'
    told = faults(f"shards: {ranges}\nwhole:\n- m\n- {{start: a, end: z}}\n- {{start: l, end: n}}\n")
    assert [one.partition(" must be whole")[0] for one in told] == ['4: ["a", "z")', '5: ["l", "n")']


def test_faults_are_bounded() -> None:
    many = "".join(f"x{number}: 1\n" for number in range(1000))
    assert len(faults(many + SHARDS)) == MOST_FAULTS


def test_a_file_that_is_no_mapping_has_one_fault() -> None:
    assert faults("- a\n- b\n") == ["1: the file must be a mapping, not a list"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ('listen: [":2379"]', "listen: [http://0.0.0.0:2379]"),
        ("listen: ['2379']", "listen: [http://0.0.0.0:2379]"),
        ("listen: [2379]", "listen: [http://0.0.0.0:2379]"),
        ("listen: [http://u:p@host]", "listen: [http://host:2379]"),
        ('listen: ["http://a:1,http://b:2"]', "listen: [http://a:1, http://b:2]"),
        ("listen: [localhost:2379]", "listen: [http://localhost:2379]"),
        ("advertise: [http://u:p@host]", "advertise: [http://host:2379]"),
        ("drain_seconds: 1e30", "drain_seconds: 86400"),
        ("limits: {max_tokens: 1e5}", "limits: {max_tokens: 100000}"),
    ],
)
def test_the_cure_is_the_text_that_passes(wrong: str, right: str) -> None:
    (told,) = faults(f"{wrong}\n{SHARDS}")
    _, _, value = right.partition(": ")
    for word in re.findall(r"[^\[\], {}:]+://[^\], }]+|\d{4,}", value):
        assert word in told
    parse(f"{right}\n{SHARDS}", None)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (":2379", "http://127.0.0.1:2379"),
        ("2379", "http://127.0.0.1:2379"),
        ("http://u:p@host", "http://host:2379"),
        ("http://a:1,http://b:2", "http://a:1, http://b:2"),
        ("a b", "http://ab:2379"),
        ("[::1]", "http://[::1]:2379"),
        ("::1:2379", "http://[::1]:2379"),
    ],
)
def test_the_cure_of_an_endpoint_passes(wrong: str, right: str) -> None:
    text = 'shards: [{{endpoints: [{}], ranges: [{{start: "", end: ""}}]}}]'
    (told,) = faults(text.format(f"'{wrong}'"))
    assert told.endswith(right)
    parse(text.format(", ".join(f"'{one}'" for one in right.split(", "))), None)


def test_a_tab_is_named_with_its_line() -> None:
    assert faults(f"listen:\n\t- http://a:1\n{SHARDS}") == [
        "2: not YAML: a tab where only blanks may stand; indent with blanks"
    ]


def test_the_same_listen_url_twice_is_told_where_it_comes_again() -> None:
    assert faults(f"listen:\n- http://a:1\n- http://b:1\n- http://A:1/\n{SHARDS}") == [
        "4: listen URL http://a:1 is listed twice; remove one"
    ]


def test_tls_before_its_files_exist_names_each_of_them() -> None:
    told = faults(f"listen: [https://a:1]\ntls: {{cert: a.crt, key: a.key}}\n{SHARDS}")
    assert told == ['2: "tls": "cert": /x/a.crt cannot be read: no such file or directory']


NAMES = sorted({*FileShape.names, *(name for one in schema()["$defs"].values() for name in one.get("properties", ()))})
PLAIN = st.sampled_from([None, True, False, -1, 0, 3, 1.5, "", "a", "off", "auto", "h:1", "http://h:1", "https://h:1"])
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
)
ENTRIES = st.dictionaries(st.sampled_from(["name", "endpoints", "ranges", "auth", "tls", "address", "start"]), VALUES)


@given(st.dictionaries(st.sampled_from(FileShape.names), VALUES, max_size=4), st.none() | st.lists(ENTRIES, max_size=2))
def test_whatever_is_in_a_file_is_a_config_or_faults(file: dict[str, object], shards: list[object] | None) -> None:
    good = [{"endpoints": ["h:1"], "ranges": [{"start": "", "end": ""}]}]
    text = json.dumps({**file, "shards": good if shards is None else shards})
    with suppress(ConfigError):
        parse(text, Path("/x/esp.yaml"))

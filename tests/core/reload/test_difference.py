"""The difference between two configs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.config import Config, parse
from esp.core.keys import KeyRange
from esp.core.moves import Move, moves
from esp.core.reload import LIVE, Difference
from esp.core.reload.difference import MAX_TOLD
from esp.core.shard_map import ShardMap
from esp.core.wire.limits import OF_A_CONNECTION, Limits
from tests.examples import tries

PATH = Path("/etc/esp/esp.yaml")


def config(extra: str = "", *ranges: str, names: str = "abc") -> Config:
    """Shards a, b, ... with endpoints h:1, h:2, ... and these ranges."""
    shards = [
        f"- {{name: {names[number]}, endpoints: [h:{number + 1}], ranges: [{text}]}}\n"
        for number, text in enumerate(ranges or ("{start: '', end: m}", "{start: m, end: ''}"))
    ]
    return parse("shards:\n" + "".join(shards) + extra, PATH)


def lines(before: Config, after: Config) -> list[str]:
    return Difference.of(before, after).lines()


def test_the_same_config_has_no_difference_wherever_it_is_and_in_whatever_order() -> None:
    assert not Difference.of(config(), dataclasses.replace(config(), path=None))
    other = parse(
        "shards:\n\n- {name: b, endpoints: [h:2], ranges: [{start: m, end: ''}]}\n"
        "- {name: a, endpoints: [h:1], ranges: [{start: '', end: m}]}\n",
        PATH,
    )
    assert not Difference.of(config(), other)


def test_ranges_that_stay_whole_mean_nothing_to_a_running_proxy() -> None:
    assert not Difference.of(config(), config("whole: [a/]\n"))


def test_shards_and_ranges() -> None:
    after = config("", "{start: '', end: m}", "{start: m, end: t}", "{start: t, end: ''}")
    assert lines(config(), after) == ["shard c is new: http://h:3", 'keys ["t", end) move from b to c']
    assert lines(after, config()) == ["shard c is removed", 'keys ["t", end) move from c to b']
    whole = config("", "{start: '', end: ''}", names="b")
    assert lines(config(), whole) == [
        "shard a is removed",
        "shard b: endpoints: http://h:2 -> http://h:1",
        'keys ["", "m") move from a to b',
    ]


def test_endpoints_and_users_of_a_shard_are_told_without_passwords(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2")
    one = "shards: [{endpoints: [h:1, h:2], ranges: [{start: '', end: ''}]}]\n"
    two = one.replace("h:2", "h:3") + "auth: {user: esp, password_file: password}\n"
    told = lines(parse(one, tmp_path / "x"), parse(two, tmp_path / "x"))
    assert told == [
        "shard-0: endpoints: http://h:1, http://h:2 -> http://h:1, http://h:3",
        "shard-0: auth: none -> esp",
    ]


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("advertise: [http://a:1]", "advertise: none -> http://a:1"),
        ("cors: []", "cors: * -> none"),
        ("host_whitelist: [a, b]", "host_whitelist: * -> a, b"),
        ("across_shards: serve", "across_shards: auto -> serve"),
        ("across_shards: refuse", "across_shards: auto -> refuse"),
        ("across_shards: {refuse: [/x/]}", 'across_shards: auto -> refuse ["/x/", "/x0")'),
        ("compaction: refuse", "compaction: kubernetes -> refuse"),
        ("compaction: {revisions_of: k}", 'compaction: kubernetes -> revisions_of "k"'),
        ("deletes_across_shards: refuse", "deletes_across_shards: serve -> refuse"),
        ("defragment: sequential", "defragment: refuse -> sequential"),
        ("leases: strict", "leases: tolerant -> strict"),
        ("range_reads: snapshot", "range_reads: default -> snapshot"),
        ("txn_reads: each", "txn_reads: snapshot -> each"),
        ("drain_seconds: 2.5", "drain_seconds: 10 -> 2.5"),
        ("log: {level: debug}", "log.level: info -> debug"),
        ("log: {format: json}", "log.format: text -> json"),
        ("log: {slow_seconds: 5}", "log.slow_seconds: 1 -> 5"),
        ("log: {access: {one_of: 100}}", "log.access: 0 -> 100"),
        ("watch_config: true", "watch_config: false -> true"),
        ("limits: {max_tokens: 5}", "limit max_tokens: 200000 -> 5"),
        ("limits: {idle_timeout: 5}", "limit idle_timeout: 1800 -> 5; open connections keep theirs"),
    ],
)
def test_fields_that_change_while_esp_runs(field: str, line: str) -> None:
    difference = Difference.of(config(), config(field))
    assert difference.lines() == [line]
    assert not difference.fixed


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("listen: [http://127.0.0.1:1]", "listen: http://127.0.0.1:2379 -> http://127.0.0.1:1"),
        ("namespace: a/", 'namespace: none -> "a/"'),
        ("control: off", "control: auto -> none"),
    ],
)
def test_fields_that_need_a_restart(field: str, line: str) -> None:
    difference = Difference.of(config(), config(field))
    assert [str(change) for change in difference.fixed if change.name.rpartition(".")[2] in field] == [line]
    assert all(change.name not in LIVE for change in difference.fixed)


def test_every_field_that_is_said_to_change_exists() -> None:
    of_log = {f"log.{field.name}" for field in dataclasses.fields(config().log)}
    assert {field.name for field in dataclasses.fields(Config)} | of_log >= LIVE
    assert {field.name for field in dataclasses.fields(Limits)} >= OF_A_CONNECTION


def test_a_long_difference_is_cut_and_says_so() -> None:
    count = MAX_TOLD + 3
    cuts = [f"{number:04}" for number in range(2 * count)]
    of_b = ", ".join(f"{{start: '{cuts[2 * n]}', end: '{cuts[2 * n + 1]}'}}" for n in range(count))
    before, after = (
        config("", "{start: '', end: ''}", "{prefix: z}"),
        config("", "{start: '', end: ''}", f"{of_b}, {{prefix: z}}"),
    )
    difference = Difference.of(before, after)
    assert len(difference.moved) == count
    assert difference.lines()[-1] == "and 3 more like this"
    assert len(difference.lines()) == MAX_TOLD + 1
    told = json.loads(json.dumps(difference.as_json()))
    assert (len(told["ranges_moved"]), told["left_out"]) == (MAX_TOLD, 3)
    assert told["ranges_moved"][0] == {
        "start": {"text": "0000", "base64": "MDAwMA=="},
        "end": {"text": "0001", "base64": "MDAwMQ=="},
        "from": "a",
        "to": "b",
    }
    assert difference.as_json(0)["left_out"] == count


def test_keys_that_are_no_text_have_base64_only_and_an_open_end_is_null() -> None:
    move = Move(KeyRange(b"\xff", None), "a", "b")
    assert move.as_json() == {"start": {"base64": "/w=="}, "end": None, "from": "a", "to": "b"}
    assert str(move) == 'keys ["\\xff", end) move from a to b'


KEYS = st.binary(max_size=2).filter(lambda key: key != b"\0")


@st.composite
def maps(draw: st.DrawFn) -> ShardMap:
    cuts = sorted(draw(st.sets(KEYS.filter(bool), max_size=6)))
    starts = [b"", *cuts]
    ranges = [
        (draw(st.sampled_from("abc")), KeyRange(start, end))
        for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    return ShardMap.build(ranges, ["a", "b", "c"])


@settings(max_examples=tries(200))
@given(maps(), maps(), st.lists(KEYS, max_size=20))
def test_a_key_is_in_a_move_exactly_if_its_owner_changes(before: ShardMap, after: ShardMap, keys: list[bytes]) -> None:
    found = moves(before, after)
    for key in [*keys, *before.starts, *after.starts]:
        around = [move for move in found if move.range.intersect(KeyRange(key, key + b"\0"))]
        if before.owner(key) == after.owner(key):
            assert around == []
        else:
            assert [(move.source, move.target) for move in around] == [(before.owner(key), after.owner(key))]
    for one, other in itertools.pairwise(found):
        assert (one.range.end, one.source, one.target) != (other.range.start, other.source, other.target)

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from esp.core.keys import KeyRange
from esp.core.shared_map import (
    COPIES_KEY,
    GUARD_KEY,
    MapFormatError,
    Move,
    Next,
    Phase,
    SharedMap,
    decode_next,
    given_back,
    moved_to,
    steps,
)
from esp.core.shared_map.change import Kind, Step, cutting, target_opening, transaction
from tests.core.shared_map.made import AT, made, nonce

RANGE = KeyRange(b"b", b"d")


def moved(before: SharedMap, range_: KeyRange = RANGE, target: str = "c") -> SharedMap:
    return moved_to(before, range_, target, at=AT, by="root@here", moves=before.moves, nonce=nonce)


def moving(phase: Phase) -> Next:
    before = made()
    move = Move("0123456789ab", RANGE, "a", "c", phase, nonce(), 1000)
    if phase is Phase.ABORT:
        move = replace(move, back=given_back(before, move, at=AT, by="root@here", moves=(), nonce=nonce))
    return Next(before, moved(before), move)


def test_a_move_gives_the_range_to_the_target_and_both_shards_another_guard() -> None:
    before = made()
    after = moved(before)
    assert (after.epoch, after.map.owners, after.map.starts) == (
        2,
        ["a", "c", "a", "b", "c"],
        [b"", b"b", b"d", b"i", b"s"],
    )
    assert after.guards["b"] == before.guards["b"]
    assert all(after.guards[name].startswith("2-") for name in "ac")
    assert after.changes[-1].what == '["b", "d") moves from a to c'


@pytest.mark.parametrize(
    ("range_", "target", "text"),
    [
        (RANGE, "a", "gives .* to shard a already"),
        (RANGE, "x", "has no shard x"),
        (KeyRange(b"b", b"k"), "c", r"to several shards \(a, b\), or to none"),
        (KeyRange(b"b", b"b"), "c", "to several shards"),
        (KeyRange(b"\0e", b"k"), "c", "a boundary that begins with a zero byte"),
        (KeyRange(b"", b"\0e"), "c", "a boundary that begins with a zero byte"),
    ],
)
def test_a_range_that_cannot_move_is_refused(range_: KeyRange, target: str, text: str) -> None:
    with pytest.raises(MapFormatError, match=text):
        moved(made(), range_, target)


@pytest.mark.parametrize("phase", Phase)
def test_a_move_is_what_was_written(phase: Phase) -> None:
    change = moving(phase)
    assert decode_next(change.encode()) == change
    assert change.result is (change.after if change.move is None or change.move.back is None else change.move.back)


def test_moves_whose_maps_do_not_fit_are_refused() -> None:
    change, aborted = moving(Phase.COPY), moving(Phase.ABORT)
    assert change.move is not None
    assert change.before is not None
    assert aborted.move is not None
    assert aborted.move.back is not None
    again = {**change.after.guards, "b": change.after.guards["a"]}
    old = {**change.after.guards, "a": change.before.guards["a"]}
    back = aborted.move.back
    for wrong in (
        replace(change, after=replace(change.after, guards=again)),
        replace(change, after=replace(change.after, guards=old)),
        replace(change, after=replace(change.after, moves=())),
        replace(change, after=moved(change.before, KeyRange(b"b", b"c"))),
        replace(change, after=moved(change.before, RANGE, "b")),
        replace(change, after=moved(moved(change.before, KeyRange(b"s", None), "b"))),
        change.with_move(replace(change.move, source="b")),
        change.with_move(replace(change.move, phase=Phase.ABORT)),
        change.with_move(replace(change.move, back=back)),
        aborted.with_move(replace(aborted.move, back=replace(back, guards=aborted.after.guards))),
        aborted.with_move(replace(aborted.move, back=aborted.after)),
        replace(change, before=None),
        replace(change, move=None),
    ):
        with pytest.raises(MapFormatError):
            decode_next(wrong.encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "x"},
        {"mover": ""},
        {"phase": "purge"},
        {"pause": 0},
        {"pause": True},
        {"pause": 10**9},
        {"start": "00"},
        {"end": "zz"},
        {"end": "61"},
        {"more": 1},
        {"back": 1},
    ],
)
def test_bytes_that_are_no_move_are_refused(fields: dict[str, Any]) -> None:
    good = json.loads(moving(Phase.COPY).encode())
    data = json.dumps({**good, "move": {**good["move"], **fields}}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(MapFormatError):
        decode_next(data)


def test_only_what_is_decided_is_carried_out_by_anybody() -> None:
    assert [moving(phase).is_open for phase in (Phase.COPY, Phase.CUT, Phase.ABORT, Phase.OPEN)] == [1, 1, 0, 0]
    assert moving(Phase.CUT).cure == "esp move --resume goes on with it, and esp move --abort gives it up"
    assert [f"{step.kind} {step.shard}" for step in steps(moving(Phase.OPEN))] == ["tell b", "tell c", "finish a"]
    assert [f"{step.kind} {step.shard}" for step in steps(moving(Phase.ABORT))] == [
        "give back c",
        "give back a",
        "tell b",
        "tell c",
        "finish a",
    ]


def test_the_cut_and_the_opening_compare_the_guards_of_before_and_the_opening_that_all_is_copied() -> None:
    change = moving(Phase.CUT)
    assert change.before is not None
    request = cutting(change)
    assert [(one.key, one.value) for one in request.compare] == [(GUARD_KEY, change.before.guards["a"].encode())]
    assert [one.request_put.value for one in request.success] == [
        change.after.guards["a"].encode(),
        change.after.encode(),
    ]
    request = target_opening(change, b"copies")
    assert [(one.key, one.value) for one in request.compare] == [
        (GUARD_KEY, change.before.guards["c"].encode()),
        (COPIES_KEY, b"copies"),
    ]
    assert request.success[0].request_put.value == change.after.guards["c"].encode()
    assert request.success[2].request_delete_range.key == COPIES_KEY


def test_what_is_given_back_has_guards_that_neither_the_cut_nor_the_opening_expects() -> None:
    change = moving(Phase.ABORT)
    assert change.before is not None
    for name in "ac":
        request = transaction(change, Step(Kind.GIVE_BACK, name), b"held")
        assert [(one.key, one.value) for one in request.compare] == [(GUARD_KEY, b"held")]
        given = request.success[0].request_put.value.decode()
        assert given == change.result.guards[name]
        assert given not in (change.before.guards[name], change.after.guards[name])
    assert change.result.epoch == 3
    assert change.result.map.owners == change.before.map.owners

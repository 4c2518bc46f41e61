from __future__ import annotations

from esp.core.keys import KeyRange
from esp.core.shared_map import MAX_MOVES, Held, Moved, SharedMap, decode, moved_to, moves_of, without_history
from esp.core.shared_map.moved import kept
from esp.core.wire.status import Code, Status
from tests.core.shared_map.made import AT, made, nonce

B, BC, END = KeyRange(b"b", b"d"), KeyRange(b"c", b"d"), KeyRange(b"y", None)


def moved(before: SharedMap, range_: KeyRange, target: str) -> SharedMap:
    return moved_to(before, range_, target, at=AT, by="root@here", moves=before.moves, nonce=nonce)


def told(shared: SharedMap, **revisions: int) -> dict[str, Held | Status]:
    silent: dict[str, Held | Status] = dict.fromkeys(shared.names, Status(Code.UNAVAILABLE, "away"))
    held = {
        name: Held(shared.guards[name], shared, None, guard_revision=revision) for name, revision in revisions.items()
    }
    return silent | held


def test_a_map_begins_without_the_numbers_of_its_last_move_and_the_guards_tell_them() -> None:
    shared = moved(made(), B, "c")
    assert shared.moves == (Moved(2, B, "a", "c"),)
    assert decode(shared.encode()) == shared
    assert moves_of(shared, told(shared, a=10, b=20, c=30)) == (Moved(2, B, "a", "c", 10, 30),)
    assert moves_of(shared, told(shared, c=30)) == (Moved(2, B, "a", "c", None, 30),)
    other = {"a": Held("1-x", shared, None, guard_revision=10)}
    assert moves_of(shared, other) == (Moved(2, B, "a", "c"),)  # it has not been cut


def test_a_guard_that_is_newer_than_a_move_tells_nothing_of_it_and_numbers_that_are_noted_stay() -> None:
    shared = moved(made(), B, "c")
    shared = moved_to(
        shared, END, "a", at=AT, by="x", moves=moves_of(shared, told(shared, a=10, c=30)), nonce=nonce
    )  # gives both other guards
    assert shared.moves == (Moved(2, B, "a", "c", 10, 30), Moved(3, END, "c", "a"))
    assert decode(shared.encode()) == shared
    last = Moved(3, END, "c", "a", 60, 50)
    assert moves_of(shared, told(shared, a=50, c=60)) == (Moved(2, B, "a", "c", 10, 30), last)
    lost = moved(moved(made(), B, "c"), END, "a")  # by somebody who did not ask
    assert moves_of(lost, told(lost, a=50, c=60)) == (Moved(2, B, "a", "c"), last)


def test_a_shard_that_has_lost_its_history_is_asked_for_nothing_of_before() -> None:
    moves = (Moved(2, B, "a", "c", 10, 30), Moved(3, B, "c", "a", 40, 50), Moved(4, END, "b", "c", 1, 2))
    assert without_history(moves, "a") == (
        Moved(2, B, "", "c", None, 30),
        Moved(3, B, "c", "a", 40, None),
        Moved(4, END, "b", "c", 1, 2),
    )


def test_moves_of_keys_that_have_moved_again_are_forgotten_first() -> None:
    first = [Moved(2, BC, "a", "b", 1, 1), Moved(3, B, "a", "c", 1, 1)]
    rest = [Moved(4 + n, KeyRange(b"k%03d" % n, b"k%03d" % (n + 1)), "a", "b", 1, n + 1) for n in range(MAX_MOVES)]
    left = kept([*first, *rest[:-1]])
    assert left == (first[1], *rest[:-1])


def test_the_oldest_moves_to_one_shard_become_one_which_says_no_less() -> None:
    every = [Moved(2 + n, KeyRange(b"k%03d" % n, b"k%03d" % (n + 1)), "a", "bc"[n % 2], 9, n + 1) for n in range(200)]
    left = kept(every)
    assert len(left) == MAX_MOVES
    assert [one.epoch for one in left] == sorted({one.epoch for one in left})
    for one in every:
        assert any(
            wide.target == one.target and (wide.opened or 0) >= (one.opened or 0) and not one.range.without(wide.range)
            for wide in left
        )
    assert {one.source for one in left if one not in every} == {""}


def test_joined_moves_know_no_number_that_one_of_them_does_not_know() -> None:
    every = [Moved(2 + n, KeyRange(b"k%03d" % n, None if n else b"k1"), "a", "b", 1, n or None) for n in range(65)]
    every[1:] = [Moved(2 + n, KeyRange(b"m%03d" % n, b"m%03d" % (n + 1)), "a", "b", 1, n) for n in range(1, 65)]
    assert kept(every)[0] == Moved(3, KeyRange(b"k000", b"m002"), "", "b")


def test_more_shards_than_moves_are_kept_each_with_its_own() -> None:
    every = tuple(Moved(2 + n, KeyRange(b"k%03d" % n, b"k%03d" % (n + 1)), "a", f"s{n}", 1, 1) for n in range(80))
    assert kept(every) == every

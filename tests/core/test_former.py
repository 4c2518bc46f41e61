"""Revisions that mean nothing for a range any more."""

from __future__ import annotations

from esp.core.former import FAR, MAX_MOVES, UNKNOWN, Came, Former
from esp.core.keys import KeyRange


def keys(start: bytes, end: bytes | None) -> KeyRange:
    return KeyRange(start, end)


def test_only_revisions_of_moved_keys_on_their_new_owner_are_in_doubt() -> None:
    former = Former().after([Came(keys(b"m", b"t"), "c", 100)])
    assert former
    assert not Former()
    for part in (keys(b"m", b"t"), keys(b"n", b"n\0"), keys(b"a", b"n"), keys(b"s", None)):
        assert former.floor(part, "c") == 100
        assert former.floor(part, "b") == 0
    for part in (keys(b"a", b"m"), keys(b"t", None)):
        assert former.floor(part, "c") == 0


def test_a_revision_is_stale_below_the_floor_and_far_ahead() -> None:
    former = Former().after([Came(keys(b"m", b"t"), "c", 100)])
    part = keys(b"n", b"o")
    stale = {revision: former.is_stale(part, "c", revision, seen=150) for revision in (1, 99, 100, 150, 151, 150 + FAR)}
    assert stale == {1: True, 99: True, 100: False, 150: False, 151: False, 150 + FAR: False}
    assert former.is_stale(part, "c", 151 + FAR, seen=150)
    assert not former.is_stale(part, "c", 151 + FAR, seen=0), "the shard is disconnected"
    assert former.is_stale(part, "c", 99, seen=0)
    assert not former.is_stale(part, "c", 151 + FAR, seen=151 + FAR), "the shard has gone on"
    assert not former.is_stale(keys(b"a", b"b"), "c", 1, seen=150)


def test_of_a_range_that_moves_again_the_last_move_counts() -> None:
    former = Former().after([Came(keys(b"m", b"t"), "c", 100), Came(keys(b"x", None), "c", 7)])
    former = former.after([Came(keys(b"a", None), "b", 5)])
    assert former.came == (Came(keys(b"a", None), "b", 5),)
    former = Former().after([Came(keys(b"m", b"t"), "c", 100)]).after([Came(keys(b"n", b"o"), "b", 5)])
    assert former.floor(keys(b"m", b"t"), "c") == 100, "the rest of it stays"


def test_very_many_moves_become_one_for_each_shard() -> None:
    came = [Came(keys(b"%05d" % (2 * n), b"%05d" % (2 * n + 1)), "ab"[n % 2], n) for n in range(MAX_MOVES)]
    assert len(Former().after(came).came) == MAX_MOVES
    former = Former().after([*came, Came(keys(b"z", None), "a", 3)])
    assert len(former.came) == 2
    assert former.floor(keys(b"zz", None), "a") == MAX_MOVES - 2
    assert former.floor(keys(b"00000", b"00001"), "b") == 0
    for one in came:
        assert former.floor(one.range, one.shard) >= one.revision


def test_another_process_has_the_moves_of_all_with_the_highest_revision() -> None:
    one = Former().after([Came(keys(b"m", b"t"), "c", 100), Came(keys(b"x", None), "c", 7)])
    other = Former().after([Came(keys(b"m", b"t"), "c", 90), Came(keys(b"x", None), "c", 9)])
    whole = Former.of_dumps([one.dump(), other.dump()])
    assert whole.came == (Came(keys(b"m", b"t"), "c", 100), Came(keys(b"x", None), "c", 9))
    assert not Former.of_dumps([Former().dump()])


def test_the_last_revision_before_is_the_cut_and_else_the_one_of_the_new_owner() -> None:
    former = Former().after([Came(keys(b"m", b"t"), "c", 100, 60, 2), Came(keys(b"x", None), "c", 7)])
    assert former.last_before(keys(b"n", b"o"), "c") == 60
    assert former.last_before(keys(b"y", b"z"), "c") == 7
    assert former.last_before(keys(b"a", None), "c") == 60
    assert former.last_before(keys(b"n", b"o"), "b") == former.last_before(keys(b"a", b"b"), "c") == 0
    assert Former.of_dumps([former.dump()]).came == former.came


def test_what_was_known_of_a_move_stays_known_when_its_shard_does_not_tell() -> None:
    known = Former((Came(keys(b"m", b"t"), "c", 100, 60, 2), Came(keys(b"m", b"t"), "b", 300, 200, 3)))
    told = Former(
        (
            Came(keys(b"m", b"t"), "c", UNKNOWN, 0, 4),  # the same range, at the same shard, by a later move
            Came(keys(b"m", b"t"), "b", UNKNOWN, 0, 3),
        )
    )
    assert known.renewed(told).came == (told.came[0], known.came[1])
    with_cut = Former((Came(keys(b"m", b"t"), "c", UNKNOWN, 60, 4),))
    both = (Came(keys(b"m", b"t"), "c", 100, 60, 4),)
    assert with_cut.renewed(Former((Came(keys(b"m", b"t"), "c", 100, 0, 4),))).came == both, (
        "one shard tells, then the other"
    )
    assert known.renewed(known).came == known.came
    assert known.renewed(told).is_stale(keys(b"n", b"o"), "c", 10**12, 10**12), "nobody knows yet"

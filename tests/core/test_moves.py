"""The last moves of a proxy: their order, and their bound."""

from __future__ import annotations

from esp.core.keys import KeyRange
from esp.core.moves import MOST, LastMoves, Move
from esp.core.shard_map import ShardMap


def halves(edge: bytes, epoch: int = 1) -> ShardMap:
    return ShardMap.build([("a", KeyRange(b"", edge)), ("b", KeyRange(edge, None))], ["a", "b"], epoch)


def stripes(first: str, second: str) -> ShardMap:
    """Two keys for each of MOST + 8 ranges, of two shards by turns."""
    edges = [f"{number:03}".encode() for number in range(2 * (MOST + 8))]
    ends = [*edges[1:], None]
    owners = [first, second] * (MOST + 8)
    owned = [(owner, KeyRange(edge, end)) for owner, edge, end in zip(owners, edges, ends, strict=True)]
    return ShardMap.build([(owned[0][0], KeyRange(b"", edges[1])), *owned[1:]], ["a", "b"])


def test_the_newest_come_first_and_those_of_one_map_in_key_order() -> None:
    moves = LastMoves()
    moves.take(halves(b"m"), halves(b"k"), "one")
    moves.take(halves(b"k"), halves(b"k"), "no move")
    edges = [KeyRange(b"", b"c"), KeyRange(b"c", b"k"), KeyRange(b"k", b"p"), KeyRange(b"p", None)]
    three = ShardMap.build(list(zip("baba", edges, strict=True)), ["a", "b"])
    moves.take(halves(b"k"), three, "two")
    assert [(moved.move, moved.how) for moved in moves.last] == [
        (Move(KeyRange(b"", b"c"), "a", "b"), "two"),
        (Move(KeyRange(b"p", None), "b", "a"), "two"),
        (Move(KeyRange(b"k", b"m"), "a", "b"), "one"),
    ]
    assert moves.as_json()["more"] == 0


def test_of_more_moves_than_it_remembers_it_has_the_number() -> None:
    moves = LastMoves()
    moves.take(halves(b"m"), halves(b"k"), "first")
    moves.take(stripes("a", "b"), stripes("b", "a"), "all at once")
    assert len(moves.last) == MOST
    assert moves.last[0].move.range.start == b""
    assert {moved.how for moved in moves.last} == {"all at once"}
    told = moves.as_json()
    assert (len(told["last"]), told["more"]) == (MOST, 1 + 2 * (MOST + 8) - MOST)
    moves.take(halves(b"m"), halves(b"k"), "last")
    assert [moved.how for moved in moves.last].count("last") == 1
    assert len(moves.last) == MOST

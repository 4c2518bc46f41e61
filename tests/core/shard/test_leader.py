"""How long a member without a leader is kept."""

from __future__ import annotations

from esp.core.shard.leader import Leaderless


def kept(leaderless: Leaderless) -> int:
    """The statuses without a leader after which a member is left; one comes every two seconds."""
    leaderless.begin()
    now = 100.0
    for count in range(1, 1000):
        if leaderless.is_to_be_left(False, now):
            return count
        now += 2
    raise AssertionError


def test_an_election_moves_nobody() -> None:
    leaderless = Leaderless(2)
    for now in range(0, 100, 4):
        assert not leaderless.is_to_be_left(False, now)
        assert not leaderless.is_to_be_left(True, now + 2)


def test_where_all_say_so_each_is_kept_longer_until_there_is_a_leader() -> None:
    leaderless = Leaderless(2)
    assert [kept(leaderless) for _ in range(8)] == [2, 3, 5, 9, 17, 33, 33, 33]
    leaderless.is_to_be_left(True, 0)
    assert kept(leaderless) == 2


def test_what_another_connection_has_told_does_not_count() -> None:
    leaderless = Leaderless(2)
    assert not leaderless.is_to_be_left(False, 0)
    leaderless.begin()
    assert not leaderless.is_to_be_left(False, 1000)

"""Large calls have more places where nobody else uses the shard."""

from __future__ import annotations

from esp.core.services.alone import FEW, Alone


class Shards:
    """What was sent to two shards."""

    def __init__(self) -> None:
        self.sent = {"a": 0, "b": 0}
        self.alone = Alone(self.sent.copy)
        self.alone.look()

    def half_a_second(self, large: int, others: int = 0) -> bool:
        """Whether large calls at `a` are alone, after so many of them, and so many others."""
        self.alone.asked["a"] += large
        self.sent["a"] += large + others
        self.alone.look()
        return "a" in self.alone


def test_large_calls_are_alone_when_nothing_else_was_sent_between_two_looks() -> None:
    shards = Shards()
    assert shards.half_a_second(10)
    assert shards.half_a_second(10, others=FEW)
    assert not shards.half_a_second(10, others=FEW + 1)
    assert shards.half_a_second(10)
    assert not shards.half_a_second(0, others=3)
    assert not shards.half_a_second(1, others=3)
    assert shards.half_a_second(0), "an idle shard"
    assert "b" in shards.alone


def test_after_a_new_connection_they_are_not() -> None:
    shards = Shards()
    assert shards.half_a_second(100)
    shards.sent["a"] = 0
    assert not shards.half_a_second(10)
    assert shards.half_a_second(10)


def test_of_a_new_shard_nothing_is_known() -> None:
    shards = Shards()
    shards.sent["c"] = 0
    shards.alone.look()
    assert "c" not in shards.alone
    shards.alone.look()
    assert "c" in shards.alone

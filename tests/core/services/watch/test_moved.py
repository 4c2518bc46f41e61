"""Watchers that have ended because their keys have another owner."""

from __future__ import annotations

from esp.core.former import FAR, Came
from esp.core.keys import KeyRange
from esp.core.services.watch.moved import Moved
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from tests.core.services.watch.world import World


def test_each_of_them_is_told_once() -> None:
    moved = Moved(WireContext(Limits()))
    for name in (b"a", b"b", b"a"):
        moved.add(name)
    assert [moved.takes(name) for name in (b"a", b"a", b"a", b"b", b"c")] == [True, True, False, True, False]
    assert len(moved) == 0


def test_of_too_many_the_oldest_is_forgotten() -> None:
    context = WireContext(Limits(max_resume_positions=2))
    moved = Moved(context)
    for name in (b"a", b"b", b"a", b"c"):
        moved.add(name)
    assert context.counters.limits == {"max_resume_positions": 1}
    assert [moved.takes(name) for name in (b"a", b"b", b"c")] == [True, False, True]


def test_a_shard_that_is_not_known_now_has_to_say_itself_whether_a_revision_is_too_far_ahead() -> None:
    """An answer of "compacted" ends the watch for good, where a client had only to wait for the shard."""
    floor = 100
    asked = {}
    for seen, start in ((floor, floor + FAR + 2), (0, floor + FAR + 2), (floor + FAR, floor + FAR + 2), (0, floor)):
        world = World(b"m")
        layout = world.routing.layout
        world.routing.layout = layout.behind(layout, [Came(KeyRange(b"", b"m"), "s0", floor)])
        world.etcds[0].shard.seen = seen
        world.client().creates(key=b"a", start_revision=start)
        _, [create] = world.etcds[0].hears()
        asked[seen, start] = create.start_revision
    assert asked == {
        (floor, floor + FAR + 2): 0,  # the client gets `created` and then "compacted"
        (0, floor + FAR + 2): floor + FAR + 2,
        (floor + FAR, floor + FAR + 2): floor + FAR + 2,
        (0, floor): 0,
    }

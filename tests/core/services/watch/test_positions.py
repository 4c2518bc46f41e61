from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from esp.core.services.watch.positions import WINDOW, Finding, Positions, Watched
from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

NAMES = ("a", "b")


class Scene:
    def __init__(self, **limits: float) -> None:
        self.context = WireContext(replace(Limits(), **limits))
        self.tokens = Tokens(self.context, instance=1)
        self.positions = Positions(self.tokens, self.context)

    def delivers(self, revision: int, *vector: int, watched: Watched = "range", first: int = 0) -> None:
        """A message of the first shard, or else of the second, that is now where the message's revision is."""
        shard = NAMES[vector.index(revision)]
        token = self.tokens.mint(Vector(NAMES, vector))
        self.positions.reached(watched, shard, first or revision, revision, token)

    def resumes(self, watched: Watched, revision: int) -> tuple[int, ...] | None:
        """Where a client goes on."""
        found = self.positions.resume(watched, revision)
        return None if found is None else found.revisions


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.positions.begin("range")
    return scene


def test_who_comes_again_behind_its_last_event_goes_on_where_it_was(scene: Scene) -> None:
    scene.delivers(5, 5, 8)
    scene.delivers(9, 5, 9)
    scene.delivers(6, 6, 9)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 10) == (5, 9), "it had not seen the last message"
    assert (scene.positions.resumed, scene.positions.compacted) == (1, 0)


def test_a_revision_nothing_was_delivered_at_is_not_known(scene: Scene) -> None:
    scene.delivers(5, 5, 8)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 8) is None
    assert scene.resumes("another range", 6) is None
    assert (scene.positions.resumed, scene.positions.compacted) == (0, 2)


def test_a_revision_that_two_shards_had_is_not_known(scene: Scene) -> None:
    scene.delivers(5, 5, 3)
    scene.delivers(4, 5, 4)
    scene.delivers(5, 5, 5)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 6) is None
    assert scene.resumes("range", 5) == (5, 4)


def test_two_watchers_that_were_at_the_same_position_are_no_doubt_and_others_are(scene: Scene) -> None:
    scene.positions.begin("range")
    scene.delivers(5, 5, 8)
    scene.delivers(6, 6, 8)
    scene.delivers(5, 5, 8)
    scene.delivers(6, 6, 9)
    scene.delivers(6, 6, 8)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 6) == (5, 8)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 7) is None


def test_while_all_watchers_are_there_a_plain_revision_is_somebody_elses(scene: Scene) -> None:
    scene.delivers(5, 5, 8)
    assert scene.resumes("range", 6) is None
    scene.positions.begin("range")
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 6) == (5, 8)
    assert scene.resumes("range", 6) is None, "the one that had ended is there again"


def test_who_ended_its_watch_itself_does_not_come_again(scene: Scene) -> None:
    scene.delivers(5, 5, 8)
    scene.positions.end("range", may_return=False)
    assert scene.resumes("range", 6) is None


def test_a_client_that_breaks_again_before_it_saw_anything_comes_with_the_same(scene: Scene) -> None:
    scene.delivers(5, 5, 8)
    for _ in range(3):
        scene.positions.end("range", may_return=True)
        assert scene.resumes("range", 6) == (5, 8)
        scene.positions.begin("range")


def test_only_the_last_messages_count(scene: Scene) -> None:
    for number in range(WINDOW + 1):
        scene.delivers(10 + number, 10 + number, 1)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 11) is None
    assert scene.resumes("range", 12) == (11, 1)
    assert len(scene.positions) == WINDOW


def test_a_revision_that_another_shard_had_before_the_last_messages_is_not_known(scene: Scene) -> None:
    for number in range(WINDOW + 1):
        scene.delivers(10 + number, 3, 10 + number)
    scene.delivers(10, 10, 10 + WINDOW)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 11) is None, "it may be the client that saw the first message last"
    assert scene.resumes("range", 13) == (3, 12)


def test_a_revision_in_the_midst_of_a_message_is_not_taken_for_another_shards(scene: Scene) -> None:
    scene.delivers(12, 5, 12, first=9)
    scene.delivers(10, 10, 12)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 11) is None
    assert scene.resumes("range", 13) == (5, 12)


def test_a_revision_that_was_told_before_to_others_is_not_known_either(scene: Scene) -> None:
    scene.delivers(5, 5, 900)
    for number in range(WINDOW):
        scene.delivers(901 + number, 5, 901 + number)
    scene.delivers(5, 5, 3)  # somebody reads it all again
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 6) is None


def test_what_was_told_of_a_range_is_not_taken_for_something_else_once_the_range_is_forgotten() -> None:
    scene = Scene(max_resume_positions=1)
    scene.positions.begin("range")
    scene.delivers(10, 3, 10)
    scene.positions.end("range", may_return=True)
    scene.positions.begin("other")
    scene.delivers(700, 700, 10, watched="other")
    scene.positions.begin("range")
    scene.delivers(10, 10, 80)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 11) is None


def test_the_positions_of_all_ranges_together_are_bounded_and_those_that_ended_first_go_first() -> None:
    scene = Scene(max_resume_positions=4)
    for watched, revisions in (("a", (7, 8)), ("b", (5, 6))):
        scene.positions.begin(watched)
        for revision in revisions:
            scene.delivers(revision, revision, 9, watched=watched)
    for watched in ("b", "a"):
        scene.positions.end(watched, may_return=True)
    scene.positions.begin("c")
    for revision in (5, 6):
        scene.delivers(revision, revision, 9, watched="c")
    assert len(scene.positions) == 4
    assert scene.context.counters.limits["max_resume_positions"] == 2
    assert scene.resumes("b", 7) is None
    assert scene.resumes("a", 9) == (8, 9)


def test_a_position_lasts_no_longer_than_its_token() -> None:
    scene = Scene(max_tokens=1)
    scene.positions.begin("range")
    scene.delivers(5, 5, 8)
    scene.delivers(6, 6, 8)
    scene.positions.end("range", may_return=True)
    assert scene.resumes("range", 6) is None
    assert scene.resumes("range", 7) == (6, 8)


def test_what_was_never_told_anything_leaves_nothing(scene: Scene) -> None:
    scene.positions.end("range", may_return=True)
    assert not scene.positions._ranges


class Elsewhere:
    """Other processes, each with its own positions, as `others` of one of them."""

    def __init__(self, *scenes: Scene) -> None:
        self.scenes = scenes

    async def find(self, watched: Watched, start_revision: int) -> list[Finding]:
        return [scene.positions.find(watched, start_revision) for scene in self.scenes]

    def give_back(self, watched: Watched, number: int) -> None:
        self.scenes[number].positions.give_back(watched)


def several(count: int) -> list[Scene]:
    """Processes that serve the same clients; each has a watcher of the range."""
    scenes = [Scene() for _ in range(count)]
    for scene in scenes:
        scene.positions.begin(b"range")
        scene.positions.others = Elsewhere(*(other for other in scenes if other is not scene))
    return scenes


def resumes(scene: Scene, revision: int) -> tuple[int, ...] | None:
    """Where a client of any process goes on, that comes to this one."""
    found = asyncio.run(scene.positions.resume_anywhere(b"range", revision))
    return None if found is None else found.revisions


def test_a_client_of_another_process_goes_on_where_it_was() -> None:
    one, other = several(2)
    other.delivers(5, 5, 8, watched=b"range")
    other.delivers(9, 5, 9, watched=b"range")
    other.positions.end(b"range", may_return=True)
    assert resumes(one, 10) == (5, 9)
    assert resumes(one, 10) is None, "just one watcher has ended"
    assert (one.positions.resumed, one.positions.compacted) == (1, 1)


def test_a_client_of_another_process_is_not_taken_for_one_of_this() -> None:
    """Both have delivered the event at 5 of the first shard, but not the same events before it."""
    one, other = several(2)
    one.delivers(9, 4, 9, watched=b"range")
    one.delivers(5, 5, 9, watched=b"range")
    other.delivers(5, 5, 8, watched=b"range")
    one.positions.end(b"range", may_return=True)
    assert resumes(one, 6) is None
    assert resumes(other, 6) is None


def test_only_one_watcher_counts_as_the_clients_own_and_none_if_it_does_not_resume() -> None:
    one, other, third = several(3)
    for scene in (one, other):
        scene.delivers(5, 5, 8, watched=b"range")
        scene.positions.end(b"range", may_return=True)
    assert resumes(third, 100) is None
    assert resumes(third, 6) == (5, 8)
    assert resumes(one, 6) == (5, 8)
    assert resumes(other, 6) is None


def test_what_a_process_that_died_had_delivered_is_doubtful() -> None:
    one, other = several(2)
    one.delivers(5, 5, 8, watched=b"range")
    one.delivers(9, 9, 8, watched=b"range")
    one.positions.end(b"range", may_return=True)
    other.positions.doubt("a", 7)
    assert resumes(other, 6) is None
    assert resumes(other, 10) == (9, 8)


def test_positions_go_on_in_another_process() -> None:
    before, _ = several(2)
    before.delivers(5, 5, 8, watched=b"range", first=3)
    before.delivers(9, 5, 9, watched=b"range")
    before.positions.end(b"range", may_return=True)
    before.positions.begin(b"gone")
    before.delivers(50, 50, 9, watched=b"gone")
    before.positions.end(b"gone", may_return=False)

    after = Scene()
    after.tokens = before.tokens  # it knows them
    after.positions = Positions(before.tokens, after.context)
    after.positions.adopt(json.loads(json.dumps(before.positions.dump())))
    assert after.resumes(b"range", 10) == (5, 9)
    assert after.resumes(b"range", 10) is None

    again = Scene()
    again.positions = Positions(before.tokens, again.context)
    again.positions.adopt(before.positions.dump())
    assert again.resumes(b"range", 5) is None, "in the midst of a message"
    again.positions.begin(b"range")
    token = before.tokens.mint(Vector(NAMES, (9, 9)))
    again.positions.reached(b"range", "b", 9, 9, token)
    assert again.resumes(b"range", 10) is None, "two positions behind the same revision"

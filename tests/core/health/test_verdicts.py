"""The verdict on each shard, from its endpoints' answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esp.core import errors
from esp.core.config import Endpoint
from esp.core.health.facts import Alarm, EndpointHealth, Member, ShardHealth
from esp.core.health.verdicts import State, verdict_of
from esp.core.keys import KeyRange
from esp.core.wire.status import Code, Status

MEMBER = Member(0xC1, 0xA1, 0xA1, False, "3.7.1", 20480, 7)
WELL = EndpointHealth(Endpoint("a", 1), reachable=True, latency=0.001, member=MEMBER, alarms=())
DEAD = EndpointHealth(Endpoint("b", 1), reachable=False, refusal=Status(Code.UNAVAILABLE, "connection refused"))
LATE = Status(Code.DEADLINE_EXCEEDED, "no answer in time")
LEADERLESS = replace(WELL, member=replace(MEMBER, leader_id=0), alarms=None, refusal=LATE)
LEARNER = replace(WELL, member=replace(MEMBER, member_id=0xA2, is_learner=True), alarms=None, refusal=LATE)
MUTE = replace(WELL, alarms=None, refusal=LATE)
ESP = EndpointHealth(Endpoint("e", 1), reachable=True, refusal=errors.IS_ESP)
SECRETIVE = EndpointHealth(
    Endpoint("s", 1), reachable=True, refusal=Status(Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
)
FULL = replace(WELL, alarms=(Alarm(0xA1, "NOSPACE"),))


@pytest.mark.parametrize(
    ("endpoints", "state", "text"),
    [
        ((WELL,), State.UP, "can be read and written"),
        ((WELL, WELL), State.UP, "can be read and written"),
        ((WELL, DEAD), State.DEGRADED, "can be read and written, through 1 of 2 endpoints"),
        ((WELL, LEARNER), State.DEGRADED, "can be read and written, through 1 of 2 endpoints"),
        ((WELL, MUTE, LEADERLESS), State.DEGRADED, "can be read and written, through 1 of 3 endpoints"),
        ((FULL,), State.READ_ONLY, "can be read, but not written: alarm NOSPACE"),
        ((FULL, DEAD), State.READ_ONLY, "can be read, but not written: alarm NOSPACE"),
        ((DEAD,), State.DOWN, "cannot be read or written: its endpoint cannot be reached"),
        ((DEAD, DEAD), State.DOWN, "cannot be read or written: none of its endpoints can be reached"),
        ((DEAD, LEADERLESS), State.DOWN, "cannot be read or written: its members know of no leader"),
        ((LEARNER,), State.DOWN, "cannot be read or written: only learners answer"),
        ((MUTE,), State.DOWN, "cannot be read or written: no member answers as it must"),
        ((ESP, DEAD), State.DOWN, "cannot be read or written: an esp is there, and no etcd"),
    ],
)
def test_a_shard_is_as_its_best_endpoint(endpoints: tuple[EndpointHealth, ...], state: State, text: str) -> None:
    verdict = verdict_of(ShardHealth("s", (KeyRange(b"i", b"r"),), endpoints))
    assert (verdict.state, verdict.text) == (state, f'keys ["i", "r") {text}')


def test_a_shard_that_wants_a_user_is_unknown_unless_another_endpoint_serves() -> None:
    ranges = (KeyRange(b"", None),)
    verdict = verdict_of(ShardHealth("s", ranges, (SECRETIVE, DEAD)))
    assert verdict.state is State.UNKNOWN
    assert verdict.text.startswith('keys ["", end): it tells nothing without a user')
    assert verdict_of(ShardHealth("s", ranges, (SECRETIVE, WELL))).state is State.DEGRADED


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "no keys"),
        (1, 'keys ["0", "0\\x00")'),
        (2, 'keys ["0", "0\\x00") and ["1", "1\\x00")'),
        (3, 'keys ["0", "0\\x00"), ["1", "1\\x00") and ["2", "2\\x00")'),
        (9, 'keys ["0", "0\\x00"), ["1", "1\\x00"), ["2", "2\\x00") and 6 more ranges'),
    ],
)
def test_a_verdict_names_a_few_ranges(count: int, told: str) -> None:
    ranges = tuple(KeyRange(b"%d" % number, b"%d\0" % number) for number in range(count))
    assert verdict_of(ShardHealth("s", ranges, (WELL,))).text == f"{told} can be read and written"

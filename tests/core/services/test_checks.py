"""The checks of shards behind the pages: how often shards are asked, and which page waits for which shard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message

from esp.core import errors
from esp.core.background import Background
from esp.core.pb import rpc_pb2
from esp.core.services import checks
from esp.core.services.checks import Verdict
from esp.core.services.pages import Pages
from esp.core.wire.exchange import Page
from esp.core.wire.status import Code, Status

OK = Verdict()
AWAY = Verdict(
    serializable_read="there is no connection available",
    linearizable_read="there is no connection available",
    silence="there is no connection available",
)


class Asked:
    """A shard that answers when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_ready = True
        self.trouble = ""
        self.version, self.storage_version = "3.7.1", "3.7.0"
        self.calls: list[bytes] = []
        self.answers = asyncio.Event()
        self.status = rpc_pb2.StatusResponse(leader=7)
        self.refusals: dict[bool, Status] = {}  # of reads, serializable and not

    async def forward_unary(self, forward: tuple[bytes, bytes], message: bytes, **_: Any) -> bytes:
        self.calls.append(forward[0].rpartition(b"/")[2])
        await self.answers.wait()
        if forward[0].endswith(b"/Status"):
            return self.status.SerializeToString()
        request = rpc_pb2.RangeRequest.FromString(message)
        assert request.keys_only
        if refusal := self.refusals.get(request.serializable):
            raise refusal.error()
        return rpc_pb2.RangeResponse().SerializeToString()

    def wants_login(self, status: Status) -> bool:
        return status in errors.STALE_TOKEN

    async def log_in(self, asked: float, seconds: float) -> bool:
        """Nobody has told esp a user."""
        return False

    def parsed(self, answer: type[Message], message: bytes) -> Message:
        return answer.FromString(message)


class World:
    """Pages of two shards."""

    def __init__(self) -> None:
        self.shards = {name: Asked(name) for name in "ab"}
        self.background = Background()
        self.pages = Pages(SimpleNamespace(shards=self.shards), self.background)  # type: ignore[arg-type]
        self.said: list[Page] = []

    async def asks(self, target: str) -> None:
        self.pages.find("GET", target, self.said.append)
        await self.settles()

    async def answers(self, *names: str) -> None:
        for name in names:
            self.shards[name].answers.set()
        await self.settles()

    async def settles(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def takes(self) -> tuple[int, str]:
        page = self.said.pop(0)
        return page.status, page.body.decode()


def run(work: Callable[[World], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            world = World()
            await work(world)
            await world.background.close()
            assert not world.background.failures

    asyncio.run(bounded())


def test_one_round_serves_all_pages_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(checks, "monotonic", lambda: now[0])

    async def work(world: World) -> None:
        for path in ("/health", "/readyz", "/readyz?verbose", "/livez/serializable_read", "/readyz/shard/b") * 20:
            await world.asks(path)
        assert world.said == []
        await world.answers("a", "b")
        assert [page.status for page in world.said] == [200] * 100
        now[0] += 0.9
        await world.asks("/health")
        assert [sorted(shard.calls) for shard in world.shards.values()] == [[b"Range", b"Range", b"Status"]] * 2
        now[0] += 0.2
        await world.asks("/health")
        assert [len(shard.calls) for shard in world.shards.values()] == [6, 6]

    run(work)


def test_a_probe_does_not_wait_for_a_slow_shard_when_another_is_well() -> None:
    async def work(world: World) -> None:
        for path in ("/health", "/readyz", "/readyz/linearizable_read", "/readyz/shard/a"):
            await world.asks(path)
        for path in ("/readyz?verbose", "/readyz/shard/b"):
            await world.asks(path)
        await world.answers("a")
        assert [world.takes()[0] for _ in range(4)] == [200] * 4
        assert world.said == []
        await world.answers("b")
        assert [world.takes()[0] for _ in range(2)] == [200] * 2

    run(work)


def test_who_has_no_connection_is_not_asked_and_the_others_decide() -> None:
    async def work(world: World) -> None:
        world.shards["a"].is_ready = False
        world.shards["a"].trouble = "connection refused"
        await world.answers("b")
        await world.asks("/readyz?verbose")
        status, body = world.takes()
        assert status == 200
        assert body.endswith(
            "[-]shard a failed: serializable_read: there is no connection available: connection refused\n"
            "[+]shard b ok\nok\n"
        )
        assert world.shards["a"].calls == []

    run(work)


def test_of_a_shard_that_is_away_nothing_is_said_to_be_well() -> None:
    async def work(world: World) -> None:
        world.shards["a"].is_ready = False
        await world.answers("b")
        await world.asks("/readyz/shard/a")
        why = "failed: there is no connection available"
        checks = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")
        assert world.takes() == (503, "".join(f"[-]{name} {why}\n" for name in checks) + "\n")

    run(work)


def test_when_none_passes_each_reason_is_told() -> None:
    async def work(world: World) -> None:
        world.shards["a"].is_ready = False
        world.shards["b"].refusals[False] = errors.NO_LEADER
        world.shards["b"].status.leader = 0
        await world.answers("b")
        await world.asks("/health")
        assert world.takes() == (
            503,
            '{"health":"false","reason":"shard a: RANGE ERROR:there is no connection available, '
            'shard b: RAFT NO LEADER"}\n',
        )
        await world.asks("/health?serializable=true")
        assert world.takes() == (200, '{"health":"true","reason":""}')
        await world.asks("/readyz")
        assert world.takes() == (
            503,
            "[+]data_corruption ok\n[+]serializable_read ok\n"
            "[-]linearizable_read failed: shard a: there is no connection available, shard b: etcdserver: no leader\n"
            "[+]non_learner ok\n"
            "[-]shard a failed: serializable_read: there is no connection available\n"
            "[-]shard b failed: linearizable_read: etcdserver: no leader\n\n",
        )
        await world.asks("/readyz?exclude=linearizable_read")
        assert world.takes() == (200, "ok\n")

    run(work)


@pytest.mark.parametrize(
    ("refusal", "passes"),
    [
        (errors.PERMISSION_DENIED, True),
        (Status(Code.INVALID_ARGUMENT, "etcdserver: user name is empty"), True),
        (errors.REQUEST_TIMED_OUT, False),
        (Status(Code.INTERNAL, ""), False),
    ],
)
def test_a_read_that_is_not_permitted_shows_that_the_shard_reads(refusal: Status, passes: bool) -> None:
    async def work(world: World) -> None:
        for shard in world.shards.values():
            shard.refusals[False] = refusal
        await world.answers("a", "b")
        await world.asks("/readyz/linearizable_read")
        assert world.takes()[0] == (200 if passes else 503)

    run(work)


def test_alarms_and_learners_are_found_as_every_etcd_writes_them() -> None:
    async def work(world: World) -> None:
        world.shards["a"].status.errors.extend(["memberID:5 alarm:CORRUPT ", "memberID:6  alarm:NOSPACE"])
        world.shards["b"].status.isLearner = True
        world.shards["b"].refusals[False] = Status(Code.UNAVAILABLE, "etcdserver: rpc not supported for learner")
        await world.answers("a", "b")
        await world.asks("/readyz/shard/a?exclude=linearizable_read")
        assert world.takes() == (
            503,
            "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n[+]non_learner ok\n\n",
        )
        await world.asks("/readyz/shard/b?exclude=linearizable_read")
        status, body = world.takes()
        assert (status, body.splitlines()[-2]) == (503, "[-]non_learner failed: not supported for learner")

    run(work)


def test_a_page_that_comes_while_others_wait_has_none_of_them_looked_at_again() -> None:
    async def work(world: World) -> None:
        looks = 0

        def look(seen: checks.Round) -> bool:
            nonlocal looks
            looks += 1
            return seen.is_over

        asked = checks.Checks(world.shards, world.background)  # type: ignore[arg-type]
        for _ in range(300):
            asked.ask(look)
        assert looks == 300
        await world.answers("a", "b")
        await world.settles()
        assert looks <= 900, "once for each shard's verdict at most"

    run(work)


def test_a_page_that_cannot_be_given_keeps_no_other_waiting() -> None:
    async def work(world: World) -> None:
        def broken(page: Page) -> None:
            raise ZeroDivisionError

        world.pages.find("GET", "/readyz", broken)
        await world.asks("/readyz")
        await world.answers("a", "b")
        assert world.takes() == (200, "ok\n")
        assert world.background.failures == {"a page": 1}
        world.background.failures.clear()

    run(work)


def test_a_bug_in_a_check_is_told_as_that_shards_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        monkeypatch.setattr(world.shards["a"], "parsed", None)
        await world.answers("a", "b")
        await world.asks("/readyz/shard/a")
        status, body = world.takes()
        assert status == 503
        assert "[-]serializable_read failed: esp: internal error\n" in body
        await world.asks("/readyz")
        assert world.takes() == (200, "ok\n")
        assert sum(world.background.failures.values()) == 1
        world.background.failures.clear()

    run(work)

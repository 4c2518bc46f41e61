"""Both sides of a takeover in one process: the running esp's in the loop, the new one's beginning in a thread."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from esp.core import sockets, takeover
from esp.core.background import Background, in_a_thread
from esp.core.config import listen_of
from esp.core.control import Client, Control, Place
from esp.core.former import MAX_MOVES, Came, Former
from esp.core.keys import KeyRange
from esp.core.shared_tokens import Part, Ring, Ticks
from esp.core.takeover import HandOver, Predecessor, TakeoverError
from esp.core.tokens import Position, Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.workers import ChannelError
from tests.harness import PATIENCE

VECTOR = Vector(("a", "b"), (5, 9))


class Running:
    """The running process: a socket at a free port, and tokens."""

    def __init__(self, background: Background, place: Place) -> None:
        self.addresses = listen_of(["http://127.0.0.1:0"])
        self.bound = sockets.bind(self.addresses)
        sockets.listen(self.bound, self.addresses)
        self.tokens = Tokens(WireContext(Limits()), instance=50)
        self.reachable = ["a", "b"]
        self.given_to: list[int] = []
        self.fingerprint = "0123456789ab"
        self.place = place
        self.former = Former()
        self.hand_over = HandOver(
            background,
            self.bound,
            self,
            lambda: self.reachable,
            self.given_to.append,
            lambda: self.fingerprint,
            lambda: self.former,
        )
        self.control = Control(background, {"takeover": self.hand_over})
        self.successors: list[Predecessor] = []
        self._rings: list[Ring] = []
        self._ticks = Ticks()

    async def shared(self) -> tuple[Sequence[Ring], Ticks, tuple[int, int]]:
        if not self._rings:
            self._rings = [Ring.create(1 << 20, 1000, 2)]
            self._ticks.take(1)
            await self.tokens.share_gradually(Part(self._rings[0], self._ticks, 0, self._rings))
        return self._rings, self._ticks, (0, 1)

    async def predecessor(self, fingerprint: str = "0123456789ab") -> Predecessor:
        """What a new process gets that has a shard map with this fingerprint."""
        made = await in_a_thread("a new process", lambda: Predecessor(Client(self.place.path), fingerprint))
        self.successors.append(made)
        return made


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Running, Background]]:
    async with Background() as background:
        one = Running(background, Place(folder / "c.sock"))
        await one.control.open(one.place)
        try:
            yield one, background
        finally:
            await one.control.close()
            sockets.close(one.bound)
            for successor in one.successors:
                successor.close()


def test_the_map_stays_while_the_process_before_still_drains(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            heir = HandOver(background, old.bound, old, list, old.given_to.append, lambda: "", lambda: old.former)
            heir.predecessor = new
            assert heir.is_under_way, "calls by that map may still be open there"
            assert new._channel is not None
            new._channel.close()
            await until(lambda: new.is_gone)
            assert not heir.is_under_way

    asyncio.run(run())


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_the_new_process_has_the_sockets_the_tokens_and_the_positions(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, background):
            token = old.tokens.mint(VECTOR)
            new = await old.predecessor()
            (bound,) = new.bind(old.addresses)
            assert bound.address == old.bound[0].address, "the same port, although the config says 0"
            bound.sock.close()
            (part,) = new.tokens([Ring.create(1 << 20, 1000, 2)])
            assert part.ring.highest("a") == 5, "the new ring has the highest revisions, for when the old is forgotten"
            tokens = Tokens(WireContext(Limits()), instance=51)
            tokens.share(part)
            assert tokens.position(token) == Position(VECTOR, 0)
            assert tokens.mint(VECTOR) > token
            assert new.slots_here == (1, 1)

            adopted: list[Mapping[str, Any]] = []

            async def adopt(dumped: Sequence[Mapping[str, Any]]) -> None:
                adopted.extend(dumped)

            await new.open(background, adopt)
            assert not old.given_to
            new.serves()
            await until(lambda: old.given_to == [os.getpid()])
            asking = asyncio.ensure_future(new.is_doubtful(5))
            await asyncio.sleep(0.01)
            assert not asking.done(), "until all positions have come"
            old.hand_over.give_positions([{"some": 1}])
            old.hand_over.give_positions([{"more": 2}])
            await old.hand_over.end_positions()
            assert adopted == [{"some": 1}, {"more": 2}]
            assert not await asking

    asyncio.run(run())


def test_what_an_old_process_that_died_has_not_told_is_doubtful(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, background):
            old.tokens.mint(VECTOR)
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            new.serves()
            await until(lambda: old.given_to)
            channel = old.hand_over._channel
            assert channel is not None
            channel.close()
            assert [await new.is_doubtful(revision) for revision in (9, 10)] == [True, False]
            assert new.is_gone

    asyncio.run(run())


def test_positions_that_nobody_has_taken_are_doubtful_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, background):
            old.tokens.mint(VECTOR)
            new = await old.predecessor()
            release = asyncio.Event()
            faults: list[Exception] = [ChannelError("no worker is ready")]

            async def adopt(_: Sequence[Mapping[str, Any]]) -> None:
                await release.wait()
                if faults:
                    raise faults.pop()

            await new.open(background, adopt)
            new.serves()
            await until(lambda: old.given_to)
            old.hand_over.give_positions([{"some": 1}])
            ends = [asyncio.ensure_future(old.hand_over.end_positions()) for _ in range(2)]
            await asyncio.sleep(0.05)
            assert not new.has_told.is_set(), "the second end does not come before the first is done"
            release.set()
            await asyncio.gather(*ends)
            await old.hand_over.end_positions()
            assert [await new.is_doubtful(revision) for revision in (9, 10)] == [True, False]
            assert "positions of watches are lost" in caplog.text

    asyncio.run(run())


def test_a_new_process_that_fails_changes_nothing_and_the_next_may_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            with pytest.raises(TakeoverError, match=r"refused|taking over already"):
                await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            new.check(["c"])
            with pytest.raises(TakeoverError, match="are not reachable: b"):
                new.check(["c", "b"])
            await new.fails("it is not to be")
            assert "does not take over, and this one goes on: it is not to be" in caplog.text
            assert new._channel is not None
            new._channel.close()
            await until(lambda: "has not taken over; this one goes on" in caplog.text)
            again = await old.predecessor()
            await again.open(background, lambda _: asyncio.sleep(0))
            again.serves()
            await until(lambda: old.given_to)

    asyncio.run(run())


def test_who_never_serves_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "START_SECONDS", 0.01)

    async def run() -> None:
        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            await until(lambda: "has not taken over; this one goes on" in caplog.text)
            await until(lambda: new.is_gone)
            assert not old.given_to
            with pytest.raises(TakeoverError, match="has given this process up; see its log"):
                new.check([])

    asyncio.run(run())


def test_once_the_new_process_may_serve_it_is_not_given_up_and_without_that_it_does_not_serve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "START_SECONDS", 0.05)

    async def run() -> None:
        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            await new.may_serve()
            await asyncio.sleep(0.2)
            assert old.hand_over.is_under_way, "the time is over, but it was promised"
            new.serves()
            await until(lambda: old.given_to)

        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            await new.may_serve()
            assert new._channel is not None
            new._channel.close()  # it dies in between
            await until(lambda: "has not taken over; this one goes on" in caplog.text)
            assert not old.given_to
            assert not old.hand_over.is_under_way

        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            assert old.hand_over._channel is not None
            given_up = asyncio.ensure_future(new.may_serve())  # asks in the moment in which it is given up
            await asyncio.sleep(0)
            old.hand_over._channel.close()
            with pytest.raises(TakeoverError, match="has given this process up; see its log"):
                await given_up
            assert not old.given_to

    asyncio.run(run())


def test_an_old_process_that_does_not_answer_keeps_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "ANSWER_SECONDS", PATIENCE)

    async def run() -> None:
        async with running(tmp_path) as (old, background):
            new = await old.predecessor()
            await new.open(background, lambda _: asyncio.sleep(0))
            monkeypatch.setattr(takeover, "ANSWER_SECONDS", 0.01)
            monkeypatch.setattr(old.hand_over, "_is_promised", False)
            assert old.hand_over._channel is not None
            old.hand_over._channel._commands["may_serve"] = lambda _: asyncio.sleep(PATIENCE)  # type: ignore[index]
            with pytest.raises(TakeoverError, match="has given this process up; see its log"):
                await new.may_serve()
            assert new._channel is not None
            new._channel.close()
            await until(lambda: not old.hand_over.is_under_way)
            assert not old.given_to

    asyncio.run(run())


def test_one_takeover_at_a_time_and_of_the_same_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, _):
            new = await old.predecessor()
            old.hand_over.predecessor = new
            channel = old.hand_over._channel
            assert channel is not None
            channel.close()
            with pytest.raises(TakeoverError, match="the one before it still drains"):
                await old.predecessor()
            old.hand_over.predecessor = None
            monkeypatch.setattr(takeover, "FORM", takeover.FORM + 1)
            asked = Client(old.place.path)
            with pytest.raises(Exception, match="another form of takeover"):
                await in_a_thread("another version", lambda: asked.ask("takeover", seconds=PATIENCE, form=1, process=1))
            asked.close()
            assert not old.given_to

    asyncio.run(run())


def test_who_has_another_shard_map_gets_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, background):
            with pytest.raises(
                TakeoverError, match="put it in force first with esp reload, then take over; or restart"
            ):
                await old.predecessor("ba9876543210")
            assert not old.hand_over.is_under_way
            old.fingerprint = "ba9876543210"  # a reload
            new = await old.predecessor("ba9876543210")
            assert old.hand_over.is_under_way, "so a reload waits"
            await new.open(background, lambda _: asyncio.sleep(0))
            assert new._channel is not None
            new._channel.close()
            await until(lambda: not old.hand_over.is_under_way)
            again = await old.predecessor("ba9876543210")
            await again.open(background, lambda _: asyncio.sleep(0))
            again.serves()
            await until(lambda: old.given_to)
            assert old.hand_over.is_under_way

    asyncio.run(run())


@pytest.mark.parametrize("length", [3, 500])
def test_the_new_process_knows_what_has_moved_in_the_life_of_the_tokens(tmp_path: Path, length: int) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, _):
            key = b"k" * length
            old.former = Former().after(
                Came(KeyRange(b"%s%04d" % (key, n), b"%s%04d" % (key, n + 1)), "b", n) for n in range(MAX_MOVES)
            )
            new = await old.predecessor()
            for n in (1, MAX_MOVES - 1):
                assert new.former.floor(KeyRange(b"%s%04d" % (key, n), None), "b") >= n
            assert new.former.floor(KeyRange(b"a", b"b"), "b") == 0
            assert len(new.former.came) == (MAX_MOVES if length == 3 else 1), "too long for an answer"

    asyncio.run(run())


def test_a_second_takeover_is_refused_while_the_tokens_of_the_first_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, _):
            shared, release, asked = old.shared, asyncio.Event(), 0

            async def slowly() -> tuple[Sequence[Ring], Ticks, tuple[int, int]]:
                nonlocal asked
                asked += 1
                await release.wait()
                return await shared()

            monkeypatch.setattr(old, "shared", slowly)
            first = asyncio.ensure_future(old.predecessor())
            await until(lambda: asked)
            second = asyncio.ensure_future(old.predecessor())
            await until(lambda: second.done() or asked > 1)
            release.set()
            await first
            with pytest.raises(TakeoverError, match=rf"refused|process {os.getpid()} is taking over already"):
                await second
            assert asked == 1

    asyncio.run(run())


def test_addresses_that_are_new_are_bound_and_those_that_have_left_are_closed(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as (old, _):
            new = await old.predecessor()
            other = listen_of([f"unix:{tmp_path}/other.sock"])
            (bound,) = new.bind(other)
            assert bound.listen == other[0]
            bound.sock.close()

    asyncio.run(run())


def test_tokens_that_were_minted_alone_are_shared_in_steps_while_more_are_minted() -> None:
    async def run() -> None:
        alone = Tokens(WireContext(Limits()), instance=50)
        minted = [alone.mint(Vector(("a",), (n,)), of_message=n % 3 == 0) for n in range(1, 1500)]
        ring, ticks = Ring.create(1 << 20, 10_000, 1), Ticks()
        ticks.take(2)
        sharing = asyncio.ensure_future(alone.share_gradually(Part(ring, ticks, 0, [ring])))
        while not sharing.done():
            await asyncio.sleep(0)
            minted.append(alone.mint(Vector(("a",), (len(minted) + 1,)), of_message=len(minted) % 2 == 0))
        await sharing
        minted.append(alone.mint(Vector(("a",), (len(minted) + 1,))))
        other = Tokens(WireContext(Limits()), instance=51)
        other.share(Part(Ring.create(1 << 20, 10_000, 1), ticks, 1, [ring]))
        found = [other.position(token) for token in minted]
        assert found == [Position(Vector(("a",), (n,)), 0) for n in range(1, len(minted) + 1)]
        assert len(minted) > 1504, "some were minted meanwhile"
        assert other.may_be_known("a", len(minted) - 1)
        assert not other.may_be_known("a", len(minted))
        assert other.mint(VECTOR) > minted[-1]

    asyncio.run(run())

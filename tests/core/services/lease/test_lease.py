"""Grants, revocations, repairs and retries. The test plays the shards, to do what no etcd does on demand."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from esp.core import errors
from esp.core.config import User
from esp.core.pb import rpc_pb2
from esp.core.services.lease import repair as lease_repair
from esp.core.services.lease import retry as lease_retry
from esp.core.services.lease import table as lease_table
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.status import Code, RpcError, Status
from tests.core.services.lease.lease_world import FakeStream, World, run, until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_repair, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(lease_repair, "POLL_SECONDS", 0.01)


def test_the_keys_of_a_lease_are_merged_with_turns_for_others_and_count_as_memory_of_the_call() -> None:
    world = World()
    for shard, first in zip(world.shards, (b"a", b"j", b"s"), strict=True):
        shard.leases[7] = 30
        shard.keys = [b"%s%05d" % (first, number * 7919 % 5000) for number in range(5000)]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def work() -> None:
        counting = asyncio.create_task(count_turns())
        call = world._call("LeaseTimeToLive")
        answer = await world.fan_out.time_to_live(call, rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True))
        counting.cancel()
        assert list(answer.keys) == sorted(key for shard in world.shards for key in shard.keys)
        assert [shard.keepers for shard in world.shards] == [[call.stream]] * 3

    run(work)
    assert turns > 3 * 2 * 5000 // 256, "once over, once sorted"


@pytest.mark.parametrize("read", ["answered", "refused", "lost"])
def test_a_shard_that_has_lost_a_lease_of_others_is_asked_once_more_after_a_read(read: str) -> None:
    """Its member may have been frozen while it led."""
    world = World()

    async def ttl() -> int:
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=7)
        return (await world.fan_out.time_to_live(world._call("LeaseTimeToLive"), request)).TTL

    def refuse(message: bytes) -> Message:
        world.shards[1].is_behind = False
        raise (errors.PERMISSION_DENIED if read == "refused" else errors.REQUEST_TIMED_OUT).error()

    async def work() -> None:
        await world.grant(7)
        if read != "answered":
            world.shards[1]._Range = refuse  # type: ignore[method-assign]
        world.shards[1].is_behind = True
        assert await ttl() == (59 if read == "lost" else 60), "as of a shard that does not answer"
        del world.shards[1].leases[7]
        world.shards[1].is_behind = False
        if read != "lost":
            assert await ttl() == -1
        if read == "answered":
            assert [shard.asked.count("Range") for shard in world.shards] == [0, 2, 0]

    run(work)


class TestIds:
    def test_an_id_that_another_proxy_has_just_drawn_is_left_to_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = [7, 8]
        monkeypatch.setattr(secrets, "randbits", lambda bits: drawn.pop(0))
        world = World()
        world.shards[1].leases[7] = 30

        async def work() -> None:
            assert await world.grant() == 8
            assert (world.where(7), world.where(8)) == ([False, True, False], [True] * 3)

        run(work)

    def test_after_some_tries_it_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(secrets, "randbits", lambda bits: 7)
        world = World()
        world.shards[1].leases[7] = 30

        async def work() -> None:
            with pytest.raises(RpcError) as caught:
                await world.grant()
            assert caught.value.status == errors.LEASE_EXISTS
            assert world.where(7) == [False, True, False]

        run(work)

    def test_0_is_never_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(secrets, "randbits", lambda bits: 0)
        world = World()

        async def work() -> None:
            assert await world.grant() == 1

        run(work)


class TestRepair:
    def test_a_grant_that_a_shard_missed_is_made_up_for_when_it_is_back(self) -> None:
        world = World()

        async def work() -> None:
            async with world.running():
                world.shards[1].away = True
                lease_id = await world.grant()
                assert world.where(lease_id) == [True, False, True]
                world.shards[1].away = False
                await until(lambda: all(world.where(lease_id)))
                await until(lambda: world.table.was_on(lease_id, "s1"))
                assert world.table.counters == {"granted_without_a_shard": 1, "repaired": 1}

        run(work)

    def test_above_the_bound_a_missed_grant_is_left_to_the_next_time_the_shard_is_back(self) -> None:
        world = World(Limits(max_lease_repairs=1))

        async def work() -> None:
            async with world.running():
                world.shards[1].away = True
                ids = [await world.grant() for _ in range(3)]
                assert world.context.counters.limits == {"max_lease_repairs": 2}
                for _ in range(3):
                    world.shards[1].away = True
                    await asyncio.sleep(0.01)
                    world.shards[1].away = False
                    await until(lambda: not world.repair.waiting)
                assert any(all(world.where(lease_id)) for lease_id in ids)
                for lease_id in ids:
                    assert await world.repair.ensure(lease_id, world.layout.shards["s1"], [], 1.0)
                assert all(all(world.where(lease_id)) for lease_id in ids)

        run(work)

    def test_what_is_revoked_meanwhile_is_not_granted(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[1].away = True
            lease_id = await world.grant()
            world.shards[1].away = False
            await world.revoke(lease_id)
            async with world.running():
                await until(lambda: not world.repair.waiting)
                assert world.where(lease_id) == [False] * 3

        run(work)

    def test_what_has_ended_everywhere_meanwhile_is_forgotten(self) -> None:
        """So that a shard is not taken to miss a new lease of that id, which another proxy may grant."""
        world = World()

        async def work() -> None:
            async with world.running():
                world.shards[1].away = True
                lease_id = await world.grant()
                for shard in world.shards:
                    shard.leases.clear()
                world.shards[1].away = False
                await until(lambda: not world.repair.waiting)
                assert world.table.get(lease_id) is None

        run(work)

    def test_a_revocation_that_its_client_gave_up_is_finished(self) -> None:
        world = World()

        async def work() -> None:
            lease_id = await world.grant()
            world.shards[1].frozen = True
            revoking = asyncio.create_task(world.revoke(lease_id))
            await until(lambda: "LeaseRevoke" in world.shards[1].asked)
            revoking.cancel()
            await asyncio.gather(revoking, return_exceptions=True)
            assert world.jobs() == [{lease_id: False}] * 3

        run(work)

    def test_a_refused_grant_is_taken_back_in_whatever_turn_of_the_loop_its_client_goes(self) -> None:
        """One is that in which the revocations are to begin, and have not yet."""

        async def given_up_after(turns: int) -> bool:
            """Whether the client went before it was answered."""
            world = World(tolerant=False)
            world.shards[1].away = True
            granting = asyncio.create_task(world.grant())
            for _ in range(turns):
                await asyncio.sleep(0)
            given_up = granting.cancel()
            await asyncio.gather(granting, return_exceptions=True)
            world.shards[1].away = False
            async with world.running():
                await until(lambda: not world.repair.waiting)
            assert [shard.leases for shard in world.shards] == [{}] * 3, turns
            return given_up

        async def work() -> None:
            turns = 0
            while await given_up_after(turns):
                turns += 1
            assert turns > 5  # it was refused in one of them, and taken back in others

        run(work)

    def test_a_revocation_that_still_waits_does_not_end_a_new_lease_of_that_id(self) -> None:
        world = World()

        async def work() -> None:
            await world.grant(7)
            world.shards[1].away = True
            with pytest.raises(RpcError):
                await world.revoke(7)
            assert world.jobs() == [{}, {7: False}, {}]
            world.shards[1].away = False
            del world.shards[1].leases[7]  # it has ended there by itself
            await world.grant(7)
            assert world.jobs() == [{}, {}, {}]

        run(work)

    def test_one_shard_that_refuses_does_not_stop_the_other_repairs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World()
        refused = Status(errors.PERMISSION_DENIED.code, errors.PERMISSION_DENIED.message)

        async def work() -> None:
            world.shards[1].away = True
            ids = [await world.grant() for _ in range(3)]
            original = world.shards[1]._LeaseGrant

            def grant(message: bytes) -> Message:
                if ids[0] == rpc_pb2.LeaseGrantRequest.FromString(message).ID:
                    raise refused.error()
                return original(message)

            monkeypatch.setattr(world.shards[1], "_LeaseGrant", grant)
            world.shards[1].away = False
            async with world.running():
                await until(lambda: not world.repair.waiting)
            assert [all(world.where(lease_id)) for lease_id in ids] == [False, True, True]
            assert world.table.counters["repairs_failed"] == 1

        run(work)

    def test_a_repair_waits_until_esp_has_a_token_of_its_own_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """esp asks for one every two seconds at most, and a new leader knows none of the old tokens."""
        world = World()
        refusals = [errors.INVALID_AUTH_TOKEN, errors.AUTH_OLD_REVISION]

        async def no_token(*_: object) -> bool:
            return False

        async def work() -> None:
            for shard in world.shards:
                shard.user = User("root", Path("password"))
                shard.log_in = no_token
            world.shards[1].away = True
            lease_id = await world.grant()
            original = world.shards[1]._LeaseGrant

            def grant(message: bytes) -> Message:
                if refusals:
                    raise refusals.pop().error()
                return original(message)

            monkeypatch.setattr(world.shards[1], "_LeaseGrant", grant)
            world.shards[1].away = False
            async with world.running():
                await until(lambda: not world.repair.waiting)
            assert all(world.where(lease_id))
            assert not refusals
            assert not world.table.counters["repairs_failed"]

        run(work)


class TestAPutToAShardThatLacksItsLease:
    async def answered(self, stream: FakeStream | None) -> bytes | Status:
        assert stream is not None
        await until(lambda: stream.answer is not None)
        assert stream.answer is not None
        return stream.answer

    async def unsettled(self, stream: FakeStream | None) -> str:
        """The text with which the call ends: it is not known whether the lease lives."""
        answer = await self.answered(stream)
        assert isinstance(answer, Status)
        assert answer.code == Code.UNAVAILABLE
        return answer.message

    @pytest.fixture
    def _short_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who waits for another proxy, or for an answer, does so for a moment."""
        monkeypatch.setattr(lease_retry, "CALL_SECONDS", 0.05)

    def test_it_succeeds_where_the_lease_was_granted_without_the_shard(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[1].away = True
            lease_id = await world.grant()
            world.shards[1].away = False
            assert isinstance(await self.answered(world.put_refused(lease_id)), bytes)
            assert world.where(lease_id) == [True] * 3

        run(work)

    def test_it_fails_where_nothing_is_known_of_the_lease(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[7] = 60
            assert await self.answered(world.put_refused(7)) == errors.LEASE_NOT_FOUND
            assert world.where(7) == [True, False, False]

        run(work)

    def test_it_succeeds_where_the_shard_has_never_had_a_key(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[7] = 60
            world.shards[1].revision = 1
            assert isinstance(await self.answered(world.put_refused(7)), bytes)

        run(work)

    def test_it_waits_a_moment_for_another_proxy_after_the_shard_was_away(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[7] = 60
            world.table.away("s1")
            stream = world.put_refused(7)
            await asyncio.sleep(0.05)
            assert stream is not None
            assert stream.answer is None
            world.shards[1].leases[7] = 60
            assert isinstance(await self.answered(stream), bytes)

        run(work)

    def test_it_succeeds_where_the_lease_was_granted_between_the_refusal_and_now(self) -> None:
        world = World()

        async def work() -> None:
            lease_id = await world.grant()
            assert isinstance(await self.answered(world.put_refused(lease_id)), bytes)

        run(work)

    @pytest.mark.usefixtures("_short_waits")
    def test_the_lease_is_not_called_dead_while_another_proxy_may_still_grant_it(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[7] = 60
            world.table.away("s1")
            text = await self.unsettled(world.put_refused(7))
            assert "shard s1 has been away and lacks the lease" in text

        run(work)

    @pytest.mark.usefixtures("_short_waits")
    @pytest.mark.parametrize("is_first", [True, False])
    def test_an_outage_between_two_ticks_or_before_the_first_is_one_too(self, is_first: bool) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[7] = 60
            if not is_first:
                world.repair.tick()
                assert await self.answered(world.put_refused(7)) == errors.LEASE_NOT_FOUND
            world.shards[1].dialled += 1
            await self.unsettled(world.put_refused(7))
            world.shards[1].leases[7] = 60
            assert isinstance(await self.answered(world.put_refused(7)), bytes)

        run(work)

    @pytest.mark.usefixtures("_short_waits")
    def test_the_lease_is_not_called_dead_while_the_shard_does_not_answer(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[7] = 60
            world.shards[1].frozen = True
            assert await self.answered(world.put_refused(7)) == errors.REQUEST_TIMED_OUT

        run(work)

    @pytest.mark.parametrize("retried", [False, True])
    def test_what_cannot_be_sent_again_is_not_told_that_the_lease_is_dead_if_shards_missed_leases(
        self, retried: bool
    ) -> None:
        world = World()

        def refused() -> Any:
            stream: Any = FakeStream(b"/etcdserverpb.KV/Put")
            if not retried:
                return stream if world.retry.take_unkept(stream, errors.LEASE_NOT_FOUND) else None
            stream.retried = True
            put = rpc_pb2.PutRequest(key=b"j", lease=7)
            body = prefix(put.SerializeToString())
            owner = world.layout.owner
            return stream if world.retry.take(stream, body, [put], errors.LEASE_NOT_FOUND, owner) else None

        async def work() -> None:
            assert refused() is None
            world.shards[1].away = True
            await world.grant()
            world.shards[1].away = False
            assert refused().answer.code == Code.UNAVAILABLE
            async with world.running():
                await until(lambda: world.table.counters["repaired"] == 1)
            assert refused().answer.code == Code.UNAVAILABLE  # it may have been refused before that
            now = lease_table.monotonic() + lease_table.MISSED_SECONDS
            assert world.table.is_settled(now)

        run(work)

    def test_those_that_wait_are_bounded(self) -> None:
        world = World(Limits(max_waiting_requests=1))

        async def work() -> None:
            world.table.away("s1")
            first = world.put_refused(7)
            second = world.put_refused(7)
            assert second is not None
            assert second.answer == errors.TOO_MANY_REQUESTS
            assert world.context.counters.limits == {"max_waiting_requests": 1}
            world.shards[1].leases[7] = 60
            await self.answered(first)
            await asyncio.sleep(0)
            assert world.put_refused(7) is not None

        run(work)

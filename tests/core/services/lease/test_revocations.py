"""Revocations that wait for a shard: in whose name they are done, and of which lease."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from esp.core import errors
from esp.core.config import User
from esp.core.pb import rpc_pb2
from esp.core.services.lease import repair as lease_repair
from esp.core.services.lease import retry as lease_retry
from esp.core.wire.status import Code, RpcError, Status
from tests.core.services.lease.lease_world import NAMES, FakeStream, World, run, until

LEASE = 7


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_repair, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(lease_repair, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lease_retry, "CALL_SECONDS", 0.05)


def with_users(*, tolerant: bool = True) -> World:
    """esp has a user of its own at each shard."""
    world = World(tolerant=tolerant)
    for shard in world.shards:
        shard.user = User("esp", Path("password"))
    return world


async def done(world: World) -> None:
    async with world.running():
        await until(lambda: not world.repair.waiting)


class TestTheClientsTokenHasEnded:
    """A shard was restarted, and knows no token of before."""

    def forget_tokens(self, world: World) -> None:
        for shard in world.shards:
            shard.away = False
            shard.strangers = {"esp", "client"}

    def test_a_grant_that_failed_is_taken_back(self) -> None:
        world = with_users(tolerant=False)

        async def work() -> None:
            world.shards[1].frozen = True
            granting = asyncio.create_task(world.grant())
            await until(lambda: world.shards[1].leases)
            granting.cancel()
            await asyncio.gather(granting, return_exceptions=True)
            world.shards[1].frozen = False
            assert world.repair.waiting == len(NAMES)
            self.forget_tokens(world)
            await done(world)
            assert [shard.leases for shard in world.shards] == [{}] * len(NAMES)

        run(work)

    def test_a_lease_that_has_ended_elsewhere_is_ended(self) -> None:
        """Whatever the keys on it: etcd does not ask who may delete the keys of a lease that has expired."""
        world = with_users()

        async def work() -> None:
            world.shards[1].leases[LEASE] = 60
            world.shards[1].keys = [b"j"]
            self.forget_tokens(world)
            world.repair.end(LEASE, ["s1"], [])
            await done(world)
            assert not world.shards[1].leases
            assert not world.table.counters["repairs_failed"]

        run(work)

    @pytest.mark.parametrize("keys", [[], [b"j"]])
    def test_a_clients_revocation_is_finished_only_without_keys(
        self, keys: list[bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        world = with_users()

        async def work() -> None:
            world.shards[1].leases[LEASE] = 60
            world.shards[1].keys = keys
            self.forget_tokens(world)
            world.repair.revoke(LEASE, ["s1"], [])
            await done(world)
            assert bool(world.shards[1].leases) == bool(keys)
            assert ("its keys there are the client's to delete, and go with its TTL" in caplog.text) == bool(keys)

        run(work)

    @pytest.mark.parametrize("ends", [False, True])
    def test_without_a_user_of_its_own_esp_gives_up(self, ends: bool, caplog: pytest.LogCaptureFixture) -> None:
        world = World()

        async def work() -> None:
            world.shards[1].leases[LEASE] = 60
            self.forget_tokens(world)
            (world.repair.end if ends else world.repair.revoke)(LEASE, ["s1"], [])
            await done(world)
            assert world.shards[1].leases
            assert "shard s1: lease 7 cannot be repaired: etcdserver: invalid auth token" in caplog.text

        run(work)

    @pytest.mark.parametrize("ends", [False, True])
    def test_it_waits_until_esp_has_a_token_again_and_holds_up_no_other(
        self, ends: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = with_users()
        shard = world.shards[1]

        async def work() -> None:
            many = range(1, 3 * lease_repair.CONCURRENCY)
            shard.leases = dict.fromkeys(many, 60)
            self.forget_tokens(world)
            shard.logs_in = False
            for lease_id in many:
                (world.repair.end if ends else world.repair.revoke)(lease_id, ["s1"], [])
            tried: set[int] = set()
            forward_unary = shard.forward_unary

            async def noted(forward: tuple[bytes, bytes], message: bytes, **options: Any) -> bytes:
                tried.add(rpc_pb2.LeaseRevokeRequest.FromString(message).ID)
                return await forward_unary(forward, message, **options)

            monkeypatch.setattr(shard, "forward_unary", noted)
            async with world.running():
                await until(lambda: tried.issuperset(many))
                assert world.repair.waiting == len(many)
                shard.logs_in = True
                await until(lambda: not world.repair.waiting)
            assert not shard.leases
            assert not world.table.counters["repairs_failed"]

        run(work)

    def test_in_the_clients_name_if_esps_password_is_wrong(self) -> None:
        world = with_users()
        shard = world.shards[1]

        async def work() -> None:
            shard.leases[LEASE] = 60
            shard.strangers = {"esp"}
            shard.logs_in = False
            world.repair.end(LEASE, ["s1"], [])
            await done(world)
            assert not shard.leases

        run(work)


class TestTheIdIsGrantedAgain:
    """Meanwhile, and through another process, which does not know of the revocation that waits here."""

    async def half_revoked(self, world: World) -> None:
        """The second shard was away while the client revoked its lease."""
        await world.grant(LEASE)
        world.shards[1].away = True
        with pytest.raises(RpcError):
            await world.revoke(LEASE)
        assert world.where(LEASE) == [False, True, False]
        assert world.jobs() == [{}, {LEASE: False}, {}]

    def test_it_is_not_revoked(self) -> None:
        world = World()

        async def work() -> None:
            await self.half_revoked(world)
            world.shards[1].leases.clear()  # expired there
            for shard in world.shards:
                shard.leases[LEASE] = 60
            world.shards[1].away = False
            await done(world)
            assert all(world.where(LEASE))
            assert world.table.counters["revocations_dropped"] == 1

        run(work)

    def test_the_former_lease_is_revoked_where_the_new_one_is_known_to_be_missed(self) -> None:
        world = World()

        async def work() -> None:
            await self.half_revoked(world)
            await world.grant(LEASE)
            world.shards[1].away = False
            revoked = world.shards[1]
            async with world.running():
                await until(lambda: "LeaseRevoke" in revoked.asked and world.table.counters["revoked_later"])
            assert not world.table.counters["revocations_dropped"]

        run(work)

    @pytest.mark.parametrize("drawn", [False, True])
    def test_an_id_that_esp_has_drawn_and_told_nobody_is_of_no_other_lease(self, drawn: bool) -> None:
        """On another shard it may be because its grant was late, and came after its revocation."""
        world = World()

        async def work() -> None:
            world.shards[0].leases[LEASE] = world.shards[1].leases[LEASE] = 60
            world.repair.end(LEASE, ["s1"], [], drawn=drawn)
            await done(world)
            assert world.where(LEASE) == [True, not drawn, False]

        run(work)

    def test_a_grant_that_failed_is_such_a_one(self) -> None:
        world = World(tolerant=False)

        async def work() -> None:
            world.shards[1].away = world.shards[2].away = True
            with pytest.raises(RpcError):
                await world.grant()
            (job,) = {job.drawn for yard in world.repair._yards.values() for job in yard.jobs.values()}
            assert job

        run(work)

    def test_a_lease_that_is_to_end_on_several_shards_ends(self) -> None:
        world = World()

        async def work() -> None:
            world.shards[0].leases[LEASE] = world.shards[1].leases[LEASE] = 60
            world.repair.end(LEASE, ["s0", "s1"], [])
            await done(world)
            assert world.where(LEASE) == [False, False, False]

        run(work)


class TestAPutToAShardThatLacksItsLease:
    """And esp is refused when it looks whether the lease lives."""

    async def answer(self, world: World) -> bytes | Status | None:
        stream: Any = world.put_refused(LEASE)
        assert isinstance(stream, FakeStream)
        await until(lambda: stream.answer is not None)
        return stream.answer

    @pytest.mark.parametrize("has_missed", [False, True])
    def test_the_client_hears_that_its_token_has_ended(self, has_missed: bool) -> None:
        """So it gets another, and sends the call again. That the lease is gone would be wrong."""
        world = World()

        async def work() -> None:
            if has_missed:
                world.shards[1].away = True
                await world.grant(LEASE)
                world.shards[1].away = False
            world.shards[1].strangers = {"client"}
            assert await self.answer(world) == errors.INVALID_AUTH_TOKEN

        run(work)

    def test_it_is_not_called_dead_while_esp_has_no_token(self) -> None:
        world = with_users()

        async def work() -> None:
            world.shards[1].away = True
            await world.grant(LEASE)
            world.shards[1].away = False
            world.shards[1].strangers = {"esp"}
            world.shards[1].logs_in = False
            answer = await self.answer(world)
            assert isinstance(answer, Status)
            assert answer.code == Code.UNAVAILABLE
            assert "lacks the lease, which may live; esp is refused: etcdserver: invalid auth token" in answer.message

        run(work)

    def test_the_shards_word_stands_if_no_shard_has_missed_a_lease(self) -> None:
        world = with_users()

        async def work() -> None:
            world.shards[1].strangers = {"esp"}
            world.shards[1].logs_in = False
            assert await self.answer(world) == errors.LEASE_NOT_FOUND

        run(work)

"""The renewals of an import's leases on one shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from esp.core import errors
from esp.core.export import ExportError, renewing
from esp.core.export.renewing import Renewing
from esp.core.pb import rpc_pb2
from esp.core.wire.status import Status


class Shard:
    """A shard that answers renewals as told.

    Attributes:
        name: its name.
        asked: the leases that were to be renewed.
        logins: how often esp was given a new token.
    """

    name = "a"

    def __init__(self, answers: Callable[[int, int], bytes | Exception | None]) -> None:
        self._answers = answers
        self.asked: list[int] = []
        self.cancelled = 0
        self.logins = 0

    def wants_login(self, status: Status) -> bool:
        return status in errors.STALE_TOKEN

    async def log_in(self, since: float, seconds: float) -> bool:
        self.logins += 1
        return True

    async def open(self, forward: object, message: bytes, timeout: float) -> Any:  # noqa: ASYNC109 - as the shard's
        lease = rpc_pb2.LeaseKeepAliveRequest.FromString(message).ID
        self.asked.append(lease)
        return Call(self, self._answers(lease, self.asked.count(lease)))


class Call:
    def __init__(self, shard: Shard, answer: bytes | Exception | None) -> None:
        self._shard = shard
        self._answer = answer

    async def read(self) -> bytes:
        if self._answer is None:
            await asyncio.Future()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        self._shard.cancelled += 1


def told(ttl: int) -> bytes:
    return rpc_pb2.LeaseKeepAliveResponse(TTL=ttl).SerializeToString()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "PAUSE_SECONDS", "MOST_SECONDS"):
        monkeypatch.setattr(renewing, name, 0.01)


@pytest.mark.parametrize(
    "first", [None, errors.NO_CONNECTION.error(), b"\xff"], ids=["silence", "an error", "a garbled answer"]
)
def test_a_lease_is_asked_for_until_the_shard_has_answered(first: bytes | Exception | None) -> None:
    shard = Shard(lambda lease, time: first if (lease, time) == (7, 1) else told(60))
    renewing_ = Renewing(shard)  # type: ignore[arg-type]
    asyncio.run(renewing_.renew([(7, 60), (8, 60)]))
    assert sorted(shard.asked) == [7, 7, 8]
    assert shard.cancelled == 3
    assert renewing_.lost == set()


def test_a_shard_that_knows_esps_token_no_more_is_asked_with_another() -> None:
    """A member that has started anew. Nothing else may be asked of that shard, so nothing else would get the token."""
    shard = Shard(lambda *_: told(60) if shard.logins else errors.INVALID_AUTH_TOKEN.error())
    asyncio.run(Renewing(shard).renew([(7, 60)]))  # type: ignore[arg-type]
    assert shard.asked == [7, 7]
    assert shard.logins == 1


def test_a_lease_that_has_ended_is_lost_and_not_asked_for_again() -> None:
    shard = Shard(lambda lease, _: told(0 if lease == 7 else 60))
    renewing_ = Renewing(shard)  # type: ignore[arg-type]
    asyncio.run(renewing_.renew([(7, 60), (8, 60)]))
    assert renewing_.lost == {7}
    asyncio.run(renewing_.renew([(7, 60), (8, 60)]))
    assert sorted(shard.asked) == [7, 8, 8]


def test_a_shard_that_does_not_answer_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "PATIENCE_SECONDS", 0.05)
    renewing_ = Renewing(Shard(lambda *_: None))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="shard a: context deadline exceeded"):
        asyncio.run(renewing_.renew([(7, 60)]))


def test_while_an_import_runs_the_others_are_renewed_beside_a_silent_one() -> None:
    async def work() -> None:
        shard = Shard(lambda lease, _: None if lease == 7 else told(60))
        renewing_ = Renewing(shard)  # type: ignore[arg-type]
        running = asyncio.ensure_future(renewing_.run())
        renewing_.want(7, 60)
        async with asyncio.timeout(20):
            while shard.asked.count(7) < 3:
                renewing_.want(8, 60)
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert shard.asked.count(8) > 1

    asyncio.run(work())

"""Leases of an import: what is taken back when an id is taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from esp.core import errors
from esp.core.export import granting
from esp.core.export.granting import Granting
from esp.core.export.lines import Grant
from esp.core.pb import rpc_pb2


@pytest.mark.parametrize("resumes", [False, True])
def test_a_lease_that_was_there_is_never_revoked(monkeypatch: pytest.MonkeyPatch, resumes: bool) -> None:
    leases: dict[str, dict[int, int]] = {"a": {7: 60}, "b": {7: 37}}
    revoked: list[tuple[str, int]] = []

    async def ask(shard: str, method: object, request: Any, seconds: float) -> None:
        if request.ID in leases[shard]:
            raise errors.LEASE_EXISTS.error()
        leases[shard][request.ID] = request.TTL

    async def read(shard: str, method: object, request: Any) -> rpc_pb2.LeaseTimeToLiveResponse:
        ttl = leases[shard].get(request.ID)
        return rpc_pb2.LeaseTimeToLiveResponse(TTL=-1 if ttl is None else ttl, grantedTTL=ttl or 0)

    async def revoke(shard: str, lease: int) -> None:
        revoked.append((shard, lease))
        del leases[shard][lease]

    for name, stand_in in (("ask_for_esp", ask), ("read", read), ("revoke", revoke)):
        monkeypatch.setattr(granting, name, stand_in)
    made = Granting(["a", "b"], b"salt", resumes=resumes)  # type: ignore[list-item]
    asyncio.run(made.grant([Grant(7, 60)]))
    assert revoked == []
    assert (leases["a"][7], leases["b"][7]) == (60, 37)
    other = made.renamed[7]
    assert leases["a"][other] == leases["b"][other] == 60

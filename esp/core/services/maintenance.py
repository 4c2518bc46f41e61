"""The Maintenance service over several shards: Status, for all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esp.core.ask import STATUS, answers_of, ask_all, failures_of
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import AnswerUnary, CoroutineCall, Spawn
from esp.core.services.revision import merged_header, token
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Status

PATH: Final = b"/etcdserverpb.Maintenance/"
SECONDS: Final = 2.0
"""How long a shard may take before it counts as unreachable; etcdctl waits 5 s for all of it."""


def handlers(routing: Routing, spawn: Spawn) -> Mapping[bytes, Handler]:
    """The handler of each RPC that is served, by path."""

    async def status(call: CoroutineCall, request: rpc_pb2.StatusRequest) -> rpc_pb2.StatusResponse:
        return await status_of_all(call, routing, request)

    return {PATH + b"Status": AnswerUnary(spawn, rpc_pb2.StatusRequest, status)}


async def status_of_all(
    call: CoroutineCall, routing: Routing, request: rpc_pb2.StatusRequest
) -> rpc_pb2.StatusResponse:
    """The status of the shards that answer; the errors in it say what is wrong with the others.

    Raises:
        RpcError: none answers; the first shard's.
    """
    shards, seconds = routing.shards.values(), call.seconds(SECONDS)
    return merge(routing, await ask_all(shards, STATUS, request, metadata=call.metadata, seconds=seconds))


def merge(routing: Routing, outcomes: dict[str, rpc_pb2.StatusResponse | Status]) -> rpc_pb2.StatusResponse:
    """One status made of the statuses of the shards, by their names, in the order of the shard map.

    Sizes are summed up, of versions the lowest counts, of the raft's numbers, which are for people, the highest. esp
    calls itself the leader where every shard has one.

    Raises:
        RpcError: there is none.
    """
    answers = answers_of(outcomes)
    if not answers:
        raise next(iter(failures_of(outcomes).values())).error()
    told = list(answers.values())
    merged = rpc_pb2.StatusResponse(
        version=min((answer.version for answer in told), key=version_key),
        storageVersion=min((answer.storageVersion for answer in told), key=version_key),
        dbSize=sum(answer.dbSize for answer in told),
        dbSizeInUse=sum(answer.dbSizeInUse for answer in told),
        dbSizeQuota=sum(answer.dbSizeQuota for answer in told),
        raftIndex=max(answer.raftIndex for answer in told),
        raftTerm=max(answer.raftTerm for answer in told),
        raftAppliedIndex=max(answer.raftAppliedIndex for answer in told),
    )
    if len(told) == len(outcomes) and all(answer.leader for answer in told):
        merged.leader = routing.identity.member_id
    for name, outcome in outcomes.items():
        if isinstance(outcome, Status):
            merged.errors.append(f"shard {name}: {outcome.message}")
        else:
            merged.errors.extend(f"shard {name}: {error}" for error in outcome.errors)
    downgrades = [answer.downgradeInfo for answer in told if answer.downgradeInfo.enabled]
    if downgrades:
        merged.downgradeInfo.CopyFrom(downgrades[0])
    revision = token(routing, {name: answer.header.revision for name, answer in answers.items()})
    merged.header.CopyFrom(merged_header([answer.header for answer in told], routing.identity, revision))
    return merged


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions such as 3.5.21 or 3.6.0-rc.1; "" comes first."""
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdecimal())

"""RPCs whose answer is made of all shards' answers: Status of the Maintenance service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Gate
from esp.core.services.handlers import AskAll, CoroutineCall
from esp.core.services.revision import merged_header, token
from esp.core.shard import STATUS, Method, answers_of, ask_all, failures_of
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Status
from esp.core.wording import shard_called

STATUS_SECONDS: Final = 2.0
"""Seconds that a shard may take for its status; etcdctl waits 5 s for the whole call."""


class Merged(NamedTuple):
    """A unary RPC that esp sends to all shards.

    Attributes:
        method: the RPC.
        request: the type of its request.
        merge: makes the answer from the outcomes of all shards, by name; raises RpcError if there can be no answer.
        seconds: the time that a shard may take before it counts as unreachable.
    """

    method: Method[Any]
    request: type[Message]
    merge: Callable[[Routing, dict[str, Any]], Message]
    seconds: float


def handlers(routing: Routing, gate: Gate) -> Mapping[bytes, Handler]:
    """The handler of each RPC in the table `MERGED`, by path."""
    return {
        each.method.path: AskAll(gate, routing.shards, each.request, partial(ask_for, routing, each)) for each in MERGED
    }


async def ask_for(routing: Routing, asked: Merged, call: CoroutineCall, request: Message) -> Message:
    """The answer to a client's call, merged from the answers of all shards."""
    outcomes = await ask_all(
        routing.shards.values(),
        asked.method,
        request,
        metadata=call.metadata,
        seconds=call.seconds(asked.seconds),
        # A call that changes something takes its answers even without memory for them: their outcome must be known.
        down=call.stream if asked.method.idempotent else None,
        caller=call,
    )
    return asked.merge(routing, outcomes)


def merge_status(routing: Routing, outcomes: dict[str, rpc_pb2.StatusResponse | Status]) -> rpc_pb2.StatusResponse:
    """One status, made from those of the shards that answer. Its `errors` name the faults of the other shards.

    Sizes are added up. The version is the lowest. The numbers of raft, which are for people, are the highest. esp calls
    itself the leader if every shard has a leader.

    Raises:
        RpcError: no shard answers.
    """
    answers = answers_of(outcomes)
    if not answers:
        raise next(iter(failures_of(outcomes).values())).error()
    told = list(answers.values())
    quotas = [answer.dbSizeQuota for answer in told]  # in etcd's answer from 3.6 on
    merged = rpc_pb2.StatusResponse(
        version=min((answer.version for answer in told), key=version_key),
        storageVersion=min((answer.storageVersion for answer in told), key=version_key),
        dbSize=sum(answer.dbSize for answer in told),
        dbSizeInUse=sum(answer.dbSizeInUse for answer in told),
        dbSizeQuota=sum(quotas) if all(quotas) else 0,
        raftIndex=max(answer.raftIndex for answer in told),
        raftTerm=max(answer.raftTerm for answer in told),
        raftAppliedIndex=max(answer.raftAppliedIndex for answer in told),
    )
    if len(told) == len(outcomes) and all(answer.leader for answer in told):
        merged.leader = routing.identity.member_id
    for name, outcome in outcomes.items():
        if isinstance(outcome, Status):
            merged.errors.append(f"{shard_called(name)}: {outcome.message}")
        else:
            merged.errors.extend(f"{shard_called(name)}: {error}" for error in outcome.errors)
    downgrades = [answer.downgradeInfo for answer in told if answer.HasField("downgradeInfo")]  # from etcd 3.6 on
    if len(downgrades) == len(told) or any(each.enabled for each in downgrades):
        merged.downgradeInfo.CopyFrom(max(downgrades, key=lambda each: each.enabled))
    revision = token(routing, {name: answer.header.revision for name, answer in answers.items()})
    merged.header.CopyFrom(merged_header([answer.header for answer in told], routing.identity, revision))
    return merged


MERGED: Final = (Merged(STATUS, rpc_pb2.StatusRequest, merge_status, STATUS_SECONDS),)
"""A further RPC over all shards needs a method in `shard/unary.py`, an entry here, and a function to merge answers."""


def version_key(version: str) -> tuple[int, ...]:
    """A sort key for versions such as 3.5.21 or 3.6.0-rc.1; "" comes first."""
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdecimal())

"""The Alarm RPC over several shards: lists the alarms of all shards, and ends an alarm on the shards that have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Gate
from esp.core.services.handlers import AskAll, CoroutineCall
from esp.core.services.metadata import SHARD
from esp.core.services.revision import merged_header
from esp.core.shard import ALARMS, Method, Shard, answers_of, ask_all, failures_of
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Code, Status

SECONDS: Final = 7.0
"""Seconds that a shard may take if the client sets no deadline: as long as an etcd takes for its own members."""
_DEACTIVATE: Final = Method(ALARMS.path, rpc_pb2.AlarmResponse, idempotent=False)
_ACTIVATE: Final = Status(
    Code.UNIMPLEMENTED,
    "esp: an alarm is raised by a member of one shard; to raise one there, name the shard in the metadata key "
    f"{SHARD.decode()}",
)

Response = rpc_pb2.AlarmResponse


class Alarms:
    """Serves the calls; `routing` is the layout's."""

    def __init__(self, routing: Routing) -> None:
        self._shards = routing.shards
        self._identity = routing.identity

    def handlers(self, gate: Gate) -> Mapping[bytes, Handler]:
        """The handler of the RPC, by path; calls begin at `gate`."""
        return {ALARMS.path: AskAll(gate, self._shards, rpc_pb2.AlarmRequest, self.serve)}

    async def serve(self, call: CoroutineCall, request: rpc_pb2.AlarmRequest) -> Response:
        """The answer to one call.

        Raises:
            RpcError: a shard's, as it came; Unimplemented or InvalidArgument for an action that is not served.
        """
        if request.action == rpc_pb2.AlarmRequest.GET:
            return self._merged(await self._ask(call, ALARMS, request, self._shards.values()))
        if request.action == rpc_pb2.AlarmRequest.DEACTIVATE:
            return await self._deactivate(call, request)
        if request.action == rpc_pb2.AlarmRequest.ACTIVATE:
            raise _ACTIVATE.error()
        # Any other action crashes an etcd, with a nil pointer.
        raise Status(Code.INVALID_ARGUMENT, f"esp: there is no alarm action {request.action}").error()

    async def _deactivate(self, call: CoroutineCall, request: rpc_pb2.AlarmRequest) -> Response:
        """Ends an alarm on the shards that have it. If none has, asks all shards: etcd then answers with no alarms."""
        question = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)
        outcomes = await self._ask(call, ALARMS, question, self._shards.values())
        wanted = rpc_pb2.AlarmMember(memberID=request.memberID, alarm=request.alarm)
        holders = [name for name, answer in answers_of(outcomes).items() if wanted in answer.alarms]
        if not holders:
            _raise_first(outcomes)
        asked = [self._shards[name] for name in holders or self._shards]
        return self._merged(await self._ask(call, _DEACTIVATE, request, asked))

    async def _ask(
        self,
        call: CoroutineCall,
        method: Method[Response],
        request: rpc_pb2.AlarmRequest,
        shards: Iterable[Shard],
    ) -> dict[str, Response | Status]:
        return await ask_all(
            shards,
            method,
            request,
            metadata=call.metadata,
            seconds=call.seconds(SECONDS),
            down=call.stream if method.idempotent else None,  # as in `maintenance.ask_for`
            caller=call,
        )

    def _merged(self, outcomes: dict[str, Response | Status]) -> Response:
        """The alarms of all shards. The answer cannot say that a shard is missing, so all must have answered."""
        _raise_first(outcomes)
        answers = answers_of(outcomes).values()
        merged = Response()
        if all(answer.HasField("header") for answer in answers):  # not in etcd 3.4
            merged.header.CopyFrom(merged_header([answer.header for answer in answers], self._identity))
        for answer in answers:
            merged.alarms.extend(answer.alarms)
        return merged


def _raise_first(outcomes: dict[str, Response | Status]) -> None:
    for status in failures_of(outcomes).values():
        raise status.error()

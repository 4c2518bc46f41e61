"""The Defragment RPC over several shards, one after the other, if the config says `defragment: sequential`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.gate import Gate
from esp.core.services.handlers import AskAll, CoroutineCall
from esp.core.shard import Shard
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wording import shard_called

log = logging.getLogger("esp.service")

PATH: Final = b"/etcdserverpb.Maintenance/Defragment"
_AUTH_CODES: Final = frozenset((Code.UNAUTHENTICATED, Code.PERMISSION_DENIED))


class Defragment:
    """Serves the calls, one at a time: a member that defragments answers nothing else.

    In each shard one member defragments: the member that esp is connected to. The files of the other members stay as
    they are.
    """

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        self._shards = shards
        self._turn = asyncio.Lock()

    def handlers(self, gate: Gate) -> Mapping[bytes, Handler]:
        """The handler of the RPC, by path; calls begin at `gate`."""
        return {PATH: AskAll(gate, self._shards, rpc_pb2.DefragmentRequest, self.serve)}

    async def serve(self, call: CoroutineCall, request: rpc_pb2.DefragmentRequest) -> rpc_pb2.DefragmentResponse:
        """The answer to one call: empty, as etcd's, once all shards are done.

        If the client gives up, the shard that is at work finishes, and no further shard is asked.

        Raises:
            RpcError: the error of the first shard that fails. The shards before it are done, the shards after it are
                not asked.
        """
        if call.entry is not None:
            call.entry.close()  # this call needs no places: they are for calls that shards answer quickly
        async with self._turn:
            done: list[str] = []
            for shard in self._shards.values():
                call.asks(shard.name)
                try:
                    await shard.forward_unary(
                        (PATH, call.metadata),
                        request.SerializeToString(),
                        idempotent=False,
                        timeout=call.stream.remaining(),
                    )
                except RpcError as error:
                    # The deadline is the client's own, so it keeps its code.
                    late = error.status.code == Code.DEADLINE_EXCEEDED
                    status = error.status if late else errors.undecided(error.status)
                    raise self._failed(shard, status, done).error() from None
                call.asked(shard.name)
                log.info("shard %s: defragmented %s", shard.name, shard.endpoint)
                done.append(shard.name)
        return rpc_pb2.DefragmentResponse()

    def _failed(self, shard: Shard, status: Status, done: list[str]) -> Status:
        """The error of a failed shard: its status as it came, if nothing was done yet or clients look at the text."""
        if not done or status.code in _AUTH_CODES:
            return status
        names = list(self._shards)
        left = names[names.index(shard.name) + 1 :]
        text = f"esp: {shard_called(shard.name)} failed: {status.message}; defragmented before: {', '.join(done)}"
        return Status(status.code, text + (f"; not asked: {', '.join(left)}" if left else ""))

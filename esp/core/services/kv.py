"""The KV service over several shards.

What lies in one shard goes there as it came, and its answer comes back as it is. The fast path looks at the key in the
message's bytes (`peek`); whatever it does not recognise is parsed. What spans shards is served by `across` or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services import across, errors, txn
from esp.core.services.handlers import CoroutineCall, Spawn, parse
from esp.core.services.peek import key_range, put_key, range_key
from esp.core.wire.message import PREFIX_SIZE, prefix
from esp.core.wire.server import Handler, ServerStream
from esp.core.wire.status import RpcError

PATH: Final = b"/etcdserverpb.KV/"


class KV:
    """Makes the handlers of the service's RPCs.

    Args:
        routing: the shards.
        spawn: starts the coroutine of a call that spans shards.
        deletes_across_shards: whether a DeleteRange that spans shards is served, shard by shard.
    """

    def __init__(self, routing: Routing, spawn: Spawn, *, deletes_across_shards: bool) -> None:
        self._routing = routing
        self._spawn = spawn
        self._deletes_across_shards = deletes_across_shards

    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each RPC, by path."""
        return {
            PATH + b"Put": Put(self._routing),
            PATH + b"Range": Range(self._routing, self._spawn),
            PATH + b"RangeStream": RangeStream(self._routing, self._spawn),
            PATH + b"DeleteRange": DeleteRange(self._routing, self._spawn, across=self._deletes_across_shards),
            PATH + b"Txn": Txn(self._routing),
            PATH + b"Compact": Compact(self._routing),
        }


class Put(Handler):
    """A Put has one key, so it always has one owner."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._owner = routing.map.owner
        self._shards = routing.shards

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        """Sends it to the owner of its key."""
        key = put_key(message, PREFIX_SIZE)
        if key is not None:
            self._shards[self._owner(key)].splice(stream, message)
        else:
            self._parse(stream, message)

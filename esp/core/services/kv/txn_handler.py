"""The handler of Txn: a transaction in one shard, or reads without compares over several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services import metadata
from esp.core.services.gate import Gate
from esp.core.services.handlers import parse
from esp.core.services.kv import across, txn
from esp.core.services.kv.before_move import BeforeMove
from esp.core.services.kv.peek import txn_key
from esp.core.services.kv.routed import Routed
from esp.core.services.kv.txn_plan import Plan, Plans
from esp.core.services.kv.txn_refused import RefusedTxns
from esp.core.services.lease import LeaseRetry
from esp.core.tokens import UnknownTokenError
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import OVERLOADED, ServerCall
from esp.core.wire.status import RpcError, Status

LARGE: Final = 16_384
"""A transaction of more bytes counts as memory while esp looks through it."""


class Txn(Routed):
    """Serves a transaction if all keys of both branches are in one shard; over several only reads without compares."""

    def __init__(
        self, routing: Routing, gate: Gate, lease_retry: LeaseRetry, *, snapshots: bool, snapshot_tries: int
    ) -> None:
        super().__init__(routing, gate)
        self.lease_retry = lease_retry
        self.snapshots = snapshots
        self.snapshot_tries = snapshot_tries
        self.has_former = bool(routing.layout.former)
        before = BeforeMove(routing.layout.former, routing.shards, routing.tokens)
        self.refused = RefusedTxns(self.shards, gate.spawn)
        self.plans = Plans(
            routing.map, routing.tokens, routing.undivided, routing.apiservers.saw, before, self.refused.by
        )

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Routes a transaction by all keys that it touches; in steps, because they may be many."""
        key = None if self.has_former or len(message) > LARGE else txn_key(message)
        if key is None:
            stream.connection.do(self._routed(stream, message))
        else:
            self.routing.apiservers.saw(key)
            self.owners[bisect_right(self.starts, key) - 1].splice(stream, message)

    def _routed(self, stream: ServerCall, message: bytes) -> Iterator[None]:
        size = len(message) if len(message) > LARGE else 0
        if size and not stream.hold(size):
            stream.finish(OVERLOADED)
            return
        try:
            plan = yield from self.plans.plan(message, stream.hold)
            stream.release(size)  # the next holder of the message counts it anew
            if not stream.is_over:
                self._serve(stream, plan)
        except UnknownTokenError as error:
            stream.release(size)
            self.routing.tokens.refused(stream, message, error)
        except RpcError as error:
            stream.finish(error.status)

    def _serve(self, stream: ServerCall, plan: Plan) -> None:
        message, owner, reads, owned, longest, translated = plan
        if owner is not None:
            stream.translated |= translated
            if longest > txn.MAX_OPS:
                self.refused.sent(stream, self.shards[owner], longest)
            self.send(stream, message, self.shards[owner])
        elif reads is not None:
            wanted = stream.head.field(metadata.READ)
            wants_snapshot = wanted in (b"snapshot", b"default") or (self.snapshots and not wanted)
            tries = self.snapshot_tries if wants_snapshot else 0
            self.serve_across(
                stream,
                sorted(owned),
                message,
                lambda call: across.txn_across(call, self.routing, reads, owned, tries),
                costly=wants_snapshot,
            )
        else:
            body, everywhere = message[PREFIX_SIZE:], tuple(self.shards)
            if len(everywhere) == 1:
                self.send(stream, message, self.shards[everywhere[0]])
            else:
                self.serve_across(
                    stream, everywhere, message, lambda call: across.txn_of_nothing(call, self.routing, body)
                )

    def recover(self, stream: ServerCall, message: bytes, status: Status) -> bool:
        """Sends the transaction once more if its shard lacks the lease of a put, but the lease is alive."""
        if status == errors.TOO_MANY_OPS:
            self.refused.learn(stream)
        if status != errors.LEASE_NOT_FOUND or len(self.shards) == 1:
            return False  # a single shard knows its leases best: LeaseRevoke and others pass esp by
        if not message:
            return self.lease_retry.take_unkept(stream, status)
        request = parse(rpc_pb2.TxnRequest, message)
        owner, outdated = self.routing.owner, self.outdated(stream, message)
        return self.lease_retry.take(stream, message, txn.puts(request), status, owner, outdated)

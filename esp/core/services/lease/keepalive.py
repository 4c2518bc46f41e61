"""LeaseKeepAlive: one answer for each request of a client, in order, over all shards.

A keepalive goes to every shard at once, on streams that all clients with the same auth token share (`keepalive_lane`).
When every shard has answered or is given up, the client gets the lowest TTL. A keepalive costs no task and no future.
esp never renews a lease by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.background import Background
from esp.core.layout import Layout
from esp.core.pb import rpc_pb2
from esp.core.services.lease.doubt import Doubts
from esp.core.services.lease.keepalive_call import NO_ANSWER, Keepalive, KeepaliveCall, Lanes
from esp.core.services.lease.keepalive_lane import Lane
from esp.core.services.lease.repair import LeaseRepair
from esp.core.services.lease.table import Lacking, LeaseTable, is_empty
from esp.core.services.metadata import call_head, load_bearing
from esp.core.services.revision import merged_header
from esp.core.varint import varint
from esp.core.wire.context import WireContext
from esp.core.wire.message import prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import Handler, ServerCall
from esp.core.wire.shares import address_of
from esp.core.wire.status import Status

PATH: Final = b"/etcdserverpb.Lease/LeaseKeepAlive"
_TTL: Final = bytes((3 << 3,))
IDLE_SECONDS: Final = 30.0
"""Seconds that streams to the shards stay open without a client."""


class LeaseKeepAlive(Handler):
    """Serves the stream of each client.

    Attributes:
        background: logs and counts bugs in one client's answers, or in the streams to one shard.
        places: the streams to each shard.
        waiting: the keepalives that wait for answers.
        doubts: those for which a shard is asked once more.
    """

    streaming = True
    forwards = False
    lasts = True

    def __init__(
        self,
        layout: Layout,
        table: LeaseTable,
        repair: LeaseRepair,
        context: WireContext,
        background: Background,
    ) -> None:
        self.background = background
        self.doubts = Doubts(background)
        self._layout = layout
        self._table = table
        self._repair = repair
        self._context = context
        self._lanes: dict[Forward, Lanes] = {}
        # The headers of the shards' last answers, which mostly come again, and the header made of them.
        self._merged: tuple[dict[str, rpc_pb2.ResponseHeader | None], bytes] = {}, b""
        self.places = context.places("max_keepalive_streams")
        self.waiting = context.places("max_keepalives")

    def on_open(self, stream: ServerCall) -> None:
        """A client's stream begins."""
        metadata = load_bearing(stream.head)
        forward = call_head(PATH, metadata)
        lanes = self._lanes.get(forward)
        if lanes is None:
            address = address_of(stream.peer)
            if not self._has_room(address):
                stream.finish(errors.TOO_MANY_REQUESTS)
                return
            made = {name: Lane(shard, forward) for name, shard in self._layout.shards.items()}
            lanes = self._lanes[forward] = Lanes(address, metadata, made)
        lanes.clients += 1
        KeepaliveCall(self, stream, lanes)

    def install(self, layout: Layout) -> None:
        """Another layout is in force: clients' keepalives go to the new shards, and no longer to the shards that left.

        A keepalive that waits for a shard that has left is answered without that shard. If the shard has only got
        another client, it is asked once more: without its answer the renewal would promise what it does not know of.
        """
        self._layout = layout
        self._merged = {}, b""
        for forward, lanes in self._lanes.items():
            for name, lane in list(lanes.lanes.items()):
                if (shard := layout.shards.get(name)) is lane.shard:
                    continue
                left = lane.close()
                if shard is None:
                    del lanes.lanes[name]
                    for keepalive in left:
                        keepalive.spared(name)
                else:
                    anew = lanes.lanes[name] = Lane(shard, forward)
                    anew.send_again(left)
            for name, shard in layout.shards.items():
                if name not in lanes.lanes:
                    lanes.lanes[name] = Lane(shard, forward)

    def _has_room(self, address: str) -> bool:
        """Takes a place for one more auth token; drops unused tokens first. False if there is no place."""
        while not self.places.take(address):
            idle = next((forward for forward, lanes in self._lanes.items() if not lanes.clients), None)
            if idle is None:
                self._context.reached("max_keepalive_streams")
                return False
            self._drop(idle)
        return True

    def _drop(self, forward: Forward) -> None:
        dropped = self._lanes.pop(forward)
        self.places.give(dropped.address)
        for lane in dropped.lanes.values():
            lane.close()

    def admit(self, address: str, count: int) -> bool:
        """Takes room for `count` keepalives of a client that will wait; False if there is no room."""
        if not self.waiting.take(address, count):
            self._context.reached("max_keepalives")
            return False
        return True

    def release(self, address: str, count: int) -> None:
        """Gives back the room of `count` keepalives."""
        self.waiting.give(address, count)

    def answer(self, keepalive: Keepalive) -> bytes | Status | None:
        """The client's answer, once no more answers come from the shards: a message, or the end of its call.

        None if shards are asked once more.
        """
        failure = keepalive.failure
        missed: Sequence[str] = ()
        if failure is None and (ttl := min(keepalive.ttls.values())) > 0:
            if self._table.left_out:
                for shard in list(self._table.left_out):
                    self._table.answers(shard)
        elif failure is None or self._may_miss(keepalive, failure):
            if not keepalive.is_sure and (doubted := self._doubted(keepalive)):
                self._table.counters["doubted"] += 1
                keepalive.waits_again([lane.name for lane in doubted])
                for lane in doubted:
                    self.doubts.add(keepalive, lane)
                return None
            ttl, missed = self._judged(keepalive)
        else:
            return failure
        if ttl:
            self._table.renewed(keepalive.id, keepalive.ttls, keepalive.sent, keepalive.call.metadata)
        for shard in missed:
            self._table.missed(keepalive.id, shard)
            self._repair.grant(keepalive.id, shard, keepalive.call.metadata)
        if keepalive.echo and ttl > 0:
            answer = keepalive.echo + _TTL + varint(ttl)
        else:
            answer = rpc_pb2.LeaseKeepAliveResponse(ID=keepalive.told, TTL=ttl).SerializeToString()
        return prefix(self._header(keepalive.headers) + answer)

    def _header(self, headers: dict[str, rpc_pb2.ResponseHeader | None]) -> bytes:
        """The header of an answer, encoded as an answer with no other field; the other fields are written behind it."""
        known, merged = self._merged
        if known != headers:  # compared by identity first
            told = [header for header in headers.values() if header is not None]
            header = merged_header(told, self._layout.identity)
            merged = rpc_pb2.LeaseKeepAliveResponse(header=header).SerializeToString()
            self._merged = headers, merged
        return merged

    def _may_miss(self, keepalive: Keepalive, failure: Status) -> bool:
        """Whether the keepalive may be answered although some shards have not answered."""
        return self._table.tolerant and any(keepalive.headers.values()) and errors.is_unreachable(failure)

    def _doubted(self, keepalive: Keepalive) -> list[Lane]:
        """The lanes to the shards for whose answer the lease would be dead, if it may live on another shard."""
        if not any(keepalive.ttls.values()):
            return []
        doubted = []
        for shard, ttl in keepalive.ttls.items():
            header = keepalive.headers[shard]
            if ttl == 0 and header is not None:
                empty, lane = is_empty(header), keepalive.lane(shard)
                why = self._table.judge_one(keepalive.id, shard, empty=empty, asked=keepalive.sent)
                if why is Lacking.ENDED and lane is not None:
                    doubted.append(lane)
        return doubted

    def _judged(self, keepalive: Keepalive) -> tuple[int, Sequence[str]]:
        """The TTL of a lease that not every shard has, 0 for a dead lease; and the shards that should get the lease."""
        lease_id, table = keepalive.id, self._table
        now = monotonic()
        lives: dict[str, bool | None] = {
            shard: None if ttl == NO_ANSWER else ttl > 0 for shard, ttl in keepalive.ttls.items()
        }
        left = [ttl for ttl in keepalive.ttls.values() if ttl > 0]
        for shard, here in tuple(lives.items()):
            if here is None and (seconds := table.left(lease_id, shard, now)) is not None:
                lives[shard] = True
                left.append(seconds)
            elif here is not None:
                table.answers(shard)
        empty = [shard for shard, header in keepalive.headers.items() if header is not None and is_empty(header)]
        judgement = table.judge(lease_id, lives, empty, keepalive.sent)
        if judgement.dead:
            if True in lives.values() or table.get(lease_id) is not None:
                elsewhere = [shard for shard, here in lives.items() if here is not False]
                self._repair.end(lease_id, elsewhere, keepalive.call.metadata)
            table.counters["half_dead"] += True in lives.values()
            table.forget(lease_id)
            return 0, ()
        return min(left), judgement.missed

    def tick(self, now: float) -> None:
        """Looks at every stream to the shards, and closes those that no client uses."""
        for forward, lanes in list(self._lanes.items()):
            for lane in lanes.lanes.values():
                self.background.guard("keepalives to a shard", partial(lane.tick, now), lane.on_bug)
            if not lanes.clients and now - lanes.idle_since > IDLE_SECONDS:
                self._drop(forward)

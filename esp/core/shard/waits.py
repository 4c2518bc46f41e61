"""Calls that wait for a lock or an election, and are given up: one at a time, because many at once stop an etcd.

An etcd serves Lock, Campaign and Observe with watches of a client inside its own process, and all these watches share
one stream. When more than about twenty of them end in one moment, the two ends of this stream may wait for each other
for good (etcd's issues 13336 and 20716, in every version up to 3.7.1). From then on no call at that member gets a lock
for which it has to wait, and the keys of calls that end stay there, until the member is started anew. One client that
gives up forty calls is enough.

So esp gives up AT_ONCE such calls, and the next when the shard has answered a question that was sent behind them. As
the deadlines of many calls may be over in one moment, esp does not tell the shard of these deadlines, and gives up the
calls itself.

A call may get its lock while it waits to be given up. Nobody would ever unlock it, so esp deletes the key. A client may
meanwhile ask for the same lock with the same lease, and then has the same key. So esp gives up the earlier call first,
and refuses the later one while the key is being deleted. If that client has asked twice before, the two calls get the
lock together, and the key is the other one's: so it stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from esp.core.background import Background
from esp.core.keys import format_key
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.shard.member import PROBE, STATUS, ask_once
from esp.core.wire.call import BrokenCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.request_encoder import Forward
from esp.core.wire.response import ResponseHead
from esp.core.wire.splice import SplicedCall, WaitingCall
from esp.core.wire.status import Code, RpcError

log = logging.getLogger("esp.shard")

LOCK: Final = b"/v3lockpb.Lock/Lock"
CAMPAIGN: Final = b"/v3electionpb.Election/Campaign"
OBSERVE: Final = b"/v3electionpb.Election/Observe"
WAITS: Final = frozenset((LOCK, CAMPAIGN, OBSERVE))
"""The RPCs that an etcd serves with watches on the stream that may stop."""
AT_ONCE: Final = 1
"""Calls that are given up together. Each ends up to two watches, its own and that of the next in line, and an etcd can
take the ends of some twenty; but other workers and proxies give up calls as well."""
PAUSE: Final = 0.002
"""Seconds after the shard's answer until more calls are given up."""
ANSWER_SECONDS: Final = 2.0
"""Seconds that the shard may take for its answer before it is asked again."""
DELETE_SECONDS: Final = 10.0
"""Seconds for deleting the key of a call that got its lock too late."""
STAYS_SECONDS: Final = 10.0
"""Seconds after which the key of a call that was given up should be gone."""
_MOST_BYTES: Final = 65536
"""Bytes of an answer of which esp takes note."""
_REQUESTS: Final[dict[bytes, Any]] = {LOCK: v3lock_pb2.LockRequest, CAMPAIGN: v3election_pb2.CampaignRequest}
_RANGE: Final = b"/etcdserverpb.KV/Range"
_TXN: Final = b"/etcdserverpb.KV/Txn"


class Ask(Protocol):
    """Asks the shard, as `Shard.forward_unary` does."""

    def __call__(
        self,
        forward: Forward,
        message: bytes,
        *,
        idempotent: bool,
        timeout: float,
    ) -> Awaitable[bytes]:
        """The answer; raises RpcError."""


class GivenUp(ClientStream):
    """A call whose client waits no more, in the place of the `SplicedCall` on the connection.

    Attributes:
        key: the key that the call may have in the shard; b"" for Observe.
        is_shared: another call waited with the same request, and so for the same key.
        forward: the head of the call.
    """

    __slots__ = ("_answer", "_waits", "forward", "is_shared", "key")

    def __init__(self, waits: Waits, call: SplicedCall, key: bytes) -> None:
        super().__init__(call.connection)
        self.id = call.id
        self.credit, self.recv_window, self.recv_owed = call.credit, call.recv_window, call.recv_owed
        self.local_open, self.remote_open, self.headers_seen = call.local_open, call.remote_open, call.headers_seen
        self.forward = call.down.forward
        self.key = key
        self.is_shared = False
        self._waits = waits
        self._answer = b""
        call.connection.streams[call.id] = self

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The call has ended by itself, or begins to be answered."""
        if end:
            self._over(head)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer, or an answer of Observe."""
        self.consumed(len(payload))
        if self.key and len(self._answer) < _MOST_BYTES:
            self._answer += payload
        if end:
            self._waits.forget(self)

    def _over(self, trailers: ResponseHead) -> None:
        self._waits.forget(self)
        if self.key and not self.is_shared and trailers.status is not None and trailers.status.code == Code.OK:
            self._waits.unlock(self.forward, self._answer[PREFIX_SIZE:])

    def on_reset(self, code: int, reason: str) -> None:
        """The call has broken: the shard gives it up by itself."""
        self._waits.forget(self)


class Waits:
    """The calls to one shard that are being given up.

    Attributes:
        queue: the calls that wait to be given up, by key and the first one first; Observe's by the call.
    """

    def __init__(self, name: str, background: Background, ask: Ask, seen: Callable[[], int]) -> None:
        """The calls to the shard `name`, which is asked with `ask`; `seen` tells its highest revision so far."""
        self.queue: dict[bytes | GivenUp, GivenUp] = {}
        self._name = name
        self._background = background
        self._ask = ask
        self._seen = seen
        self._last: tuple[GivenUp, int] | None = None  # the one to look for, and the revision before its end
        self._recent: list[ClientConnection] = []  # of those given up since the shard's last answer
        self._deleting: set[bytes] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """The number of calls that wait to be given up."""
        return len(self.queue)

    @property
    def are_done(self) -> bool:
        """Whether the shard has heard of all calls that were given up."""
        return self._idle.is_set()

    async def done(self) -> None:
        """Waits until the shard has heard of all calls that were given up."""
        await self._idle.wait()

    def give_up(self, call: SplicedCall) -> None:
        """Gives up a call, now or as soon as the shard can take that."""
        connection = call.connection
        has_left = call.pending is None and call.queued_at < connection.written
        if not has_left or connection.streams.get(call.id) is not call:
            call.cancel()
            return
        key = _key_of(call.down.head.path, call.message or b"")
        given_up = GivenUp(self, call, key)
        earlier = self.queue.get(key) if key else None
        if earlier is not None:
            earlier.is_shared = _is_asked_twice(call)
        if earlier is not None or len(self._recent) < AT_ONCE:
            self._reset(given_up)
        else:
            given_up.is_shared = bool(key) and _is_asked_twice(call)
            self.queue[key or given_up] = given_up
        if self._idle.is_set():
            self._idle.clear()
            self._background.start(self._pace(), on_end=self._idle.set)

    def may_begin(self, path: bytes, message: bytes) -> bool:
        """Whether a call may be sent; gives up an earlier one first that has the same key."""
        if not self.queue and not self._deleting:
            return True
        key = _key_of(path, message)
        if key in self._deleting:
            return False
        earlier = self.queue.pop(key, None) if key else None
        if earlier is not None:
            self._reset(earlier)
        return True

    def forget(self, given_up: GivenUp) -> None:
        """A call has ended by itself."""
        self.queue.pop(given_up.key or given_up, None)

    def _reset(self, given_up: GivenUp) -> None:
        self._recent.append(given_up.connection)
        given_up.cancel()
        if given_up.key:
            if self._last is None:
                self._background.later(STAYS_SECONDS, self._look_for_last)
            self._last = given_up, self._seen()

    async def _pace(self) -> None:
        while self._recent:
            connection = self._recent[-1]
            await self._answered(connection)
            await asyncio.sleep(PAUSE)
            self._recent.clear()
            while self.queue and len(self._recent) < AT_ONCE:
                first = next(iter(self.queue))
                self._reset(self.queue.pop(first))
            if self._recent:
                connection.context.flush_soon()

    async def _answered(self, connection: ClientConnection) -> None:
        """Waits until the server at the other end has answered, or the connection ends."""
        while not connection.ended:
            try:
                await ask_once(connection, STATUS, PROBE, ANSWER_SECONDS)
            except (RpcError, BrokenCall):
                return
            except TimeoutError:
                if connection.draining:
                    return
            else:
                return

    # An etcd that serves no locks any more.

    def _look_for_last(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            self._background.start(self._look_for(*last))

    async def _look_for(self, given_up: GivenUp, before: int) -> None:
        """Tells if the key of a call is still there, which was made by revision `before`, thus not for a later call."""
        request = rpc_pb2.RangeRequest(key=given_up.key, keys_only=True)
        metadata = given_up.forward[1]
        try:
            answer = await self._ask(
                (_RANGE, metadata), request.SerializeToString(), idempotent=True, timeout=DELETE_SECONDS
            )
            found = rpc_pb2.RangeResponse.FromString(answer).kvs
        except (RpcError, DecodeError):
            return  # a shard that does not answer is told of elsewhere
        if found and found[0].create_revision <= before:
            log.warning(
                "shard %s: the key %s stays although its Lock or Campaign was given up: the call may have got its lock "
                "in its last moment; if other such keys stay too, the member in use serves no locks any more: start "
                "that etcd anew",
                self._name,
                format_key(given_up.key),
            )

    # Locks that come too late.

    def unlock(self, forward: Forward, answer: bytes) -> None:
        """Deletes the key of a call that has got its lock, unless another call has made that key since."""
        try:
            condition = _made_by(forward[0], answer)
        except DecodeError:
            return
        self._deleting.add(condition.key)

        def deleted() -> None:
            self._deleting.discard(condition.key)

        self._background.start(self._delete(condition, forward[1]), on_end=deleted)

    async def _delete(self, condition: rpc_pb2.Compare, metadata: bytes) -> None:
        key = condition.key
        request = rpc_pb2.TxnRequest(
            compare=[condition],
            success=[rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))],
        )
        try:
            await self._ask((_TXN, metadata), request.SerializeToString(), idempotent=True, timeout=DELETE_SECONDS)
        except RpcError as error:
            log.warning(
                "shard %s: the key %s of a lock that came after its client had given up stays until its lease ends: %s",
                self._name,
                format_key(key),
                error.status.message,
            )


def _is_asked_twice(call: SplicedCall) -> bool:
    """Whether another call on the connection waits with the same request."""
    return any(
        isinstance(other, WaitingCall) and other.message == call.message and other.down.head.path == call.down.head.path
        for other in call.connection.streams.values()
        if other is not call
    )


def _key_of(path: bytes, message: bytes) -> bytes:
    """The key of a Lock or Campaign, `message` with its prefix; b"" where it is not known."""
    kind = _REQUESTS.get(path)
    if kind is None or not message:
        return b""
    try:
        request = kind.FromString(message[PREFIX_SIZE:])
    except DecodeError:
        return b""
    return b"%s/%x" % (request.name, request.lease) if request.lease else b""


def _made_by(path: bytes, answer: bytes) -> rpc_pb2.Compare:
    """The condition that a key is still the one which a Lock or Campaign has got.

    Raises:
        DecodeError: this is no answer of an etcd.
    """
    if path == CAMPAIGN:
        leader = v3election_pb2.CampaignResponse.FromString(answer).leader
        return rpc_pb2.Compare(
            key=leader.key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=leader.rev
        )
    lock = v3lock_pb2.LockResponse.FromString(answer)
    return rpc_pb2.Compare(
        key=lock.key,
        target=rpc_pb2.Compare.CREATE,
        result=rpc_pb2.Compare.LESS,
        create_revision=lock.header.revision + 1,
    )

"""One Watch call to a shard, opened again whenever it breaks.

    idle --create--> opening --go--> open --break--> opening, or waiting for a pause to end --> opening
    any of them --close--> closed

When the call is open again, each source is created again from its next revision. So clients do not notice a break, a
restart or another endpoint. A client's stream ends only for two reasons: there is no leader, and the client asked for
one (`hasleader`); or a refusal would be the same at the next attempt.
"""

from __future__ import annotations

import logging
import random
from time import monotonic
from typing import Final

from esp.core import errors
from esp.core.background import Timer
from esp.core.pb import rpc_pb2
from esp.core.services.watch.call import WatchCall
from esp.core.services.watch.checked_call import CheckedWatchCall
from esp.core.services.watch.exchange import Exchange, ShardWatcher
from esp.core.services.watch.messages import cancel_request
from esp.core.services.watch.outbox import READ_AHEAD_BYTES, ClientsConnection, Outbox
from esp.core.services.watch.peek import watch_id_of
from esp.core.shard import FIRST_PAUSE, GUARD_KEY, LONGEST_PAUSE, RANGE, Shard, ask_for_esp
from esp.core.wire.budget import Account
from esp.core.wire.client import ClientConnection
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, RpcError, Status

log = logging.getLogger("esp.watch")

TRANSIENT: Final = frozenset(
    (
        Code.OK,
        Code.UNAVAILABLE,
        Code.CANCELLED,
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.ABORTED,
    )
)
"""Codes after which esp opens another call: the member stops, the connection is gone, a message was cut.

An overloaded member may answer Unknown or DeadlineExceeded "context deadline exceeded".
"""
LOOK_SECONDS: Final = 10.0
"""Seconds that a look at the guard may take; then the call is opened anew."""
_GUARD: Final = rpc_pb2.RangeRequest(key=GUARD_KEY)
LEFT: Final = Status(Code.UNAVAILABLE, "esp has left it")


class Upstream(Exchange):
    """One Watch call to a shard, opened again and again.

    Attributes:
        reader: the outbox of the only client that is fed; it holds the call back. None if the call is shared.
        held: bytes of events in this call whose watcher is not announced yet; only with a reader.
    """

    def __init__(
        self, shard: Shard, forward: Forward, reader: Outbox | None, crowd: ClientsConnection | None = None
    ) -> None:
        """`forward` is the head of the call from `:path` on."""
        super().__init__(shard, crowd)
        self.reader = reader
        self.held = 0
        self._forward = forward
        self._is_opening = False
        self._pause: Timer | None = None
        self._failures = 0
        self._began = 0.0
        self._account: Account | None = None

    # For sources and clients.

    def create(self, source: ShardWatcher) -> None:
        """Creates `source` in the shard, now and in every call after this one."""
        self.sources[source.id] = source
        call = self._call
        if call is not None:
            self._send_create(call, source)
        else:
            self._open()

    def cancel(self, source: ShardWatcher) -> None:
        """Cancels `source` in the shard. A source that awaits the reply still gets events until then."""
        if self.sources.get(source.id) is not source:
            return
        if not source.awaits_cancel:
            self.drop(source)
        if self._call is not None:
            self._call.request(cancel_request(source.id))
        elif source.awaits_cancel:
            self.drop(source)
            source.on_cancel_lost()

    def drop(self, source: ShardWatcher) -> None:
        """Forgets `source`; ends the call if there is no other."""
        if self.sources.get(source.id) is source:
            del self.sources[source.id]
            if not self.sources:
                self.close()

    # Memory for half messages and for fragments.

    def has_room(self, size: int) -> bool:
        """Whether `keep` would take `size` bytes without another call giving way."""
        buffers = self.shard.context.buffers
        return buffers.used + size <= buffers.limit

    def keep(self, size: int) -> bool:
        """Accounts for `size` bytes more; False without room for them."""
        if self._account is None or self._account.is_closed:
            self._account = self._payer().open(self)
        return self._account.take(size)

    def keep_or_cut(self, size: int) -> bool:
        """As `keep`; if there is no room, calls `cut`, then False."""
        if self.keep(size):
            return True
        self.cut()
        return False

    def _payer(self) -> Account:
        if self.reader is not None:
            return self.reader.account
        if self.crowd is not None:
            return self.crowd.own_account()
        return self.shard.context.buffers.of("shards").of(self.shard.name)

    def give(self, size: int) -> None:
        """Returns `size` bytes that `keep` accounted for."""
        if self._account is not None:
            self._account.give(size)

    def cut(self) -> None:
        """Ends the call, and the streams of all clients that are fed: there is no memory, or others need it.

        The clients come again. There are two exceptions. If most of the memory is one incomplete message, esp asks the
        shard for that message in fragments, which can be passed on as they come. If most of the memory is fragments,
        the sources pass on or drop them.
        """
        self.shard.context.reached("max_buffered_bytes")
        half_heard = self._half_heard()
        if self._account is not None:
            self._account.close()
        if half_heard is not None and half_heard.ask_for_fragments():
            log.warning("shard %s: no memory for a watch's message; asking for it in fragments", self.shard.name)
        elif not [source for source in list(self.sources.values()) if source.get_past_fragments()]:
            log.warning("shard %s: no memory for what it says in a watch", self.shard.name)
            self._fail(errors.SERVER_STOPPED)
        self.begin_anew()  # for the remaining sources, without the kept bytes
        self._account = None

    def _half_heard(self) -> ShardWatcher | None:
        """The source whose incomplete message takes most of the memory; None if there is none."""
        size, begun = (0, b"") if self._call is None else self._call.half_message
        if self._account is None or size < self._account.held // 2:
            return None
        watch_id = watch_id_of(begun)
        return None if watch_id is None else self.sources.get(watch_id)

    @property
    def may_hold_back(self) -> bool:
        """Whether one client alone is fed, which may read slowly."""
        return self.reader is not None

    @property
    def is_held_back(self) -> bool:
        """Whether esp does not read on, because further bytes would have to wait here.

        Events of a watcher that is not announced yet hold back only their own shard: the watcher may wait for the reply
        of another shard.
        """
        reader = self.reader
        return reader is not None and (reader.is_full or self.held > READ_AHEAD_BYTES)

    def resume_reading(self) -> None:
        """The reader may have room again."""
        if self._call is not None:
            self._call.read_on()

    def close(self) -> None:
        """Ends the call, and every watcher in it."""
        self.sources.clear()
        self._replies.clear()
        self._progress.clear()
        self.shard.forget_opener(self)
        self._is_opening = False
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._call is not None:
            call, self._call = self._call, None
            call.leave()
        if self._account is not None:
            self._account.close()

    # Opening.

    def use(self, shard: Shard) -> None:
        """Goes on by another client of the same shard, as after a break."""
        before, self.shard = self.shard, shard
        before.forget_opener(self)
        was_opening, self._is_opening = self._is_opening, False
        self._failures = 0
        if self._call is not None:
            self.begin_anew()
        elif was_opening:
            self._open()

    def look_at_guard(self, call: CheckedWatchCall) -> None:
        """Looks whether the shard has the guard by which this call was made."""
        self.shard.background.start(self._look_at_guard(self.shard, call), on_bug=self.on_bug)

    async def _look_at_guard(self, shard: Shard, call: CheckedWatchCall) -> None:
        assert shard.guard is not None
        try:
            answer = await ask_for_esp(shard, RANGE, _GUARD, seconds=LOOK_SECONDS)
        except RpcError as error:
            call.looked(is_same=False, fault=errors.undecided(error.status))
        else:
            call.looked(is_same=[pair.value for pair in answer.kvs] == [shard.guard.value])
        shard.context.flush()

    def _open(self) -> None:
        if not self._is_opening and self._pause is None:
            self._is_opening = True
            self.shard.open_stream(self)

    def _reopen(self) -> None:
        self._pause = None
        self._open()
        self.shard.context.flush()

    def go(self, connection: ClientConnection) -> None:
        """The shard has a connection."""
        self._is_opening = False
        self._began = monotonic()
        kind = WatchCall if self.shard.guard is None else CheckedWatchCall
        call = self._call = kind(connection, self)
        connection.call(call, self._forward, b"", None, end=False)
        for source in list(self.sources.values()):
            self._send_create(call, source)
            if self._call is not call:
                return  # there was no memory for the create, and another call is open or will be
        self._progress.on_open()
        if self._progress.is_wanted:
            self._send_progress_request()

    def on_end(self, call: WatchCall, status: Status) -> None:
        """The call has ended or broken."""
        if call is not self._call:
            return
        self._call = None
        self.shard.consider_moving(call.connection, status)
        self._replies.clear()
        self._progress.on_break()
        for source in list(self.sources.values()):
            if source.is_over:
                self.sources.pop(source.id, None)
                source.on_cancel_lost()
            else:
                source.on_break()
        log.debug("shard %s: a watch stream of %d ended: %s", self.shard.name, len(self.sources), status.message)
        if status == errors.NO_LEADER or status.code not in TRANSIENT:
            self._fail(status)
        if monotonic() - self._began >= LONGEST_PAUSE:
            self._failures = 0  # the call lasted; failures before it do not count
        if not self.sources:
            self.close()
        elif call.connection.ended or call.connection.draining:
            self._open()  # (the shard makes the pauses between connections itself)
        elif self._failures == 0:
            self._failures = 1
            self._open()
        else:
            self._wait()

    def _wait(self) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        self._failures += 1
        self._pause = self.shard.background.later(pause, self._reopen, self.on_bug)

    def begin_anew(self) -> None:
        """Leaves the call that is open for another one."""
        if self._call is not None:
            call = self._call
            call.leave()
            self.on_end(call, LEFT)

    def on_retired(self, call: WatchCall) -> None:
        """The shard has left the member that the call is on."""
        if call is self._call:
            self.begin_anew()

    def on_bug(self) -> None:
        """Ends the streams of the clients that are fed: an exception came out of opening the call. They come again."""
        self._fail(errors.SERVER_STOPPED)

    def _fail(self, status: Status) -> None:
        """Ends the stream of every client that is fed."""
        for outbox in {outbox for source in self.sources.values() for outbox in source.outboxes()}:
            outbox.stop(status)

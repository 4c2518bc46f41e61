"""How calls are handled: passed on to a shard whole, refused, or served by a coroutine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from esp.core import errors
from esp.core.services.gate import LARGE_REQUEST, Entry, Gate
from esp.core.services.shard_times import ShardTimes
from esp.core.services.timed import Timed
from esp.core.shard import Shard
from esp.core.wire.ended import Passed, Several
from esp.core.wire.frames import MAX_FRAME_SIZE, pack_u32
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import INTERNAL_ERROR, Handler, ServerCall, Sink
from esp.core.wire.status import OK, Code, RpcError, Status

log = logging.getLogger("esp.service")

Result = TypeVar("Result")

UNFLUSHED_BYTES: Final = 262144
SMALL_CALL: Final = 4
"""Places that a small question takes at each shard."""
MOST_BYTES: Final = 2**32 - 1
"""The most bytes of a gRPC message."""


class Spawn(Protocol):
    """Starts a task that another object owns and awaits: `Background.start`."""

    def __call__(
        self,
        work: Coroutine[Any, Any, None],
        *,
        on_bug: Callable[[], object] | None = None,
        on_end: Callable[[], object] | None = None,
    ) -> asyncio.Task[None]:
        """As `Background.start`."""


class PassUnary(Handler):
    """Passes calls with one request message on to one shard."""

    quick = True

    def __init__(self, shard: Shard, *, idempotent: bool) -> None:
        self.shard = shard
        self.idempotent = idempotent

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends the message on unchanged."""
        self.shard.splice(stream, message)


class Around(Handler):
    """A handler around another one that gets whole requests: it may change or refuse them before."""

    def __init__(self, inner: Handler) -> None:
        self.inner = inner
        self.idempotent = inner.idempotent
        self.forwards = inner.forwards
        self.quick = inner.quick
        self.waits = inner.waits
        self.lasts = inner.lasts

    def recover(self, stream: ServerCall, message: bytes, status: Status) -> bool:
        """The server upstream refused `message`."""
        return self.inner.recover(stream, message, status)

    def on_large_answer(self, stream: ServerCall, size: int) -> None:
        """The answer begins to come."""
        self.inner.on_large_answer(stream, size)


class Counted(Handler):
    """A handler whose calls to one shard may have to wait for places there.

    Attributes:
        gate: gives the places.
        reads: the answers may be large, so the calls count by the client's last answers.
    """

    reads = False

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def send(self, stream: ServerCall, message: bytes, shard: Shard, *, late: bool = False) -> None:
        """Sends a call on to its one shard: at once, unless the call may cost that shard much.

        `late`: the call came in an earlier turn of the loop, so that less is left of its deadline.
        """
        if (self.reads and stream.connection.weight) or len(message) > LARGE_REQUEST:
            one_key = self.reads_one_key(message)
            self.gate.pass_on(stream, shard, message, reads=self.reads, at_once=late, one_key=one_key)
        elif late:
            shard.send_again(stream, message)
        else:
            shard.splice(stream, message)

    def reads_one_key(self, message: bytes) -> bool:
        """Whether the call surely reads one key."""
        return False

    def on_large_answer(self, stream: ServerCall, size: int) -> None:
        """The client's next reads wait for places."""
        if self.reads:
            self.gate.note_large(stream, size)


class PassCounted(Counted):
    """As `PassUnary`, where a call that may cost the shard much waits for a place there: reads, and large requests."""

    quick = True

    def __init__(self, shard: Shard, gate: Gate, *, idempotent: bool) -> None:
        super().__init__(gate)
        self.shard = shard
        self.idempotent = self.reads = idempotent

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends the message on unchanged."""
        self.send(stream, message, self.shard)


class PassWaiting(PassUnary):
    """Passes calls with one request message on that may wait for hours."""

    waits = True

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Sends it on as it came."""
        self.shard.splice_waiting(stream, message)


class PassStream(Handler):
    """Passes streaming calls, and calls that esp does not know, on to one shard, in both directions."""

    streaming = True

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def on_open(self, stream: ServerCall) -> None:
        """Joins the client's stream to one of the shard."""
        self.shard.splice_stream(stream)


class Local(Handler):
    """Parses a call's one request, and answers at once with the message that a function makes of esp's own knowledge.

    The function may raise RpcError.
    """

    forwards = False

    def __init__(self, request: type[Message], answer: Callable[[Any], Message]) -> None:
        self._request = request
        self._answer = answer

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Answers."""
        try:
            stream.respond(self._answer(parse(self._request, message)).SerializeToString())
        except RpcError as error:
            stream.finish(error.status)


class Keeps(Enum):
    """The places that a call keeps when shards have answered."""

    NOTHING = 0
    LAST = 1
    """The place at the shard that answers last. So no other such call begins before this call goes on."""
    ALL = 2


class CoroutineCall(Sink):
    """A call served by a coroutine, which is cancelled when the client goes away, and waits for a slow client.

    Attributes:
        stream: the client's stream.
        entry: the places at shards, if the call spans shards; None if it needs no places.
        keeps: the places that the call keeps when shards have answered, because it will ask them again.
        task: the task of the coroutine.
        outdated: takes the call over if a shard refuses it because it came by an outdated map; None for nobody.
        times: how long the call has waited for shards.
    """

    __slots__ = ("_room", "_unflushed", "_waiting", "entry", "keeps", "outdated", "stream", "task", "times")

    def __init__(
        self, stream: ServerCall, entry: Entry | None = None, outdated: Callable[[], object] | None = None
    ) -> None:
        self.stream = stream
        self.outdated = outdated
        self.entry = entry
        self.keeps = Keeps.NOTHING
        self.times = ShardTimes()
        self.task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._unflushed = 0
        self._waiting = 0
        stream.sink = self

    def start(
        self, spawn: Spawn, work: Coroutine[Any, Any, None], on_end: Callable[[], object] | None = None
    ) -> asyncio.Task[None]:
        """Runs `work`, and turns its exceptions into the call's status. `on_end` is called in any case, at the end."""
        timed = self.timed(self._run(work))
        self.task = spawn(timed, on_bug=self.stream.on_bug, on_end=partial(self._ended, work, on_end))
        return self.task

    def _ended(self, work: Coroutine[Any, Any, None], on_end: Callable[[], object] | None) -> None:
        work.close()  # the work has not begun if its client was gone before its first step
        self.task = None  # otherwise a cancelled task would refer to itself, and keep all objects of its frames
        if on_end is not None:
            on_end()

    def sent_to(self) -> tuple[Passed | Several | None, float, bytes]:
        """The shards that were asked, and what the client asked."""
        if self.entry is None:
            return None, 0.0, b""
        server, sent, asked = self.entry.sent_to()
        return self.times.told(server.names) if isinstance(server, Several) else server, sent, asked

    @property
    def metadata(self) -> bytes:
        """The client's metadata for shards, encoded."""
        return self.stream.forward[1]

    def seconds(self, most: float) -> float:
        """Seconds that the call may take from now on: the rest of the client's deadline, but no more than `most`."""
        remaining = self.stream.remaining()
        return most if remaining is None else min(most, remaining)

    def timed(self, work: Coroutine[Any, Any, Result]) -> Timed[Result]:
        """`work`, for a task of its own, with its time charged to the client as well."""
        return Timed(work, self.stream.connection)

    def enter(self, shard: str) -> None:
        """A shard is asked: the call takes places there, if it has none."""
        self.times.begin(shard)
        if self.entry is not None:
            self.entry.enter(shard)

    def enter_anew(self, shards: Iterable[str], *, asks: bool = True) -> None:
        """Gives back all places and takes some at these shards: the time to hold places begins anew.

        `asks`: as for `Entry.enter`.
        """
        entry = self.entry
        if entry is not None:
            for shard in tuple(entry.held):
                entry.leave(shard)
            for shard in shards:
                entry.enter(shard, asks=asks)

    def leave(self, shard: str) -> None:
        """A shard has answered, or is not asked any more: the place there is free, unless the call keeps it.

        A large answer counts for the connection until the call asks that shard again or ends.
        """
        self.times.end(shard)
        entry = self.entry
        if entry is None or self.keeps is Keeps.ALL or (self.keeps is Keeps.LAST and len(entry.held) == 1):
            return
        entry.give_way(shard)

    def work_on(self, sizes: Mapping[str, int]) -> None:
        """Takes places for the work with the shards' answers, of so many bytes, until the end of the call.

        Call this again within each second of work. A call that holds places for longer seems to wait for a stopped
        shard.
        """
        if self.entry is not None:
            self.enter_anew(sizes, asks=False)
            for shard, size in sizes.items():
                self.entry.weigh(shard, size)

    def weigh(self, shard: str, size: int) -> None:
        """A shard has answered with `size` bytes."""
        if self.entry is not None:
            self.entry.weigh(shard, size)

    def heard(self, shard: str) -> None:
        """A shard has answered, and so has not stopped."""
        if self.entry is not None:
            self.entry.heard(shard)

    def asks(self, shard: str) -> None:
        """A shard is asked, where the call has a place already, or needs none."""
        self.times.begin(shard)

    def asked(self, shard: str) -> None:
        """The shard has answered or failed; a place there stays."""
        self.times.end(shard)

    def replied(self, shard: str) -> None:
        """As `leave`, for a shard that has answered: so it has not stopped."""
        self.heard(shard)
        self.leave(shard)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RpcError as error:
            if error.status == errors.MAP_CHANGED and self.outdated is not None and not self.stream.responded:
                self.stream.sink = None
                self.outdated()
            else:
                self._finish(error.status)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s: %s: a bug in esp", self.stream.peer, self.stream.head.path.decode("ascii", "replace"))
            self._finish(INTERNAL_ERROR)
        finally:
            if self.stream.sink is self:  # the work may have passed the call on
                self.stream.sink = None
            self.stream.connection.context.flush_soon()

    def _finish(self, status: Status) -> None:
        self.stream.finish(status)  # while the sink is there: it knows what the client asked
        self.stream.sink = None

    async def write(self, data: bytes) -> None:
        """Sends DATA, and waits while earlier DATA still waits for the client to read.

        At most the bytes of one write wait. A turn of the loop sends at most UNFLUSHED_BYTES and one write.
        """
        if self.stream.send_data(data, False):
            self._unflushed += len(data)
            if self._unflushed > UNFLUSHED_BYTES:
                self._unflushed = 0
                self.stream.connection.context.flush()  # only a flush shows that the transport is full
                await asyncio.sleep(0)  # the others' turn
        else:
            self._waiting += len(data)
            self.stream.connection.context.flush()
            while self._waiting > 0:
                self._room = asyncio.get_running_loop().create_future()
                await self._room

    async def respond(self, size: int, pieces: Iterable[bytes]) -> None:
        """Sends the whole answer of a unary call: a message of `size` bytes, in pieces that are made as they leave.

        Raises:
            RpcError: the answer is larger than a message can be.
        """
        if size > MOST_BYTES:
            text = "esp: the answer is larger than a gRPC message can be; ask for less at once (limit)"
            raise Status(Code.RESOURCE_EXHAUSTED, text).error()
        if size <= MAX_FRAME_SIZE:
            self.stream.respond(b"".join(pieces))  # waiting bytes take less memory than a waiting task
            return
        self.stream.start()
        waiting = bytearray(b"\0" + pack_u32(size))
        for piece in pieces:
            waiting += piece
            while len(waiting) >= MAX_FRAME_SIZE:
                await self.write(bytes(waiting[:MAX_FRAME_SIZE]))
                del waiting[:MAX_FRAME_SIZE]
        if waiting:
            await self.write(bytes(waiting))
        self.stream.finish(OK)

    def drained(self, size: int) -> None:
        """Bytes that waited have left."""
        self._waiting -= size
        if self._waiting <= 0 and self._room is not None and not self._room.done():
            self._room.set_result(None)

    def cancelled(self, code: int, reason: str) -> None:
        """The client no longer waits for the answer."""
        self.stream.sink = None
        if self.task is not None:
            self.task.cancel()


class AskAll(Handler):
    """Parses a call's one request, and answers with the message of a coroutine that asks all shards.

    The call begins when there is a place at each shard, except shards that have stopped or are unreachable.
    """

    def __init__(
        self,
        gate: Gate,
        shards: Mapping[str, Shard],
        request: type[Message],
        work: Callable[[CoroutineCall, Any], Coroutine[Any, Any, Message]],
        weight: int = SMALL_CALL,
    ) -> None:
        """`weight`: the places that the question takes at each shard."""
        self._gate = gate
        self._shards = shards
        self._request = request
        self._work = work
        self._weight = weight

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Starts the coroutine when the call's turn has come."""
        try:
            request = parse(self._request, message)
        except RpcError as error:
            stream.finish(error.status)
            return

        def begin(entry: Entry) -> None:
            call = CoroutineCall(stream, entry)
            call.start(self._gate.spawn, self._answer(call, request), entry.close)

        let_in_to_all(self._gate, stream, self._shards, len(message), begin, self._weight)

    async def _answer(self, call: CoroutineCall, request: Message) -> None:
        answer = await self._work(call, request)
        call.stream.respond(answer.SerializeToString())


def let_in_to_all(
    gate: Gate,
    stream: ServerCall,
    shards: Mapping[str, Shard],
    size: int,
    begin: Callable[[Entry], None],
    weight: int = SMALL_CALL,
) -> None:
    """Lets in a call with a question to all shards. Unreachable and stopped shards hold up no call."""
    ready = [name for name, shard in shards.items() if shard.is_ready]
    gate.let_in(stream, ready, size, begin, False, weight, passes_stopped=True)


def parse(request: type[Message], message: bytes) -> Any:
    """The request in a message with prefix.

    Raises:
        RpcError: `message` is no such request. Code and beginning of the text are etcd's.
    """
    try:
        return request.FromString(message[PREFIX_SIZE:])
    except DecodeError as error:
        raise Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}").error() from None

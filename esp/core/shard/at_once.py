"""Calls to several shards at once: one to each, sent in one turn of the loop and awaited together, without a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from types import TracebackType
from typing import Generic, Self, TypeVar

from esp.core.shard.shard import Shard
from esp.core.wire.call import Reader, Together, TogetherCall
from esp.core.wire.message import format_timeout, prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import RpcError

Read = TypeVar("Read", bound=Sized)


class AtOnce(Generic[Read]):
    """A unary call to each of several shards that `are_ready`. A context manager: at its end, open calls are cancelled.

    Attributes:
        calls: each shard with its call, in the order of `send`.
    """

    __slots__ = ("_down", "_timeout", "_together", "calls")

    def __init__(self, down: ServerCall | None, seconds: float | None) -> None:
        """`down` is the client's call that causes these calls, if any; `seconds` is the time until its deadline."""
        self._down = down
        self._timeout = b"" if seconds is None else format_timeout(seconds)
        self._together: Together[Read] = Together()
        self.calls: list[tuple[Shard, TogetherCall[Read]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._together.cancel()
        self._flush()

    def _flush(self) -> None:
        if self.calls:
            self.calls[0][0].context.flush_soon()

    def send(
        self,
        shard: Shard,
        forward: Forward,
        message: bytes,
        reader: Reader[Read],
        ended: Callable[[], object] | None = None,
    ) -> None:
        """Sends a call. `message` has no gRPC prefix; `reader` makes the answer; `ended` is called when it has come."""
        connection = shard.free_connection()
        assert connection is not None, "are_ready comes first, in the same turn"
        kind = shard.together_call(forward)
        call = self._together.add(connection, reader, self._down, ended, shard.blamed, forward[0], kind)
        self.calls.append((shard, call))
        connection.call(call, forward, self._timeout, prefix(message), end=True)

    async def answers(self) -> list[Read]:
        """The answer to each call. The answers stay held for the client's call.

        Raises:
            RpcError: the status of the first call that did not end with OK. The other answers are not waited for.
            BrokenCall: the stream of a call broke.
        """
        self._flush()
        try:
            return await self._together.answers()
        except RpcError as error:
            for shard, call in self.calls:
                if call is self._together.failed:
                    shard.consider_moving(call.connection, error.status)
            raise

    async def all_over(self) -> None:
        """Waits until each call has its answer or has failed; `calls` then say which."""
        self._flush()
        await self._together.all_over()


def are_ready(shards: Iterable[Shard]) -> bool:
    """Whether a call to each of the shards could be sent now."""
    return all(shard.free_connection() is not None for shard in shards)

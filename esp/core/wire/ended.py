"""Calls that have ended, as metrics and logs learn of them.

Nearly all calls are unary, have no trace, are passed on whole to one server upstream, and end well and soon. Of such a
call only the seconds are kept, in a list that the observer empties at each tick (`Took`): all else costs a multiple.
The observer is told of every other call by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final, Protocol

from esp.core.wire.traffic import Messages, Traffic

UNKNOWN: Final = b""
"""Stands for the path of every RPC that esp does not know: a client can make up any number of those."""


@dataclass(slots=True)  # frozen, each would take three times as long to make
class EndedCall:
    """A client's call that has ended.

    Attributes:
        path: the path as it came from the client.
        peer: the client's address.
        code: the status code of gRPC.
        opened: the `monotonic` time at which the call came.
        at: the `monotonic` time at which the call ended.
        server: the name of the one server upstream that had the call at its end; "" if there was none, or several.
        sent: the `monotonic` time at which the call was sent to that server, or to several; 0.0 if it was not.
        message: the request's message with its prefix, or its beginning, if the call still has it; else b"".
        trace: the call's `traceparent`, or what has taken its place (`traces`); b"" for none.
        several: the names of the servers upstream, if there were several.
        waited: of each of these the seconds for which the call waited for it; () if it never waited for them.
        upstream: the seconds for which the call waited for any of these; the rest of its time is esp's own.
    """

    path: bytes
    peer: str
    code: int
    opened: float
    at: float
    server: str = ""
    sent: float = 0.0
    message: bytes = b""
    trace: bytes = b""
    several: tuple[str, ...] = ()
    waited: tuple[float, ...] = ()
    upstream: float = 0.0


class Took(dict[bytes, Callable[[float], None]]):
    """By path the function that takes the seconds of a call. Paths that are not `known` share the entry UNKNOWN.

    Attributes:
        lists: by path the seconds that were taken. Whoever counts them removes them from the list.
    """

    __slots__ = ("_known", "lists")

    def __init__(self, known: Container[bytes]) -> None:
        super().__init__()
        self.lists: dict[bytes, list[float]] = {}
        self._known = known

    def name(self, path: bytes) -> bytes:
        """The path if it is known, else UNKNOWN."""
        return path if path in self._known else UNKNOWN

    def __missing__(self, path: bytes) -> Callable[[float], None]:
        if path != UNKNOWN and path not in self._known:
            return self[UNKNOWN]
        taken = self.lists[path] = []
        take = self[path] = taken.append
        return take


class Passed:
    """The calls that were passed on to one server upstream, each whole, and ended well and soon.

    Attributes:
        name: the name of the server.
        slow: the seconds from which on the observer is told of a call by itself.
        took: takes the seconds from the request to the answer of each quicker call.
        asked: takes the seconds of questions of esp's own that ended well.
        traffic: the bytes of all connections to the server.
        messages: by path, the messages of streaming calls to the server.
    """

    __slots__ = ("asked", "messages", "name", "slow", "took", "traffic")

    def __init__(self, name: str, known: Container[bytes], slow: float) -> None:
        self.name = name
        self.slow = slow
        self.took = Took(known)
        self.asked = Took(known)
        self.traffic = Traffic()
        self.messages: dict[bytes, Messages] = {}

    def messages_of(self, path: bytes) -> Messages:
        """Counts the messages of streaming calls of an RPC; all that is not known shares one count."""
        return self.messages.setdefault(self.took.name(path), Messages())


class Several:
    """Several servers upstream that work on one call.

    Attributes:
        name: "", which is the name of none.
        names: their names.
        waited, upstream: as in `EndedCall`.
    """

    __slots__ = ("names", "upstream", "waited")
    name: Final = ""

    def __init__(self, names: tuple[str, ...], waited: tuple[float, ...] = (), upstream: float = 0.0) -> None:
        self.names = names
        self.waited = waited
        self.upstream = upstream


class Observer(Protocol):
    """Learns of calls of clients that have ended. At most one in a process: `WireContext.observer`."""

    def passed_to(self, name: str) -> Passed:
        """The calls to the server upstream of this name."""

    def joined_to(self, name: str) -> Passed:
        """As `passed_to`, for calls of which several were sent to that server as one."""

    def ended(self, call: EndedCall) -> None:
        """A call has ended that is in no list."""

    def asked(self, name: str, path: bytes, code: int, seconds: float) -> None:
        """A question of esp's own to a server upstream has ended with this code, `seconds` after it was sent."""

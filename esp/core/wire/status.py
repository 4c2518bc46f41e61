"""gRPC status codes, and a call's outcome as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Code(IntEnum):
    """The status codes of gRPC (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODE_NAMES: Final = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
"""The names of the codes as Go spells them, for logs and metrics, as etcd's have them."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended: a code, and a text that clients may match on.

    `code` is an int because a peer may send a number that no `Code` names; it is passed on as it came.
    """

    code: int
    message: str = ""

    def error(self) -> RpcError:
        """The exception that carries this status through a coroutine handler."""
        return RpcError(self)


OK = Status(Code.OK)
DEADLINE_EXCEEDED = Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
"""In the words of Go's context, which etcd passes on."""


class RpcError(Exception):
    """A call that failed with `status`; raised by handlers, turned into trailers in one place."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code}: {status.message}")
        self.status = status

"""The first question to a server, its status: whether somebody answers, and whether that is an etcd.

No call is passed on before the answer. An esp answers this question itself, at once, and asks no shard for it. So an
endpoint that leads back to the same esp, over any number of names, forwarders or other esps, is found before a call can
go in a circle.
"""

from __future__ import annotations

import asyncio
from typing import Final

from esp.core.auth_tokens import OWN
from esp.core.errors import is_esp
from esp.core.wire.call import BrokenCall, MessageCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.message import prefix
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, RpcError

STATUS_PATH: Final = b"/etcdserverpb.Maintenance/Status"
STATUS: Final = STATUS_PATH, OWN
"""The head of the question."""
PROBE: Final = b"\xda\x94\x01\x09esp-probe"
"""The StatusRequest: a field of number 2379 that no etcd knows or takes notice of.

etcd's grpc-proxy passes it on to the server behind, but no metadata; that of etcd 3.4 does not (`ask_status`).
"""


def is_probe(message: bytes) -> bool:
    """Whether a StatusRequest asks as an esp does. An etcd's has no fields."""
    return PROBE in message


class UnfitError(OSError):
    """The server answers, but cannot serve a shard; the text says why."""


class NotAnEtcd(UnfitError):
    """The server that answers is an esp."""

    def __init__(self) -> None:
        super().__init__("it is an esp, this one or another, and no etcd; name the etcds themselves")


async def ask_status(connection: ClientConnection, seconds: float) -> bytes:
    """The StatusResponse of the server at the other end.

    Raises:
        RpcError: an etcd answers with an error: it is there, but does not tell.
        NotAnEtcd: the server is an esp.
        OSError: no answer within so many seconds; or the connection broke; or the answer is Unavailable, as of an etcd
            that stops, or of a proxy without a server behind it, or with an esp that waits for just this answer.
    """
    try:
        return await ask_once(connection, STATUS, PROBE, seconds)
    except RpcError as error:
        if is_esp(error.status):
            raise NotAnEtcd from None
        if error.status.code == Code.UNAVAILABLE:
            raise OSError(f"it does not tell its status: {error.status.message}") from None
        raise
    except BrokenCall as broken:
        raise OSError(f"it breaks off when asked for its status: {broken}") from None
    except TimeoutError:
        raise OSError(f"it does not tell its status within {seconds:g} s") from None


async def ask_once(connection: ClientConnection, forward: Forward, message: bytes, seconds: float) -> bytes:
    """The answer of the server at the other end, message and answer without prefix.

    Raises:
        RpcError: the server answers with an error.
        BrokenCall, TimeoutError: there is no answer.
    """
    call = MessageCall(connection, messages())
    try:
        async with asyncio.timeout(seconds):
            connection.call(call, forward, b"", prefix(message), end=True)
            connection.context.flush()
            return await call.read_only()
    finally:
        call.cancel()
        connection.context.flush()

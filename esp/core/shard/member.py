"""The first call to a server, Status: it shows whether a server answers, and whether the server is an etcd.

esp sends no other call before the answer. An esp answers this Status call itself, at once, and asks no shard. So an
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
"""The head of the call."""
PROBE: Final = b"\xda\x94\x01\x09esp-probe"
"""The StatusRequest: a field with number 2379, which every etcd ignores.

etcd's grpc-proxy drops metadata, but passes this field on to the server behind it. The grpc-proxy of etcd 3.4 drops the
field as well (`ask_status`).
"""


def is_probe(message: bytes) -> bool:
    """Whether a StatusRequest comes from an esp. Those of etcd's clients have no fields."""
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
        RpcError: an etcd answers with an error instead of its status.
        NotAnEtcd: the server is an esp.
        OSError: no answer came within `seconds`, or the connection broke, or the answer is Unavailable. So answer an
            etcd that stops, a proxy without a server behind it, and a proxy in front of an esp that itself waits for
            this answer.
    """
    try:
        return await ask_once(connection, STATUS, PROBE, seconds)
    except (RpcError, BrokenCall) as error:
        fault = fault_of(error)
        if fault is None:
            raise
        raise fault from None
    except TimeoutError:
        raise OSError(f"it does not tell its status within {seconds:g} s") from None


def fault_of(error: RpcError | BrokenCall) -> OSError | None:
    """Why a server that ends a Status call so cannot serve a shard; None for an etcd that only refuses to tell."""
    if isinstance(error, BrokenCall):
        return OSError(f"it breaks off when asked for its status: {error}")
    if is_esp(error.status):
        return NotAnEtcd()
    if error.status.code == Code.UNAVAILABLE:
        return OSError(f"it does not tell its status: {error.status.message}")
    return None


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

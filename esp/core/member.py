"""What a server says when it is asked for its status: whether it is there, and that it is an etcd.

No call is passed on before that. An esp that is asked so does not ask its own shards but says at once what it is, so a
shard's endpoint that leads back to the same esp, over however many names, forwarders or other esps, is found before a
call can go in a circle.
"""

from __future__ import annotations

import asyncio
from typing import Final

from esp.core.errors import is_esp
from esp.core.wire.call import BrokenCall, MessageCall, messages
from esp.core.wire.client import ClientConnection
from esp.core.wire.hpack import encode
from esp.core.wire.message import prefix
from esp.core.wire.status import RpcError

STATUS_PATH: Final = b"/etcdserverpb.Maintenance/Status"
PROBE: Final = b"esp-probe"
"""Metadata of a Status call that is for the server asked, and for nobody behind it. An etcd takes no notice."""
STATUS: Final = STATUS_PATH, encode([(PROBE, b"1")])
"""The head of what a member is asked about itself."""


class NotAnEtcd(OSError):
    """Who answers there is an esp."""

    def __init__(self) -> None:
        super().__init__("it is an esp, this one or another, and no etcd; name the etcds themselves")


async def ask_status(connection: ClientConnection, seconds: float) -> bytes:
    """The StatusResponse of who is at the other end.

    Raises:
        RpcError: another answer, which is one, too: an etcd's that does not tell.
        NotAnEtcd: it is an esp.
        OSError: there is no answer within so many seconds, or it broke off.
    """
    call = MessageCall(connection, messages())
    try:
        async with asyncio.timeout(seconds):
            connection.call(call, STATUS, b"", prefix(b""), end=True)
            connection.context.flush()
            return await call.read_only()
    except RpcError as error:
        if is_esp(error.status):
            raise NotAnEtcd from None
        raise
    except BrokenCall as broken:
        raise OSError(f"it breaks off when asked for its status: {broken}") from None
    except TimeoutError:
        raise OSError(f"it does not tell its status within {seconds:g} s") from None
    finally:
        call.cancel()
        connection.context.flush()

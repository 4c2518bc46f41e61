"""esp's own user at a shard: gets the token for esp's own calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from google.protobuf.message import DecodeError

from esp.core import errors
from esp.core.auth_tokens import OwnParts
from esp.core.background import Background, in_a_thread
from esp.core.config import User, read_password
from esp.core.pb import rpc_pb2
from esp.core.wire.call import BrokenCall
from esp.core.wire.hpack import encode
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import RpcError

log = logging.getLogger("esp.shard")

AUTHENTICATE_PATH: Final = b"/etcdserverpb.Auth/Authenticate"
PAUSE_SECONDS: Final = 2.0
"""Seconds between two attempts, even if an attempt has brought a token that the shard then refuses: an etcd takes a
tenth of a second of CPU time to check a password."""


class Login:
    """Authenticates at one shard when the shard requires it. Reads the password anew each time, and does not keep it.

    Attributes:
        trouble: the reason why esp has no token of this shard, for people; "" if there is none.
    """

    def __init__(
        self,
        shard: str,
        user: User,
        parts: OwnParts,
        call: Callable[[Forward, bytes], Awaitable[bytes]],
        background: Background,
    ) -> None:
        """`parts` gets the token; `call` makes a unary call to the shard, message and answer without prefix."""
        self.trouble = ""
        self._shard = shard
        self._user = user
        self._parts = parts
        self._call = call
        self._background = background
        self._trying: asyncio.Task[None] | None = None
        self._renewed = self._tried = -PAUSE_SECONDS

    async def renew(self, since: float, seconds: float | None = None) -> bool:
        """Whether there is a token that is newer than the `monotonic` time `since`, after `seconds` at most.

        An attempt that takes longer goes on, for the next caller.
        """
        if self._renewed > since:
            return True
        if self._trying is None:
            if monotonic() - self._tried < PAUSE_SECONDS:
                return False
            self._trying = self._background.start(self._try(), on_end=self._over)
        await asyncio.wait((self._trying,), timeout=seconds)
        return self._renewed > since

    def _over(self) -> None:
        self._trying = None

    async def _try(self) -> None:
        trouble = await self._authenticate()
        self._tried = monotonic()
        if not trouble:
            self._renewed = self._tried
        elif trouble != self.trouble:
            log.warning("shard %s: esp cannot authenticate: %s", self._shard, trouble)
        self.trouble = trouble

    async def _authenticate(self) -> str:
        """Gets a token. The reason if there is none; "" if there is one."""
        try:
            password = await in_a_thread("the password", lambda: read_password(self._user.password_file))
        except ValueError as error:
            return str(error)
        except OSError as error:
            return f"{self._user.password_file} cannot be read: {(error.strerror or str(error)).lower()}"
        request = rpc_pb2.AuthenticateRequest(name=self._user.name, password=password)
        try:
            answer = await self._call((AUTHENTICATE_PATH, b""), request.SerializeToString())
            token = rpc_pb2.AuthenticateResponse.FromString(answer).token
        except DecodeError:
            return "the shard's answer is no AuthenticateResponse"
        except BrokenCall as broken:
            return f"the shard breaks off: {broken}"
        except TimeoutError:
            return "the shard does not answer"
        except RpcError as error:
            if error.status == errors.AUTH_NOT_ENABLED:
                self._parts.own = b""
            return f'as "{self._user.name}": {error.status.message}'
        self._parts.own = encode([(b"token", token.encode())])
        return ""

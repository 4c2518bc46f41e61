"""Refuses a certificate of esp's that a shard may take for a user's.

With auth on and `--client-cert-auth`, an etcd takes a call without token for a call of the user that the client's
certificate names as its common name. esp's certificate stands for all clients of esp, so each of them would have that
user's rights. So esp uses a certificate with a common name only while auth is off. A connection keeps the certificate
with which it was made, whatever the files say later.
"""

from __future__ import annotations

from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.shard.login import AUTHENTICATE_PATH
from esp.core.shard.member import UnfitError, ask_once
from esp.core.shard.secured import Secured
from esp.core.wire.call import BrokenCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.status import Code, RpcError

_NOBODY: Final = rpc_pb2.AuthenticateRequest(name="esp-probe").SerializeToString()
"""A question that every etcd answers, whoever asks: with auth off, by saying so; with auth on, otherwise."""


class CommonNameError(UnfitError):
    """The shard has auth on, and esp's certificate has a common name."""


async def check_common_name(
    secured: Secured | None, connection: ClientConnection, asked: ClientConnection, seconds: float
) -> None:
    """Makes sure that the server takes esp's calls on `connection` for nobody's; asks on `asked`, to the same server.

    Raises:
        CommonNameError: auth is on, and esp's certificate for `connection` has a common name.
        OSError: the server does not tell within `seconds` whether auth is on.
    """
    name = connection.common_name
    if secured is None or not name:
        return
    try:
        await ask_once(asked, (AUTHENTICATE_PATH, b""), _NOBODY, seconds)
    except RpcError as error:
        if error.status == errors.AUTH_NOT_ENABLED:
            return
        if error.status.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            raise OSError(_untold(error.status.message)) from None
    except BrokenCall as broken:
        raise OSError(_untold(str(broken))) from None
    except TimeoutError:
        raise OSError(_untold(f"no answer within {seconds:g} s")) from None
    raise CommonNameError(
        f'auth is on, and esp\'s certificate {secured.credentials.files.cert} has the common name "{name}": every '
        "client without a token would act as that user; make a certificate without common name (openssl req -subj /)"
    )


def _untold(why: str) -> str:
    return f"it does not tell whether auth is on, which esp must know as its certificate has a common name: {why}"

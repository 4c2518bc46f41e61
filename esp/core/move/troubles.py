"""Why a move does not go on; and questions to its shards, whose errors become that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from esp.core import errors
from esp.core.export import told
from esp.core.giving_up import MoveError
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard, ask_for_esp
from esp.core.shared_map import clients_keys
from esp.core.wire.status import RpcError

CALL_SECONDS = 10.0


class TakenOverError(MoveError):
    """Somebody else goes on with the move, or has given it up."""


class CompactedError(MoveError):
    """The source has forgotten what is still to be copied."""


@contextmanager
def failures(shard: Shard) -> Iterator[None]:
    """Errors of a shard become a MoveError that names it.

    Raises:
        MoveError: in place of an RpcError.
    """
    try:
        yield
    except RpcError as error:
        if error.status == errors.COMPACTED:
            raise CompactedError(told(shard, error.status)) from None
        raise MoveError(told(shard, errors.undecided(error.status))) from None


async def count(shard: Shard, range_: KeyRange, revision: int = 0) -> rpc_pb2.RangeResponse:
    """The number of clients' keys of a range, in an answer without keys.

    Raises:
        RpcError: the shard's.
    """
    key, range_end = clients_keys(range_).to_request()
    request = rpc_pb2.RangeRequest(key=key, range_end=range_end, count_only=True, revision=revision)
    return await ask_for_esp(shard, RANGE, request, seconds=CALL_SECONDS)

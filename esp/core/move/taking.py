"""A mover becomes the one who copies to the target, in place of any other."""

from __future__ import annotations

from typing import Final

from esp.core.giving_up import MoveError
from esp.core.move.chain import still
from esp.core.move.copies import Copies, decode_copies
from esp.core.move.troubles import CALL_SECONDS, TakenOverError, failures
from esp.core.pb import rpc_pb2
from esp.core.shard import GUARD_KEY, RANGE, TXN, Shard, ask_for_esp
from esp.core.shared_map import COPIES_KEY, HELD_KEYS, MapFormatError
from esp.core.wording import shard_called

_TRIES: Final = 5


async def take_over(target: Shard, guard: str, mover: str) -> Copies:
    """The copies on the target, by this mover from now on; new ones if there are none.

    Raises:
        TakenOverError: the target has another guard, or others are faster.
        MoveError: the target refuses, or does not answer.
    """
    for _ in range(_TRIES):
        with failures(target):
            key, range_end = HELD_KEYS.to_request()
            answer = await ask_for_esp(
                target, RANGE, rpc_pb2.RangeRequest(key=key, range_end=range_end), seconds=CALL_SECONDS
            )
        values = {pair.key: pair.value for pair in answer.kvs}
        if values.get(GUARD_KEY) != guard.encode():
            raise TakenOverError(f"{shard_called(target.name)} has another guard than this move expects; look again")
        before = values.get(COPIES_KEY)
        try:
            copies = Copies(mover) if before is None else decode_copies(before)._replace(mover=mover)
        except MapFormatError as error:
            raise MoveError(f"the copies on {shard_called(target.name)} {error}") from None
        if await replaced(target, guard, before, copies):
            return copies
    raise TakenOverError("others take over these copies at the same time; look again")


async def replaced(target: Shard, guard: str, before: bytes | None, copies: Copies) -> bool:
    """Writes the copies in place of those before; False if the target holds others, or another guard.

    Raises:
        MoveError: the target refuses, or does not answer.
    """
    put = rpc_pb2.PutRequest(key=COPIES_KEY, value=copies.encode())
    request = rpc_pb2.TxnRequest(compare=still(guard, before), success=[rpc_pb2.RequestOp(request_put=put)])
    with failures(target):
        return (await ask_for_esp(target, TXN, request, seconds=CALL_SECONDS)).succeeded

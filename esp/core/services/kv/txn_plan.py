"""How a transaction is served: by the shard that owns all its keys, as reads over several shards, or not at all.

The handler of Txn asks this, and `esp route --txn`, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import chain
from typing import NamedTuple, TypeVar

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.namespace import Namespace
from esp.core.pb import rpc_pb2
from esp.core.services.handlers import parse
from esp.core.services.kv import txn
from esp.core.services.kv.before_move import BeforeMove
from esp.core.services.kv.merge import refuse_range
from esp.core.services.kv.routed import check
from esp.core.services.kv.translate import translate_filters, translate_txn
from esp.core.services.kv.txn_look import Look, Refuses, look
from esp.core.services.namespace import in_namespace
from esp.core.services.pace import Pace
from esp.core.services.revision import position_of
from esp.core.shard_map import Segment, ShardMap
from esp.core.tokens import Tokens
from esp.core.undivided import Undivided
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.message import PREFIX_SIZE, prefix
from esp.core.wire.server_stream import OVERLOADED
from esp.core.wire.status import RpcError

_Result = TypeVar("_Result")

Hold = Callable[[int], bool]
"""Holds so many bytes of memory for the call; False if there is no room for them."""


class Plan(NamedTuple):
    """How one transaction is served.

    Attributes:
        message: the transaction as it goes on, with its gRPC prefix.
        owner: the shard that gets it whole; None if there are keys of several shards, or none.
        reads: the transaction that reads over several shards; None for any other.
        owned: for `reads`, the first range of each shard that is read.
        longest: the most entries in one list, see `txn_look`; 0 if a refusal would not tell how many are too many.
        translated: revisions in `message` are others than the client's, which only the owner understands.
    """

    message: bytes
    owner: str | None = None
    reads: rpc_pb2.TxnRequest | None = None
    owned: dict[str, KeyRange] = {}  # noqa: RUF012 - never changed
    longest: int = 0
    translated: bool = False


class Plans:
    """Plans transactions for one layout.

    Args:
        shard_map: the owners of all keys.
        tokens: the revisions over several shards that clients may name.
        undivided: the ranges in which transactions over several shards are refused.
        saw: is told a key of each transaction before it is planned.
        before: see `txn_look`.
        refuses: see `txn_look`.
    """

    __slots__ = ("_before", "_map", "_refuses", "_saw", "_tokens", "_undivided")

    def __init__(
        self,
        shard_map: ShardMap,
        tokens: Tokens,
        undivided: Undivided,
        saw: Callable[[bytes], object],
        before: BeforeMove | None = None,
        refuses: Refuses | None = None,
    ) -> None:
        self._map = shard_map
        self._tokens = tokens
        self._undivided = undivided
        self._saw = saw
        self._before = before
        self._refuses = refuses

    def plan(self, message: bytes, hold: Hold) -> Generator[None, None, Plan]:
        """The plan for a gRPC message with its prefix, in steps.

        Raises:
            RpcError: the transaction is refused.
        """
        found = yield from look(message, PREFIX_SIZE, self._map, self._before, self._refuses)
        if found.is_refused:
            raise errors.TOO_MANY_OPS.error()  # etcd looks at nothing else before
        if found.is_odd:
            # The shard must read the same in it as esp: so the shard gets the parsed message, serialised anew.
            message = prefix(_parsed(message, found, hold).SerializeToString())
            found = yield from look(message, PREFIX_SIZE, self._map, self._before)
            if found.is_lost:
                raise txn.TOO_ODD.error()
        if found.is_stale:
            yield from _validate(message, found, hold)
            raise errors.COMPACTED.error()
        if found.refusal is not None:
            yield from _validate(message, found, hold)
            raise found.refusal.error()
        if found.first is None:
            return Plan(message)
        self._saw(found.first.start)
        if not found.knows_sorts:
            yield from _validate(message, found, hold)
            raise errors.INVALID_SORT_OPTION.error()
        if found.other is not None:
            if found.only_reads:
                return (yield from self._read(message, found, hold))
            yield from _validate(message, found, hold, txn.MAX_OPS)
            raise self._spans(found.first, found.other)
        assert found.owner is not None, "it spans no shards"
        try:
            message = yield from translate_txn(self._tokens, message, found, found.owner)
        except RpcError:
            yield from _validate(message, found, hold)
            raise
        # A refusal may be about a nested transaction, and then says nothing about the entries of the outer one.
        longest = 0 if found.is_nested else found.longest
        return Plan(message, found.owner, longest=longest, translated=bool(found.tokens))

    def _read(self, message: bytes, found: Look, hold: Hold) -> Generator[None, None, Plan]:
        """The plan that reads, over shards, the first branch: etcd runs that branch if nothing is compared.

        Raises:
            RpcError: there is no exact answer.
        """
        if found.parts > txn.MAX_PARSED:
            raise errors.TOO_MANY_OPS.error()
        request = _parsed(message, found, hold, txn.READ_BYTES)
        check((yield from txn.validate(request)))
        pace = Pace()
        touched: list[KeyRange] = []
        for operation in chain(request.success, request.failure):
            if pace.is_over():
                yield
            touched.append(KeyRange.of_request(operation.request_range.key, operation.request_range.range_end))
        check(self._undivided.refuse("a transaction", *touched))
        for operation in request.success:
            if pace.is_over():
                yield
            asked = operation.request_range
            if asked.revision < 0:
                raise errors.COMPACTED.error()  # a revision to etcd, in a transaction but not in a Range
            keys = KeyRange.of_request(asked.key, asked.range_end)
            at_token = position_of(self._tokens, asked.revision) is not None
            sole = self._map.sole_owner(keys)
            if sole is None:
                check(refuse_range(asked, *self._span(keys), at_token=at_token))
            else:
                translate_filters(self._tokens, asked, sole)
        owned: dict[str, KeyRange] = {}
        for keys in touched:
            if pace.is_over():
                yield
            for segment in self._map.split(keys) or [Segment(self._map.owner(keys.start), keys)]:
                owned.setdefault(segment.shard, segment.range)
        return Plan(message, None, request, owned)

    def _span(self, key_range: KeyRange) -> tuple[list[str], bytes]:
        names = [segment.shard for segment in self._map.split(key_range)]
        return names, self._map.first_boundary(key_range) or b""

    def _spans(self, one: KeyRange, other: KeyRange) -> RpcError:
        """The refusal of a transaction with two ranges in different shards, or with a range over several shards."""
        for keys in (one, other):
            if self._map.sole_owner(keys) is None:
                names, boundary = self._span(keys)
                break
        else:
            low, high = sorted((one.start, other.start))
            names = [self._map.owner(low), self._map.owner(high)]
            boundary = self._span(KeyRange(low, high + b"\0"))[1]
        cure = "keep what a transaction touches, in both branches, inside one shard"
        return errors.spans("a transaction", names, boundary, cure).error()


def planned(
    request: rpc_pb2.TxnRequest, shard_map: ShardMap, refused: tuple[KeyRange, ...], namespace: Namespace | None
) -> Plan:
    """The plan of a proxy that has just started, for one transaction of a client in `namespace`.

    The transaction is also checked as etcd checks it. `refused` are the ranges of `across_shards`.

    Raises:
        RpcError: esp or etcd refuses the transaction.
    """
    message = prefix(request.SerializeToString()) if namespace is None else in_namespace(namespace, request)
    plans = Plans(shard_map, Tokens(WireContext(Limits())), Undivided(shard_map, refused), lambda _: None)
    plan = _at_once(plans.plan(message, lambda _: True))
    check(_at_once(txn.validate(parse(rpc_pb2.TxnRequest, plan.message), txn.MAX_OPS)))
    return plan


def _at_once(steps: Generator[None, None, _Result]) -> _Result:
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            result: _Result = ended.value
            return result


def _parsed(message: bytes, found: Look, hold: Hold, bytes_each: int = txn.PARSED_BYTES) -> rpc_pb2.TxnRequest:
    """The parsed message. Its memory, `bytes_each` for each part, is held until the call ends.

    Raises:
        RpcError: there is no memory for that; or the message is malformed, or too large to be parsed in one step.
    """
    if found.parts > txn.MAX_PARSED:
        raise txn.TOO_ODD.error()
    if found.parts > txn.MAX_OPS and not hold(found.parts * bytes_each):
        raise OVERLOADED.error()
    request: rpc_pb2.TxnRequest = parse(rpc_pb2.TxnRequest, message)
    return request


def _validate(message: bytes, found: Look, hold: Hold, most: int = txn.MAX_PARSED) -> Generator[None, None, None]:
    """Raises etcd's own error for a transaction that will be refused anyway, unless the check takes long."""
    if found.parts <= txn.MAX_PARSED:
        check((yield from txn.validate(_parsed(message, found, hold), most)))

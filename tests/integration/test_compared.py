"""Requests with a comparison of the guard, on real etcds: every byte of the answer is that of the request alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.shard.compared import Guard, Kind
from esp.core.shared_map import GUARD_KEY
from esp.core.wire.message import PREFIX_SIZE, prefix
from tests.harness import Etcds, connect, peer

VALUE = b"1-0123456789abcdef0123456789abcdef"
GUARD = Guard(GUARD_KEY, VALUE)
OTHER = Guard(GUARD_KEY, VALUE[:-1] + b"0")
KINDS = {"Range": Kind.RANGE, "Put": Kind.PUT, "DeleteRange": Kind.DELETE_RANGE, "Txn": Kind.TXN}
KEYS = [b"a", b"b", b"c", b"ca", b"d", b"x" * 130]
COUNT = 120
REFUSED = "refused"
Outcome = bytes | tuple[Any, str] | str


class Raw:
    """The KV service of an etcd, as bytes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._calls = {
            name: channel.unary_unary(f"/etcdserverpb.KV/{name}") for name in ("Range", "Put", "DeleteRange", "Txn")
        }

    def ask(self, name: str, message: bytes) -> Outcome:
        """The answer without prefix; or code and text of the error."""
        try:
            answer: bytes = self._calls[name](message)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return answer

    def ask_compared(self, name: str, message: bytes, guard: Guard = GUARD) -> Outcome:
        """As `ask`, by a transaction with the comparison of a guard."""
        kind = KINDS[name]
        outcome = self.ask("Txn", guard.compared(kind, prefix(message))[PREFIX_SIZE:])
        if not isinstance(outcome, bytes):
            return outcome
        found = guard.cut(prefix(outcome), kind)
        return REFUSED if found is None else (found.head + prefix(outcome)[found.rest :])[PREFIX_SIZE:]


@pytest.fixture(scope="module", params=["", "etcd-3.6", "etcd"], ids=["default", "3.6", "3.7"])
def both(request: pytest.FixtureRequest, module_etcds: Etcds) -> Iterator[tuple[Raw, Raw]]:
    """Two etcds that say the same to the same, and hold the same guard."""
    binary: Path | None = peer(request.param) if request.param else None
    name = "http://127.0.0.1:1"
    flags = (
        "--name=twin",
        f"--initial-advertise-peer-urls={name}",
        f"--initial-cluster=twin={name}",
        "--max-txn-ops=8",
    )
    etcds: list[LocalEtcd] = module_etcds.several(2, *flags, f"--initial-cluster-token={request.param}", binary=binary)
    channels = [connect(etcd) for etcd in etcds]
    alone, compared = map(Raw, channels)
    put = rpc_pb2.PutRequest(key=GUARD_KEY, value=VALUE).SerializeToString()
    assert alone.ask("Put", put) == compared.ask("Put", put)
    grant = rpc_pb2.LeaseGrantRequest(ID=7, TTL=600).SerializeToString()
    for channel in channels:
        channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")(grant)
    yield alone, compared
    for channel in channels:
        channel.close()


def span(draw: random.Random) -> dict[str, bytes]:
    end = draw.choice([b"", b"", b"b", b"d", b"\0", b"a"])
    return {"key": draw.choice([*KEYS, b"\0", b""] if end else KEYS), "range_end": end}


def put_of(draw: random.Random) -> rpc_pb2.PutRequest:
    value = draw.choice([b"", b"v", b"w" * 200])
    more = draw.choice(
        [{}, {}, {}, {"prev_kv": True}, {"lease": 7}, {"lease": 8}, {"ignore_value": True}, {"ignore_lease": True}]
    )
    return rpc_pb2.PutRequest(key=draw.choice(KEYS), value=value, **more)


def delete_of(draw: random.Random) -> rpc_pb2.DeleteRangeRequest:
    where = {"key": draw.choice(KEYS), "range_end": draw.choice([b"", b"b", b"d"])}
    return rpc_pb2.DeleteRangeRequest(prev_kv=draw.random() < 0.5, **where)


def range_of(draw: random.Random) -> rpc_pb2.RangeRequest:
    options: list[dict[str, Any]] = [
        {},
        {},
        {"limit": 2},
        {"count_only": True},
        {"keys_only": True},
        {"revision": draw.randint(1, 60)},
        {"revision": 99_999},
        {"sort_order": 2, "sort_target": 1},
        {"sort_order": 9},
        {"min_mod_revision": 5, "max_create_revision": 40},
        {"serializable": True},
    ]
    return rpc_pb2.RangeRequest(**span(draw), **draw.choice(options))


def compare_of(draw: random.Random) -> rpc_pb2.Compare:
    number, result = draw.randint(0, 40), draw.choice([0, 1, 2, 3])
    key = draw.choice(KEYS)
    match draw.randrange(4):
        case 0:
            return rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.VALUE, result=result, value=b"v")
        case 1:
            return rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.MOD, result=result, mod_revision=number)
        case 2:
            return rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.CREATE, result=result, range_end=b"d")
        case _:
            return rpc_pb2.Compare(key=draw.choice([key, b""]), target=rpc_pb2.Compare.LEASE, lease=0)


def txn_of(draw: random.Random, depth: int = 0) -> rpc_pb2.TxnRequest:
    def operations() -> list[rpc_pb2.RequestOp]:
        return [operation_of(draw, depth) for _ in range(draw.choice([0, 1, 1, 2]))]

    compares = [compare_of(draw) for _ in range(draw.choice([0, 1, 1, 2]))]
    return rpc_pb2.TxnRequest(compare=compares, success=operations(), failure=operations())


def operation_of(draw: random.Random, depth: int) -> rpc_pb2.RequestOp:
    match draw.randrange(7 if depth == 0 else 6):
        case 0 | 1:
            return rpc_pb2.RequestOp(request_put=put_of(draw))
        case 2:
            return rpc_pb2.RequestOp(request_delete_range=delete_of(draw))
        case 6:
            return rpc_pb2.RequestOp(request_txn=txn_of(draw, depth + 1))
        case _:
            return rpc_pb2.RequestOp(request_range=range_of(draw))


def programs(draw: random.Random) -> Iterator[tuple[str, bytes]]:
    makers = {"Range": range_of, "Put": put_of, "DeleteRange": delete_of, "Txn": txn_of}
    for _ in range(COUNT):
        name = draw.choice(["Range", "Put", "Put", "DeleteRange", "Txn", "Txn", "Txn"])
        message: Any = makers[name](draw)
        yield name, message.SerializeToString()


def test_every_byte_is_that_of_the_request_alone(both: tuple[Raw, Raw]) -> None:
    alone, compared = both
    answered = failed = 0
    for name, message in programs(random.Random(15)):
        wanted = alone.ask(name, message)
        assert compared.ask_compared(name, message) == wanted, (name, message)
        assert compared.ask_compared(name, message, OTHER) in (REFUSED, wanted)  # an error, of what is no request
        answered += isinstance(wanted, bytes)
        failed += not isinstance(wanted, bytes)
    assert answered > COUNT / 3
    assert failed > 8


def test_nothing_is_written_and_no_error_is_lost_where_the_comparison_is_refused(both: tuple[Raw, Raw]) -> None:
    alone, compared = both
    everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()
    before = compared.ask("Range", everything)
    assert before == alone.ask("Range", everything)
    for name, message in programs(random.Random(16)):
        assert compared.ask_compared(name, message, OTHER) == REFUSED or not isinstance(alone.ask(name, message), bytes)
    assert compared.ask("Range", everything) == before


def test_a_transaction_has_room_for_one_comparison_and_one_read_less(both: tuple[Raw, Raw]) -> None:
    alone, compared = both
    read = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"a"))
    compare = rpc_pb2.Compare(key=b"a", target=rpc_pb2.Compare.VERSION, version=1000)
    write = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"a"))
    too_many = (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
    full = [
        rpc_pb2.TxnRequest(compare=[compare] * 8),
        rpc_pb2.TxnRequest(failure=[read] * 8),
    ]
    for request in full:
        assert isinstance(alone.ask("Txn", request.SerializeToString()), bytes)
        assert compared.ask_compared("Txn", request.SerializeToString()) == too_many
    fits = [
        rpc_pb2.TxnRequest(compare=[compare] * 7, failure=[read] * 7, success=[read] * 8),
        rpc_pb2.TxnRequest(compare=[compare] * 6, failure=[write]),
    ]
    for request in fits:
        wanted = alone.ask("Txn", request.SerializeToString())
        assert isinstance(wanted, bytes)
        assert compared.ask_compared("Txn", request.SerializeToString()) == wanted

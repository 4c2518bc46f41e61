r"""What proxies write about themselves on the shards: their registrations, and who mints tokens with which number.

    \0esp/numbers/NN  who mints with a number, and up to which tick; has no lease
    \0esp/proxies/NN  a process of a proxy that serves; has a lease, and ends with it
    \0esp/secret      by which proxies know each other

All sort behind the keys of the map, so that who reads or watches the map does not meet them. A number and the ticks up
to `until` are one process's alone, whatever became of its lease and of its clock: the next one mints with later ticks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from esp.core.keys import KeyRange
from esp.core.own_keys import LEASES
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shard import GUARD_KEY

PROXIES: Final = b"\0esp/proxies/"
NUMBERS: Final = b"\0esp/numbers/"
SECRET: Final = b"\0esp/secret"
KEYS: Final = KeyRange(NUMBERS, SECRET + b"\0")
"""All of these, and nothing that a move writes: proxies watch them."""
MOST_KEYS: Final = 160
"""More keys than there can be."""
MOST_BYTES: Final = 8192
"""The most bytes of a value; a larger one is none of esp's."""

AT_ANCHOR: Final = range(48)
"""The numbers that the anchor gives."""
ELSEWHERE: Final = range(48, 60)
"""The numbers that another shard gives while the anchor is silent: to whom it did not give one before."""
DRAWN: Final = range(60, 64)
"""The numbers that are drawn where no shard gives one."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a proxy.

    Attributes:
        number: of its tokens.
        urls: the URLs under which clients reach it.
        peers: the URLs under which other proxies reach it; the same for all workers of a proxy.
        version: of esp.
        epoch: of the map by which it serves.
        heir_of: numbers whose tokens it has got from proxies that have drained.
        leaves: it drains; its tokens are about to be handed on.
    """

    number: int
    urls: tuple[str, ...]
    peers: tuple[str, ...]
    version: str
    epoch: int
    heir_of: tuple[int, ...] = ()
    leaves: bool = False

    def encode(self) -> bytes:
        """The value of its key."""
        return msgspec.json.encode(self)


class Grant(msgspec.Struct, frozen=True):
    """Who mints with a number.

    Attributes:
        by: the id of the process; "" if none does any more.
        until: the last tick that may be minted with it.
    """

    by: str
    until: int


@dataclass(slots=True)
class Fleet:
    """What a shard holds about proxies.

    Attributes:
        proxies: the processes that serve, by their numbers.
        grants: the grants, each with the revision at which it was written, by number.
        secret: by which proxies know each other; b"" if there is none.
    """

    proxies: dict[int, Registered] = field(default_factory=dict)
    grants: dict[int, tuple[Grant, int]] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)


def read(pairs: Iterable[kv_pb2.KeyValue]) -> Fleet:
    """What these keys say. What cannot be read counts as not there."""
    found = Fleet()
    for pair in pairs:
        if len(pair.value) > MOST_BYTES:
            continue
        try:
            if pair.key.startswith(PROXIES):
                one = msgspec.json.decode(pair.value, type=Registered)
                if pair.key == key_of(PROXIES, one.number):
                    found.proxies[one.number] = one
            elif pair.key.startswith(NUMBERS):
                number = int(pair.key[len(NUMBERS) :])
                found.grants[number] = msgspec.json.decode(pair.value, type=Grant), pair.mod_revision
            elif pair.key == SECRET:
                found.secret = pair.value
        except (ValueError, msgspec.DecodeError):
            continue
    return found


def look() -> rpc_pb2.RangeRequest:
    """A read of all that a shard holds about proxies."""
    key, range_end = KEYS.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, limit=MOST_KEYS)


def key_of(prefix: bytes, number: int) -> bytes:
    """The key about a number."""
    return prefix + b"%02d" % number


def candidates(found: Fleet, process: str, numbers: range, now: int) -> list[int]:
    """The numbers that a process may take, the best first: its own of before, then those unused for longest.

    Args:
        found: what the shard holds.
        process: the id of the process.
        numbers: those that the shard gives.
        now: the present tick.
    """

    def order(number: int) -> tuple[bool, bool, int]:
        grant, _ = found.grants.get(number, (Grant("", 0), 0))
        return grant.by != process, grant.until >= now, grant.until

    return sorted((number for number in numbers if number not in found.proxies), key=order)


def claim(guard: bytes, found: Fleet, record: Registered, grant: Grant) -> rpc_pb2.TxnRequest:
    """Takes a number, if nobody has taken it since the look at what the shard holds, and the shard has this guard."""
    number = record.number
    compares = [_guarded(guard), _seen(found, number), _absent(key_of(PROXIES, number))]
    return rpc_pb2.TxnRequest(compare=compares, success=[_write(number, grant), _put_record(record)])


def renewal(guard: bytes, found_at: int, record: Registered, grant: Grant) -> rpc_pb2.TxnRequest:
    """Writes a registration and its grant anew; `found_at` is the revision at which the grant was written."""
    compares = [_guarded(guard), _written_at(key_of(NUMBERS, record.number), found_at)]
    return rpc_pb2.TxnRequest(compare=compares, success=[_write(record.number, grant), _put_record(record)])


def release(found_at: int, number: int, last: int) -> rpc_pb2.TxnRequest:
    """Gives a number back, whose last token had the tick `last`."""
    compares = [_written_at(key_of(NUMBERS, number), found_at)]
    return rpc_pb2.TxnRequest(compare=compares, success=[_write(number, Grant("", last))])


def first_secret(guard: bytes, secret: bytes) -> rpc_pb2.TxnRequest:
    """Puts a secret there, if there is none."""
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=SECRET, value=secret))
    return rpc_pb2.TxnRequest(compare=[_guarded(guard), _absent(SECRET)], success=[put])


def _guarded(guard: bytes) -> rpc_pb2.Compare:
    """Nothing is written to a shard from which the map was taken, or that was restored."""
    return rpc_pb2.Compare(key=GUARD_KEY, target=rpc_pb2.Compare.VALUE, result=rpc_pb2.Compare.EQUAL, value=guard)


def _seen(found: Fleet, number: int) -> rpc_pb2.Compare:
    key = key_of(NUMBERS, number)
    return _written_at(key, found.grants[number][1]) if number in found.grants else _absent(key)


def _absent(key: bytes) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0)


def _written_at(key: bytes, revision: int) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.EQUAL, mod_revision=revision)


def _write(number: int, grant: Grant) -> rpc_pb2.RequestOp:
    value = msgspec.json.encode(grant)
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key_of(NUMBERS, number), value=value))


def _put_record(record: Registered) -> rpc_pb2.RequestOp:
    key, lease = key_of(PROXIES, record.number), LEASES + record.number
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=record.encode(), lease=lease))


def answering_for(proxies: Mapping[int, Registered], number: int) -> list[Registered]:
    """The processes that may know tokens with a number, one for each proxy."""
    found: dict[tuple[str, ...], Registered] = {}
    for one in proxies.values():
        if one.peers and (one.number == number or number in one.heir_of):
            found.setdefault(one.peers, one)
    return list(found.values())

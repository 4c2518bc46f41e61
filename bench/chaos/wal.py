"""Who has ended a lease, as the logs of a shard's members have it.

An etcd that was frozen while it led goes on in the belief that it leads, and proposes to revoke all leases that have
expired in its view, though its successor has renewed them. When it hears of its successor a moment later, it passes the
proposals on to it, and they are carried out (github.com/etcd-io/etcd/issues/15247). No proxy can help that. The
write-ahead logs tell such a revocation from all others: it was proposed by the lessor of a member that did not lead in
the term in which it was carried out. The id of a request begins with the last 16 bits of the proposer's id.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

FILES: Final = 2
"""The newest files of a log that are read: each has 64 MB, more than a minute of the load."""
LESSOR: Final = "root"
"""The user in whose name a lessor revokes what has expired, while auth is on. No client uses this name for leases."""
_ENTRY, _STATE = b"\x08\x02", b"\x08\x03"
"""The first bytes of a record: its type."""
_LENGTH: Final = (1 << 56) - 1


class Revocation(NamedTuple):
    """An entry that revokes a lease.

    Attributes:
        term, place: of the entry, in the log of all members.
        proposer: the last 16 bits of the id of the member that proposed it.
        user: in whose name; "" without auth.
    """

    term: int
    place: int
    proposer: int
    user: str


class Log:
    """The write-ahead log of a member, which may run.

    Args:
        data: the member's data folder.
    """

    def __init__(self, data: Path) -> None:
        self._files = sorted((data / "member" / "wal").glob("*.wal"))[-FILES:]

    def votes(self) -> dict[int, int]:
        """The candidate for whom the member has voted in each term."""
        found = {}
        for record in self._records(_STATE):
            state = dict(fields(record))
            if state.get(2):
                found[number(state[1])] = number(state[2])
        return found

    def revocations(self, lease: int) -> set[Revocation]:
        """The entries that revoke a lease, whether or not the members have agreed on them."""
        request = b"\x08" + varint(lease)
        needle = b"\x4a" + bytes((len(request),)) + request
        found = set()
        for record in self._records(_ENTRY, needle):
            entry = dict(fields(record))
            raft = dict(fields(bytes_of(entry[4])))
            if raft.get(9) == request:
                header = dict(fields(bytes_of(raft.get(100, b""))))
                user = bytes_of(header.get(2, b"")).decode()
                proposer = number(header.get(1, 0)) >> 48
                found.add(Revocation(number(entry[2]), number(entry[3]), proposer, user))
        return found

    def _records(self, kind: bytes, needle: bytes = b"") -> Iterator[bytes]:
        """The data of the records of a kind that contain some bytes."""
        for path in self._files:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                at = 0
                while at + 8 < len(view):
                    (frame,) = struct.unpack_from("<q", view, at)
                    if not frame:
                        break  # the rest is not written yet
                    size = frame & _LENGTH
                    begin, end = at + 8, at + 8 + size
                    if view[begin : begin + 2] == kind and view.find(needle, begin, end) >= 0:
                        yield bytes_of(dict(fields(view[begin:end])).get(3, b""))
                    padding = (frame >> 56 & 7) if frame < 0 else 0
                    at = end + padding


class Evidence(NamedTuple):
    """What the logs of a shard's members have of the end of a lease.

    Attributes:
        is_of_former_leader: whether a member that led no more has ended it, and the members have agreed on that.
        text: who has revoked it, for a reader.
    """

    is_of_former_leader: bool
    text: str


def evidence(logs: Sequence[Log], lease: int) -> Evidence:
    """What the logs have of the end of a lease."""
    entries = Counter(entry for log in logs for entry in log.revocations(lease))
    votes: dict[int, Counter[int]] = {}
    for log in logs:
        for term, candidate in log.votes().items():
            votes.setdefault(term, Counter())[candidate] += 1
    guilty, told = False, []
    for entry, members in sorted(entries.items()):
        cast = votes.get(entry.term, Counter())
        guilty = guilty or (2 * members > len(logs) and is_of_former_leader(entry, cast, len(logs)))
        leader = elected(cast, len(logs))
        told.append(
            f"entry {entry.place} of term {entry.term} in {members} of {len(logs)} logs, proposed by "
            f"..{entry.proposer:04x} as {entry.user or 'nobody'}, led by "
            + (f"..{leader & 0xFFFF:04x}" if leader is not None else "nobody knows whom")
        )
    return Evidence(guilty, ", ".join(told) or "not revoked")


def elected(votes: Counter[int], members: int) -> int | None:
    """Who won the votes of so many members; None if that cannot be told."""
    return next((candidate for candidate, count in votes.items() if 2 * count > members), None)


def is_of_former_leader(entry: Revocation, votes: Counter[int], members: int) -> bool:
    """Whether a lessor proposed an entry whose member did not lead in its term.

    Args:
        entry: the entry.
        votes: the votes for each member in the entry's term.
        members: the number of members.
    """
    leader = elected(votes, members)
    return entry.user == LESSOR and leader is not None and leader & 0xFFFF != entry.proposer


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message that are numbers or bytes; of a damaged message those before the damage."""
    at = 0
    while at < len(message):
        tag, at = _number_at(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _number_at(message, at)
            yield tag >> 3, value
        elif kind == 2:
            size, at = _number_at(message, at)
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            return


def _number_at(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value, at


def varint(value: int) -> bytes:
    """A number as a field has it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(value: int | bytes) -> int:
    """A field that is a number."""
    return value if isinstance(value, int) else 0


def bytes_of(value: int | bytes) -> bytes:
    """A field that is bytes."""
    return value if isinstance(value, bytes) else b""

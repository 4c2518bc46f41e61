"""The words for names, numbers and sizes in sentences for people: the same in all commands, errors and log lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

FEW: Final = 5
"""Names that a sentence has at most; of further names it has the number."""


def says_shard(name: str) -> bool:
    """Whether the word "shard" is part of a shard's name, and need not stand in front of it."""
    return name.lower().startswith("shard")


def shard_called(name: str) -> str:
    """A shard in a sentence: `shard b`, but `shard-1`."""
    return name if says_shard(name) else f"shard {name}"


def shard_quoted(name: str) -> str:
    """A shard where its name comes from a file that may be wrong: `shard "b"`, but `"shard-1"`."""
    return f'"{name}"' if says_shard(name) else f'shard "{name}"'


def shards_quoted(names: Collection[str]) -> str:
    """Several such shards: `shards "a", "b"`, but `"shard-1", "shard-2"`."""
    if len(names) == 1:
        return shard_quoted(*names)
    told = ", ".join(f'"{name}"' for name in names)
    return told if all(map(says_shard, names)) else f"shards {told}"


def both_called(name: str, other: str) -> str:
    """Two shards: `shards a and b`, but `shard-1 and shard-2`."""
    told = f"{name} and {other}"
    return told if says_shard(name) and says_shard(other) else f"shards {told}"


def shards_called(names: Collection[str], most: int | None = None, word: str = "shards") -> str:
    """Several shards in a sentence: `shards a, b`, but `shard-1, shard-2`, and one as `shard_called` has it.

    Those above `most` are told as by `few`; `word` may be "the shards".
    """
    if len(names) == 1:
        return shard_called(*names)
    told = ", ".join(names) if most is None else few(names, most)
    return told if all(map(says_shard, names)) else f"{word} {told}"


_CURES: Final = {
    "connection refused": "nothing listens there: start it, or name the address where it listens",
    "no route to host": "the machine is down or cut off: look at the network, or name another address",
    "name or service not known": "no name server knows that host: write its address, or mend the name",
}


def cured(reason: str) -> str:
    """The reason why a server cannot be reached, with the cure where the reason does not say it."""
    cure = _CURES.get(reason.lower())
    return reason if cure is None else f"{reason}; {cure}"


def all_cured(reasons: Mapping[str, str]) -> str:
    """The reasons why servers cannot be reached, by the servers' addresses, with each cure once, behind all reasons."""
    told = [f"{address}: {reason}" for address, reason in reasons.items()]
    cures = dict.fromkeys(_CURES[reason.lower()] for reason in reasons.values() if reason.lower() in _CURES)
    return "; ".join([*told, *cures])


def few(names: Collection[str], most: int = FEW) -> str:
    """The names, if they are few; else the first ones and the number of the rest: `a, b, c, d, e and 996 more`."""
    listed = list(names)
    if len(listed) <= most + 1:  # "and 1 more" would be no shorter than the name
        return ", ".join(listed)
    return f"{', '.join(listed[:most])} and {len(listed) - most:,} more"


def counted(count: int, noun: str) -> str:
    """Such as `1 shard`, `2 shards`, `1,000 proxies`."""
    if count == 1:
        return f"1 {noun}"
    many = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{count:,} {many}"


def was(count: int) -> str:
    """The verb for so many things: `was` or `were`."""
    return "was" if count == 1 else "were"


def size_of(size: float) -> str:
    """The size in decimal units with at least two digits, as etcdctl prints sizes: `20 kB`, `2.1 GB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.1f} {unit}" if amount < 9.95 and unit != "B" else f"{amount:.0f} {unit}"

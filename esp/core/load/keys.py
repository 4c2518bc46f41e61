"""Keys for a load: below prefixes of their own, so that nothing else is written or deleted, and spread over shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from esp.core.config import Config
from esp.core.keys import KeyRange, prefix_end
from esp.core.wording import shard_called

FOLDER: Final = b"esp-bench/"


class NoKeysError(Exception):
    """A shard owns no range in which a load may write; the text is for people."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run, as clients see them.

    Attributes:
        prefixes: each key begins with one of them; none but these keys do.
        shards: the shard of each prefix; "" if that is not known.
    """

    prefixes: Sequence[bytes]
    shards: Sequence[str]

    def first(self, count: int) -> list[bytes]:
        """So many keys, in turns below each prefix."""
        return [b"%s%08d" % (self.prefixes[number % len(self.prefixes)], number) for number in range(count)]


def keys_in(run: str, prefix: bytes = b"") -> Keys:
    """Keys below one prefix; `run` tells this run from others."""
    return Keys([prefix + FOLDER + run.encode() + b"/"], [""])


def spread_over(config: Config, names: Sequence[str], run: str) -> Keys:
    """Keys in each of these shards.

    Raises:
        NoKeysError: a shard owns no range in which keys may be written: what lies below the prefix of a kube-apiserver
            is left alone, since an apiserver cannot read such values.
    """
    return Keys([_prefix(config, name, run) for name in names], names)


def _prefix(config: Config, name: str, run: str) -> bytes:
    namespace = config.namespace
    before = b"" if namespace is None else namespace.prefix
    for owned in config.shard_map.ranges_of(name):
        part = owned if namespace is None else owned.intersect(namespace.keys)
        if part is None:
            continue
        start = part.start[len(before) :] if part.start.startswith(before) else b""
        for between in (b"", b"\0"):
            prefix = start + between + FOLDER + run.encode() + b"/"
            wanted = KeyRange(before + prefix, prefix_end(before + prefix))
            inside = part.intersect(wanted) == wanted
            if inside and not any((before + prefix).startswith(root) for root in config.apiserver_roots):
                return prefix
    raise NoKeysError(
        f"{shard_called(name)} owns no range in which esp bench may write: all belong to a kube-apiserver, or to "
        "another namespace; name other shards with --shard"
    )

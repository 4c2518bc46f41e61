"""The member id and cluster id of answers that no single shard can give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids under which esp answers for all shards together: unsigned, 64 bits, never 0."""

    cluster_id: int
    member_id: int

    @classmethod
    def of(cls, shard_names: Iterable[str]) -> Identity:
        """The ids for these shards: the same in each proxy in front of them, in whatever order they are listed."""
        digest = hashlib.sha256(json.dumps(sorted(shard_names)).encode()).digest()
        return cls(int.from_bytes(digest[:8]) or 1, int.from_bytes(digest[8:16]) or 1)

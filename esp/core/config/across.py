"""Requests over several shards: the `across_shards` and the `compaction` of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esp.core.config.ranges import RangeFields
from esp.core.config.yaml_lines import Place
from esp.core.keys import KeyRange
from esp.core.kubernetes import COMPACT_KEY
from esp.core.namespace import Namespace


@dataclass(frozen=True, slots=True)
class AcrossShards:
    """The requests over several shards that esp refuses although it could serve them: Range, DeleteRange, Watch, reads.

    Attributes:
        refused: requests whose keys in one of these ranges belong to several shards are refused.
        protects_kubernetes: requests inside a resource of a kube-apiserver that is at work here are refused as well.
    """

    refused: tuple[KeyRange, ...] = ()
    protects_kubernetes: bool = True


@dataclass(frozen=True, slots=True)
class Compaction:
    """The meaning of a plain revision in a Compact over several shards.

    Attributes:
        key: the revision counts in the shard that owns this key; with None, plain revisions are refused.
        takes_any: any revision is accepted; else only the value of the key, where kube-apiserver's compactor leaves it.
    """

    key: bytes | None = COMPACT_KEY
    takes_any: bool = False


_ACROSS_SHARDS = {
    "auto": AcrossShards(),
    "serve": AcrossShards(protects_kubernetes=False),
    "refuse": AcrossShards((KeyRange(b"", None),)),
}


def across_shards_of(value: str | dict[str, Any], fields: RangeFields) -> AcrossShards:
    """The value of a file's `across_shards`.

    Raises:
        LineError: the value is none.
    """
    if isinstance(value, str) and value in _ACROSS_SHARDS:
        return _ACROSS_SHARDS[value]
    ranges = value.get("refuse") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(ranges, list) or not ranges:
        told = f'"{value}"' if isinstance(value, str) else "a mapping of another form"
        cure = "write auto, serve, refuse or {refuse: [PREFIX, ...]}"
        fields.fail(("across_shards",), f'"across_shards" is {told}; {cure}')
    place: Place = ("across_shards", "refuse")
    subject = '"across_shards"'
    return AcrossShards(tuple(fields.range_or_prefix_at(one, (*place, n), subject) for n, one in enumerate(ranges)))


def compaction_of(value: str | dict[str, Any], namespace: Namespace | None, fields: RangeFields) -> Compaction:
    """The value of a file's `compaction`.

    Raises:
        LineError: the value is none.
    """
    if value == "refuse":
        return Compaction(None)
    if isinstance(value, dict) and list(value) == ["revisions_of"]:
        place: Place = ("compaction", "revisions_of")
        return Compaction(fields.key_at(value["revisions_of"], place, '"compaction"'), takes_any=True)
    if value != "kubernetes":
        told = f'"{value}"' if isinstance(value, str) else "a mapping of another form"
        fields.fail(("compaction",), f'"compaction" is {told}; write kubernetes, refuse or {{revisions_of: KEY}}')
    return Compaction(namespace.key(COMPACT_KEY) if namespace else COMPACT_KEY)

"""Plain values: the answers of the shards' endpoints, and findings about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from esp.core.config import Endpoint
from esp.core.keys import KeyRange
from esp.core.wire.status import Status


@dataclass(frozen=True, slots=True)
class Member:
    """A member's own account. Ids are etcd's; `leader_id` is 0 when the member knows none; `db_size` is in bytes."""

    cluster_id: int
    member_id: int
    leader_id: int
    is_learner: bool
    version: str
    db_size: int
    revision: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm raised in a cluster, such as NOSPACE, and the member that has it."""

    member_id: int
    name: str


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """One endpoint.

    Attributes:
        reachable: the endpoint speaks HTTP/2, whatever its answers are.
        latency: seconds that its Status took, without connecting; None without an answer.
        member: the member's own account; None without one.
        alarms: all alarms of its cluster; None without an answer.
        refusal: the reason why `member` or `alarms` is missing: why the endpoint is unreachable, or the status of its
            answer.
    """

    endpoint: Endpoint
    reachable: bool
    latency: float | None = None
    member: Member | None = None
    alarms: tuple[Alarm, ...] | None = None
    refusal: Status | None = None


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """One shard: the ranges it owns, in key order, and its endpoints in the order of the config."""

    name: str
    ranges: tuple[KeyRange, ...]
    endpoints: tuple[EndpointHealth, ...]


@dataclass(frozen=True, slots=True)
class Stray:
    """The stray keys of one range: their number, the shard that owns the range, and the first few of them."""

    range: KeyRange
    owner: str
    count: int
    samples: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """The keys of one shard, as far as it tells.

    Attributes:
        owned: the number of keys that the shard holds and owns; None if unknown.
        strays: the ranges with stray keys, in key order; None if unknown.
        refusal: why something is unknown; "" if all is known.
    """

    owned: int | None = None
    strays: tuple[Stray, ...] | None = None
    refusal: str = ""


class Kind(StrEnum):
    """The kind of a finding. The names are part of the JSON form: there may be new names, but none changes."""

    UNREACHABLE = "unreachable"
    NO_ANSWER = "no-answer"
    NO_ETCD = "no-etcd"
    NO_LEADER = "no-leader"
    LEARNER = "learner"
    ALARM = "alarm"
    SEVERAL_CLUSTERS = "several-clusters"
    SAME_CLUSTER = "same-cluster"
    AUTH = "auth"
    OLD_VERSION = "old-version"
    MIXED_VERSIONS = "mixed-versions"
    KUBERNETES = "kubernetes"
    ACCOUNTS = "accounts"
    CERTIFICATE = "certificate"
    STRAY_KEYS = "stray-keys"
    KEYS_UNKNOWN = "keys-unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding, as a clause for people.

    Attributes:
        shards: the shards that it is about; none if it is about esp itself.
        endpoint: None if it concerns several endpoints.
    """

    kind: Kind
    shards: tuple[str, ...]
    endpoint: Endpoint | None
    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """All shards in the order of the config; problems need mending, notes do not.

    `keys` has the keys of each shard, by name; None if nobody asked for them.
    """

    shards: tuple[ShardHealth, ...]
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    keys: Mapping[str, ShardKeys] | None = None

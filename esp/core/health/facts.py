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
    """A member's own account.

    Attributes:
        cluster_id, member_id: etcd's ids.
        leader_id: the leader's id; 0 if the member knows none.
        is_learner: whether the member has no vote yet.
        version: etcd's version.
        db_size: the bytes of its file.
        revision: of its store.
        db_in_use: the bytes of the file that are in use; None if it does not tell.
        raft_term, raft_index: of the last entry of its log.
        raft_applied: the last entry that its store has; None if it does not tell.
        errors: its own complaints, such as alarms.
    """

    cluster_id: int
    member_id: int
    leader_id: int
    is_learner: bool
    version: str
    db_size: int
    revision: int
    db_in_use: int | None = None
    raft_term: int = 0
    raft_index: int = 0
    raft_applied: int | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """A member in its cluster's own list; without a name while it has never started."""

    member_id: int
    name: str
    client_urls: tuple[str, ...]
    peer_urls: tuple[str, ...]
    is_learner: bool


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm raised in a cluster, such as NOSPACE, and the member that has it."""

    member_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Clock:
    """By how many seconds a member's clock is ahead of this machine's: at least `low`, at most `high`.

    The two are at least a second apart, because a member tells whole seconds only.
    """

    low: float
    high: float


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
        members: the members of its cluster, as the member has them; None without an answer.
        round_trips: seconds that each of a few further Status calls took, from the lowest up.
        quota: the bytes to which the member's file may grow; None if unknown.
        clock: the difference of the clocks; None if unknown.
        certificate_ends: when the member's certificate ends, in seconds since 1970; None without TLS.
    """

    endpoint: Endpoint
    reachable: bool
    latency: float | None = None
    member: Member | None = None
    alarms: tuple[Alarm, ...] | None = None
    refusal: Status | None = None
    members: tuple[Listed, ...] | None = None
    round_trips: tuple[float, ...] = ()
    quota: int | None = None
    clock: Clock | None = None
    certificate_ends: float | None = None

    def round_trip(self, share: float) -> float | None:
        """Seconds that so large a share of the round trips took at most; None without any."""
        if not self.round_trips:
            return None
        return self.round_trips[min(len(self.round_trips) - 1, int(share * len(self.round_trips)))]


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A member of a shard's cluster that is not among the shard's endpoints.

    Attributes:
        member: the member.
        found: the answers at one of its client URLs; None if none was asked.
        trouble: why it could not be asked, or does not live; "" if it lives.
    """

    member: Listed
    found: EndpointHealth | None
    trouble: str


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """One shard: the ranges it owns, in key order, and its endpoints in the order of the config.

    `unlisted` are the members of its cluster that are not among the endpoints.
    """

    name: str
    ranges: tuple[KeyRange, ...]
    endpoints: tuple[EndpointHealth, ...]
    unlisted: tuple[Unlisted, ...] = ()


@dataclass(frozen=True, slots=True)
class Stray:
    """The stray keys of one range: their number, the shard that owns the range, and the first few of them.

    Attributes:
        is_left: a move (`esp move`) may have left the keys there, carried out or given up.
    """

    range: KeyRange
    owner: str
    count: int
    samples: tuple[bytes, ...] = ()
    is_left: bool = False


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


@dataclass(frozen=True, slots=True)
class Sample:
    """A key that was read through a proxy.

    Attributes:
        key: the key, as the shards have it.
        owner: the shard that owns it by the config.
        answered: the shard that answered, by the id of its cluster; "" if that is no shard's of the config.
        error: why the read failed; "" if it did not.
    """

    key: bytes
    owner: str
    answered: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ProxyHealth:
    """A running proxy, as a stock client sees it; None stands for an unknown value.

    Attributes:
        endpoint: its address.
        error: why it cannot be used; "" if it can.
        latency: seconds that a Status through it took.
        esp: the version of the proxy; None if no esp is there.
        map: the fingerprint of its shard map.
        epoch: the number of its layout.
        samples: the keys that were read through it.
        untried: the number of shards of which no key was tried: they cannot be told from others now.
        map_in: where its map is: "shards", or None for its file.
    """

    endpoint: Endpoint
    error: str = ""
    latency: float | None = None
    esp: str | None = None
    map: str | None = None
    epoch: str | None = None
    samples: tuple[Sample, ...] = ()
    untried: int = 0
    map_in: str | None = None


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
    UNLISTED_MEMBER = "unlisted-member"
    DEAD_MEMBER = "dead-member"
    SAME_MEMBER = "same-member"
    SINGLE_ENDPOINT = "single-endpoint"
    LOSSY_VERSION = "lossy-version"
    VERSION_SKEW = "version-skew"
    CLOCK = "clock"
    QUOTA = "quota"
    DEFRAGMENT = "defragment"
    RAFT_LAG = "raft-lag"
    MAP = "map"
    LEASES = "leases"
    AUTH_ON = "auth-on"
    PROXY_UNREACHABLE = "proxy-unreachable"
    PROXY_NO_ESP = "proxy-no-esp"
    PROXY_MAP = "proxy-map"
    PROXY_ROUTE = "proxy-route"
    PROXY_VERSION = "proxy-version"
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

    `keys` has the keys of each shard, by name, and `proxies` the running proxies; None if nobody asked for them.
    """

    shards: tuple[ShardHealth, ...]
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    keys: Mapping[str, ShardKeys] | None = None
    proxies: tuple[ProxyHealth, ...] | None = None

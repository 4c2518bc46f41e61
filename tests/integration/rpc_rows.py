"""What clients call, RPC by RPC. test_compatibility.py calls it, and docs/compatibility.md shows what came.

Keys of a rig: `a`, `b` in the first shard, `j` in the second, `z` in the third; a boundary divides the keys under `i/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from esp.core.pb import auth_pb2, health_pb2, reflection_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from tests.harness import EVERYTHING
from tests.integration.talk import Talk

EXACT: Final = "exact"
NOT_ATOMIC: Final = "exact, not atomic"
REFUSED: Final = "refused"
COMPACTED: Final = "compacted"
OWN: Final = "esp's own"
CURE: Final = "unimplemented"
ABSENT: Final = "not in etcd"
WORDS: Final = {
    EXACT: "the answers are an etcd's; over several shards revisions are tokens, or each shard's own",
    NOT_ATOMIC: "the same, but each shard does its part at its own moment",
    REFUSED: "FailedPrecondition; the text begins with `esp: `, and names the shards, the boundary and the cure",
    COMPACTED: "the answer is that of a compacted revision: the client lists again",
    OWN: "an answer about the proxy, or made of all shards' answers",
    CURE: "Unimplemented; the text begins with `esp: `, and says how to ask a shard itself",
    ABSENT: "Unimplemented; this version of etcd itself answers so",
}
"""The words of docs/compatibility.md."""


class Row(NamedTuple):
    """A way to use an RPC.

    Attributes:
        rpc: service and method.
        several: what comes over several shards.
        calls: makes the calls.
        case: what is asked, if not all uses of the RPC have the same outcome.
        see: where the docs say more: a page and its section.
        one: what comes over one shard, if not the shard's own answer.
    """

    rpc: str
    several: str
    calls: Callable[[Talk], object]
    case: str = ""
    see: str = ""
    one: str = ""

    @property
    def title(self) -> str:
        return f"{self.rpc} {self.case}".strip()


KV, LEASE, MAINTENANCE = "etcdserverpb.KV", "etcdserverpb.Lease", "etcdserverpb.Maintenance"
AUTH, CLUSTER, WATCH = "etcdserverpb.Auth", "etcdserverpb.Cluster", "etcdserverpb.Watch"
LOCK, ELECTION, HEALTH = "v3lockpb.Lock", "v3electionpb.Election", "grpc.health.v1.Health"

Range, Put, Delete, Txn = rpc_pb2.RangeRequest, rpc_pb2.PutRequest, rpc_pb2.DeleteRangeRequest, rpc_pb2.TxnRequest
Op = rpc_pb2.RequestOp
GRANT: Final = rpc_pb2.LeaseGrantRequest(ID=77, TTL=1000)


# KV.


def range_in_one(t: Talk) -> None:
    for request in (
        Range(key=b"a"), Range(key=b"nothing"), Range(key=b"a", range_end=b"c", limit=1), Range(),
        Range(key=b"a", revision=t.revision()), Range(key=b"a", revision=10**9), Range(key=b"a", keys_only=True),
        Range(key=b"a", range_end=b"c", sort_order=Range.DESCEND, sort_target=Range.MOD),
    ):  # fmt: skip
        t.ask(f"{KV}/Range", request)


def range_over_several(t: Talk) -> None:
    for request in (
        Range(**EVERYTHING), Range(limit=3, **EVERYTHING), Range(count_only=True, **EVERYTHING),
        Range(serializable=True, **EVERYTHING), Range(keys_only=True, **EVERYTHING),
        Range(sort_order=Range.DESCEND, sort_target=Range.VALUE, **EVERYTHING),
        Range(sort_order=Range.ASCEND, sort_target=Range.VERSION, limit=2, **EVERYTHING),
    ):  # fmt: skip
        t.ask(f"{KV}/Range", request)


def range_at_a_token(t: Talk) -> None:
    at = t.quietly(f"{KV}/Range", Range(**EVERYTHING)).header.revision
    for key in (b"a", b"z"):
        t.quietly(f"{KV}/Put", Put(key=key, value=b"later"))
    t.ask(f"{KV}/Range", Range(revision=at, **EVERYTHING))
    t.ask(f"{KV}/Range", Range(key=b"z", revision=at))


def stream(*requests: rpc_pb2.RangeRequest) -> Callable[[Talk], None]:
    def calls(t: Talk) -> None:
        for request in requests:
            t.stream(f"{KV}/RangeStream", request)

    return calls


def put(t: Talk) -> None:
    t.quietly(f"{LEASE}/LeaseGrant", GRANT)
    for request in (
        Put(key=b"a", value=b"x", prev_kv=True), Put(key=b"z", value=b"x", lease=77), Put(key=b"z", ignore_value=True),
        Put(key=b"z", ignore_lease=True, value=b"y"), Put(key=b"a", lease=78), Put(), Put(key=b"no", ignore_value=True),
    ):  # fmt: skip
        t.ask(f"{KV}/Put", request)
    t.ask(f"{KV}/Range", Range(**EVERYTHING))


def delete_in_one(t: Talk) -> None:
    for request in (Delete(key=b"a", range_end=b"c", prev_kv=True), Delete(key=b"nothing"), Delete(key=b"j"), Delete()):
        t.ask(f"{KV}/DeleteRange", request)


def delete_over_several(t: Talk) -> None:
    t.ask(f"{KV}/DeleteRange", Delete(key=b"b", range_end=b"\0", prev_kv=True))
    t.ask(f"{KV}/Range", Range(**EVERYTHING))
    t.ask(f"{KV}/DeleteRange", Delete(**EVERYTHING))


def txn_in_one(t: Talk) -> None:
    compare = rpc_pb2.Compare(result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.VALUE, key=b"a", value=b"1")
    request = Txn(
        compare=[compare],
        success=[Op(request_put=Put(key=b"a", value=b"2")), Op(request_range=Range(key=b"a", range_end=b"c"))],
        failure=[Op(request_delete_range=Delete(key=b"b", prev_kv=True)), Op(request_txn=Txn())],
    )
    t.ask(f"{KV}/Txn", request)
    t.ask(f"{KV}/Txn", request)
    t.ask(f"{KV}/Txn", Txn(success=[Op(request_put=Put(key=b"a")), Op(request_put=Put(key=b"a"))]))
    t.ask(f"{KV}/Txn", Txn(success=[Op(request_put=Put())]))
    t.ask(f"{KV}/Txn", Txn())


READ_ALL: Final = Txn(success=[Op(request_range=Range(**EVERYTHING)), Op(request_range=Range(key=b"z"))])
WRITE_ALL: Final = Txn(success=[Op(request_put=Put(key=b"a")), Op(request_put=Put(key=b"z"))])


def compact_at_a_token(t: Talk) -> None:
    for value in (b"1", b"2"):
        t.quietly(f"{KV}/Put", Put(key=b"a", value=value))
    at = t.quietly(f"{KV}/Range", Range(**EVERYTHING)).header.revision
    t.ask(f"{KV}/Compact", rpc_pb2.CompactionRequest(revision=at, physical=True))
    t.ask(f"{KV}/Compact", rpc_pb2.CompactionRequest(revision=at))


# Watch.


def watch_in_one(t: Talk) -> None:
    at = t.revision()
    for value in (b"x", b"y"):
        t.quietly(f"{KV}/Put", Put(key=b"a", value=value))
    t.watch({"key": b"a", "start_revision": at + 1, "prev_kv": True}, events=2)
    t.watch({"key": b"a", "range_end": b"c", "start_revision": at + 1, "filters": [1]}, events=2)
    t.watch({"key": b"b"}, events=1, then=(b"b", b"live"))
    t.watch({"key": b"b", "watch_id": 5}, events=0)


def watch_over_several(t: Talk) -> None:
    t.watch(dict(EVERYTHING), events=3, then=(b"a", b"j", b"z"))
    t.watch({"prev_kv": True, "watch_id": 5, **EVERYTHING}, events=2, then=(b"a", b"z"))


def watch_from_a_token(t: Talk) -> None:
    at = t.quietly(f"{KV}/Range", Range(**EVERYTHING)).header.revision
    for key in (b"a", b"z", b"j"):
        t.quietly(f"{KV}/Put", Put(key=key, value=b"later"))
    t.watch({"start_revision": at + 1, **EVERYTHING}, events=3)


def watch_from_a_plain_revision(t: Talk) -> None:
    at = t.revision()
    t.quietly(f"{KV}/Put", Put(key=b"a", value=b"later"))
    t.watch({"start_revision": at + 1, **EVERYTHING}, events=1)


# Leases.


def leases(rpc: str) -> Callable[[Talk], None]:
    """Shows `rpc` in the life of a lease with keys in every shard."""

    def calls(t: Talk) -> None:
        say = {name: t.ask if name == rpc else t.quietly for name in ("LeaseGrant", "LeaseTimeToLive", "LeaseRevoke")}
        say["LeaseLeases"] = t.ask if rpc == "LeaseLeases" else t.quietly
        alive = t.keepalive if rpc == "LeaseKeepAlive" else lambda *_: None
        say["LeaseGrant"](f"{LEASE}/LeaseGrant", GRANT)
        say["LeaseGrant"](f"{LEASE}/LeaseGrant", GRANT)
        say["LeaseGrant"](f"{LEASE}/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=10**10))
        for key in (b"a", b"j", b"z"):
            t.quietly(f"{KV}/Put", Put(key=key, lease=77))
        alive(77, 78, 77)
        for request in ({"ID": 77}, {"ID": 77, "keys": True}, {"ID": 78}):
            say["LeaseTimeToLive"](f"{LEASE}/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(**request))
        say["LeaseLeases"](f"{LEASE}/LeaseLeases", rpc_pb2.LeaseLeasesRequest())
        for _ in range(2):
            say["LeaseRevoke"](f"{LEASE}/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=77))
        if rpc == "LeaseRevoke":
            t.ask(f"{KV}/Range", Range(**EVERYTHING))
        alive(77)
        say["LeaseLeases"](f"{LEASE}/LeaseLeases", rpc_pb2.LeaseLeasesRequest())

    return calls


# Users and roles.

GIVEN: Final = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"a", range_end=b"k")
ACCOUNTS: Final = (
    ("AuthStatus", rpc_pb2.AuthStatusRequest()),
    ("AuthEnable", rpc_pb2.AuthEnableRequest()),
    ("UserAdd", rpc_pb2.AuthUserAddRequest(name="root", password="pw")),
    ("UserAdd", rpc_pb2.AuthUserAddRequest(name="root", password="pw")),
    ("UserAdd", rpc_pb2.AuthUserAddRequest(name="ann", options={"no_password": True})),
    ("UserChangePassword", rpc_pb2.AuthUserChangePasswordRequest(name="ann", password="x")),
    ("UserChangePassword", rpc_pb2.AuthUserChangePasswordRequest(name="bob", password="x")),
    ("UserChangePassword", rpc_pb2.AuthUserChangePasswordRequest(name="root", password="pw")),
    ("RoleAdd", rpc_pb2.AuthRoleAddRequest(name="root")),
    ("RoleAdd", rpc_pb2.AuthRoleAddRequest(name="part")),
    ("RoleAdd", rpc_pb2.AuthRoleAddRequest(name="part")),
    ("RoleGrantPermission", rpc_pb2.AuthRoleGrantPermissionRequest(name="part", perm=GIVEN)),
    ("RoleGrantPermission", rpc_pb2.AuthRoleGrantPermissionRequest(name="no", perm=GIVEN)),
    ("UserGrantRole", rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root")),
    ("UserGrantRole", rpc_pb2.AuthUserGrantRoleRequest(user="ann", role="part")),
    ("UserGrantRole", rpc_pb2.AuthUserGrantRoleRequest(user="ann", role="no")),
    ("UserList", rpc_pb2.AuthUserListRequest()),
    ("UserGet", rpc_pb2.AuthUserGetRequest(name="ann")),
    ("UserGet", rpc_pb2.AuthUserGetRequest(name="bob")),
    ("RoleList", rpc_pb2.AuthRoleListRequest()),
    ("RoleGet", rpc_pb2.AuthRoleGetRequest(role="part")),
    ("RoleGet", rpc_pb2.AuthRoleGetRequest(role="no")),
    ("Authenticate", rpc_pb2.AuthenticateRequest(name="root", password="pw")),
    ("AuthDisable", rpc_pb2.AuthDisableRequest()),
    ("AuthEnable", rpc_pb2.AuthEnableRequest()),
    ("Authenticate", rpc_pb2.AuthenticateRequest(name="root", password="no")),
    ("Authenticate", rpc_pb2.AuthenticateRequest(name="bob", password="no")),
    ("Authenticate", rpc_pb2.AuthenticateRequest(name="root", password="pw")),  # the calls below have its token
    ("AuthEnable", rpc_pb2.AuthEnableRequest()),
    ("AuthStatus", rpc_pb2.AuthStatusRequest()),
    ("UserDelete", rpc_pb2.AuthUserDeleteRequest(name="root")),
    ("AuthDisable", rpc_pb2.AuthDisableRequest()),
    ("UserRevokeRole", rpc_pb2.AuthUserRevokeRoleRequest(name="ann", role="part")),
    ("UserRevokeRole", rpc_pb2.AuthUserRevokeRoleRequest(name="ann", role="part")),
    ("RoleRevokePermission", rpc_pb2.AuthRoleRevokePermissionRequest(role="part", key=b"a", range_end=b"k")),
    ("RoleRevokePermission", rpc_pb2.AuthRoleRevokePermissionRequest(role="part", key=b"a", range_end=b"k")),
    ("RoleDelete", rpc_pb2.AuthRoleDeleteRequest(role="part")),
    ("RoleDelete", rpc_pb2.AuthRoleDeleteRequest(role="part")),
    ("UserDelete", rpc_pb2.AuthUserDeleteRequest(name="ann")),
    ("UserDelete", rpc_pb2.AuthUserDeleteRequest(name="ann")),
)  # fmt: skip


def accounts(rpc: str) -> Callable[[Talk], None]:
    """Shows `rpc` in the life of users and roles, from none to none."""

    def calls(t: Talk) -> None:
        for name, request in ACCOUNTS:
            answer = (t.ask if name == rpc else t.quietly)(f"{AUTH}/{name}", request)
            if token := getattr(answer, "token", ""):
                t.token = token
            if name == "AuthDisable":
                t.token = ""

    return calls


# Locks and elections.


def locks(t: Talk) -> None:
    t.quietly(f"{LEASE}/LeaseGrant", GRANT)
    for name in (b"a", b"z"):
        t.ask(f"{LOCK}/Lock", v3lock_pb2.LockRequest(name=name, lease=77))
    t.ask(f"{LOCK}/Lock", v3lock_pb2.LockRequest(name=b"a", lease=78))


def unlock(t: Talk) -> None:
    t.quietly(f"{LEASE}/LeaseGrant", GRANT)
    t.quietly(f"{LOCK}/Lock", v3lock_pb2.LockRequest(name=b"z", lease=77))
    for _ in range(2):
        t.ask(f"{LOCK}/Unlock", v3lock_pb2.UnlockRequest(key=b"z/4d"))
    t.ask(f"{KV}/Range", Range(**EVERYTHING))


def elections(rpc: str) -> Callable[[Talk], None]:
    def calls(t: Talk) -> None:
        say = {name: t.ask if name == rpc else t.quietly for name in ("Campaign", "Proclaim", "Leader", "Resign")}
        t.quietly(f"{LEASE}/LeaseGrant", GRANT)
        say["Leader"](f"{ELECTION}/Leader", v3election_pb2.LeaderRequest(name=b"z"))
        request = v3election_pb2.CampaignRequest(name=b"z", lease=77, value=b"me")
        leader = say["Campaign"](f"{ELECTION}/Campaign", request).leader
        say["Proclaim"](f"{ELECTION}/Proclaim", v3election_pb2.ProclaimRequest(leader=leader, value=b"still"))
        say["Proclaim"](f"{ELECTION}/Proclaim", v3election_pb2.ProclaimRequest(value=b"still"))
        say["Leader"](f"{ELECTION}/Leader", v3election_pb2.LeaderRequest(name=b"z"))
        if rpc == "Observe":
            t.stream(f"{ELECTION}/Observe", v3election_pb2.LeaderRequest(name=b"z"), first=1)
        say["Resign"](f"{ELECTION}/Resign", v3election_pb2.ResignRequest(leader=leader))
        say["Leader"](f"{ELECTION}/Leader", v3election_pb2.LeaderRequest(name=b"z"))

    return calls


def divided(rpc: str, request: object) -> Callable[[Talk], None]:
    def calls(t: Talk) -> None:
        t.quietly(f"{LEASE}/LeaseGrant", GRANT)
        t.ask(rpc, request)

    return calls


# Cluster and Maintenance.


def member_add(t: Talk) -> None:
    answer = t.ask(f"{CLUSTER}/MemberAdd", rpc_pb2.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True))
    if answer:
        t.quietly(f"{CLUSTER}/MemberRemove", rpc_pb2.MemberRemoveRequest(ID=answer.member.ID))


def one_member(rpc: str, **more: object) -> Callable[[Talk], object]:
    request = getattr(rpc_pb2, f"{rpc}Request")(ID=1234, **more)
    return lambda t: t.ask(f"{CLUSTER}/{rpc}", request)


def maintenance(rpc: str, *requests: object) -> Callable[[Talk], object]:
    return lambda t: [t.ask(f"{MAINTENANCE}/{rpc}", request) for request in requests]


Alarm = rpc_pb2.AlarmRequest
Check = health_pb2.HealthCheckRequest


def reflect(version: str) -> Callable[[Talk], object]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return lambda t: t.stream(f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", request, first=1)


_CONSISTENCY, _ERRORS, _AUTH = "consistency.md", "errors.md", "auth.md"
_ONE_CLUSTER: Final = f"{_ERRORS}#maintenance-and-cluster"

ROWS: Final = (
    Row(f"{KV}/Range", EXACT, range_in_one, "inside one shard"),
    Row(f"{KV}/Range", EXACT, range_over_several, "over several", f"{_CONSISTENCY}#reads"),
    Row(f"{KV}/Range", EXACT, range_at_a_token, "at the revision of an answer", f"{_CONSISTENCY}#tokens"),
    Row(
        f"{KV}/Range", REFUSED, lambda t: t.ask(f"{KV}/Range", Range(revision=t.revision(), **EVERYTHING)),
        "over several, at a plain revision", f"{_CONSISTENCY}#plain-revisions",
    ),
    Row(
        f"{KV}/Range", REFUSED, lambda t: [
            t.ask(f"{KV}/Range", Range(min_mod_revision=1, **EVERYTHING)),
            t.ask(f"{KV}/Range", Range(sort_order=Range.ASCEND, sort_target=Range.CREATE, **EVERYTHING)),
        ],
        "over several, filtered or sorted by revision", f"{_CONSISTENCY}#what-esp-refuses-and-how",
    ),
    Row(f"{KV}/RangeStream", EXACT, stream(Range(key=b"a", range_end=b"c"), Range(key=b"z")), "inside one shard"),
    Row(f"{KV}/RangeStream", EXACT, stream(Range(**EVERYTHING), Range(limit=2, **EVERYTHING)), "over several"),
    Row(f"{KV}/Put", EXACT, put),
    Row(f"{KV}/DeleteRange", EXACT, delete_in_one, "inside one shard"),
    Row(f"{KV}/DeleteRange", NOT_ATOMIC, delete_over_several, "over several", f"{_CONSISTENCY}#writes"),
    Row(f"{KV}/Txn", EXACT, txn_in_one, "inside one shard"),
    Row(
        f"{KV}/Txn", EXACT, lambda t: t.ask(f"{KV}/Txn", READ_ALL), "over several, if it only reads",
        f"{_CONSISTENCY}#reads",
    ),
    Row(f"{KV}/Txn", REFUSED, lambda t: t.ask(f"{KV}/Txn", WRITE_ALL), "over several", f"{_CONSISTENCY}#writes"),
    Row(
        f"{KV}/Compact", NOT_ATOMIC, compact_at_a_token, "at the revision of an answer over all shards",
        f"{_CONSISTENCY}#compaction",
    ),
    Row(
        f"{KV}/Compact", REFUSED,
        lambda t: t.ask(f"{KV}/Compact", rpc_pb2.CompactionRequest(revision=t.revision())),
        "at a plain revision that is not kube-apiserver's", f"{_CONSISTENCY}#compaction",
    ),
    Row(f"{WATCH}/Watch", EXACT, watch_in_one, "inside one shard"),
    Row(f"{WATCH}/Watch", EXACT, watch_over_several, "over several, from now on", f"{_CONSISTENCY}#watches"),
    Row(f"{WATCH}/Watch", EXACT, watch_from_a_token, "over several, from an answer", f"{_CONSISTENCY}#watches"),
    Row(
        f"{WATCH}/Watch", COMPACTED, watch_from_a_plain_revision, "over several, from a plain revision",
        f"{_CONSISTENCY}#plain-revisions",
    ),
    Row(f"{LEASE}/LeaseGrant", NOT_ATOMIC, leases("LeaseGrant"), see=f"{_ERRORS}#leases"),
    Row(f"{LEASE}/LeaseRevoke", NOT_ATOMIC, leases("LeaseRevoke"), see=f"{_ERRORS}#leases"),
    *(
        Row(f"{LEASE}/{rpc}", EXACT, leases(rpc), see=f"{_ERRORS}#leases")
        for rpc in ("LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases")
    ),
    *(
        Row(f"{AUTH}/{rpc}", EXACT, accounts(rpc), see=f"{_AUTH}#users-and-roles")
        for rpc in ("AuthStatus", "Authenticate", "UserGet", "UserList", "RoleGet", "RoleList")
    ),
    *(
        Row(f"{AUTH}/{rpc}", NOT_ATOMIC, accounts(rpc), see=f"{_AUTH}#users-and-roles")
        for rpc in (
            "AuthEnable", "AuthDisable", "UserAdd", "UserDelete", "UserChangePassword", "UserGrantRole",
            "UserRevokeRole", "RoleAdd", "RoleDelete", "RoleGrantPermission", "RoleRevokePermission",
        )
    ),
    Row(f"{CLUSTER}/MemberList", OWN, lambda t: t.ask(f"{CLUSTER}/MemberList", rpc_pb2.MemberListRequest())),
    Row(f"{CLUSTER}/MemberAdd", CURE, member_add, see=_ONE_CLUSTER),
    Row(f"{CLUSTER}/MemberRemove", CURE, one_member("MemberRemove"), see=_ONE_CLUSTER),
    Row(f"{CLUSTER}/MemberUpdate", CURE, one_member("MemberUpdate", peerURLs=["http://127.0.0.1:1"]), see=_ONE_CLUSTER),
    Row(f"{CLUSTER}/MemberPromote", CURE, one_member("MemberPromote"), see=_ONE_CLUSTER),
    Row(
        f"{MAINTENANCE}/Alarm", EXACT,
        maintenance("Alarm", Alarm(), Alarm(action=Alarm.DEACTIVATE, memberID=5, alarm=rpc_pb2.NOSPACE)),
        "list and disarm", _ONE_CLUSTER,
    ),
    Row(
        f"{MAINTENANCE}/Alarm", CURE, lambda t: t.alarm(memberID=5, alarm=rpc_pb2.NOSPACE),
        "raise", _ONE_CLUSTER,
    ),
    Row(f"{MAINTENANCE}/Status", OWN, maintenance("Status", rpc_pb2.StatusRequest())),
    Row(f"{MAINTENANCE}/Defragment", CURE, maintenance("Defragment", rpc_pb2.DefragmentRequest()), see=_ONE_CLUSTER),
    Row(f"{MAINTENANCE}/Hash", CURE, maintenance("Hash", rpc_pb2.HashRequest()), see=_ONE_CLUSTER),
    Row(f"{MAINTENANCE}/HashKV", CURE, maintenance("HashKV", rpc_pb2.HashKVRequest()), see=_ONE_CLUSTER),
    Row(
        f"{MAINTENANCE}/Snapshot", CURE, lambda t: t.snapshot(f"{MAINTENANCE}/Snapshot", rpc_pb2.SnapshotRequest()),
        see=_ONE_CLUSTER,
    ),
    Row(
        f"{MAINTENANCE}/MoveLeader", CURE, maintenance("MoveLeader", rpc_pb2.MoveLeaderRequest(targetID=5)),
        see=_ONE_CLUSTER,
    ),
    Row(
        f"{MAINTENANCE}/Downgrade", CURE, maintenance("Downgrade", rpc_pb2.DowngradeRequest(version="3.1.0")),
        see=_ONE_CLUSTER,
    ),
    Row(f"{LOCK}/Lock", EXACT, locks, see=f"{_ERRORS}#locks-and-elections"),
    Row(
        f"{LOCK}/Lock", REFUSED, divided(f"{LOCK}/Lock", v3lock_pb2.LockRequest(name=b"i", lease=77)),
        "a boundary divides the keys under its name", f"{_ERRORS}#locks-and-elections",
    ),
    Row(f"{LOCK}/Unlock", EXACT, unlock),
    *(
        Row(f"{ELECTION}/{rpc}", EXACT, elections(rpc), see=f"{_ERRORS}#locks-and-elections")
        for rpc in ("Campaign", "Proclaim", "Leader", "Observe", "Resign")
    ),
    Row(
        f"{ELECTION}/Campaign", REFUSED,
        divided(f"{ELECTION}/Campaign", v3election_pb2.CampaignRequest(name=b"i", lease=77)),
        "a boundary divides the keys under its name", f"{_ERRORS}#locks-and-elections",
    ),
    Row(f"{HEALTH}/Check", EXACT, lambda t: [t.ask(f"{HEALTH}/Check", Check(service=name)) for name in ("", "no")]),
    Row(f"{HEALTH}/List", EXACT, lambda t: t.ask(f"{HEALTH}/List", health_pb2.HealthListRequest())),
    Row(
        f"{HEALTH}/Watch", EXACT,
        lambda t: [t.stream(f"{HEALTH}/Watch", Check(service=name), first=1) for name in ("", "no")],
    ),
    *(
        Row(f"grpc.reflection.{v}.ServerReflection/ServerReflectionInfo", OWN, reflect(v), one=OWN)
        for v in ("v1", "v1alpha")
    ),
)  # fmt: skip

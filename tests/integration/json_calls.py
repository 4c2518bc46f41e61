"""Requests to each service of a JSON gateway, a path each.

All keys are below "i", so that one shard of three has them; requests that touch more say so. The requests of a group go
in this order to servers that began empty, because some need what others wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.integration.json_case import Case
from tests.integration.json_talk import b64


def _kv() -> Iterator[Case]:
    put, get, delete, txn = "/v3/kv/put", "/v3/kv/range", "/v3/kv/deleterange", "/v3/kv/txn"
    yield Case("put", put, {"key": b64("a1"), "value": b64("one")})
    yield Case("put with prev_kv", put, {"key": b64("a1"), "value": b64("two"), "prev_kv": True})
    yield Case("put without a value", put, {"key": b64("a2")})
    yield Case("put without a key", put, {"value": b64("v")})
    yield Case("put of nothing", put, {})
    yield Case("put of bytes that are no text", put, {"key": b64(b"a\x00\xff\xfe"), "value": b64(bytes(range(256)))})
    yield Case("put ignoring the value", put, {"key": b64("a1"), "ignore_value": True})
    yield Case("put ignoring the value, with one", put, {"key": b64("a1"), "value": b64("x"), "ignore_value": True})
    yield Case("put ignoring the lease of no key", put, {"key": b64("a-none"), "ignore_lease": True})
    yield Case("put with an unknown lease", put, {"key": b64("a1"), "lease": "77"})
    yield Case("put of 2 MB", put, {"key": b64("a1"), "value": b64(b"x" * 2_000_000)})
    yield Case("put of 3 MB", put, {"key": b64("a1"), "value": b64(b"x" * 3_000_000)})
    yield Case("put of 20 kB", put, {"key": b64("a-large"), "value": b64(b"x" * 20_000)})
    yield Case("range", get, {"key": b64("a1")})
    yield Case("range of a key that is not there", get, {"key": b64("a-none")})
    yield Case("range of a prefix", get, {"key": b64("a"), "range_end": b64("b")})
    yield Case("range of an answer of 20 kB", get, {"key": b64("a-large")})
    yield Case("range with a limit", get, {"key": b64("a"), "range_end": b64("b"), "limit": 2})
    yield Case("range, descending", get, {"key": b64("a"), "range_end": b64("b"), "sort_order": "DESCEND"})
    yield Case("range by version", get, {"key": b64("a"), "range_end": b64("b"), "sort_order": 1, "sort_target": 1})
    yield Case("range counted", get, {"key": b64("a"), "range_end": b64("b"), "count_only": True})
    yield Case("range of keys", get, {"key": b64("a"), "range_end": b64("b"), "keys_only": True})
    yield Case("range at a revision", get, {"key": b64("a1"), "revision": "2"})
    yield Case("range at a later revision", get, {"key": b64("a1"), "revision": 999_999})
    yield Case("range at a negative revision", get, {"key": b64("a1"), "revision": -1})
    yield Case("range serializable", get, {"key": b64("a1"), "serializable": True})
    yield Case(
        "range by filters",
        get,
        {"key": b64("a"), "range_end": b64("b"), "min_mod_revision": 3, "max_mod_revision": "4"},
    )
    yield Case("range without a key", get, {"range_end": b64("b")})
    yield Case("range of a wrong sort", get, {"key": b64("a1"), "sort_order": 77})
    yield Case("range the wrong way round", get, {"key": b64("b"), "range_end": b64("a")})
    yield Case("range from a key on", get, {"key": b64("a"), "range_end": b64("\0"), "keys_only": True})
    yield Case("range of everything", get, {"key": b64("\0"), "range_end": b64("\0")})
    equal = {"key": b64("a1"), "target": "VALUE", "result": "EQUAL", "value": b64("two")}
    put_op, get_op = {"request_put": {"key": b64("a1"), "value": b64("3")}}, {"request_range": {"key": b64("a1")}}
    yield Case("txn that succeeds", txn, {"compare": [equal], "success": [put_op, get_op], "failure": [get_op]})
    yield Case("txn that fails", txn, {"compare": [equal], "success": [put_op], "failure": [get_op]})
    yield Case(
        "txn of camel names",
        txn,
        {
            "compare": [{"key": b64("a1"), "target": "MOD", "modRevision": "1"}],
            "success": [{"requestPut": {"key": b64("a1")}}],
            "failure": [{"requestRange": {"key": b64("a1"), "keysOnly": True}}],
        },
    )
    yield Case(
        "txn of etcd's manual",
        txn,
        {
            "compare": [{"target": "CREATE", "key": b64("a1"), "createRevision": "2"}],
            "success": [{"requestPut": {"key": b64("a1"), "value": b64("bar")}}],
        },
    )
    yield Case(
        "txn with a compare of each kind",
        txn,
        {
            "compare": [
                {"key": b64("a1"), "target": "VERSION", "result": "GREATER", "version": 0},
                {"key": b64("a1"), "target": "LEASE", "lease": "0"},
                {
                    "key": b64("a"),
                    "range_end": b64("b"),
                    "target": "CREATE",
                    "result": "NOT_EQUAL",
                    "create_revision": 0,
                },
            ],
            "success": [get_op],
        },
    )
    yield Case(
        "txn of numbers as enums",
        txn,
        {"compare": [{"key": b64("a1"), "target": 0, "result": 1, "version": "0"}], "success": [get_op]},
    )
    yield Case("txn of deletes", txn, {"success": [{"request_delete_range": {"key": b64("a2"), "prev_kv": True}}]})
    yield Case("txn in a txn", txn, {"success": [{"request_txn": {"success": [get_op, put_op], "failure": []}}]})
    yield Case("txn of nothing", txn, {})
    yield Case("txn of an empty operation", txn, {"success": [{}]})
    yield Case("txn of two kinds in one operation", txn, {"success": [put_op | get_op]})
    yield Case("txn of two values to compare", txn, {"compare": [equal | {"version": 1}], "success": [get_op]})
    yield Case("txn that puts a key twice", txn, {"success": [put_op, put_op]})
    yield Case("txn of 129 operations", txn, {"success": [{"request_put": {"key": b64(f"a-{n}")}} for n in range(129)]})
    yield Case("txn with a compare without a key", txn, {"compare": [{"target": "VERSION"}]})
    yield Case("txn with null for an operation", txn, {"success": [None]})
    yield Case("txn with null for a range in an operation", txn, {"success": [{"request_range": None}]})
    yield Case("delete", delete, {"key": b64("a2")})
    yield Case("delete with prev_kv", delete, {"key": b64("a"), "range_end": b64("a-m"), "prev_kv": True})
    yield Case("delete of what is not there", delete, {"key": b64("a-none")})
    yield Case("delete without a key", delete, {})
    yield Case("compaction", "/v3/kv/compaction", {"revision": "4", "physical": True}, one_shard=True)
    yield Case("compaction again", "/v3/kv/compaction", {"revision": "4"}, one_shard=True)
    yield Case("compaction of the future", "/v3/kv/compaction", {"revision": "99999"}, one_shard=True)
    yield Case("compaction at nothing", "/v3/kv/compaction", {}, one_shard=True)
    yield Case("range at a compacted revision", get, {"key": b64("a1"), "revision": "2"}, one_shard=True)


def _leases() -> Iterator[Case]:
    grant = "/v3/lease/grant"
    yield Case("grant", grant, {"TTL": 600, "ID": 7001})
    yield Case("grant of an id in use", grant, {"TTL": 600, "ID": "7001"})
    yield Case("grant of an id of the server's choice", grant, {"TTL": "600"}, masked=("ID",))
    yield Case("grant of a short one", grant, {"TTL": 1, "ID": 7002})
    yield Case("grant for the other path", grant, {"TTL": 600, "ID": 7003})
    yield Case("grant of nothing", grant, {}, masked=("ID",))
    yield Case("grant of a TTL too large", grant, {"TTL": "9000000001"})
    yield Case("grant of lower-case names", grant, {"ttl": 600, "id": 7009}, masked=("ID",))
    yield Case("grant of a negative id", grant, {"TTL": 600, "ID": "-5"})
    yield Case("put with it", "/v3/kv/put", {"key": b64("c1"), "value": b64("x"), "lease": "7001"})
    yield Case("put with it, as a number", "/v3/kv/put", {"key": b64("c2"), "value": b64("x"), "lease": 7001})
    for alias in ["/v3/lease", "/v3/kv/lease"]:
        yield Case(f"{alias}/timetolive", f"{alias}/timetolive", {"ID": 7001}, masked=("TTL",))
        yield Case(f"{alias}/timetolive of none", f"{alias}/timetolive", {"ID": 7099})
        yield Case(f"{alias}/leases of too few", f"{alias}/lease", {})
    yield Case("time to live with keys", "/v3/lease/timetolive", {"ID": 7001, "keys": True}, masked=("TTL", "keys"))
    yield Case("range of a key with a lease", "/v3/kv/range", {"key": b64("c1")})
    yield Case("revoke", "/v3/lease/revoke", {"ID": 7001})
    yield Case("revoke of none", "/v3/lease/revoke", {"ID": 7001})
    yield Case("revoke by the other path", "/v3/kv/lease/revoke", {"ID": 7003})
    yield Case("revoke of nothing", "/v3/kv/lease/revoke", "")
    yield Case("leases", "/v3/lease/leases", {}, masked=("leases",))
    yield Case("leases by the other path", "/v3/kv/lease/leases", "{}", masked=("leases",))
    yield Case("renewals of none", "/v3/lease/keepalive", {"ID": 7099})
    yield Case("renewals of nothing", "/v3/lease/keepalive", "")
    yield Case("renewals of several", "/v3/lease/keepalive", '{"ID":"-5"}{"ID":7098}\n{"ID":"-5"}')
    yield Case("renewals of wrong JSON", "/v3/lease/keepalive", "{")
    yield Case("renewals of a wrong number", "/v3/lease/keepalive", {"ID": "x"})


def _others() -> Iterator[Case]:
    """The other services, a path each."""
    yield Case(
        "members", "/v3/cluster/member/list", {}, one_shard=True, masked=("ID", "name", "peerURLs", "clientURLs")
    )
    yield Case(
        "members, linearizable",
        "/v3/cluster/member/list",
        {"linearizable": True},
        one_shard=True,
        masked=("ID", "name", "peerURLs", "clientURLs"),
    )
    for verb in ["add", "remove", "update", "promote"]:
        yield Case(f"member {verb} of nothing", f"/v3/cluster/member/{verb}", {}, one_shard=True)
    yield Case("member add of a wrong URL", "/v3/cluster/member/add", {"peerURLs": ["http://x:1/y"]}, one_shard=True)
    yield Case("member add of an empty list", "/v3/cluster/member/add", {"peerURLs": []}, one_shard=True)
    yield Case(
        "status",
        "/v3/maintenance/status",
        {},
        one_shard=True,
        masked=("dbSize", "raftIndex", "leader", "raftTerm", "raftAppliedIndex", "dbSizeInUse", "storageVersion"),
    )
    yield Case("alarms", "/v3/maintenance/alarm", {})
    yield Case("alarms by name", "/v3/maintenance/alarm", {"action": "GET", "alarm": "NOSPACE", "memberID": "0"})
    yield Case("an alarm of an unknown action", "/v3/maintenance/alarm", {"action": "SHOUT"})
    # Not with an unknown action's number: it ends etcd 3.7.1.
    yield Case("disarm", "/v3/maintenance/alarm", {"action": "DEACTIVATE", "alarm": 1, "member_id": 1}, one_shard=True)
    yield Case("defragment", "/v3/maintenance/defragment", {}, one_shard=True)
    yield Case("hash", "/v3/maintenance/hash", {}, one_shard=True, masked=("hash",))
    yield Case("hash of keys", "/v3/maintenance/hashkv", {"revision": "0"}, one_shard=True, masked=("hash",))
    yield Case("hash of keys of the future", "/v3/maintenance/hashkv", {"revision": "99999"}, one_shard=True)
    yield Case("transfer of leadership", "/v3/maintenance/transfer-leadership", {"targetID": "1"}, one_shard=True)
    yield Case("transfer of leadership to none", "/v3/maintenance/transfer-leadership", {}, one_shard=True)
    yield Case("downgrade", "/v3/maintenance/downgrade", {"action": "VALIDATE", "version": "3.6.0"}, one_shard=True)
    yield Case(
        "downgrade to a wrong version", "/v3/maintenance/downgrade", {"action": 0, "version": "x"}, one_shard=True
    )
    yield Case("downgrade cancelled", "/v3/maintenance/downgrade", {"action": "CANCEL"}, one_shard=True)
    auth = "/v3/auth"
    yield Case("auth status", f"{auth}/status", {}, masked=("authRevision",))
    yield Case("authenticate, auth off", f"{auth}/authenticate", {"name": "u", "password": "p"})
    yield Case("auth enable without root", f"{auth}/enable", {})
    yield Case("auth disable", f"{auth}/disable", {})
    yield Case("user add", f"{auth}/user/add", {"name": "u", "password": "p"})
    yield Case("user add again", f"{auth}/user/add", {"name": "u", "password": "p"})
    yield Case("user add without a name", f"{auth}/user/add", {"password": "p"})
    yield Case("user add without a password", f"{auth}/user/add", {"name": "v", "options": {"no_password": True}})
    yield Case("user add of options null", f"{auth}/user/add", {"name": "w", "password": "p", "options": None})
    yield Case("role add", f"{auth}/role/add", {"name": "r"})
    yield Case(
        "role grant",
        f"{auth}/role/grant",
        {"name": "r", "perm": {"permType": "READWRITE", "key": b64("a"), "range_end": b64("b")}},
    )
    yield Case("role grant by number", f"{auth}/role/grant", {"name": "r", "perm": {"perm_type": 1, "key": b64("b")}})
    yield Case("role grant of nothing", f"{auth}/role/grant", {"name": "r"})
    yield Case("role get", f"{auth}/role/get", {"role": "r"})
    yield Case("role get of none", f"{auth}/role/get", {"role": "x"})
    yield Case("user grant", f"{auth}/user/grant", {"user": "u", "role": "r"})
    yield Case("user get", f"{auth}/user/get", {"name": "u"})
    yield Case("user list", f"{auth}/user/list", {})
    yield Case("role list", f"{auth}/role/list", {})
    yield Case("user changepw", f"{auth}/user/changepw", {"name": "u", "password": "q"})
    yield Case("user revoke", f"{auth}/user/revoke", {"name": "u", "role": "r"})
    yield Case("user revoke again", f"{auth}/user/revoke", {"name": "u", "role": "r"})
    yield Case("role revoke", f"{auth}/role/revoke", {"role": "r", "key": b64("a"), "range_end": b64("b")})
    yield Case("role delete", f"{auth}/role/delete", {"role": "r"})
    for name in "uvw":
        yield Case(f"user delete {name}", f"{auth}/user/delete", {"name": name})
    yield Case("lease for locks", "/v3/lease/grant", {"ID": 7100, "TTL": 600})
    yield Case("lock", "/v3/lock/lock", {"name": b64("d-lock"), "lease": 7100})
    yield Case("lock again", "/v3/lock/lock", {"name": b64("d-lock"), "lease": "7100"})
    yield Case("lock with an unknown lease", "/v3/lock/lock", {"name": b64("d-lock"), "lease": 7101})
    yield Case(
        "lock that waits", "/v3/lock/lock", {"name": b64("d-lock"), "lease": -5}, headers={"Grpc-Timeout": "200m"}
    )
    yield Case("unlock", "/v3/lock/unlock", {"key": b64("d-lock/1bbc")})
    yield Case("unlock of nothing", "/v3/lock/unlock", {})
    election = "/v3/election"
    key = b64("d-vote/1bbc")
    yield Case("leader of none", f"{election}/leader", {"name": b64("d-vote")})
    yield Case("campaign", f"{election}/campaign", {"name": b64("d-vote"), "lease": 7100, "value": b64("me")})
    yield Case("leader", f"{election}/leader", {"name": b64("d-vote")})
    yield Case("proclaim without a leader", f"{election}/proclaim", {"value": b64("x")})
    yield Case(
        "proclaim by another",
        f"{election}/proclaim",
        {"leader": {"name": b64("d-vote"), "key": key, "rev": 1, "lease": 7100}, "value": b64("x")},
    )
    yield Case("resign without a leader", f"{election}/resign", {})
    yield Case(
        "resign of another",
        f"{election}/resign",
        {"leader": {"name": b64("d-vote"), "key": key, "rev": 1, "lease": 7100}},
    )
    yield Case("end of the lease for locks", "/v3/lease/revoke", {"ID": 7100})


GROUPS = {"kv": _kv, "leases": _leases, "others": _others}

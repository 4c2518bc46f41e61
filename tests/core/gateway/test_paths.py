"""The gateway's paths, held against etcd's own list and against the RPCs."""

from __future__ import annotations

from esp.core.gateway.paths import PATHS, RPCS
from esp.core.services.router import METHODS

# `grep -o '"/v3/[^"]*"'` over the three *.pb.gw.go of etcd 3.7.1.
ETCDS = """
/v3/auth/authenticate /v3/auth/disable /v3/auth/enable /v3/auth/role/add /v3/auth/role/delete /v3/auth/role/get
/v3/auth/role/grant /v3/auth/role/list /v3/auth/role/revoke /v3/auth/status /v3/auth/user/add /v3/auth/user/changepw
/v3/auth/user/delete /v3/auth/user/get /v3/auth/user/grant /v3/auth/user/list /v3/auth/user/revoke
/v3/cluster/member/add /v3/cluster/member/list /v3/cluster/member/promote /v3/cluster/member/remove
/v3/cluster/member/update /v3/election/campaign /v3/election/leader /v3/election/observe /v3/election/proclaim
/v3/election/resign /v3/kv/compaction /v3/kv/deleterange /v3/kv/lease/leases /v3/kv/lease/revoke
/v3/kv/lease/timetolive /v3/kv/put /v3/kv/range /v3/kv/txn /v3/lease/grant /v3/lease/keepalive /v3/lease/leases
/v3/lease/revoke /v3/lease/timetolive /v3/lock/lock /v3/lock/unlock /v3/maintenance/alarm /v3/maintenance/defragment
/v3/maintenance/downgrade /v3/maintenance/hash /v3/maintenance/hashkv /v3/maintenance/snapshot /v3/maintenance/status
/v3/maintenance/transfer-leadership /v3/watch
"""


def test_the_paths_are_etcds() -> None:
    assert set(PATHS) == set(ETCDS.split())


def test_every_rpc_has_a_path_but_those_that_etcds_gateway_leaves_out() -> None:
    without = {path.decode() for path in METHODS if path not in PATHS.values()}
    assert without == {
        "/etcdserverpb.KV/RangeStream",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
    }


def test_calls_that_may_last_for_hours_are_known() -> None:
    assert {path for path, rpc in RPCS.items() if rpc.lasts} == {
        "/v3/watch",
        "/v3/lease/keepalive",
        "/v3/maintenance/snapshot",
        "/v3/election/observe",
        "/v3/election/campaign",
        "/v3/lock/lock",
    }

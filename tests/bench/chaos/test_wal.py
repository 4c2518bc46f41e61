"""Who has ended a lease, read from the log of a real etcd, and judged."""

from __future__ import annotations

from collections import Counter

import grpc
import pytest

from bench.chaos.wal import Log, Revocation, evidence, is_of_former_leader
from esp.core.pb import rpc_pb2
from tests.harness import Etcds, wait_until
from tests.stubs import rpc_pb2_grpc

LED, LEADS, THIRD = 0xA1110001, 0xB2220002, 0xC3330003


def test_the_log_of_an_etcd_tells_who_has_revoked_a_lease(start_durable_etcd: Etcds) -> None:
    (etcd,) = start_durable_etcd.several(1)
    with grpc.insecure_channel(etcd.address) as channel:
        leases = rpc_pb2_grpc.LeaseStub(channel)
        ids = [leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=ttl)).ID for ttl in (60, 60, 2)]
        member = leases.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=ids[0])).header.member_id
        wait_until(lambda: leases.LeaseTimeToLive(rpc_pb2.LeaseTimeToLiveRequest(ID=ids[2])).TTL < 0)
    log = Log(etcd.data_dir)
    found = [log.revocations(lease) for lease in ids]
    assert [len(entries) for entries in found] == [1, 0, 1]
    (revoked,), _, (expired,) = found
    assert {revoked.proposer, expired.proposer} == {member & 0xFFFF}
    assert (revoked.user, expired.user) == ("", "")
    assert 0 < revoked.place < expired.place
    assert log.votes()[expired.term] == member
    end = f"..{member & 0xFFFF:04x}"
    assert evidence([log], ids[2]) == (
        False,
        f"entry {expired.place} of term {expired.term} in 1 of 1 logs, proposed by {end} as nobody, led by {end}",
    )
    assert evidence([log], ids[1]) == (False, "not revoked")


@pytest.mark.parametrize(
    ("proposer", "user", "votes", "excused"),
    [
        (LED, "root", {LEADS: 2}, True),
        (LED, "root", {LEADS: 2, THIRD: 1}, True),
        (LEADS, "root", {LEADS: 2}, False),  # it has expired
        (LED, "app", {LEADS: 2}, False),  # a client's, through a follower
        (LED, "esp", {LEADS: 3}, False),  # a proxy's
        (LED, "root", {LEADS: 1, THIRD: 1}, False),  # nobody knows who led
        (LED, "root", {}, False),
    ],
)
def test_only_a_lessor_that_led_no_more_is_to_blame(
    proposer: int, user: str, votes: dict[int, int], excused: bool
) -> None:
    entry = Revocation(3, 7, proposer & 0xFFFF, user)
    assert is_of_former_leader(entry, Counter(votes), 3) is excused

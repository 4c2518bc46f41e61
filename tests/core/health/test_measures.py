"""What members tell of their versions, files, logs, clocks and certificates, judged."""

from __future__ import annotations

from dataclasses import replace

import h11
import pytest

from esp.core.config import Endpoint
from esp.core.health.clocks import judge_certificates, judge_clocks
from esp.core.health.facts import Clock, EndpointHealth, Finding, Kind, Member, ShardHealth
from esp.core.health.lag import judge_lag
from esp.core.health.leases import judge_leases, lacking_in
from esp.core.health.page import clock_of, quota_in
from esp.core.health.space import judge_space
from esp.core.health.versions import judge_versions

MEMBER = Member(0xC1, 0xA1, 0xA1, False, "3.5.9", 20480, 7)
WELL = EndpointHealth(Endpoint("a", 1), reachable=True, latency=0.001, member=MEMBER, alarms=())
OTHER = replace(WELL, endpoint=Endpoint("b", 1))


def with_member(health: EndpointHealth = WELL, **changes: object) -> EndpointHealth:
    assert health.member
    return replace(health, member=replace(health.member, **changes))  # type: ignore[arg-type]


def shard(*endpoints: EndpointHealth, name: str = "s") -> ShardHealth:
    return ShardHealth(name, (), endpoints)


def kinds(findings: list[Finding]) -> list[Kind]:
    return [finding.kind for finding in findings]


class TestVersions:
    def test_an_old_version_is_a_note(self) -> None:
        problems, notes = judge_versions([shard(with_member(version="3.3.27"))])
        assert (problems, [(f.kind, f.endpoint) for f in notes]) == ([], [(Kind.OLD_VERSION, WELL.endpoint)])

    @pytest.mark.parametrize(
        ("version", "is_lossy"),
        [("3.4.23", False), ("3.5.0-rc.1", True), ("3.5.0", True), ("3.5.2", True), ("3.5.3", False), ("3.6.0", False)],
    )
    def test_an_etcd_that_loses_acknowledged_writes_is_a_problem(self, version: str, is_lossy: bool) -> None:
        problems, _ = judge_versions([shard(with_member(version=version))])
        assert kinds(problems) == [Kind.LOSSY_VERSION] * is_lossy

    def test_it_is_a_note_where_all_is_on_this_machine(self) -> None:
        here = replace(with_member(version="3.5.1"), endpoint=Endpoint("127.0.0.1", 1))
        problems, notes = judge_versions([shard(here, name="x"), shard(here, name="y")])
        assert (problems, [(f.kind, f.shards) for f in notes]) == ([], [(Kind.LOSSY_VERSION, ("x", "y"))])

    def test_members_of_one_shard_that_differ_in_the_patch_are_a_note(self) -> None:
        problems, (note,) = judge_versions([shard(WELL, with_member(OTHER, version="3.5.17"))])
        assert (problems, note.kind) == ([], Kind.VERSION_SKEW)
        assert "(3.5.17: http://b:1; 3.5.9: http://a:1)" in note.text

    @pytest.mark.parametrize(("version", "noted"), [("3.5.21", False), ("3.10.0", True), ("?", False)])
    def test_shards_that_differ_in_the_minor_are_a_note(self, version: str, noted: bool) -> None:
        _, notes = judge_versions([shard(WELL, name="x"), shard(with_member(OTHER, version=version), name="y")])
        assert kinds(notes) == [Kind.MIXED_VERSIONS] * noted
        assert all("3.5: x; 3.10: y" in note.text for note in notes)


class TestSpace:
    @pytest.mark.parametrize(
        ("size", "quota", "problem", "note"),
        [(74, 100, 0, 0), (75, 100, 0, 1), (90, 100, 1, 0), (100, 100, 1, 0), (99, None, 0, 0), (99, 0, 0, 0)],
    )
    def test_a_file_is_judged_by_its_quota(self, size: int, quota: int | None, problem: int, note: int) -> None:
        problems, notes = judge_space([shard(replace(with_member(db_size=size), quota=quota))])
        assert (kinds(problems), kinds(notes)) == ([Kind.QUOTA] * problem, [Kind.QUOTA] * note)

    @pytest.mark.parametrize(
        ("size", "in_use", "noted"),
        [(10**9, 4 * 10**8, True), (10**9, 6 * 10**8, False), (10**8, 10, False), (10**9, None, False)],
    )
    def test_much_free_space_is_a_note(self, size: int, in_use: int | None, noted: bool) -> None:
        _, notes = judge_space([shard(with_member(db_size=size, db_in_use=in_use))])
        assert kinds(notes) == [Kind.DEFRAGMENT] * noted
        assert all("would give back 600 MB of 1.0 GB" in note.text for note in notes)


class TestLag:
    @pytest.mark.parametrize(("behind", "problem", "note"), [(1000, 0, 0), (1001, 0, 1), (5001, 1, 0)])
    def test_a_member_far_behind_the_others(self, behind: int, problem: int, note: int) -> None:
        late = with_member(OTHER, raft_index=9000 - behind, raft_applied=9000 - behind)
        problems, notes = judge_lag([shard(with_member(raft_index=9000, raft_applied=9000), late)])
        assert [f.endpoint for f in problems] == [OTHER.endpoint] * problem
        assert [f.endpoint for f in notes] == [OTHER.endpoint] * note

    @pytest.mark.parametrize(("applied", "problem", "note"), [(8000, 0, 0), (7999, 0, 1), (3999, 1, 0), (None, 0, 0)])
    def test_a_store_far_behind_its_log(self, applied: int | None, problem: int, note: int) -> None:
        problems, notes = judge_lag([shard(with_member(raft_index=9000, raft_applied=applied))])
        assert (len(problems), len(notes)) == (problem, note)

    def test_members_of_different_clusters_are_not_compared(self) -> None:
        assert judge_lag([shard(with_member(raft_index=9000), with_member(OTHER, cluster_id=0xC2))]) == ([], [])


def response(date: bytes | None) -> h11.Response:
    return h11.Response(status_code=200, headers=[] if date is None else [(b"Date", date)])


class TestClocks:
    @pytest.mark.parametrize(
        ("clock", "told"),
        [
            (None, None),
            (Clock(-0.5, 0.5), None),
            (Clock(0.5, 1.6), None),  # less than a second is for sure
            (Clock(4.2, 5.3), "its clock is at least 4 s ahead of this machine's"),
            (Clock(-61.3, -60.2), "its clock is at least 60 s behind this machine's"),
        ],
    )
    def test_a_clock_is_told_as_far_as_it_is_surely_wrong(self, clock: Clock | None, told: str | None) -> None:
        texts = [finding.text.partition(";")[0] for finding in judge_clocks([shard(replace(WELL, clock=clock))])]
        assert texts == ([] if told is None else [told])

    def test_the_date_of_a_page_is_a_whole_second(self) -> None:
        date = response(b"Fri, 15 Jan 2027 08:00:00 GMT")
        assert clock_of(date, 1_800_000_000.25, 1_800_000_000.5) == Clock(-0.5, 0.75)
        assert clock_of(date, 1_799_999_990.0, 1_799_999_991.0) == Clock(9.0, 11.0)
        assert clock_of(response(None), 0.0, 1.0) is None

    @pytest.mark.parametrize("date", [b"", b"tomorrow", b"\xff"])
    def test_a_date_that_is_none_is_a_value_error_and_so_stays_unknown(self, date: bytes) -> None:
        with pytest.raises(ValueError):
            clock_of(response(date), 0.0, 1.0)

    def test_a_certificate_that_ends_soon_is_a_note(self) -> None:
        day, now = 86_400.0, 1_800_000_000.0
        found = [
            [
                finding.text
                for finding in judge_certificates([shard(replace(WELL, certificate_ends=now + days * day))], now)
            ]
            for days in (-1, 13, 15)
        ]
        assert found == [
            ["its certificate has ended on 2027-01-14 08:00 UTC; renew it"],
            ["its certificate ends on 2027-01-28 08:00 UTC; renew it"],
            [],
        ]


def test_the_quota_is_read_from_the_metrics() -> None:
    page = b"# TYPE etcd_server_quota_backend_bytes gauge\netcd_server_quota_backend_bytes 2.147483648e+09\n"
    assert quota_in(page) == 2 << 30
    assert quota_in(b"etcd_server_quota_backend_bytes_more 1\n") is None
    with pytest.raises(ValueError):
        quota_in(b"etcd_server_quota_backend_bytes x\n")


class TestLeases:
    def test_a_shard_lacks_what_only_others_have(self) -> None:
        lists = {"a": frozenset({1, 2, 3}), "b": frozenset({2}), "c": frozenset({1, 2, 3})}
        lacking = lacking_in(lists)
        assert lacking == {"a": frozenset(), "b": {1, 3}, "c": frozenset()}
        (problem,), notes = judge_leases(lacking)
        assert (problem.kind, problem.shards, notes) == (Kind.LEASES, ("b",), [])
        assert problem.text.startswith("lacks 2 leases that other shards have, such as 0000000000000001: they are dead")

    def test_leases_that_are_not_told_are_a_note(self) -> None:
        problems, (note,) = judge_leases("etcdserver: permission denied")
        assert (problems, note.text) == ([], "leases are not compared: etcdserver: permission denied")
        assert judge_leases(None) == ([], [])


def test_round_trips_have_a_median_and_a_ninety_ninth_percentile() -> None:
    health = replace(WELL, round_trips=tuple(number / 1000 for number in range(1, 21)))
    assert (health.round_trip(0.5), health.round_trip(0.99)) == (0.011, 0.020)
    assert WELL.round_trip(0.5) is None

"""The reading of keys from servers that misbehave, or of which little is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.plan import Source, Survey, SurveyError, surveyed
from esp.core.wire.status import Status


class Etcd:
    """Keys that are asked for as from an etcd.

    Attributes:
        keys: with their values.
        revision: of the store.
        compacted: the highest revision that cannot be read any more.
        asked: the requests, in order.
    """

    def __init__(self, keys: dict[bytes, bytes]) -> None:
        self.keys = keys
        self.revision = 100
        self.compacted = 0
        self.asked: list[rpc_pb2.RangeRequest] = []
        self.refusal: Status | None = None

    async def ask(self, request: rpc_pb2.RangeRequest, _reader: Any) -> rpc_pb2.RangeResponse:
        kept = rpc_pb2.RangeRequest()
        kept.CopyFrom(request)
        self.asked.append(kept)
        if self.refusal is not None:
            raise self.refusal.error()
        if 0 < request.revision <= self.compacted:
            raise errors.COMPACTED.error()
        asked = KeyRange.of_request(request.key, request.range_end)
        found = sorted(key for key in self.keys if key >= asked.start and (asked.end is None or key < asked.end))
        answer = rpc_pb2.RangeResponse(count=len(found))
        answer.header.revision = self.revision
        if not request.count_only:
            for key in found[: request.limit or None]:
                value = b"" if request.keys_only else self.keys[key]
                answer.kvs.append(kv_pb2.KeyValue(key=key, value=value))
        return answer

    def source(self, *ranges: KeyRange) -> Source:
        async def nobody_watches(_: Any) -> Any:
            raise AssertionError

        return Source("e", self.ask, nobody_watches, ranges or [KeyRange(b"", None)])


def survey_of(*sources: Source) -> Survey:
    return asyncio.run(
        surveyed(
            sources,
            separator=b"/",
            depth=2,
            told_depth=4,
            marks=[],
            seconds=0,
            progress=lambda *_: None,
        )
    )


def many(count: int = 5000) -> dict[bytes, bytes]:
    return {b"/a/%d/%05d" % (number % 7, number): b"v" * (number % 7) for number in range(count)}


def total(keys: dict[bytes, bytes]) -> tuple[int, int, int]:
    return len(keys), sum(len(key) + len(value) for key, value in keys.items()), 0


def test_all_keys_are_read_at_one_revision_and_few_values() -> None:
    etcd = Etcd(many())
    found = survey_of(etcd.source())
    assert found.counted.curve.total == total(etcd.keys)
    pages = [one for one in etcd.asked if one.keys_only]
    values = [one for one in etcd.asked if not one.keys_only and not one.count_only]
    assert {one.revision for one in pages + values} == {100}
    assert max(one.limit for one in pages) <= 1000
    assert len(values) == found.values < len(etcd.keys) // 20
    assert found.compacted == []


def test_when_the_revision_is_compacted_the_rest_is_of_a_later_one() -> None:
    etcd = Etcd(many())
    ask = etcd.ask

    async def compacting(request: rpc_pb2.RangeRequest, reader: Any) -> rpc_pb2.RangeResponse:
        if len(etcd.asked) == 60:
            etcd.compacted, etcd.revision = 100, 200
        return await ask(request, reader)

    etcd.ask = compacting  # type: ignore[method-assign]
    found = survey_of(etcd.source())
    assert found.counted.curve.total.keys == len(etcd.keys)
    assert found.compacted == ["e"]
    assert etcd.asked[-1].revision == 200


def test_shards_come_in_the_order_of_their_keys_and_esps_own_keys_do_not_count() -> None:
    one, two = Etcd({b"\0esp/map": b"x", b"a": b"1", b"x": b"2"}), Etcd({b"m": b"3"})
    sources: Sequence[Source] = [
        one.source(KeyRange(b"", b"b"), KeyRange(b"n", None)),
        two.source(KeyRange(b"b", b"n")),
    ]
    assert survey_of(*sources).counted.curve.total == (3, 6, 0)


def test_a_refusal_is_told_with_its_cure() -> None:
    etcd = Etcd(many(10))
    etcd.refusal = errors.PERMISSION_DENIED
    with pytest.raises(SurveyError, match=r"^e: etcdserver: permission denied; name a user who may read all keys"):
        survey_of(etcd.source())


def test_a_key_of_a_megabyte_is_kept_by_its_first_bytes() -> None:
    etcd = Etcd({b"/a/" + b"x" * 1_000_000 + b"%d" % number: b"" for number in range(5)})
    found = survey_of(etcd.source())
    assert found.counted.curve.total.keys == 5
    assert max(map(len, found.counted.samples)) <= 1024

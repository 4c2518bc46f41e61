"""esp with a namespace: to its clients it is an etcd that holds their keys only, without the prefix.

Random programs go to one etcd without a prefix and to esp, whose shards hold keys of others around those of the
namespace (tests/differential/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import grpc
import pytest

from esp.core.keys import prefix_end
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.differential import programs as p
from tests.differential.clusters import Clusters, ask, clusters
from tests.differential.explore import PROGRAMS, explore, start
from tests.differential.mapping import Layout, Mapping
from tests.harness import EspProcess, Esps, Etcds, peer

PREFIX = b"team/"
ODD = b"\xffa\xff"
"""A prefix whose end is a shorter key: the last byte cannot be counted up."""


def neighbours(prefix: bytes) -> list[bytes]:
    """Keys of others, just outside of the namespace."""
    after = prefix_end(prefix)
    assert after is not None
    return [prefix, prefix[:-1], after, after + b"\0", prefix[:-1] + b"\0", b"a", b"k", b"z", b"\0", b"\xff\xff\xff"]


def bounded(step: p.Step) -> p.Step:
    """The step, with a delete in a transaction that ends behind all keys instead of having an open end.

    etcd does not see that a delete with an open end and a put in one transaction have a key in common. With a namespace
    the end is not open in the shards, and etcd refuses the transaction. grpc-proxy has the same difference.
    """
    if isinstance(step, p.Txn):
        branches = [p.Many(map(_bounded_in_txn, branch)) for branch in (step.success, step.failure)]
        return replace(step, success=branches[0], failure=branches[1])
    return step


def _bounded_in_txn(step: p.Step) -> p.Step:
    if isinstance(step, p.Delete) and step.end == b"\0":
        return replace(step, end=b"\xff\xff\xff")
    return bounded(step)


STEPS = p.programs.map(lambda program: [bounded(step) for step in program])


class Neighboured(Clusters):
    """The shards hold keys of others, and the single etcd has the same revision."""

    prefix = PREFIX

    def begin(self, *, wiped: bool = True) -> Mapping:
        assert wiped, "the histories differ"
        super().begin()
        for shard in self.shards:
            for key in neighbours(self.prefix):
                self._put(shard, key)
        if self.exact:
            self._equal(*self.shards)
        for channel in [self.alone, *self.shards]:
            revision = self._header(channel).revision
            ask(channel, "KV/Compact", rpc_pb2.CompactionRequest(revision=revision))
        return Mapping(self.layout, self._header(self.alone).revision, self.revisions(), compacted=True)

    def _equal(self, shard: grpc.Channel) -> None:
        """Brings the single etcd to the revision of the shard, without any key."""
        while self._header(shard).revision < self._header(self.alone).revision + 2:
            self._put(shard, b"a")
        while self._header(self.alone).revision < self._header(shard).revision - 1:
            self._put(self.alone, b"gone")
        ask(self.alone, "KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"gone"))
        assert self._header(self.alone).revision == self._header(shard).revision

    @staticmethod
    def _put(channel: grpc.Channel, key: bytes) -> None:
        assert isinstance(ask(channel, "KV/Put", rpc_pb2.PutRequest(key=key, value=b"of others")), bytes)


def start_in(esps: Esps, shards: Sequence[LocalEtcd], layout: Layout, prefix: bytes = PREFIX) -> EspProcess:
    """esp over shards whose boundaries are those of the layout, in the namespace."""
    real = Layout([prefix + boundary for boundary in layout.starts[1:]], layout.owners)
    return start(esps, shards, real, f"namespace: hex:{prefix.hex()}\n")


@pytest.mark.timeout(0 if PROGRAMS else 300)
@pytest.mark.parametrize("prefix", [PREFIX, ODD])
def test_over_three_shards_it_is_one_etcd_with_the_keys_of_the_namespace(
    four_etcds: list[LocalEtcd], module_esps: Esps, prefix: bytes
) -> None:
    layout = Layout([b"i", b"r"], [0, 1, 2])
    esp = start_in(module_esps, four_etcds[1:], layout, prefix)
    with clusters(four_etcds[0], four_etcds[1:], esp, layout, kind=Neighboured) as both:
        both.prefix = prefix
        explore(both, 20, STEPS)


@pytest.mark.timeout(0 if PROGRAMS else 300)
def test_so_it_is_over_shards_of_the_newest_etcd_with_boundaries_among_the_keys_of_others(
    module_etcds: Etcds, module_esps: Esps
) -> None:
    alone, *shards = module_etcds.several(4, binary=peer("etcd"))
    within = Layout([b"b\0", b"k"], [0, 1, 2])
    boundaries = [b"b", PREFIX, *(PREFIX + boundary for boundary in within.starts[1:]), b"u"]
    others = Layout(boundaries, [1, 2, 0, 1, 2, 0])
    esp = start(module_esps, shards, others, f"namespace: {PREFIX.decode()}\n")
    with clusters(alone, shards, esp, within, streams=True, kind=Neighboured) as both:
        explore(both, 20, STEPS)


@pytest.mark.timeout(0 if PROGRAMS else 300)
def test_with_one_shard_every_byte_is_the_same(twins: tuple[LocalEtcd, LocalEtcd], module_esps: Esps) -> None:
    alone, shard = twins
    layout = Layout([], [0])
    with clusters(alone, [shard], start_in(module_esps, [shard], layout), layout, kind=Neighboured) as both:
        explore(both, 25, STEPS)

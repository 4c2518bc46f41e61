"""The requests that a kube-apiserver (1.37) makes of etcd, read from its source and from the wire, made by grpcio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue

import grpc

from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from tests.stubs import rpc_pb2_grpc

COMPACT_KEY = b"compact_rev_key"
# The ranges of three shards, each resource whole in one, as the config writes them.
PODS, EVENTS, REST = ["{kubernetes: pods}"], ["{kubernetes: events}"], ['{start: "", end: ""}']
WHOLE = [PODS, EVENTS, REST]


def write_config(folder: Path, shards: Sequence[LocalEtcd], ranges: Sequence[Sequence[str]], extra: str = "") -> Path:
    """A config in which each shard has its ranges, written as they are."""
    lines = ["shards:"]
    for number, (shard, own) in enumerate(zip(shards, ranges, strict=True)):
        lines.append(f"- {{name: s{number}, endpoints: ['{shard.endpoint}'], ranges: [{', '.join(own)}]}}")
    path = folder / "kubernetes.yaml"
    path.write_text("\n".join([*lines, extra, ""]))
    return path


class Watching:
    """One Watch call with a watcher of a resource, as the apiserver's cache has it."""

    def __init__(self, stub: rpc_pb2_grpc.WatchStub, create: rpc_pb2.WatchCreateRequest) -> None:
        self._requests: Queue[rpc_pb2.WatchRequest] = Queue()
        self._requests.put(rpc_pb2.WatchRequest(create_request=create))
        self._answers: Iterator[rpc_pb2.WatchResponse] = stub.Watch(
            iter(self._requests.get, None), timeout=60, metadata=[("hasleader", "true")]
        )

    def next(self) -> rpc_pb2.WatchResponse:
        return next(self._answers)

    def events(self, count: int) -> list[kv_pb2.Event]:
        """So many events; progress that comes between them is left out."""
        found: list[kv_pb2.Event] = []
        while len(found) < count:
            found += self.next().events
        return found

    def ask_progress(self) -> None:
        self._requests.put(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))


class ApiServer:
    """What one of them asks of the etcd that it knows, with all keys below `root`, its --etcd-prefix and a slash."""

    def __init__(self, channel: grpc.Channel, root: bytes = b"/registry/") -> None:
        self.root = root
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self._watch = rpc_pb2_grpc.WatchStub(channel)
        self._compact_time = self._compact_revision = 0

    def start(self) -> None:
        """What it writes first: its namespace, and a lease object by which it is known."""
        self.create(b"namespaces/kube-system")
        self.create(b"leases/kube-system/apiserver-x")

    def renew(self) -> None:
        """What it writes every ten seconds."""
        self.update(b"leases/kube-system/apiserver-x")

    def create(self, name: bytes, value: bytes = b"{}") -> int:
        """Makes an object; its resource version."""
        return self._put(name, value, 0)

    def update(self, name: bytes, value: bytes = b"{}") -> int:
        """Changes an object that it has just read."""
        (row,) = self.kv.Range(rpc_pb2.RangeRequest(key=self.root + name)).kvs
        return self._put(name, value, row.mod_revision)

    def _put(self, name: bytes, value: bytes, expected: int) -> int:
        key = self.root + name
        answer = self.kv.Txn(
            rpc_pb2.TxnRequest(
                compare=[rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.MOD, mod_revision=expected)],
                success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))],
                failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))],
            )
        )
        assert answer.succeeded
        return int(answer.header.revision)

    def delete(self, name: bytes) -> int:
        """Deletes an object that it has just read; the revision of that."""
        key = self.root + name
        (row,) = self.kv.Range(rpc_pb2.RangeRequest(key=key)).kvs
        answer = self.kv.Txn(
            rpc_pb2.TxnRequest(
                compare=[rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.MOD, mod_revision=row.mod_revision)],
                success=[rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))],
                failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))],
            )
        )
        assert answer.succeeded
        return int(answer.header.revision)

    def revision(self, resource: bytes) -> int:
        """The present revision of a resource: that of its key without a slash, which nobody writes."""
        answer = self.kv.Range(rpc_pb2.RangeRequest(key=self.root + resource))
        assert not answer.kvs
        return int(answer.header.revision)

    def count(self, resource: bytes) -> int:
        return int(self.kv.Range(self._listing(resource, count_only=True)).count)

    def page(self, resource: bytes, *, limit: int = 0, revision: int = 0, after: bytes = b"") -> rpc_pb2.RangeResponse:
        """A page of a list; `after` is the last key of the page before."""
        request = self._listing(resource, limit=limit, revision=revision)
        if after:
            request.key = after + b"\0"
        return self.kv.Range(request)

    def listed(self, resource: bytes, limit: int) -> tuple[list[bytes], int]:
        """A list in pages, all at the revision of the first; the names, and that revision."""
        answer = self.page(resource, limit=limit)
        revision, rows = answer.header.revision, list(answer.kvs)
        while answer.more:
            answer = self.page(resource, limit=limit, revision=revision, after=rows[-1].key)
            rows += answer.kvs
        return [row.key.removeprefix(self.root) for row in rows], revision

    def streamed(self, resource: bytes, *, limit: int = 0, revision: int = 0) -> list[rpc_pb2.RangeResponse]:
        """The chunks of a list by RangeStream, where etcd is 3.7."""
        request = self._listing(resource, limit=limit, revision=revision)
        return [chunk.range_response for chunk in self.kv.RangeStream(request)]

    def _listing(self, resource: bytes, **fields: int) -> rpc_pb2.RangeRequest:
        directory = self.root + resource + b"/"
        return rpc_pb2.RangeRequest(key=directory, range_end=directory[:-1] + b"0", **fields)

    def delete_all(self, resource: bytes) -> int:
        """Not asked by an apiserver, but by those who clean up behind one."""
        directory = self.root + resource + b"/"
        request = rpc_pb2.DeleteRangeRequest(key=directory, range_end=directory[:-1] + b"0")
        return int(self.kv.DeleteRange(request).deleted)

    def watch(self, resource: bytes, revision: int = 0, *, cached: bool = True) -> Watching:
        """As its cache does it; not `cached`: as anybody else might, or it for its events, which it does not cache."""
        directory = self.root + resource + b"/"
        create = rpc_pb2.WatchCreateRequest(
            key=directory,
            range_end=directory[:-1] + b"0",
            start_revision=revision,
            prev_kv=True,
            progress_notify=cached,
        )
        return Watching(self._watch, create)

    def watch_compactions(self) -> Watching:
        """What it does from its start on: others may compact."""
        return Watching(self._watch, rpc_pb2.WatchCreateRequest(key=COMPACT_KEY))

    def compact(self) -> int:
        """What its compactor does every five minutes: the revision that it compacts; 0 for none yet."""
        number = self._compact_revision
        answer = self.kv.Txn(
            rpc_pb2.TxnRequest(
                compare=[rpc_pb2.Compare(key=COMPACT_KEY, target=rpc_pb2.Compare.VERSION, version=self._compact_time)],
                success=[
                    rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=COMPACT_KEY, value=str(number).encode()))
                ],
                failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=COMPACT_KEY))],
            )
        )
        self._compact_revision = answer.header.revision
        if not answer.succeeded:
            self._compact_time = answer.responses[0].response_range.kvs[0].version
            return 0
        self._compact_time += 1
        if number:
            self.kv.Compact(rpc_pb2.CompactionRequest(revision=number))
        return number

"""Measures peers under a workload: rounds, each of which takes every peer once, so that drift meets all alike."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench.etcd import Etcd, call
from bench.load import Call
from bench.peers import SHARD_STARTS, Backends, Peer
from bench.processes import BenchError
from bench.workloads import Workload

WARM_UP_REQUESTS = 400
_DATA_TOLERANCE = 0.05  # of the reply's size: revisions are varints, and grow
_DATA_SLACK = 12
_DATA_SLACK_SPANNING = 128  # esp's answer holds a header of each shard, which parsing joins into one


@dataclass(frozen=True, slots=True)
class Sample:
    """One peer under one workload, once."""

    requests: int
    throughput: float  # requests per second
    p50_us: float
    p99_us: float
    cpu_us: float | None  # of the proxy, per request; None: no proxy
    cpu_user_share: float | None
    peak_rss_mb: float | None  # since this peer was started, that is since this workload began


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured at a time: `requests` if given, else about `seconds` at each peer's own pace."""

    seconds: float
    requests: int | None


@dataclass(frozen=True, slots=True)
class _Served:
    """What an etcd has done so far: its revision, ranges read, and answers by method and gRPC code."""

    revision: int
    ranges: int
    handled: dict[str, dict[str, int]]


@contextmanager
def running_backends(workload: Workload, folder: Path) -> Iterator[Backends]:
    """Fresh etcds that hold the workload's keys."""
    with ExitStack() as stack:

        def etcd(name: str) -> Etcd:
            started = Etcd(name, folder, large_values=workload.large)
            stack.callback(started.stop)
            return started

        shards = [etcd(name) for name in "abc"]
        union = etcd("union") if workload.spans else None
        pairs = list(workload.keys())
        for shard, start, end in zip(shards, SHARD_STARTS, [*SHARD_STARTS[1:], b"\xff"], strict=True):
            shard.load(pair for pair in pairs if start <= pair[0] < end)
        if union:
            union.load(pairs)
        yield Backends(shards, union)


def message_file(workload: Workload, folder: Path) -> Path:
    """Writes the workload's request as it goes over the wire."""
    path = folder / f"{workload.name}.request"
    _write(workload.request, path)
    return path


def _write(request: Any, path: Path) -> None:
    message = request.SerializeToString()
    path.write_bytes(struct.pack(">BL", 0, len(message)) + message)


def measure_workload(
    workload: Workload, peers: Sequence[type[Peer]], rounds: int, amount: Amount, folder: Path
) -> Iterator[tuple[str, Sample | BenchError]]:
    """Starts everything afresh, measures, stops everything; yields (peer's name, sample) as they come.

    A peer that fails yields its error instead, and takes no further part in this workload.
    """
    with running_backends(workload, folder) as backends, ExitStack() as stack:
        message = message_file(workload, folder)
        subjects: list[Subject] = []
        for kind in peers:
            peer, its_folder = kind(), folder / kind.name
            its_folder.mkdir()
            stack.callback(peer.stop)
            try:
                peer.start(backends, its_folder)
                subject = Subject(peer, workload, backends, message)
                subject.calibrate(amount)
            except BenchError as error:
                yield peer.name, error
            else:
                subjects.append(subject)
        for number in range(rounds):
            # Not always in the same order: who comes after whom may matter.
            turn = number % max(len(subjects), 1)
            for subject in subjects[turn:] + subjects[:turn]:
                try:
                    yield subject.peer.name, subject.measure()
                except BenchError as error:
                    subjects.remove(subject)
                    yield subject.peer.name, error
                if workload.large:
                    backends.sole.forget_history()
            if workload.writes:
                backends.sole.forget_history()


class Subject:
    """One running peer under one workload."""

    def __init__(self, peer: Peer, workload: Workload, backends: Backends, message: Path) -> None:
        self.peer = peer
        self._workload = workload
        self._request = workload.request
        if workload.at_revision:
            revision = call(peer.address, workload.method, workload.request).header.revision
            self._request = type(workload.request)()
            self._request.CopyFrom(workload.request)
            self._request.revision = revision
            message = message.with_name(f"{peer.name}-{message.name}")
            _write(self._request, message)
        self._etcds = peer.served_by(backends) if workload.spans else [backends.sole]
        self._call = Call(workload.method, message, workload.connections, workload.streams)
        self._requests = WARM_UP_REQUESTS

    def calibrate(self, amount: Amount) -> None:
        """Warms the peer up and decides how many requests one measurement takes."""
        self._requests = self._rounded(min(WARM_UP_REQUESTS, self._workload.most_requests))
        warm = self.measure()
        if amount.requests is None:
            # A second time, on a warm peer: the first result may be far too low.
            self._requests = self._rounded(warm.throughput * amount.seconds / 4)
            warm = self.measure()
        self._requests = self._rounded(amount.requests or warm.throughput * amount.seconds)

    def _rounded(self, requests: float) -> int:
        """A multiple of the connections, so that each makes as many; enough to fill every stream twice."""
        connections = self._workload.connections
        fewest = 2 * self._workload.streams * connections
        wanted = min(max(requests, fewest), self._workload.most_requests)
        return max(round(wanted / connections), 1) * connections

    def measure(self) -> Sample:
        """One measurement; raises BenchError if anything was not answered as etcd answers it."""
        reply_size = self._verify()
        before = self._served()
        process = self.peer.process
        cpu_before = process.cpu() if process else None
        seen = self._workload.generator(self.peer.address, self._call, self._requests)
        cpu = process.cpu() - cpu_before if process and cpu_before else None
        self._require_served(before)
        if seen.data_bytes is not None:
            expected = (reply_size + 5) * seen.requests
            slack = _DATA_SLACK_SPANNING if self._workload.spans else _DATA_SLACK
            if abs(seen.data_bytes - expected) > max(expected * _DATA_TOLERANCE, slack * seen.requests):
                raise BenchError(f"{self._where}: {seen.data_bytes} bytes of replies, not about {expected}")
        return Sample(
            requests=seen.requests,
            throughput=seen.throughput,
            p50_us=seen.p50_us,
            p99_us=seen.p99_us,
            cpu_us=cpu.total / seen.requests * 1e6 if cpu else None,
            cpu_user_share=cpu.user / (cpu.user + cpu.system) if cpu and cpu.user + cpu.system else None,
            peak_rss_mb=process.memory_mb("VmHWM") if process else None,
        )

    @property
    def _where(self) -> str:
        return f"{self._workload.name} through {self.peer.name}"

    def _verify(self) -> int:
        """One call by the stock client through the peer: right answer, right effect. The reply's size in bytes."""
        try:
            revisions = [etcd.revision() for etcd in self._etcds]
            reply = call(self.peer.address, self._workload.method, self._request)
            self._workload.check(reply)
            if self._workload.writes and [etcd.revision() for etcd in self._etcds] != [revisions[0] + 1]:
                raise BenchError(f"{self._where}: a write did not arrive at the etcd that owns its key")
        except grpc.RpcError as error:
            raise BenchError(f"{self._where}: grpcio got {error.code()}: {error.details()}") from error
        return int(reply.ByteSize())

    def _served(self) -> list[_Served]:
        return [_Served(etcd.revision(), etcd.ranges(), etcd.handled()) for etcd in self._etcds]

    def _require_served(self, before: list[_Served]) -> None:
        """Every request must have had its effect on every etcd it concerns, and have been answered OK there.

        h2load takes a gRPC error for a success, so this is what makes its figures believable. A write is a call and a
        revision; a Range is a range read, in a call of its own or with others.
        """
        for etcd, then in zip(self._etcds, before, strict=True):
            handled, ranges, written = etcd.handled(), etcd.ranges() - then.ranges, etcd.revision() - then.revision
            new = {
                (method, code): count - then.handled.get(method, {}).get(code, 0)
                for method, codes in handled.items()
                for code, count in codes.items()
                if count != then.handled.get(method, {}).get(code)
            }
            methods = {self._workload.method, "Txn"} if self.peer.compares else {self._workload.method}
            done = sum(new.get((method, "OK"), 0) for method in methods) if self._workload.writes else ranges
            if written != (self._requests if self._workload.writes else 0):
                raise BenchError(f"{self._where}: {self._requests} requests, {written} revisions on etcd {etcd.name}")
            each = 2 if self.peer.compares else 1  # the guard is read as well
            wasted = not self._workload.spans and ranges > each * 1.05 * self._requests + 10  # read, and read again
            if done < self._requests or wasted or any(code != "OK" for _, code in new):
                raise BenchError(
                    f"{self._where}: {self._requests} requests; etcd {etcd.name} read {ranges} ranges, answered {new}"
                )

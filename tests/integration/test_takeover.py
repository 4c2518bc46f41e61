"""`esp serve --takeover` and SIGUSR2: another process goes on with the sockets, tokens, watches of the running one."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import PATIENCE, EspProcess, Esps, Etcds, connect, wait_until
from tests.stubs import rpc_pb2_grpc

EVERYTHING = {"key": b"\0", "range_end": b"\0"}


class Writer:
    """Puts keys of all shards, one after the other, on one channel; each must succeed.

    Slowly: the revisions of the shards must stay apart (`far_apart`), also where an esp takes half a minute to start.

    Attributes:
        put: the values that were acknowledged, in order.
        failed: the errors.
    """

    def __init__(self, esp: EspProcess) -> None:
        self.put: list[bytes] = []
        self.failed: list[grpc.RpcError] = []
        self._esp = esp
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with connect(self._esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            number = 0
            while not self._stop.wait(0.02):
                number += 1
                value = b"%06d" % number
                try:
                    kv.Put(rpc_pb2.PutRequest(key=b"akz"[number % 3 :][:1], value=value), timeout=PATIENCE)
                except grpc.RpcError as error:
                    self.failed.append(error)
                else:
                    self.put.append(value)


class Watcher:
    """Watches all keys, and resumes behind the last event that it has seen, as etcd's own client does.

    Attributes:
        seen: the values of the events, in order.
        resumed: how often it has begun again.
        ended: the response that ended the watch for good.
    """

    def __init__(self, esp: EspProcess) -> None:
        self.seen: list[bytes] = []
        self.resumed = 0
        self.ended: rpc_pb2.WatchResponse | None = None
        self.created = threading.Event()
        self._channel = connect(esp)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watcher:
        self._thread.start()
        assert self.created.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._channel.close()
        self._thread.join()

    def _run(self) -> None:
        start = 0
        while not self._done.is_set():
            request = rpc_pb2.WatchRequest(
                create_request=rpc_pb2.WatchCreateRequest(**EVERYTHING, start_revision=start)
            )
            try:
                for response in rpc_pb2_grpc.WatchStub(self._channel).Watch(self._requests(request)):
                    if response.canceled:
                        self.ended = response
                        return
                    self.created.set()
                    for event in response.events:
                        self.seen.append(event.kv.value)
                        start = event.kv.mod_revision + 1
            except grpc.RpcError:
                self.resumed += 1
            except ValueError:  # the channel is closed
                return

    def _requests(self, request: rpc_pb2.WatchRequest) -> Iterator[rpc_pb2.WatchRequest]:
        yield request
        self._done.wait()


@contextmanager
def successor_of(esp: EspProcess) -> Iterator[int]:
    """SIGUSR2; the process that has taken over, which is ended at the end of the block."""
    before = esp.log()
    esp.process.send_signal(signal.SIGUSR2)
    process = 0

    def has_taken_over() -> bool:
        nonlocal process
        told = re.search(r"process (\d+) serves from now on", esp.log()[len(before) :])
        process = int(told[1]) if told else 0
        return bool(process)

    wait_until(has_taken_over)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        wait_until(lambda: not is_alive(process))


def is_alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def far_apart(etcds: Sequence[LocalEtcd]) -> None:
    """Moves the shards' revisions apart, so that a plain revision is of one shard only."""
    for number, etcd in enumerate(etcds):
        with connect(etcd) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            puts = [kv.Put.future(rpc_pb2.PutRequest(key=b"akz"[number : number + 1])) for _ in range(1500 * number)]
            for put in puts:
                put.result()


@pytest.fixture(scope="module")
def etcds(module_etcds: Etcds) -> list[LocalEtcd]:
    """Three shards whose revisions are far apart."""
    etcds = module_etcds.several(3)
    far_apart(etcds)
    return etcds


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_call_fails_and_a_watch_and_a_token_go_on_exactly(
    workers: str, etcds: list[LocalEtcd], start_esp: Esps
) -> None:
    esp = start_esp(etcds, ["i", "r"], "--workers", workers)
    with connect(esp) as channel:
        listed = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING), timeout=PATIENCE)
    with Watcher(esp) as watcher, Writer(esp) as writer:
        wait_until(lambda: len(writer.put) > 50)
        with successor_of(esp) as process:
            assert esp.wait() == 0
            so_far = len(writer.put)
            wait_until(lambda: len(writer.put) > so_far + 50)
            with connect(esp) as channel:
                request = rpc_pb2.RangeRequest(**EVERYTHING, revision=listed.header.revision)
                again = rpc_pb2_grpc.KVStub(channel).Range(request, timeout=PATIENCE)
                assert (again.kvs, again.header.revision) == (listed.kvs, listed.header.revision)
            # Once more: the second successor knows the tokens of the first process, too.
            os.kill(process, signal.SIGUSR2)
            wait_until(lambda: not is_alive(process))
            second = int(re.findall(r"process (\d+) serves from now on", esp.log())[-1])
            assert second != process
            try:
                with connect(esp) as channel:
                    again = rpc_pb2_grpc.KVStub(channel).Range(request, timeout=PATIENCE)
                    assert (again.kvs, again.header.revision) == (listed.kvs, listed.header.revision)
                so_far = len(writer.put)
                wait_until(lambda: len(writer.put) > so_far + 50)
                writer.__exit__()
                assert not writer.failed, writer.failed
                wait_until(lambda: watcher.ended is not None or len(watcher.seen) >= len(writer.put))
                assert watcher.ended is None
                assert watcher.resumed >= 2
                marker = b"marker"  # one for each shard: of each shard, an event that came twice would come before it
                with connect(esp) as channel:
                    for key in (b"a", b"k", b"z"):
                        put = rpc_pb2.PutRequest(key=key, value=marker)
                        rpc_pb2_grpc.KVStub(channel).Put(put, timeout=PATIENCE)
                wait_until(lambda: watcher.ended is not None or watcher.seen.count(marker) >= 3)
                assert sorted(watcher.seen) == [*writer.put, marker, marker, marker], "each event once"
            finally:
                os.kill(second, signal.SIGTERM)
                wait_until(lambda: not is_alive(second))

"""Load generators: each drives one address with one workload and tells what it saw."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.json_format import MessageToJson

from bench.processes import BenchError
from esp.core.pb import rpc_pb2

TIMEOUT = 120.0  # seconds; nothing here takes a tenth of it


@dataclass(frozen=True, slots=True)
class Call:
    """The request that a workload repeats, and how many at once."""

    method: str  # of etcdserverpb.KV
    message: Path  # a file: the 5-byte gRPC prefix and the request
    connections: int
    streams: int  # in flight on each connection

    @property
    def path(self) -> str:
        return f"/etcdserverpb.KV/{self.method}"


@dataclass(frozen=True, slots=True)
class Load:
    """What a generator saw."""

    requests: int  # all of them; a few may not be timed
    throughput: float  # requests per second
    p50_us: float
    p99_us: float
    data_bytes: int | None = None  # of all DATA frames received, where the generator counts them


class Generator(Protocol):
    """Makes exactly `requests` calls, a multiple of the connections; raises BenchError if one did not end well."""

    def __call__(self, address: str, call: Call, requests: int) -> Load: ...


def h2load(address: str, call: Call, requests: int, *, metadata: Sequence[str] = ()) -> Load:
    """`h2load` of nghttp2. It takes any HTTP 200 for success; the caller must look at the gRPC side.

    p50 and p99 come from its per-request log, in microseconds. Writing it costs h2load some CPU (see README.md), the
    same for every peer.
    """
    fields = ("content-type: application/grpc", "te: trailers", *metadata)
    options = ["-m", str(call.streams)]
    server = f"http://{address}"
    if address.startswith("https://"):
        server = address
        options += ["--npn-list=h2"]  # as clients of gRPC; by default h2load offers HTTP/1.1 as well
    return _h2load(f"{server}{call.path}", call, requests, fields, options, call.message)


_JSON: dict[str, tuple[Any, str]] = {
    "Put": (rpc_pb2.PutRequest, "/v3/kv/put"),
    "Range": (rpc_pb2.RangeRequest, "/v3/kv/range"),
}


def h2load_json(address: str, call: Call, requests: int) -> Load:
    """As `h2load`, to the JSON gateway: HTTP/1.1, one request at a time on each connection."""
    kind, path = _JSON[call.method]
    body = call.message.with_suffix(".json")
    body.write_text(MessageToJson(kind.FromString(call.message.read_bytes()[5:]), indent=None))
    seen = _h2load(f"http://{address}{path}", call, requests, ("content-type: application/json",), ("--h1",), body)
    return replace(seen, data_bytes=None)  # not the size that the protobuf answer has


def _h2load(url: str, call: Call, requests: int, fields: Sequence[str], options: Sequence[str], message: Path) -> Load:
    log = call.message.with_suffix(".h2load")
    log.unlink(missing_ok=True)
    command = ["h2load", "-c", str(call.connections), "-n", str(requests), "-t", "1", *options]
    for field in fields:
        command += ["-H", field]
    command += ["-d", str(message)]
    told = _run([*command, f"--log-file={log}", url])
    latencies, failed = [], 0
    first, last = float("inf"), 0
    with log.open() as rows:
        for row in rows:
            began, status, took = row.split("\t")
            latencies.append(int(took))
            failed += status != "200"
            first, last = min(first, int(began)), max(last, int(began) + int(took))
    if failed or len(latencies) != requests or f" {requests} succeeded, 0 failed, 0 errored" not in told:
        raise BenchError(f"h2load: {failed} of {len(latencies)} logged requests failed; it says: {told[-1500:]}")
    data = re.search(r"\((\d+)\) data$", told, re.MULTILINE)
    # From the log too: h2load prints three digits.
    return Load(requests, requests / (last - first) * 1e6, *_p50_p99(latencies), int(data[1]) if data else None)


def _p50_p99(latencies: list[int]) -> tuple[int, int]:
    latencies.sort()
    return latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]


def deadlines(address: str, call: Call, requests: int) -> Load:
    """Our own generator: as h2load, but with a new grpc-timeout in every request, as clients in Go send it."""
    command = [sys.executable, "-m", "bench.deadlines", address, call.path, str(call.message)]
    command += ["-c", str(call.connections), "-m", str(call.streams), "-n", str(requests)]
    told = json.loads(_run(command))
    if told["requests"] != requests:
        raise BenchError(f"bench.deadlines: {told}")
    return Load(requests, told["throughput"], told["p50_us"], told["p99_us"])


def missing_generators() -> str | None:
    """What has to be installed first, or None."""
    return None if shutil.which("h2load") else "no h2load on PATH (Debian: nghttp2-client)"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"not done within {TIMEOUT:.0f} s: {' '.join(command)}") from None
    if done.returncode:
        raise BenchError(f"{command[0]} exited with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout

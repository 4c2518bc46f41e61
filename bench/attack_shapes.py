"""What the attacking connections of `bench/attacks` send: one small generator for each attack.

A generator is one connection's life: its first chunk opens the connection, each later one is sent as soon as the rate
allows. Bytes are prebuilt, so that the generator costs little beside what it attacks. `None` for a chunk means: send
no more, and hold the connection open. Stream ids go on where the generator left them; a connection that the server
ends is opened anew.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import Message
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from bench.tls_client import hello
from esp.core.pb import rpc_pb2

Chunk = tuple[bytes, int] | None  # bytes, and how many things of the attack's kind are in them
Shape = Callable[[], Iterator[Chunk]]

BIG_KEYS = 60  # of 1 MB each, an equal part of them in each shard
BIG_VALUE = 1_000_000
LEASES = 10_000  # in each shard: as many as `lease-grant` leaves there in five seconds
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS = 1, 4
_CHUNK = 16_384
_MB = 1_000_000
_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Args:
        shape: what one connection does.
        rate: bytes per second over all connections together; a multiple of what the server can keep up with where the
            work is cheap to cause, so that fairness is what is measured.
        reads: whether what the server sends is read.
        connections: of the attack's own kind; None: as many as the caller says.
        small_buffer: of the receiving socket, so that what is not read soon stops the server.
        big_keys: whether `BIG_KEYS` must be there.
        opens_per_second: connections that are opened anew, at most, after those of the beginning.
        tls: the attack goes to the port with TLS.
        seals: the method of `tls_client.TlsClient` that seals each chunk after a handshake; "" for bytes as they are.
        leases: whether `LEASES` leases must be there.
    """

    name: str
    about: str
    shape: Shape
    rate: float
    reads: bool = True
    connections: int | None = None
    small_buffer: bool = False
    big_keys: bool = False
    opens_per_second: float = 100.0
    tls: bool = False
    seals: str = ""
    leases: bool = False


ATTACKS: dict[str, Attack] = {}


def _attack(
    name: str,
    about: str,
    rate: float,
    *,
    reads: bool = True,
    connections: int | None = None,
    small_buffer: bool = False,
    big_keys: bool = False,
    opens_per_second: float = 100.0,
    tls: bool = False,
    seals: str = "",
    leases: bool = False,
) -> Callable[[Shape], Shape]:
    def add(shape: Shape) -> Shape:
        ATTACKS[name] = Attack(
            name, about, shape, rate, reads, connections, small_buffer, big_keys, opens_per_second, tls, seals, leases
        )
        return shape

    return add


# Frames and header blocks


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _integer(value: int, bits: int, first: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _string(text: bytes) -> bytes:
    return _integer(len(text), 7, 0) + text


def _coded(text: bytes) -> bytes:
    coded = _huffman.encode(text)
    return _integer(len(coded), 7, 128) + coded


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that leaves the table as it is."""
    return b"\0" + _string(name) + _string(value)


def _path(path: bytes) -> bytes:
    return b"\x04" + _string(path)


def grpc_head(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call."""
    fields = [literal(b"content-type", b"application/grpc"), literal(b"te", b"trailers")]
    return b"\x83\x86" + _path(path) + b"".join(fields + [literal(*field) for field in more])


def page_head(path: bytes, *more: bytes) -> bytes:
    """The header block of a GET."""
    return b"\x82\x86" + _path(path) + b"".join(more)


def message(body: bytes, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(body)) + body


def opening(window: int | None = None, connection_window: int = 0) -> bytes:
    """The preface and the first SETTINGS; `window` is what each stream may be sent."""
    settings = b"" if window is None else struct.pack(">HI", 4, window)
    more = frame(_WINDOW, 0, 0, struct.pack(">I", connection_window)) if connection_window else b""
    return _PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_SETTINGS, 1, 0) + more


def _frames(data: bytes, stream: int, end: bool) -> bytes:
    pieces = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)] or [b""]
    last = len(pieces) - 1
    return b"".join(frame(_DATA, int(end and at == last), stream, piece) for at, piece in enumerate(pieces))


def _unlike(block: bytes, number: int) -> bytes:
    """The block with a field that no other has: a server that remembers blocks has to read each."""
    return block + literal(b"x-n", b"%d" % number)


def _calls(block: bytes, body: bytes | None, *, differing: bool = False, opens: bytes = opening()) -> Iterator[Chunk]:
    """Calls without end, each with this head and this one message, or, with None, with no body at all."""
    yield opens, 0
    flags = _END_HEADERS | (_END_STREAM if body is None else 0)
    size = len(block) + (len(body) if body else 0) + 18
    at_once = max(1, _CHUNK // size)
    stream = 1
    while stream < 1 << 30:
        parts = []
        for one in range(stream, stream + 2 * at_once, 2):
            parts.append(frame(_HEADERS, flags, one, _unlike(block, one) if differing else block))
            if body is not None:
                parts.append(_frames(body, one, end=True))
        yield b"".join(parts), at_once
        stream += 2 * at_once


def _repeat(first: bytes, unit: bytes, most: int = _CHUNK) -> Iterator[Chunk]:
    """The same bytes again and again."""
    yield first, 0
    at_once = max(1, most // len(unit))
    chunk = unit * at_once, at_once
    while True:
        yield chunk


def _hold(*chunks: bytes, count: int = 1) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk, count
    while True:
        yield None


_RANGE = message(rpc_pb2.RangeRequest(key=b"attack").SerializeToString())
_RANGE_HEAD = grpc_head(b"/etcdserverpb.KV/Range")
_BARE = message(rpc_pb2.RangeRequest(key=b"a", range_end=b"z").SerializeToString())
_WATCH_HEAD = grpc_head(b"/etcdserverpb.Watch/Watch")


# HTTP/1.1


@_attack("h1-pipelined", "HTTP/1.1 pipelined GET /h", 1.1 * _MB)
def _h1_pipelined() -> Iterator[Chunk]:
    return _repeat(b"", b"GET /h HTTP/1.1\r\nHost: x\r\n\r\n")


@_attack("h1-chunked", "HTTP/1.1 body in chunks of one byte", 1.1 * _MB)
def _h1_chunked() -> Iterator[Chunk]:
    head = b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _repeat(head, b"1\r\nx\r\n")


@_attack("h1-dribble", "HTTP/1.1 head of 60 fields, pipelined", 1.1 * _MB)
def _h1_fields() -> Iterator[Chunk]:
    fields = b"".join(b"x-%02d: y\r\n" % number for number in range(60))
    return _repeat(b"", b"GET /health HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")


def _json(path: bytes, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)


@_attack("json-ranges", "JSON gateway: pipelined reads of a key", 1.1 * _MB)
def _json_ranges() -> Iterator[Chunk]:
    return _repeat(b"", _json(b"/v3/kv/range", b'{"key":"YXR0YWNr"}'))


@_attack("json-tokens", "JSON gateway: 4 MB of ignored arrays", 1.1 * _MB)
def _json_tokens() -> Iterator[Chunk]:
    body = b'{"ignored":[' + b"[]," * 1_300_000 + b"[]]}"
    request = _json(b"/v3/kv/range", body)
    while True:
        for start in range(0, len(request), _CHUNK):
            yield request[start : start + _CHUNK], 1


@_attack("json-halves", "JSON gateway: watches, each with a string that does not end", 60 * _MB, connections=100)
def _json_halves() -> Iterator[Chunk]:
    head = b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _hold(head + b'1\r\n"\r\n', *[b"4000\r\n" + b"x" * 16_384 + b"\r\n"] * 200)


@_attack(
    "json-no-reading", "JSON gateway: reads of 60 MB, not read", 0.01 * _MB, reads=False, connections=20, big_keys=True
)
def _json_no_reading() -> Iterator[Chunk]:
    return _hold(_json(b"/v3/kv/range", b'{"key":"AA==","range_end":"AA=="}'))


# Costly requests


@_attack("gzip-put", "gzip Put, 2 KB -> 1.4 MB", 64_000)
def _gzip_put() -> Iterator[Chunk]:
    put = rpc_pb2.PutRequest(key=b"u/gzip", value=b"\0" * 1_400_000).SerializeToString()
    return _calls(grpc_head(b"/etcdserverpb.KV/Put", (b"grpc-encoding", b"gzip")), message(gzip.compress(put), True))


@_attack("gzip-bomb", "gzip Put that expands to 30 MB, above the limit", 1 * _MB)
def _gzip_bomb() -> Iterator[Chunk]:
    bomb = gzip.compress(b"\0" * 30_000_000)
    return _calls(grpc_head(b"/etcdserverpb.KV/Put", (b"grpc-encoding", b"gzip")), message(bomb, True))


@_attack("huffman-404", "10 KB of Huffman headers to a page that is not there", 8 * _MB)
def _huffman_page() -> Iterator[Chunk]:
    value = b"\0" + _coded(b"x-long") + _coded(b"0123456789abcdef" * 640)
    return _calls(page_head(b"/nothing", value), None, differing=True)


@_attack("unknown-path", "HEADERS to an unknown gRPC path", 10 * _MB)
def _unknown_path() -> Iterator[Chunk]:
    return _calls(grpc_head(b"/no.Such/Method"), None)


@_attack("unknown-paths", "HEADERS to gRPC paths that differ each time", 4 * _MB)
def _unknown_paths() -> Iterator[Chunk]:
    yield opening(), 0
    for first in range(1, 1 << 30, 200):
        calls = [
            frame(_HEADERS, 5, stream, grpc_head(b"/no.Such/Method%d" % stream))
            for stream in range(first, first + 200, 2)
        ]
        yield b"".join(calls), 100


@_attack("indexed-metadata", "Range with 90 indexed references as metadata", 1 * _MB)
def _indexed_metadata() -> Iterator[Chunk]:
    insert = frame(_HEADERS, 5, 1, grpc_head(b"/no.Such/Method") + b"\x40" + _string(b"x-a") + _string(b"y" * 20))
    yield opening() + insert, 0
    block = _RANGE_HEAD + b"\xbe" * 90
    for first in range(3, 1 << 30, 100):
        ids = range(first, first + 100, 2)
        yield b"".join(frame(_HEADERS, 4, s, _unlike(block, s)) + frame(_DATA, 1, s, _RANGE) for s in ids), 50


@_attack("page-fields", "pages with 95 fields", 2 * _MB)
def _page_fields() -> Iterator[Chunk]:
    return _calls(
        page_head(b"/health", *(literal(b"x-%02d" % number, b"y") for number in range(95))), None, differing=True
    )


@_attack("changing-fields", "Range whose metadata differs each time", 1 * _MB)
def _changing_fields() -> Iterator[Chunk]:
    yield opening(), 0
    for first in range(1, 1 << 30, 100):
        calls = []
        for stream in range(first, first + 100, 2):
            block = _RANGE_HEAD + literal(b"x-a", b"%d" % stream) + literal(b"x-b", b"%d" % stream)
            calls.append(frame(_HEADERS, 4, stream, block) + frame(_DATA, 1, stream, _RANGE))
        yield b"".join(calls), 50


@_attack("nested-txns", "Txns nested 20 deep, 60 KB each", 10 * _MB)
def _nested_txns() -> Iterator[Chunk]:
    txn = rpc_pb2.TxnRequest()
    at = txn
    for _ in range(20):
        for number in range(100):
            at.success.add().request_range.key = b"a/%d" % number
        at = at.success.add().request_txn
    return _calls(grpc_head(b"/etcdserverpb.KV/Txn"), message(txn.SerializeToString()))


@_attack("wide-ranges", "Ranges over three shards", 0.2 * _MB)
def _wide_ranges() -> Iterator[Chunk]:
    request = rpc_pb2.RangeRequest(key=b"a", range_end=b"z", limit=10)
    return _calls(_RANGE_HEAD, message(request.SerializeToString()))


@_attack("bare-ranges", "Ranges over three shards that name nothing but their keys", 0.2 * _MB)
def _bare_ranges() -> Iterator[Chunk]:
    return _calls(_RANGE_HEAD, _BARE)


@_attack("taken-ranges", "as bare-ranges, with windows for all answers", 0.2 * _MB)
def _taken_ranges() -> Iterator[Chunk]:
    return _calls(_RANGE_HEAD, _BARE, opens=opening(1 << 20, (1 << 31) - 65_536))


@_attack("ranges", "honest Ranges of one key, as fast as they go", 2 * _MB)
def _ranges() -> Iterator[Chunk]:
    return _calls(_RANGE_HEAD, _RANGE)


@_attack("puts", "honest Puts of 100 bytes to another shard than the neighbour's", 2 * _MB)
def _puts() -> Iterator[Chunk]:
    put = rpc_pb2.PutRequest(key=b"u/attack", value=b"x" * 100).SerializeToString()
    return _calls(grpc_head(b"/etcdserverpb.KV/Put"), message(put))


# Streaming calls that do nothing


def _in_one_stream(head: bytes, request: bytes) -> Iterator[Chunk]:
    yield opening(connection_window=1 << 30) + frame(_HEADERS, 4, 1, head), 0
    body = message(request)
    count = max(1, 8_192 // len(body))
    chunk = frame(_DATA, 0, 1, body * count), count
    while True:
        yield chunk


@_attack("watch-empty", "empty WatchRequests in one stream", 5 * _MB)
def _watch_empty() -> Iterator[Chunk]:
    return _in_one_stream(_WATCH_HEAD, b"")


@_attack("watch-progress", "progress requests in one stream", 5 * _MB)
def _watch_progress() -> Iterator[Chunk]:
    request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
    return _in_one_stream(_WATCH_HEAD, request.SerializeToString())


@_attack("watch-cancel", "cancels of unknown watch ids in one stream", 5 * _MB)
def _watch_cancel() -> Iterator[Chunk]:
    request = rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=77))
    return _in_one_stream(_WATCH_HEAD, request.SerializeToString())


@_attack("watch-churn", "watches made and canceled in one stream", 1 * _MB)
def _watch_churn() -> Iterator[Chunk]:
    create = rpc_pb2.WatchCreateRequest(key=b"u/churn", watch_id=5)
    parts = [
        message(rpc_pb2.WatchRequest(create_request=create).SerializeToString()),
        message(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=5)).SerializeToString()),
    ]
    first = opening(connection_window=1 << 30) + frame(_HEADERS, 4, 1, _WATCH_HEAD)
    return _repeat(first, frame(_DATA, 0, 1, b"".join(parts)))


@_attack("keepalive-unknown", "keepalives of unknown leases in one stream", 1 * _MB)
def _keepalives() -> Iterator[Chunk]:
    head = grpc_head(b"/etcdserverpb.Lease/LeaseKeepAlive")
    return _in_one_stream(head, rpc_pb2.LeaseKeepAliveRequest(ID=123456789).SerializeToString())


# Frames


@_attack("window-updates", "WINDOW_UPDATE of 64 bytes each", 20 * _MB)
def _window_updates() -> Iterator[Chunk]:
    return _repeat(opening(), frame(_WINDOW, 0, 0, struct.pack(">I", 64)), 65_536)


@_attack("window-updates-large", "WINDOW_UPDATE of 1,024 bytes each on an open stream", 20 * _MB)
def _window_updates_large() -> Iterator[Chunk]:
    first = opening() + frame(_HEADERS, 4, 1, _WATCH_HEAD)
    return _repeat(first, frame(_WINDOW, 0, 1, struct.pack(">I", 1_024)), 65_536)


@_attack("rapid-reset", "HEADERS and RST_STREAM, pair by pair", 4 * _MB)
def _rapid_reset() -> Iterator[Chunk]:
    yield opening(), 0
    cancel = struct.pack(">I", 8)
    for first in range(1, 1 << 30, 200):
        ids = range(first, first + 200, 2)
        yield b"".join(frame(_HEADERS, 4, s, _RANGE_HEAD) + frame(_RST, 0, s, cancel) for s in ids), 100


@_attack("rapid-reset-whole", "whole Ranges over three shards, each reset at once", 4 * _MB)
def _rapid_reset_whole() -> Iterator[Chunk]:
    whole = rpc_pb2.RangeRequest(
        key=b"a", range_end=b"z", sort_order=rpc_pb2.RangeRequest.DESCEND, sort_target=rpc_pb2.RangeRequest.VALUE
    )
    return _resets(message(whole.SerializeToString()))


@_attack("rapid-reset-bare", "Ranges over three shards that name nothing but their keys, each reset at once", 4 * _MB)
def _rapid_reset_bare() -> Iterator[Chunk]:
    return _resets(_BARE)


def _resets(body: bytes) -> Iterator[Chunk]:
    """Ranges, each taken back at once."""
    yield opening(), 0
    cancel = struct.pack(">I", 8)
    for first in range(1, 1 << 30, 100):
        ids = range(first, first + 100, 2)
        calls = (frame(_HEADERS, 4, s, _RANGE_HEAD) + frame(_DATA, 1, s, body) + frame(_RST, 0, s, cancel) for s in ids)
        yield b"".join(calls), 50


@_attack("made-you-reset", "calls that the server must reset: WINDOW_UPDATE of 0", 4 * _MB)
def _made_you_reset() -> Iterator[Chunk]:
    yield opening(), 0
    for first in range(1, 1 << 30, 200):
        ids = range(first, first + 200, 2)
        yield b"".join(frame(_HEADERS, 4, s, _RANGE_HEAD) + frame(_WINDOW, 0, s, b"\0" * 4) for s in ids), 100


@_attack("continuations", "CONTINUATION frames that are empty", 4 * _MB)
def _continuations() -> Iterator[Chunk]:
    return _repeat(opening() + frame(_HEADERS, 0, 1, _RANGE_HEAD), frame(_CONTINUATION, 0, 1))


@_attack("settings", "SETTINGS that change nothing", 4 * _MB)
def _settings() -> Iterator[Chunk]:
    return _repeat(opening(), frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)))


@_attack("window-flap", "INITIAL_WINDOW_SIZE up and down with 900 calls open", 4 * _MB)
def _window_flap() -> Iterator[Chunk]:
    calls = b"".join(frame(_HEADERS, 4, stream, _RANGE_HEAD) for stream in range(1, 1800, 2))
    up, down = (frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, size)) for size in (70_000, 60_000))
    return _repeat(opening() + calls, up + down)


@_attack("pings", "PING, answers read", 4 * _MB)
def _pings() -> Iterator[Chunk]:
    return _repeat(opening(), frame(_PING, 0, 0, b"12345678"))


@_attack("pings-unread", "PING, answers not read", 4 * _MB, reads=False, small_buffer=True)
def _pings_unread() -> Iterator[Chunk]:
    return _repeat(opening(), frame(_PING, 0, 0, b"12345678"))


@_attack("empty-data", "DATA of no bytes", 4 * _MB)
def _empty_data() -> Iterator[Chunk]:
    return _repeat(opening() + frame(_HEADERS, 4, 1, _WATCH_HEAD), frame(_DATA, 0, 1))


@_attack("small-data", "a message in DATA of one byte each", 4 * _MB)
def _small_data() -> Iterator[Chunk]:
    first = opening() + frame(_HEADERS, 4, 1, _WATCH_HEAD) + frame(_DATA, 0, 1, struct.pack(">BI", 0, 2_000_000))
    return _repeat(first, frame(_DATA, 0, 1, b"x"))


@_attack("priorities", "PRIORITY of ever new streams", 4 * _MB)
def _priorities() -> Iterator[Chunk]:
    yield opening(), 0
    for first in range(1, 1 << 30, 1_000):
        yield b"".join(frame(_PRIORITY, 0, s, b"\0\0\0\0\x10") for s in range(first, first + 1_000, 2)), 500


@_attack("unknown-frames", "frames of an unknown type", 4 * _MB)
def _unknown_frames() -> Iterator[Chunk]:
    return _repeat(opening(), frame(0xBB, 0, 0))


@_attack("hpack-inserts", "header blocks that fill the table anew each time", 2 * _MB)
def _hpack_inserts() -> Iterator[Chunk]:
    yield opening(), 0
    for stream in range(1, 1 << 30, 2):
        inserts = b"".join(b"\x40" + _string(b"a%d" % number) + _string(b"%d" % stream) for number in range(80))
        yield frame(_HEADERS, 5, stream, page_head(b"/health", inserts)), 1


# Connections


@_attack("nothing", "no attack, for comparison: one connection that says nothing", 1)
def _nothing() -> Iterator[Chunk]:
    return _hold(opening())


@_attack("connects", "connections that are closed at once", 400_000, connections=100, opens_per_second=2_000)
def _connects() -> Iterator[Chunk]:
    yield opening(), 1


@_attack("tls-hello", "a TLS ClientHello at the plain port", 1 * _MB, connections=100, opens_per_second=2_000)
def _tls_hello() -> Iterator[Chunk]:
    hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(194)
    yield hello, 1


@_attack("idle-sockets", "2,000 connections that say nothing", 1, connections=2_000)
def _idle_sockets() -> Iterator[Chunk]:
    return _hold(b"")


@_attack("prefaces", "2,000 connections with a preface and no request", 1 * _MB, connections=2_000)
def _prefaces() -> Iterator[Chunk]:
    return _hold(opening())


@_attack("half-headers", "2,000 connections with half a HEADERS frame", 1 * _MB, connections=2_000)
def _half_headers() -> Iterator[Chunk]:
    return _hold(opening() + frame(_HEADERS, 4, 1, _RANGE_HEAD)[:20])


# TLS


@_attack(
    "tls-handshakes",
    "a ClientHello at the TLS port, and away",
    2 * _MB,
    connections=100,
    opens_per_second=2_000,
    tls=True,
)
def _tls_handshakes() -> Iterator[Chunk]:
    yield hello(), 1
    for _ in range(4):  # stays for the answer
        yield b"", 0


@_attack("tls-half-handshake", "2,000 connections with half a ClientHello", 1 * _MB, connections=2_000, tls=True)
def _tls_half_handshake() -> Iterator[Chunk]:
    whole = hello()
    return _hold(whole[: len(whole) // 2])


@_attack("tls-garbage", "a record of 16 KiB of garbage", 20 * _MB, connections=100, opens_per_second=2_000, tls=True)
def _tls_garbage() -> Iterator[Chunk]:
    yield b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(range(256)) * 64, 1


@_attack("tls-small-records", "a record for each byte of a frame", 10 * _MB, tls=True, seals="one_by_one")
def _tls_small_records() -> Iterator[Chunk]:
    yield opening(), 1
    while True:
        yield frame(0x55, 0, 0, bytes(2_000)), 2_009


@_attack("tls-key-updates", "records that change the keys", 2 * _MB, tls=True, seals="key_updates")
def _tls_key_updates() -> Iterator[Chunk]:
    while True:
        yield bytes(600), 600


# Memory


@_attack("header-bomb", "1,000 open Watch calls, 90 indexed references each", 12 * _MB, connections=60)
def _header_bomb() -> Iterator[Chunk]:
    insert = frame(_HEADERS, 5, 1, grpc_head(b"/no.Such/Method") + b"\x40" + _string(b"x-a") + _string(b"y" * 20))
    block = _WATCH_HEAD + b"\xbe" * 90
    return _hold(
        opening() + insert, b"".join(frame(_HEADERS, 4, s, _unlike(block, s)) for s in range(3, 2003, 2)), count=1_000
    )


def _big_reads(window: int, drip: bool = False) -> Iterator[Chunk]:
    calls = []
    for number in range(20):
        stream = 1 + 2 * number
        request = message(rpc_pb2.RangeRequest(key=big_key(number % BIG_KEYS)).SerializeToString())
        calls.append(frame(_HEADERS, 4, stream, _RANGE_HEAD) + frame(_DATA, 1, stream, request))
    yield opening(window, 1 << 30) + b"".join(calls), 20
    while True:
        yield (b"".join(frame(_WINDOW, 0, 1 + 2 * n, struct.pack(">I", 1)) for n in range(20)), 0) if drip else None


def big_key(number: int) -> bytes:
    """The key of one of the values of `BIG_VALUE` bytes; neighbours in number lie on different shards."""
    return b"%s/big/%03d" % ((b"a", b"n", b"u")[number % 3], number)


@_attack("zero-window", "200 reads of 1 MB with a window of 0", 1 * _MB, connections=10, big_keys=True)
def _zero_window() -> Iterator[Chunk]:
    return _big_reads(0)


@_attack("tiny-window", "200 reads of 1 MB, a byte at a time", 0.2 * _MB, connections=10, big_keys=True)
def _tiny_window() -> Iterator[Chunk]:
    return _big_reads(1, drip=True)


@_attack(
    "no-reading", "200 reads of 1 MB on sockets that are not read", 1 * _MB, reads=False, connections=10, big_keys=True
)
def _no_reading() -> Iterator[Chunk]:
    return _big_reads((1 << 31) - 1)


@_attack("big-reads", "reads of 20 MB over three shards, answers read", 0.001 * _MB, big_keys=True)
def _wide_big_reads() -> Iterator[Chunk]:
    request = rpc_pb2.RangeRequest(key=b"a/big/000", range_end=b"u/big/009")
    calls = frame(_HEADERS, 4, 1, _RANGE_HEAD) + frame(_DATA, 1, 1, message(request.SerializeToString()))
    yield opening((1 << 31) - 1, (1 << 31) - 65_536) + calls, 1
    for stream in range(3, 1 << 20, 2):
        yield frame(_HEADERS, 4, stream, _RANGE_HEAD) + frame(_DATA, 1, stream, message(request.SerializeToString())), 1


@_attack("half-puts", "280 MB of Puts that are never whole", 60 * _MB, connections=10)
def _half_puts() -> Iterator[Chunk]:
    # Within each stream's window at first; the server may widen it for a message whose length it knows.
    head, prefix = grpc_head(b"/etcdserverpb.KV/Put"), struct.pack(">BI", 0, 1_500_000)
    yield opening() + b"".join(frame(_HEADERS, 4, s, head) + frame(_DATA, 0, s, prefix) for s in range(1, 41, 2)), 20
    for _ in range(86):
        for stream in range(1, 41, 2):
            yield frame(_DATA, 0, stream, b"x" * _CHUNK), 0
    while True:
        yield None


@_attack("token-lanes", "1,000 keepalive calls, each with another token", 1 * _MB, connections=2)
def _token_lanes() -> Iterator[Chunk]:
    body = message(rpc_pb2.LeaseKeepAliveRequest(ID=77).SerializeToString())
    calls = []
    for stream in range(1, 1401, 2):
        head = grpc_head(b"/etcdserverpb.Lease/LeaseKeepAlive", (b"token", b"t%d" % stream))
        calls.append(frame(_HEADERS, 4, stream, head) + frame(_DATA, 0, stream, body))
    return _hold(opening(), b"".join(calls), count=700)


@_attack("watchers", "watchers until no more are taken, four streams", 4 * _MB, connections=4)
def _watchers() -> Iterator[Chunk]:
    yield opening(connection_window=1 << 30) + frame(_HEADERS, 4, 1, _WATCH_HEAD), 0
    for first in range(0, 200_000, 100):
        parts: Iterable[bytes] = (
            message(
                rpc_pb2.WatchRequest(
                    create_request=rpc_pb2.WatchCreateRequest(key=b"u/w/%07d" % number)
                ).SerializeToString()
            )
            for number in range(first, first + 100)
        )
        yield frame(_DATA, 0, 1, b"".join(parts)), 100
    while True:
        yield None


def _call(
    name: str,
    about: str,
    path: bytes,
    request: Message,
    rate: float,
    *metadata: tuple[bytes, bytes],
    leases: bool = False,
) -> None:
    """The same call, again and again."""
    body = message(request.SerializeToString())
    _attack(name, about, rate, leases=leases)(lambda: _calls(grpc_head(path, *metadata), body))


_ALL = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", limit=3)
_LEASE, _KV = b"/etcdserverpb.Lease/", b"/etcdserverpb.KV/"
_call("status", "Status", b"/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest(), 0.3 * _MB)
_call("lease-grant", "LeaseGrant", _LEASE + b"LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=60), 0.3 * _MB)
_call("lease-revoke", "LeaseRevoke of no lease", _LEASE + b"LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=5), 0.3 * _MB)
_call(
    "lease-list",
    "LeaseLeases, of 10,000 leases",
    _LEASE + b"LeaseLeases",
    rpc_pb2.LeaseLeasesRequest(),
    0.3 * _MB,
    leases=True,
)
_call("compact", "Compact, refused", _KV + b"Compact", rpc_pb2.CompactionRequest(revision=1), 0.3 * _MB)
_call("snapshots", "Ranges at one moment", _KV + b"Range", _ALL, 0.3 * _MB, (b"esp-read", b"snapshot"))
_call(
    "empty-txns",
    "Txns of 200,000 operations that name no key",
    _KV + b"Txn",
    rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest())] * 200_000),
    4 * _MB,
)
_call(
    "wide-watches",
    "watchers over all shards, each in a stream of its own",
    b"/etcdserverpb.Watch/Watch",
    rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0")),
    0.3 * _MB,
)

"""The bounds that keep one peer, or many, from taking more than its share."""

from __future__ import annotations

from dataclasses import dataclass, fields

_MOST = 2**31 - 1  # the largest window and stream id of HTTP/2, RFC 9113 sections 6.9.1 and 5.1.1


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of the wire and of the shard clients. Sizes are in bytes, times in seconds."""

    max_concurrent_streams: int = _MOST
    """Streams that a client may have open on one connection; told in SETTINGS, unless it is the largest there can be.

    Some clients open one for each watch, and wait in silence at a limit that they are told (etcd's issue 8238)."""
    max_call_bytes: int = 536_870_912
    """Open calls over all clients, 4 KiB each; a connection gets a quarter of it at most, and 100 calls for free."""
    max_header_list_bytes: int = 65_536
    """Size of a request's headers after decoding, counted as in RFC 9113 section 6.5.2; told in SETTINGS."""
    max_header_fields: int = 100
    """Header fields in one request."""
    max_header_block_bytes: int = 131_072
    """Size of a request's headers, before and after decoding, above which its whole connection ends."""
    max_continuations: int = 8
    """CONTINUATION frames after one HEADERS frame."""
    max_message_bytes: int = 2_097_152
    """A request message; 2 MiB is what an etcd server accepts by default."""
    stream_window_bytes: int = 65_535
    """What a peer may send on one stream before it has to wait."""
    connection_window_bytes: int = 1_048_576
    """What a peer may send on one connection before it has to wait."""
    max_buffered_bytes: int = 268_435_456
    """Memory over the process for what waits for slow peers or is not whole yet; who holds most gives way first."""
    max_output_bytes: int = 1_048_576
    """Bytes queued to one connection before it is no longer read."""
    max_output_hard_bytes: int = 4_194_304
    """Bytes queued to one connection before it is closed."""
    max_watch_buffer_bytes: int = 8_388_608
    """Watch events that wait for one slow client before its stream is ended; it resumes with a new one."""
    max_watcher_bytes: int = 1_073_741_824
    """Watchers over all clients, 2 KiB and its keys for each; a client's stream gets a quarter of it at most."""
    max_shared_watchers: int = 256
    """Watchers of one range and connection that share with other connections; further ones get events in turns."""
    glitch_budget: int = 1200
    """Cheap abuse (resets, pings, empty frames) that one connection may have saved up before it is closed."""
    glitch_refill_per_second: float = 100
    """How fast that budget comes back."""
    preface_timeout: float = 10.0
    """From accepting a connection to its first complete request line or HTTP/2 preface."""
    header_timeout: float = 10.0
    """From the first frame of a header block to its last."""
    request_timeout: float = 60.0
    """From the beginning of a call with one request message to the end of that message."""
    settings_timeout: float = 30.0
    """Until a peer acknowledges SETTINGS."""
    blocked_write_timeout: float = 60.0
    """How long a peer may take nothing of what is queued for it."""
    idle_timeout: float = 1800.0
    """How long a client's connection may have no stream."""
    connect_timeout: float = 1.0
    """For a connection to a shard; well below the 2 s that etcdctl waits for its own."""
    keepalive_time: float = 10.0
    """Silence on a shard's connection before a PING; etcd punishes pings less than 5 s apart."""
    keepalive_timeout: float = 5.0
    """Until that PING is answered; then the connection counts as lost."""
    max_waiting_requests: int = 1000
    """Requests that wait for one shard's connection."""
    max_waiting_seconds: float = 0.25
    """How long such a request waits before it is refused."""
    max_parts_per_shard: int = 16
    """Parts of calls that span shards at work on one shard at once; other such calls wait, each client's in turn."""
    max_batched_reads: int = 64
    """Reads of one key each that go to a shard as one transaction; 1 sends each by itself. etcd's --max-txn-ops."""
    max_keepalive_streams: int = 1000
    """Streams for keepalives to one shard; clients with the same auth token share one."""
    max_keepalives: int = 100_000
    """Keepalives of leases that wait for their answers, over all clients."""
    max_known_leases: int = 200_000
    """Leases of which is remembered where they live."""
    max_lease_repairs: int = 100_000
    """Leases that wait to be granted or revoked on a shard that missed it."""
    max_tokens: int = 200_000
    """Vector tokens that are remembered: revisions of answers of several shards; and as many of a watch's messages."""
    token_seconds: float = 3600.0
    """How long one is; given back later, it is answered as compacted."""
    max_resume_positions: int = 100_000
    """Positions that are remembered of watchers over several shards, for clients that resume from a plain revision."""
    max_snapshot_tries: int = 30
    """How often a snapshot over several shards is tried while their keys change, before it is Unavailable."""
    common_share: float = 0.875
    """The part of what clients share that anybody may take; the rest is for addresses that hold a 64th at most."""
    max_samples: int = 1000
    """Moments of which it is remembered which revision each shard had reached; by them plain compactions are placed."""
    sample_seconds: float = 30.0
    """From one such moment to the next."""
    max_connections: int = 10_000
    """Client connections open at once."""


_BOUNDS: dict[str, tuple[float, float]] = {
    # A window below the protocol's default would need SETTINGS to arrive before the first request does.
    "stream_window_bytes": (65_535, _MOST),
    # The connection's window starts at 65535 and can only be raised.
    "connection_window_bytes": (65_535, _MOST),
    # clientv3 clamps its own to the same.
    "keepalive_time": (10, _MOST),
    "common_share": (0, 1),
}


def out_of_bounds(limits: Limits) -> tuple[str, str] | None:
    """The first field whose value makes no sense: its name, and which values do. None when all are sane.

    What a config file may set is checked with this; tests may build tighter limits.
    """
    for field in fields(limits):
        low, high = _BOUNDS.get(field.name, (0, _MOST))
        value = getattr(limits, field.name)
        if not (value > 0 and low <= value <= high):
            return field.name, f"between {low} and {high}" if low else f"above 0 and at most {high}"
    if limits.max_output_hard_bytes < limits.max_output_bytes:
        return "max_output_hard_bytes", "at least max_output_bytes"
    return None

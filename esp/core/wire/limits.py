"""The bounds that keep one peer, or many, from taking more than its share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

_MOST = 2**31 - 1  # the largest window and stream id of HTTP/2, RFC 9113 sections 6.9.1 and 5.1.1


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of the wire and of the shard clients. Sizes are in bytes, times in seconds."""

    max_concurrent_streams: int = _MOST
    """Streams that a client may have open on one connection; in SETTINGS, unless it is the largest possible number.

    Some clients open a stream for each watch, and wait silently at an announced limit (etcd's issue 8238)."""
    max_call_bytes: int = 536_870_912
    """Open calls over all clients, 4 KiB each; a connection has a quarter of them at most, and 100 calls for free."""
    max_header_list_bytes: int = 65_536
    """Size of a request's headers after decoding, counted as in RFC 9113 section 6.5.2; told in SETTINGS."""
    max_header_fields: int = 100
    """Header fields in one request."""
    max_header_block_bytes: int = 131_072
    """Size of a request's headers, before and after decoding; above this the whole connection ends."""
    max_continuations: int = 8
    """CONTINUATION frames after one HEADERS frame."""
    max_message_bytes: int = 2_097_152
    """A request message; 2 MiB is what an etcd server accepts by default."""
    max_json_bytes: int = 4_194_304
    """A JSON value in a request over HTTP/1.1; base64 makes 2.7 MiB of a message of 2 MiB."""
    stream_window_bytes: int = 65_535
    """Bytes that a peer may send on one stream before it has to wait."""
    connection_window_bytes: int = 1_048_576
    """Bytes that a peer may send on one connection before it has to wait."""
    max_buffered_bytes: int = 268_435_456
    """Memory of the process for data that waits for slow peers or is incomplete; the call that holds most gives way."""
    max_output_bytes: int = 1_048_576
    """Bytes queued to one connection before it is no longer read."""
    max_output_hard_bytes: int = 4_194_304
    """Bytes queued to one connection before it is closed."""
    max_watch_buffer_bytes: int = 8_388_608
    """Bytes of watch events that wait for a slow client before its stream ends; the client resumes with a new one."""
    max_watcher_bytes: int = 1_073_741_824
    """Watchers over all clients, 2 KiB and the keys for each; a client's stream has a quarter of them at most."""
    max_shared_watchers: int = 256
    """Watchers of one range and connection that share with other connections; further watchers get events in turns."""
    glitch_budget: int = 1200
    """Cheap abuse (resets, pings, empty frames) that one connection may have saved up before it is closed."""
    glitch_refill_per_second: float = 100
    """Points of that budget that come back per second."""
    preface_timeout: float = 10.0
    """From accepting a connection to its first complete request line or HTTP/2 preface."""
    header_timeout: float = 10.0
    """From the first frame of a header block to its last."""
    request_timeout: float = 60.0
    """From the beginning of a call with one request message to the end of that message."""
    settings_timeout: float = 30.0
    """Until a peer acknowledges SETTINGS."""
    blocked_write_timeout: float = 60.0
    """How long a peer may take none of the output that is queued for it."""
    idle_timeout: float = 1800.0
    """How long a client's connection may have no stream."""
    connect_timeout: float = 1.0
    """For a connection to a shard; well below the 2 s that etcdctl waits for its own."""
    keepalive_time: float = 10.0
    """Silence on a shard's connection before a PING; etcd punishes pings less than 5 s apart."""
    keepalive_timeout: float = 5.0
    """Until that PING is answered; then the connection counts as lost."""
    health_interval: float = 2.0
    """From one Status call to the next on each of a shard's connections, so that esp knows of a frozen member."""
    health_timeout: float = 2.0
    """Silence after such a call; then the member counts as frozen or cut off, and esp leaves it."""
    max_waiting_requests: int = 1000
    """Requests that wait for one shard's connection."""
    max_waiting_seconds: float = 0.25
    """Seconds that such a request waits before esp refuses it."""
    max_parts_per_shard: int = 4
    """Parts of expensive calls that one shard works on at the same time. Further parts wait, and clients take turns."""
    costly_share: float = 0.5
    """The part of a shard's time that large and medium calls have while the shard has others; 1 is without rests."""
    max_batched_reads: int = 64
    """Reads of one key each in a transaction to a shard; 1 sends each by itself. etcd's own bound is --max-txn-ops."""
    max_keepalive_streams: int = 1000
    """Streams for keepalives to one shard; clients with the same auth token share a stream."""
    max_keepalives: int = 100_000
    """Keepalives of leases that wait for their answers, over all clients."""
    max_known_leases: int = 200_000
    """Leases of which esp remembers the shards that have them."""
    max_lease_repairs: int = 100_000
    """Leases that wait to be granted or revoked on a shard that missed the call."""
    max_tokens: int = 200_000
    """Tokens of answers over several shards that esp remembers, and as many tokens of watch messages."""
    max_shared_token_bytes: int = 67_108_864
    """Memory of one worker's tokens that the other workers read; older tokens only the worker itself knows."""
    token_seconds: float = 3600.0
    """Seconds that esp remembers a token; after that the token is answered as compacted."""
    max_resume_positions: int = 100_000
    """Positions of watchers over several shards that esp remembers, for clients that resume from a plain revision."""
    max_snapshot_tries: int = 30
    """Attempts at a snapshot over several shards while their keys change; then the answer is Unavailable."""
    common_share: float = 0.875
    """The part of shared places that any client may take; the rest is for addresses that hold a 64th at most."""
    max_samples: int = 1000
    """Samples of all shards' revisions that esp remembers: the places for compactions at a plain revision."""
    sample_seconds: float = 30.0
    """Seconds from one sample to the next."""
    worker_timeout: float = 20.0
    """Seconds for which a worker's loop may stand still; then the worker is killed, and another begins."""
    max_connections: int = 10_000
    """Client connections open at once."""


OF_A_CONNECTION: Final = frozenset(
    (
        "max_concurrent_streams",
        "max_header_list_bytes",
        "max_header_fields",
        "max_header_block_bytes",
        "max_continuations",
        "max_message_bytes",
        "stream_window_bytes",
        "connection_window_bytes",
        "max_output_bytes",
        "max_shared_watchers",
        "glitch_budget",
        "glitch_refill_per_second",
        "preface_timeout",
        "header_timeout",
        "request_timeout",
        "settings_timeout",
        "blocked_write_timeout",
        "idle_timeout",
        "keepalive_time",
        "keepalive_timeout",
    )
)
"""The limits that a connection takes over when it begins. If they change meanwhile, open connections keep theirs."""

_BOUNDS: dict[str, tuple[float, float]] = {
    # A window below the protocol's default would need SETTINGS to arrive before the first request does.
    "stream_window_bytes": (65_535, _MOST),
    # The connection's window starts at 65535 and can only be raised.
    "connection_window_bytes": (65_535, _MOST),
    # A message that comes whole in one frame, as nearly every one does, is not measured.
    "max_message_bytes": (16_384, _MOST),
    # clientv3 clamps its own to the same.
    "keepalive_time": (10, _MOST),
    # esp looks twice a second.
    "health_interval": (0.5, _MOST),
    "health_timeout": (0.5, _MOST),
    "common_share": (0, 1),
    # After a call of 20 ms a shard rests for 180 at most.
    "costly_share": (0.1, 1),
    # A worker ticks twice a second, and a busy machine may stop it for a while.
    "worker_timeout": (5, _MOST),
}


def bounds(name: str) -> tuple[float, float]:
    """The lowest and the highest value of a limit; with 0 the value must be above that."""
    return _BOUNDS.get(name, (0, _MOST))


def out_of_bounds(limits: Limits) -> tuple[str, str] | None:
    """The first field whose value makes no sense: its name, and the values that do. None if all make sense.

    The values in a config file are checked with this; tests may build tighter limits.
    """
    for field in fields(limits):
        low, high = bounds(field.name)
        value = getattr(limits, field.name)
        if not (value > 0 and low <= value <= high):
            return field.name, f"between {low} and {high}" if low else f"above 0 and at most {high}"
    if limits.max_output_hard_bytes < limits.max_output_bytes:
        return "max_output_hard_bytes", "at least max_output_bytes"
    return None

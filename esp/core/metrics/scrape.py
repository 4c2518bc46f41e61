"""The metrics of a running proxy: counters that its parts keep anyway, gathered when somebody asks.

Gathering goes in steps, each well below a millisecond: with 1,000 shards and 10,000 clients the whole takes a while,
and other work goes on in between. So the samples of one scrape are not of one moment, save those of one row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from esp.core.background import Background
from esp.core.layout import Layout
from esp.core.metrics import limits, lines, process
from esp.core.metrics.calls import BOUNDS, Calls, Tallies, Tally
from esp.core.metrics.families import Family, Kind, Row, Sum, counter, gauge, merging
from esp.core.metrics.names import METHOD, NAMES, code_name
from esp.core.metrics.walk import Parts, Walk, in_steps

Step = Family | None
"""A family, or None after a step that is no whole family."""


class Metrics:
    """Gathers the metrics of this process.

    Attributes:
        more: give further families, of parts that this module does not know. A function raises nothing.
        others: asks the other processes of this proxy for their families, and calls the function that it gets with the
            families of each, soon and once; None if there are no other processes.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.more: list[Callable[[], Iterable[Family]]] = []
        self.others: Callable[[Callable[[Sequence[Sequence[Family]]], None]], None] | None = None
        self._started: Counter[bytes] = Counter()

    def ask(self, answer: Callable[[Iterator[Step]], None]) -> None:
        """Calls `answer` with the families of all processes of this proxy, in steps: at once, or soon."""
        if self.others is None:
            answer(self.collect())
        else:
            self.others(lambda theirs: answer(self._together(theirs)))

    def _together(self, theirs: Sequence[Sequence[Family]]) -> Iterator[Step]:
        own = []
        for step in self.collect():
            if step is not None:
                own.append(step)
            yield None
        yield from merging([own, *theirs])

    def collect(self) -> Iterator[Step]:
        """The families of this process, in steps."""
        parts = self._parts
        yield from process.families()
        parts.calls.tick()
        walk = Walk()
        yield from walk.go(parts)
        yield from self._clients(walk)
        yield from self._calls(walk)
        yield from _map(parts.routing().layout)
        yield from _shards(parts)
        yield from _services(parts, walk)
        yield from limits.families(parts, walk)
        yield from _upkeep(parts)
        yield from lines.families()
        for families in self.more:
            yield from families()

    def _clients(self, walk: Walk) -> Iterator[Step]:
        counters = self._parts.context.counters
        open_calls = [(NAMES[path], calls) for path, calls in walk.calls.items()]
        yield gauge("esp_client_connections", "Open connections of clients.", counters.connections_open)
        yield counter(
            "esp_client_connections_accepted_total", "Connections of clients so far.", counters.connections_accepted
        )
        yield Family("esp_client_calls", "gauge", "Open calls of clients.", METHOD, open_calls)
        yield counter("esp_client_received_bytes_total", "Bytes that clients have sent.", counters.clients.received)
        yield counter("esp_client_sent_bytes_total", "Bytes sent to clients.", counters.clients.sent)
        text = "Connections that esp has ended for a fault of the peer in HTTP/2."
        yield counter("esp_connection_faults_total", text, counters.connection_faults)
        yield counter("esp_stream_faults_total", "Streams reset for a fault of the peer.", counters.stream_faults)
        yield counter("esp_tls_handshakes_total", "TLS handshakes of clients that succeeded.", counters.tls_handshakes)
        text = "TLS connections of clients that failed, in the handshake or later; the log says why."
        yield counter("esp_tls_faults_total", text, counters.tls_faults)
        yield gauge("esp_turns_waiting", "Connections with work that wait for their turn.", self._waiting())
        pages = [((page, str(status)), times) for (page, status), times in sorted(counters.pages.items())]
        yield Family("esp_http_requests_total", "counter", "Requests for pages.", ("page", "code"), pages)

    def _waiting(self) -> int:
        return self._parts.context.turns.waiting

    # Calls.

    def _calls(self, walk: Walk) -> Iterator[Step]:
        calls = self._parts.calls
        totals = Tallies()
        for path, tally in calls.served.items():
            totals[path].include(tally)
        for name in tuple(calls.passed):
            for path, tally in tuple(calls.passed[name].items()):
                totals[path].include(tally)
            yield None
        started = self._started
        for path in totals.keys() | walk.calls.keys():
            ended = sum(totals[path].codes.values()) if path in totals else 0
            # A call may end between the walk and here, and then counts twice. A counter must not go back for that.
            started[path] = max(started[path], ended + walk.calls[path])
        text = "Calls of clients that have begun."
        yield _by_method("grpc_server_started_total", text, started)
        rows: list[Row] = [
            ((*NAMES[path], code_name(code)), number)
            for path, tally in totals.items()
            for code, number in _by_code(tally).items()
        ]
        text = "Calls of clients that have ended, by code."
        yield Family("grpc_server_handled_total", "counter", text, (*METHOD, "grpc_code"), rows)
        text = "Seconds from the first bytes of a client's call to the end of the answer."
        rows = [(NAMES[path], [*tally.buckets, tally.seconds]) for path, tally in totals.items()]
        yield Family("grpc_server_handling_seconds", "histogram", text, METHOD, rows, bounds=BOUNDS)
        yield from self._messages(totals, started)
        yield from _sent(calls)

    def _messages(self, totals: Mapping[bytes, Tally], started: Mapping[bytes, int]) -> Iterator[Step]:
        """Messages: of unary calls one for each call, and one for each answer; of others as they were counted."""
        counters = self._parts.context.counters
        unary = [path for path, names in NAMES.items() if names[0] == "unary"]
        received = {path: started[path] for path in unary if path in started} | counters.messages_received
        sent = {path: totals[path].codes[0] for path in unary if path in totals} | counters.messages_sent
        yield _by_method("grpc_server_msg_received_total", "Messages that clients have sent.", received)
        yield _by_method("grpc_server_msg_sent_total", "Messages sent to clients.", sent)


def _by_method(name: str, text: str, counts: Mapping[bytes, int]) -> Family:
    return Family(name, "counter", text, METHOD, [(NAMES[path], number) for path, number in counts.items()])


def _by_code(tally: Tally) -> Counter[int]:
    """The calls by code; numbers that are no code count together."""
    counts: Counter[int] = Counter()
    for code, number in tally.codes.items():
        counts[code if code_name(code) != "Unknown" else 2] += number
    return counts


def _sent(calls: Calls) -> Iterator[Step]:
    """Calls to shards: what clients' calls and esp's own questions have become there, and their messages.

    A unary call has one message, and one more if its answer is OK; those of streams are counted as they pass.
    """
    handled: list[Row] = []
    seconds: list[Row] = []
    messages: dict[tuple[str, ...], tuple[int, int]] = {}
    for name, path, counts in calls.streamed():
        messages[name, *NAMES[path]] = counts.sent, counts.received
    for name in sorted(calls.passed.keys() | calls.sent.keys()):
        here = Tallies()
        for tallies in (calls.passed.get(name), calls.sent.get(name)):
            for path, tally in tallies.items() if tallies is not None else ():
                here[path].include(tally)
        for path, tally in here.items():
            labels = (name, *NAMES[path])
            seconds.append((labels, [*tally.buckets, tally.seconds]))
            handled += [((*labels, code_name(code)), number) for code, number in _by_code(tally).items()]
            if NAMES[path][0] == "unary":
                messages[labels] = sum(tally.codes.values()), tally.codes[0]
        yield None
    labels = ("shard", *METHOD)
    text = "Calls sent to a shard that have ended, by code."
    yield Family("grpc_client_handled_total", "counter", text, (*labels, "grpc_code"), handled)
    text = "Seconds from sending a call to a shard to the end of its answer."
    yield Family("grpc_client_handling_seconds", "histogram", text, labels, seconds, bounds=BOUNDS)
    counted = sorted(messages.items())
    told: list[Row] = [(one, sent) for one, (sent, _) in counted]
    yield Family("grpc_client_msg_sent_total", "counter", "Messages sent to a shard.", labels, told)
    told = [(one, received) for one, (_, received) in counted]
    yield Family("grpc_client_msg_received_total", "counter", "Messages that a shard has sent.", labels, told)


# The rest.


def _map(layout: Layout) -> list[Family]:
    info = [((layout.map.fingerprint,), 1)]
    return [
        gauge(
            "esp_map_epoch",
            "The number of the shard map in force; each reload of another map adds 1.",
            layout.epoch,
            "max",
        ),
        Family(
            "esp_map_info",
            "gauge",
            "1, with the fingerprint of the shard map.",
            ("fingerprint",),
            info,
            over_processes="max",
        ),
        gauge("esp_map_shards", "Shards.", len(layout.shards), "max"),
        gauge("esp_map_ranges", "Ranges of keys with different owners.", len(layout.map.starts), "max"),
    ]


def of_rerouted(counts: Mapping[str, int], waiting: int) -> list[Family]:
    """The calls that shards have refused because they came by an outdated map, by what became of them."""
    rows = [((result,), counts.get(result, 0)) for result in ("rerouted", "refused")]
    text = "Calls that a shard refused because they came by an outdated map, by what became of them."
    return [
        Family("esp_map_outdated_calls_total", "counter", text, ("result",), rows),
        gauge("esp_map_waiting_calls", "Calls that wait for a newer map.", waiting),
    ]


def of_moves(count: int, unfinished: str) -> list[Family]:
    """The ranges that have moved since the process began, and whether a change of the map is `unfinished`."""
    text = "Ranges of keys that have got another shard."
    changing = "1 while a change of the map on the shards is decided and not carried out."
    return [
        counter("esp_map_moved_ranges_total", text, count, "max"),
        gauge("esp_map_change_unfinished", changing, int(bool(unfinished)), "max"),
    ]


def of_fellows(
    counts: Mapping[str, int], others: int, number: int, waiting: int, wanted: int, adopted: int
) -> list[Family]:
    """The other proxies of the same shards, and the tokens that went between them and this process.

    Args:
        counts: tokens, by what became of them.
        others: the processes that are registered beside this one.
        number: the number that the anchor has given this process; below 0 if none.
        waiting: the calls and watches that wait until others have told.
        wanted: the tokens that others are asked for.
        adopted: the tokens of others that are known here.
    """
    results = ("asked", "unknown", "told", "given", "taken", "dropped")
    rows = [((result,), counts.get(result, 0)) for result in results]
    text = (
        "Tokens of and for other proxies: asked of them and known, unknown to all, told to them, given to another when "
        "this one drained, taken from one that drained, and not asked for because too many calls waited."
    )
    return [
        gauge("esp_proxies_others", "Processes of proxies that are registered beside this one.", others),
        gauge("esp_proxy_number", "The number of this process by its registration; -1 without one.", number),
        Family("esp_proxies_tokens_total", "counter", text, ("result",), rows),
        gauge(
            "esp_proxies_waiting_calls", "Calls and watches that wait until other proxies have told a token.", waiting
        ),
        gauge("esp_proxies_wanted_tokens", "Tokens that other proxies are asked for at present.", wanted),
        gauge("esp_proxies_tokens", "Tokens of other proxies that are known here.", adopted),
    ]


def of_reloads(counts: Mapping[str, int]) -> Family:
    """The reloads of the config, from their number by result."""
    rows = [((result,), counts.get(result, 0)) for result in ("done", "unchanged", "refused")]
    return Family("esp_reloads_total", "counter", "Reloads of the config, by result.", ("result",), rows)


def of_fences(counts: Mapping[str, int]) -> Family:
    """The calls that met a fence, from their number by what became of them."""
    rows = [((outcome,), counts.get(outcome, 0)) for outcome in ("held", "refused", "cut")]
    text = "Calls for keys whose owner was about to change, by what became of them."
    return Family("esp_reload_calls_total", "counter", text, ("outcome",), rows)


_OVER_PROCESSES: Final[Mapping[str, Sum]] = {
    "esp_shard_up": "min",
    "esp_shard_db_bytes": "max",
    "esp_shard_db_in_use_bytes": "max",
    "esp_shard_db_quota_bytes": "max",
}
"""Those of a shard's samples that are no sums over processes."""


def _shards(parts: Parts) -> Iterator[Step]:
    """The state of each shard, and of each endpoint."""
    shards = parts.routing().shards
    calls = parts.calls

    def by_shard(name: str, kind: Kind, text: str, value: Callable[[str], float]) -> Iterator[Step]:
        rows: list[Row] = []
        for shard in in_steps(shards):
            if shard is None:
                yield None
            else:
                rows.append(((shard,), value(shard)))
        over = _OVER_PROCESSES.get(name, "sum")
        yield Family(name, kind, text, ("shard",), rows, over)

    yield from by_shard("esp_shard_up", "gauge", "1 if a call could be sent now.", lambda n: int(shards[n].is_ready))
    yield from by_shard("esp_shard_calls", "gauge", "Open calls to a shard.", lambda n: shards[n].calls_open)
    text = "Open streams to a shard: watches, keepalives, and calls that wait for locks."
    yield from by_shard("esp_shard_streams", "gauge", text, lambda n: shards[n].streams_open)
    text = "Calls that wait for a connection to a shard."
    yield from by_shard("esp_shard_calls_waiting", "gauge", text, lambda n: shards[n].calls_waiting)
    text = "Parts of expensive calls that a shard works on."
    yield from by_shard("esp_shard_parts", "gauge", text, parts.gate.parts_of)
    text = "Calls sent again to a shard because their connection broke."
    yield from by_shard("esp_shard_repeated_calls_total", "counter", text, lambda n: shards[n].repeated)
    text = "Connections to a shard that esp has begun."
    yield from by_shard("esp_shard_connects_total", "counter", text, lambda n: shards[n].dialled)
    text = "Connections in use that broke, or that esp left for a reason."
    yield from by_shard("esp_shard_losses_total", "counter", text, lambda n: shards[n].outages.losses)
    text = "How often no endpoint of a shard could be used."
    yield from by_shard("esp_shard_outages_total", "counter", text, lambda n: shards[n].outages.count)
    text = "Calls that failed because there was no connection."
    yield from by_shard("esp_shard_failed_calls_total", "counter", text, lambda n: shards[n].failed_calls)
    text = "Answers of a shard that no etcd would give."
    yield from by_shard("esp_shard_garbled_answers_total", "counter", text, lambda n: shards[n].garbled)
    text = "Reads of one key, and parts of Ranges over several shards, that went to a shard together with others."
    yield from by_shard("esp_shard_joined_reads_total", "counter", text, lambda n: shards[n].joined_reads)
    text = "Transactions of such reads."
    yield from by_shard("esp_shard_joined_transactions_total", "counter", text, lambda n: shards[n].joined_transactions)
    text = "Events of watches that a shard has sent."
    yield from by_shard("esp_shard_watch_events_total", "counter", text, lambda n: shards[n].watch_events)
    text = "Bytes of the database file of the member in use."
    yield from by_shard("esp_shard_db_bytes", "gauge", text, lambda n: shards[n].db_bytes)
    text = "Bytes in use of that file; the rest comes back with a defragmentation."
    yield from by_shard("esp_shard_db_in_use_bytes", "gauge", text, lambda n: shards[n].db_in_use_bytes)
    text = "The quota of that file, which etcd 3.6 and later tell; else 0."
    yield from by_shard("esp_shard_db_quota_bytes", "gauge", text, lambda n: shards[n].db_quota_bytes)
    traffic = {name: calls.passed_to(name).traffic for name in shards}
    text = "Bytes that a shard has sent."
    yield from by_shard(
        "esp_shard_received_bytes_total", "counter", text, lambda n: calls.passed_to(n).traffic.received
    )
    text = "Bytes sent to a shard."
    yield from by_shard("esp_shard_sent_bytes_total", "counter", text, lambda n: traffic[n].sent)
    yield from _endpoints(parts)


def _endpoints(parts: Parts) -> Iterator[Step]:
    states: list[Row] = []
    failures: list[Row] = []
    trips: list[Row] = []
    for shard in in_steps(parts.routing().shards.values()):
        if shard is None:
            yield None
            continue
        for endpoint, state in shard.states.items():
            labels = (shard.name, str(endpoint))
            states.append((labels, int(state.connectivity)))
            failures.append((labels, state.failures))
            if state.smoothed is not None:
                trips.append((labels, state.smoothed))
    labels = ("shard", "endpoint")
    text = "The connection to an endpoint: 0 idle, 1 connecting, 2 ready, 3 failed."
    yield Family("esp_endpoint_state", "gauge", text, labels, states, "max")
    text = "Attempts to connect that failed, and connections that broke."
    yield Family("esp_endpoint_failures_total", "counter", text, labels, failures)
    text = "Seconds from a question for the status to the answer, smoothed."
    yield Family("esp_endpoint_round_trip_seconds", "gauge", text, labels, trips, "max")


def _services(parts: Parts, walk: Walk) -> Iterator[Step]:
    """The gate, watches, leases, tokens, samples."""
    gate, watch, leases, tokens = parts.gate, parts.watch, parts.leases, parts.routing().tokens
    yield gauge("esp_gate_waiting", "Calls that wait for a place at their shards.", gate.waiting)
    yield gauge("esp_gate_at_work", "Calls that hold places at shards.", len(gate.at_work))
    yield gauge("esp_gate_stopped_shards", "Shards that have held places for too long.", len(gate.stopped), "max")
    text = "Open Watch calls of clients, also those that are passed on to a shard."
    yield gauge("esp_watch_streams", text, len(watch.streams) + walk.passed_watches)
    text = "Watchers of clients, without those in calls that are passed on to a shard."
    yield gauge("esp_watchers", text, walk.watchers)
    sources: Counter[str] = Counter()
    for pool in in_steps(tuple(watch.pools)):
        if pool is None:
            yield None
            continue
        for shelf in tuple(pool.shelves.values()):
            sources[pool.shard.name] += len(shelf.own) + (shelf.shared is not None)
        for crowd in tuple(pool.crowds.values()):
            sources[pool.shard.name] += len(crowd.shelves)
    rows: list[Row] = [((name,), number) for name, number in sources.items()]
    yield Family("esp_shard_watchers", "gauge", "Watchers that esp has at a shard.", ("shard",), rows)
    resumed: list[Row] = [(("resumed",), watch.positions.resumed), (("compacted",), watch.positions.compacted)]
    text = "Watches over several shards that began again at a plain revision."
    yield Family("esp_watch_resumes_total", "counter", text, ("outcome",), resumed)
    yield gauge("esp_leases", "Leases that esp remembers.", len(leases.table))
    yield gauge("esp_lease_repairs_waiting", "Grants and revocations that shards missed.", leases.repair.waiting)
    events: list[Row] = [((name,), number) for name, number in sorted(leases.table.counters.items())]
    yield Family("esp_lease_events_total", "counter", "Unusual events of leases.", ("event",), events)
    yield gauge("esp_tokens", "Revisions of answers over several shards that esp remembers.", len(tokens))
    yield counter("esp_tokens_minted_total", "Such revisions made.", tokens.minted)
    found: list[Row] = [(("known",), tokens.known), (("unknown",), tokens.unknown)]
    yield Family("esp_token_lookups_total", "counter", "Such revisions that clients sent.", ("outcome",), found)
    samples = parts.samples()
    yield gauge("esp_samples", "Samples of all shards' revisions.", 0 if samples is None else len(samples), "max")
    refused = parts.context.counters.limits["across_shards"]
    yield counter("esp_across_shards_refused_total", "Requests over several shards that the config refuses.", refused)


def _upkeep(parts: Parts) -> Iterator[Family]:
    """Certificates and bugs."""
    ends: dict[tuple[str, str], float] = {}
    for expiry in parts.tls_files.expiries():
        labels = (expiry.use, str(expiry.path))
        ends[labels] = min(expiry.not_after, ends.get(labels, expiry.not_after))
    text = "When a certificate in use ends, in seconds since 1970."
    name = "esp_certificate_not_after_timestamp_seconds"
    yield Family(name, "gauge", text, ("use", "path"), list(ends.items()), "min")
    text = "Files of certificates that esp has read anew."
    yield counter("esp_certificate_reloads_total", text, parts.tls_files.reloads)
    text = "New files of certificates that esp could not use."
    yield counter("esp_certificate_refusals_total", text, parts.tls_files.refusals)
    yield _failures(parts.background)


def _failures(background: Background) -> Family:
    text = "Bugs in esp that ended a piece of background work, by its name."
    rows: list[Row] = [((name,), number) for name, number in background.failures.items()]
    return Family("esp_background_failures_total", "counter", text, ("work",), rows)

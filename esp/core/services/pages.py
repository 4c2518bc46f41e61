"""The plain HTTP pages for probes and people, the same over HTTP/1.1 and HTTP/2.

Names, bodies and queries are etcd's (`server/etcdserver/api/etcdhttp`). With one shard, a page says of the shard what
etcd says of itself. With several shards, esp is healthy while any shard is. Otherwise a load balancer would take the
proxy out for one shard, and the keys of all other shards with it. `/readyz?verbose` and `/readyz/shard/NAME` report on
each shard.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final
from urllib.parse import parse_qs

from esp import __version__, build
from esp.core.background import Background
from esp.core.routing import Routing
from esp.core.services.checks import Checks, Round, Verdict
from esp.core.services.maintenance import version_key
from esp.core.wire.exchange import AnswerPage, Page
from esp.core.wire.hpack import encode
from esp.core.wire.server_stream import Handler, ServerCall
from esp.core.wording import shard_called

JSON: Final = "application/json"
_NO_SNIFF: Final = (("X-Content-Type-Options", "nosniff"),)
_NOT_FOUND: Final = Page(404, b"404 page not found\n", headers=_NO_SNIFF)
_WRONG_METHOD: Final = Page(405, b"Method Not Allowed\n", headers=(("Allow", "GET"), *_NO_SNIFF))
_TOO_LONG: Final = Page(414, b"esp: the query is longer than 2048 characters\n", headers=_NO_SNIFF)
MAX_QUERY: Final = 2048
"""Characters of a query; those that mean something are far shorter, and a long one takes long to take apart."""
_ABSOLUTE: Final = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
"""The part in front of the path, if a request has its whole URL (RFC 9112, section 3.2.2)."""
_SHARD: Final = "shard/"

Query = Mapping[str, list[str]]
Check = Callable[[Verdict], str]
"""The reason why a shard does not pass; "" if it does."""


def _data_corruption(verdict: Verdict) -> str:
    return "alarm activated: CORRUPT" if "CORRUPT" in verdict.alarms else verdict.silence


def _non_learner(verdict: Verdict) -> str:
    return "not supported for learner" if verdict.is_learner else verdict.silence


READY_CHECKS: Final[dict[str, Check]] = {
    "data_corruption": _data_corruption,
    "serializable_read": lambda verdict: verdict.serializable_read,
    "linearizable_read": lambda verdict: verdict.linearizable_read,
    "non_learner": _non_learner,
}
"""The checks of /readyz, by etcd's names."""
LIVE_CHECKS: Final[dict[str, Check]] = {"serializable_read": READY_CHECKS["serializable_read"]}
"""The checks of /livez, for requests that name one. esp itself lives while it answers, whatever its shards do."""


class Pages(Handler):
    """`/version`, `/health`, `/livez`, `/readyz` and the pages of their checks; everything else is not found."""

    is_page = True

    def __init__(
        self,
        routing: Routing,
        background: Background,
        counts: Counter[tuple[str, int]] | None = None,
        more: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """`counts` gets the answers, by the page and the HTTP status.

        `more` gives further lines for `/readyz?verbose`, about what does not decide whether esp is ready.
        """
        self._more = more
        self._counts = Counter() if counts is None else counts
        self._routing = routing
        self._checks = Checks(routing.shards, background)
        self._names = list(routing.shards)

    def find(self, method: str, target: str, answer: AnswerPage) -> None:
        """Gives `answer` the page for an HTTP request: at once, or when shards have answered."""
        path, _, query = _ABSOLUTE.sub("", target).partition("?")
        make = self._page(path)
        answer = partial(self._count, "other" if make is None else f"/{path.split('/')[1]}", answer)
        if make is None:
            answer(_NOT_FOUND)
        elif method not in ("GET", "HEAD"):
            answer(_WRONG_METHOD)
        elif len(query) > MAX_QUERY:
            answer(_TOO_LONG)
        else:
            make(parse_qs(query, keep_blank_values=True), answer)

    def _count(self, name: str, answer: AnswerPage, page: Page) -> None:
        self._counts[name, page.status] += 1
        answer(page)

    def _page(self, path: str) -> Callable[[Query, AnswerPage], None] | None:
        if path == "/version":
            return self._version
        if path == "/health":
            return self._health
        if path == "/livez":
            return _livez
        if path == "/readyz":
            return partial(self._ready, READY_CHECKS, self._names)
        _, root, name = [*path.split("/", 2), "", ""][:3]
        checks = {"livez": LIVE_CHECKS, "readyz": READY_CHECKS}.get(root, {})
        if name in checks:
            return partial(self._ready, {name: checks[name]}, self._names)
        if root == "readyz" and name.removeprefix(_SHARD) in self._names and name.startswith(_SHARD):
            return partial(self._ready, READY_CHECKS, [name.removeprefix(_SHARD)])
        return None

    def _version(self, query: Query, answer: AnswerPage) -> None:
        shards = self._routing.shards.values()
        known = [shard for shard in shards if shard.version]
        if not known:
            answer(Page(503, b"no shard has told its version yet\n", headers=_NO_SNIFF))
            return
        lowest = min((shard.version for shard in known), key=version_key)
        told = {"etcdserver": lowest, "etcdcluster": ".".join([*lowest.split(".")[:2], "0"])}
        storage = min((shard.storage_version for shard in known), key=version_key)
        if storage:
            told["storage"] = storage
        layout = self._routing.layout
        told |= {"esp": __version__, "build": build(), "map": layout.map.fingerprint, "epoch": str(layout.epoch)}
        if layout.is_guarded:
            told["map_in"] = "shards"
        answer(Page(200, _json(told), JSON))

    def _health(self, query: Query, answer: AnswerPage) -> None:
        excluded = frozenset(query.get("exclude", ()))
        serializable = query.get("serializable", [""])[0] == "true"

        def look(found: Round) -> bool:
            verdicts = self._known(self._names, found)
            reasons = {name: _sickness(one, excluded, serializable) for name, one in verdicts.items()}
            if "" in reasons.values():
                answer(Page(200, b'{"health":"true","reason":""}'))
                return True
            if found.is_over:
                reason = _one_or_each(reasons, ", ")
                answer(Page(503, _json({"health": "false", "reason": reason}) + b"\n", headers=_NO_SNIFF))
            return found.is_over

        self._checks.ask(look)

    def _ready(self, checks: Mapping[str, Check], names: list[str], query: Query, answer: AnswerPage) -> None:
        """The page of /readyz: ready if a shard in `names` passes all checks that the query does not exclude."""
        excluded = frozenset(query.get("exclude", ()))
        checks = {name: check for name, check in checks.items() if name not in excluded}
        verbose = "verbose" in query

        def look(found: Round) -> bool:
            verdicts = self._known(names, found)
            is_over = len(verdicts) == len(names)
            ready = any(not any(check(one) for check in checks.values()) for one in verdicts.values())
            if not is_over and (verbose or not ready):
                return False
            lines = "".join((*_lines(checks, verdicts), *self._more())) if verbose or not ready else ""
            if ready:
                answer(Page(200, f"{lines}ok\n".encode(), headers=_NO_SNIFF))
            else:
                answer(Page(503, f"{lines}\n".encode(), headers=_NO_SNIFF))
            return True

        self._checks.ask(look)

    def _known(self, names: Iterable[str], found: Round) -> dict[str, Verdict]:
        """The verdicts known so far, in the order of the shards."""
        return {name: found.verdicts[name] for name in names if name in found.verdicts}

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Answers a request that came over HTTP/2."""
        head = stream.head
        method, path = head.method.decode("ascii", "replace"), head.path.decode("ascii", "replace")
        self.find(method, path, partial(send_page, stream))


def _livez(query: Query, answer: AnswerPage) -> None:
    answer(
        Page(
            200,
            b"[+]ping ok\nok\n" if "verbose" in query and "ping" not in query.get("exclude", ()) else b"ok\n",
            headers=_NO_SNIFF,
        )
    )


def _sickness(verdict: Verdict, excluded: frozenset[str], serializable: bool) -> str:
    """The reason why etcd would call this shard unhealthy; "" if it is healthy."""
    alarm = next((alarm for alarm in verdict.alarms if alarm not in excluded), None)
    if alarm is not None:
        return f"ALARM {alarm if alarm in ('NOSPACE', 'CORRUPT') else 'UNKNOWN'}"
    if not serializable and not verdict.has_leader:
        return "RAFT NO LEADER"
    failure = verdict.serializable_read if serializable else verdict.linearizable_read
    return f"RANGE ERROR:{failure}" if failure else ""


def _lines(checks: Mapping[str, Check], verdicts: Mapping[str, Verdict]) -> Iterable[str]:
    """A line for each check; and with several shards, a line for each shard."""
    for name, check in checks.items():
        reasons = {shard: check(verdict) for shard, verdict in verdicts.items()}
        if "" in reasons.values():
            yield f"[+]{name} ok\n"
        else:
            yield f"[-]{name} failed: {_one_or_each(reasons, ', ')}\n"
    if len(verdicts) > 1:
        for shard, verdict in verdicts.items():
            failed = {name: why for name, check in checks.items() if (why := check(verdict))}
            if failed:
                # A shard that is away fails all checks; that it cannot be read says most.
                name = "serializable_read" if verdict.silence and "serializable_read" in failed else next(iter(failed))
                yield f"[-]{shard_called(shard)} failed: {name}: {failed[name]}\n"
            else:
                yield f"[+]{shard_called(shard)} ok\n"


def _one_or_each(reasons: Mapping[str, str], between: str) -> str:
    """The reasons; each with its shard's name if there are several shards."""
    if len(reasons) == 1:
        return next(iter(reasons.values()))
    return between.join(f"{shard_called(name)}: {reason}" for name, reason in reasons.items())


def _json(value: Mapping[str, str]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def send_page(stream: ServerCall, page: Page) -> None:
    """Answers a request that came over HTTP/2."""
    if stream.is_over:
        return
    fields = [
        (b":status", b"%d" % page.status),
        (b"content-type", page.content_type.encode()),
        (b"content-length", b"%d" % len(page.body)),
        *((name.lower().encode(), value.encode()) for name, value in page.headers),
    ]
    stream.responded = True
    has_body = bool(page.body) and stream.head.method != b"HEAD"
    stream.send_headers(encode(fields), not has_body)
    if has_body:
        stream.send_data(page.body, True)
    stream.connection.context.flush_soon()

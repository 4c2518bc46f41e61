"""The plain HTTP pages: what probes and people ask for, over HTTP/1.1 and HTTP/2 alike."""

from __future__ import annotations

import json
import re

from esp.core.routing import Routing
from esp.core.services.maintenance import version_key
from esp.core.wire.hpack import encode
from esp.core.wire.http1 import Page
from esp.core.wire.server_stream import Handler, ServerStream

JSON = "application/json"
_ABSOLUTE = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
"""What stands in front of the path where a request names all of its URL (RFC 9112, section 3.2.2)."""


class Pages(Handler):
    """`/version`, `/health`, `/livez`, `/readyz`; everything else is not found.

    esp is healthy while any shard is: a load balancer that took the proxy out for one dead shard would take the others'
    keys away as well. `?verbose` names the state of each.
    """

    is_page = True

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def find(self, method: str, target: str) -> Page:
        """The page for an HTTP request."""
        path, _, query = _ABSOLUTE.sub("", target).partition("?")
        pages = {"/version": self._version, "/health": self._health, "/livez": self._livez, "/readyz": self._readyz}
        page = pages.get(path)
        if page is None:
            return Page(404, b"404 page not found\n")
        if method not in ("GET", "HEAD"):
            return Page(405, b"Method Not Allowed\n", headers=(("Allow", "GET"),))
        return page("verbose" in (part.partition("=")[0] for part in query.split("&")))

    def _version(self, verbose: bool) -> Page:
        versions = [shard.version for shard in self._routing.shards.values() if shard.version]
        if not versions:
            return Page(503, b"no shard has told its version yet\n")
        lowest = min(versions, key=version_key)
        cluster = ".".join([*lowest.split(".")[:2], "0"])
        return Page(200, json.dumps({"etcdserver": lowest, "etcdcluster": cluster}).encode(), JSON)

    def _health(self, verbose: bool) -> Page:
        if any(shard.is_ready for shard in self._routing.shards.values()):
            return Page(200, b'{"health":"true","reason":""}', JSON)
        return Page(503, b'{"health":"false","reason":"no shard is reachable"}', JSON)

    def _livez(self, verbose: bool) -> Page:
        return Page(200, b"ok\n")

    def _readyz(self, verbose: bool) -> Page:
        states = {name: shard.is_ready for name, shard in self._routing.shards.items()}
        ready = any(states.values())
        lines = [f"[{'+' if up else '-'}]shard {name} {'ok' if up else 'unreachable'}" for name, up in states.items()]
        body = "ok" if ready else "no shard is reachable"
        if verbose or not ready:
            body = "\n".join([*lines, body])
        return Page(200 if ready else 503, f"{body}\n".encode())

    def on_message(self, stream: ServerStream, message: bytes) -> None:
        """Answers a request that came over HTTP/2."""
        head = stream.head
        page = self.find(head.method.decode("ascii", "replace"), head.path.decode("ascii", "replace"))
        fields = [
            (b":status", b"%d" % page.status),
            (b"content-type", page.content_type.encode()),
            (b"content-length", b"%d" % len(page.body)),
            *((name.lower().encode(), value.encode()) for name, value in page.headers),
        ]
        stream.responded = True
        has_body = bool(page.body) and head.method != b"HEAD"
        stream.send_headers(encode(fields), not has_body)
        if has_body:
            stream.send_data(page.body, True)

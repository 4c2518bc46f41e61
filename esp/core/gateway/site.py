"""etcd's HTTP/1.1 side as a whole: which hosts may be asked, CORS, redirects; which requests are the gateway's.

This is the order of etcd's `accessController` and of Go's `ServeMux` behind it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from functools import partial
from html import escape
from http import HTTPStatus
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from esp.core.gateway.call import GatewayCall
from esp.core.gateway.errors import JSON_LINE, METHOD_NOT_ALLOWED, NOT_FOUND, error_page, too_large
from esp.core.gateway.paths import RPCS
from esp.core.gateway.plan import Plan
from esp.core.wire.exchange import AfterBody, AnswerPage, AtOnce, Exchange, FindPage, MakeExchange, Page, Reply, Serve
from esp.core.wire.plain import HttpRequest
from esp.core.wire.status import Code, Status

ANY: Final = "*"
_PREFIX: Final = "/v3/"
_OLD_PREFIX: Final = "/v3beta/"
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9a-fA-F]{2})")
_SAFE: Final = "/:@!$&'()*+,;=%-._~"
"""Characters that stay as they are in the path of a URL."""
_NO_SNIFF: Final = (("X-Content-Type-Options", "nosniff"),)
_HOST: Final = re.compile(r"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]*")
"""The characters of a host that Go takes."""
_BAD_REQUEST: Final = Page(400, b"400 Bad Request")
_BAD_HOST: Final = Page(400, b"400 Bad Request: malformed Host header")
_EMPTY: Final = Page(200, b"", "")
_WEBSOCKET: Final = Status(Code.UNIMPLEMENTED, "esp: no WebSocket here; POST the JSON, answers come line by line")
_FORM: Final = b"application/x-www-form-urlencoded"

# etcd's own text, up to the option that it names.
_WRONG_HOST: Final = """
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. host_whitelist: [{host}] in esp's config

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).

"""


class Site(Serve):
    """Serves HTTP/1.1 requests.

    Args:
        find_page: gives the page for a path that is not the gateway's.
        cors: origins of pages that may read the answers; `*` for any.
        hosts: names under which clients may ask; `*` for any.
        most_bytes: the largest JSON value in a request.
        exchanges: serve requests for these paths; they get the request, its reply, and header lines for the answer.
    """

    def __init__(
        self,
        find_page: FindPage,
        *,
        cors: Collection[str] = (ANY,),
        hosts: Collection[str] = (ANY,),
        most_bytes: int,
        exchanges: Mapping[str, MakeExchange] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._exchanges = exchanges
        self._find_page = find_page
        self.install(cors=cors, hosts=hosts, most_bytes=most_bytes)

    def install(self, *, cors: Collection[str], hosts: Collection[str], most_bytes: int) -> None:
        """Answers by these from the next request on; for the arguments see the class."""
        self._cors = frozenset(cors)
        self._hosts = frozenset(hosts)
        self._most_bytes = most_bytes
        self._any_origin = cors_lines(ANY) if ANY in self._cors else b""

    def exchange(self, request: HttpRequest, reply: Reply) -> Exchange:
        """The server of a request."""
        plan = request.plan
        if type(plan) is Plan:
            return GatewayCall(plan, reply)
        method, target = request.method, request.target
        if target == "*" and method == "OPTIONS":
            return _whole(reply, _EMPTY)
        found = _ABSOLUTE.match(target)
        host = request.field(b"host").decode("ascii", "replace")
        if found is not None:
            host, target = found.group(1), target[found.end() :]
            target = target if target.startswith("/") else f"/{target}"
        escaped, mark, query = target.partition("?")
        if _BAD_ESCAPE.search(escaped) or (escaped[:1] != "/" and method != "CONNECT"):
            return AtOnce(reply, _BAD_REQUEST)
        if not _HOST.fullmatch(host):
            return AtOnce(reply, _BAD_HOST)
        path = unquote_to_bytes(escaped).decode("utf-8", "replace") if "%" in escaped else escaped
        if path.startswith(_OLD_PREFIX):
            path = escaped = _PREFIX + path.removeprefix(_OLD_PREFIX)
        if ANY not in self._hosts and self._hosts and hostname(host) not in self._hosts:
            return _whole(reply, _wrong_host(hostname(host)))
        lines = self._any_origin or self._lines_for(request)
        if method == "OPTIONS":
            return _whole(reply, Page(200, b"", "", lines=lines))
        if method != "CONNECT" and (elsewhere := _redirect(escaped)) is not None:
            return _whole(reply, _moved(quote(elsewhere, safe=_SAFE) + mark + query, method, lines))
        if _first_part(escaped) == _PREFIX:
            return self._gateway(method, path, request, reply, lines)
        made = self._exchanges.get(path)
        if made is not None:
            return made(request, reply, lines)
        return AfterBody(reply, partial(self._page, method, target, lines))

    def _lines_for(self, request: HttpRequest) -> bytes:
        origin = request.field(b"origin").decode("ascii", "replace")
        return cors_lines(origin) if origin in self._cors or not self._cors else b""

    def _page(self, method: str, target: str, lines: bytes, answer: AnswerPage) -> None:
        def give(page: Page) -> None:
            answer(Page(page.status, page.body, page.content_type, page.headers, lines + page.lines))

        self._find_page(method, target, give)

    def _gateway(self, method: str, path: str, request: HttpRequest, reply: Reply, lines: bytes) -> Exchange:
        if is_websocket(request):
            return _whole(reply, error_page(_WEBSOCKET, lines + JSON_LINE))
        rpc = RPCS.get(path)
        if method == "POST" and request.field(b"content-type") == _FORM:
            method = request.field(b"x-http-method-override").decode("ascii", "replace").upper() or method
        if rpc is None:
            return _whole(reply, error_page(NOT_FOUND, lines + JSON_LINE))
        if method != "POST":
            return _whole(reply, error_page(METHOD_NOT_ALLOWED, lines + JSON_LINE))
        length = request.field(b"content-length")
        if not rpc.takes_stream and length.isdigit() and int(length) > self._most_bytes:
            reply.local_calls().context.reached("max_json_bytes")
            return AtOnce(reply, error_page(too_large(self._most_bytes), lines + JSON_LINE, 413))
        plan = request.plan = Plan(rpc, request.headers, lines, self._most_bytes)
        return GatewayCall(plan, reply)


def cors_lines(origin: str) -> bytes:
    """The header lines that let a page from `origin` read the answer."""
    return (
        "Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
        "Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
        f"Access-Control-Allow-Origin: {origin}\r\n"
    ).encode("ascii", "replace")


def hostname(host: str) -> str:
    """A `Host` without its port."""
    name, colon, port = host.rpartition(":")
    if not colon:
        return host
    if name.startswith("[") and name.endswith("]"):
        return name[1:-1]
    return host if ":" in name or "]" in port else name


def is_websocket(request: HttpRequest) -> bool:
    """Whether a request wants to become a WebSocket."""
    wanted = [value.lower() for name, value in request.headers if name == b"upgrade"]
    hops = [value.lower() for name, value in request.headers if name == b"connection"]
    return any(b"websocket" in value for value in wanted) and any(b"upgrade" in value for value in hops)


def _whole(reply: Reply, page: Page) -> Exchange:
    def give(answer: AnswerPage) -> None:
        answer(page)

    return AfterBody(reply, give)


def _wrong_host(host: str) -> Page:
    return Page(421, _WRONG_HOST.format(host=host).encode("utf-8", "replace"), headers=_NO_SNIFF)


def _first_part(escaped: str) -> str:
    """The first part of a path, with both its slashes if it has them."""
    part = escaped[: escaped.find("/", 1) + 1]
    return unquote_to_bytes(part).decode("utf-8", "replace") if "%" in part else part


def _redirect(path: str) -> str | None:
    """The path under which Go's ServeMux wants this one, None if it is that path."""
    if path == _PREFIX[:-1]:
        return _PREFIX
    clean = posixpath.normpath("/" + path.lstrip("/")) if path else "/"
    if path.endswith("/") and clean != "/":
        clean += "/"
    return None if clean == path else clean


def _moved(location: str, method: str, lines: bytes) -> Page:
    headers = (("Location", location),)
    if method not in ("GET", "HEAD"):
        return Page(307, b"", "", headers, lines)
    body = f'<a href="{escape(location)}">{HTTPStatus.TEMPORARY_REDIRECT.phrase}</a>.\n\n'.encode()
    return Page(307, body, "text/html; charset=utf-8", headers, lines)

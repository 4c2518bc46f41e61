"""Paths, methods, headers and framing that HTTP/1.1 knows, and others."""

from __future__ import annotations

from collections.abc import Iterator

from tests.integration.json_case import Case, listed
from tests.integration.json_talk import as_bytes, b64

EVERY_PATH = listed(
    "kv/range ¦ kv/put ¦ kv/deleterange ¦ kv/txn ¦ kv/compaction ¦ watch ¦ lease/grant ¦ "
    "lease/revoke ¦ kv/lease/revoke ¦ lease/keepalive ¦ lease/timetolive ¦ kv/lease/timetolive ¦ "
    "lease/leases ¦ kv/lease/leases ¦ cluster/member/add ¦ cluster/member/remove ¦ "
    "cluster/member/update ¦ cluster/member/list ¦ cluster/member/promote ¦ maintenance/alarm ¦ "
    "maintenance/status ¦ maintenance/defragment ¦ maintenance/hash ¦ maintenance/hashkv ¦ "
    "maintenance/snapshot ¦ maintenance/transfer-leadership ¦ maintenance/downgrade ¦ "
    "auth/enable ¦ auth/disable ¦ auth/status ¦ auth/authenticate ¦ auth/user/add ¦ "
    "auth/user/get ¦ auth/user/list ¦ auth/user/delete ¦ auth/user/changepw ¦ auth/user/grant ¦ "
    "auth/user/revoke ¦ auth/role/add ¦ auth/role/get ¦ auth/role/list ¦ auth/role/delete ¦ "
    "auth/role/grant ¦ auth/role/revoke ¦ lock/lock ¦ lock/unlock ¦ election/campaign ¦ "
    "election/proclaim ¦ election/leader ¦ election/observe ¦ election/resign"
)


def _paths() -> Iterator[Case]:
    """Every path with a wrong method and with wrong JSON; and paths that are none."""
    for path in EVERY_PATH:
        yield Case(f"GET {path}", f"/v3/{path}", method="GET", headers={"Content-Length": ""})
        if path != "watch":  # etcd says nothing until the client goes
            yield Case(f"wrong JSON to {path}", f"/v3/{path}", "{]")
    good = {"key": b64("b1")}
    for method in listed("PUT ¦ DELETE ¦ PATCH ¦ HEAD ¦ TRACE ¦ FOO ¦ post ¦ CONNECT"):
        yield Case(f"{method} range", "/v3/kv/range", good, method)
        yield Case(f"{method} an unknown path", "/v3/nothing", good, method)
    for path in listed(
        '/v3beta/kv/range ¦ /v3beta/v3beta/kv/range ¦ /v3beta ¦ /v3alpha/kv/range ¦ /v2/keys ¦ /v3 ¦ '
        '/v3/ ¦ /v3/kv ¦ /v3/kv/ ¦ /v3/kv/range/ ¦ //v3/kv/range ¦ /v3//kv/range ¦ /v3/kv//range ¦ '
        '/v3/./kv/range ¦ /v3/kv/../kv/range ¦ /v3/kv/range/.. ¦ /v3/../v3/kv/range ¦ '
        '/../v3/kv/range ¦ /v3/kv/range?x=y ¦ /v3/kv/range? ¦ /v3/kv/range?key=YQ%3D%3D ¦ '
        '/v3/kv/range?%zz ¦ /v3/kv/range;x ¦ /v3/kv/range#x ¦ /v3/kv/%72ange ¦ /v3%2Fkv%2Frange ¦ '
        '/%76%33/kv/range ¦ /v3/kv/range% ¦ /v3/kv/range%zz ¦ /v3/kv/range%00 ¦ /v3/KV/Range ¦ '
        '/V3/kv/range ¦ /v3/kv/range:x ¦ /v3/kv/range: ¦ /v3/nothing ¦ /v3/kv/rang ¦ /v3/kv/rangee ¦ '
        '/v3/kv/range/x ¦ v3/kv/range ¦  ¦ * ¦ http://x/v3/kv/range ¦ '
        'http://localhost:2379/v3/kv/range?a=b ¦ /v3/kv/range\t ¦ /v3/kv/rang\xe9 ¦ '
        '/etcdserverpb.KV/Range ¦ /v3/watch/ ¦ /v3beta/watchx ¦ /v3/health ¦ /v3beta//kv/range'
    ):  # fmt: skip
        yield Case(f"POST {path!r}", path, good)
    for path in ["/v3/", "/v3", "/v3/nothing", "/v3//kv/range", "/v3beta/nothing"]:
        yield Case(f"GET {path!r}", path, method="GET", headers={"Content-Length": ""})


def _headers() -> Iterator[Case]:
    get, good = "/v3/kv/range", as_bytes({"key": b64("b1")})

    def with_headers(name: str, **headers: str) -> Case:
        return Case(name, get, good, headers={key.replace("_", "-"): value for key, value in headers.items()})

    for told in listed(
        "text/plain ¦ application/x-www-form-urlencoded ¦ application/json; charset=utf-8 ¦ "
        "application/json; charset=latin-1 ¦ application/grpc ¦ application/x-protobuf ¦ */* ¦ * ¦ "
        "x ¦ multipart/form-data; boundary=x ¦ application/json; ¦ ;;"
    ):
        yield with_headers(f"content type {told}", Content_Type=told)
    yield with_headers("no content type", Content_Type="")
    for accepted in ["*/*", "*", "text/html", "application/json", "application/xml, */*;q=0.1"]:
        yield with_headers(f"accept {accepted}", Accept=accepted)
    yield with_headers("accept an encoding", Accept_Encoding="gzip, deflate, br")
    yield with_headers("a content encoding", Content_Encoding="gzip")
    yield with_headers("te: trailers", TE="trailers")
    yield Case("te: trailers, and an error", get, {}, headers={"TE": "Trailers, deflate"})
    yield Case("te: trailers, and wrong JSON", get, "{", headers={"TE": "trailers"})
    yield with_headers("te: gzip", TE="gzip")
    for timeout in listed(
        "10S ¦ 1H ¦ 1M ¦ 20000m ¦ 1x ¦ S ¦ 1 ¦  ¦ x ¦ -1S ¦ 99999999999999999999S ¦ 1.5S ¦ 10s ¦  10S ¦ 0S ¦ 1n"
    ):
        yield Case(f"timeout {timeout!r}", get, good, headers={"Grpc-Timeout": timeout})
    yield with_headers("metadata", Grpc_Metadata_X_Own="1")
    yield with_headers("metadata that gRPC reserves", Grpc_Metadata_Grpc_Foo="1")
    yield with_headers("metadata of a client's version", Grpc_Metadata_Client_Api_Version="3.7")
    yield with_headers("metadata that no leader is needed", Grpc_Metadata_Hasleader="true")
    yield with_headers("binary metadata", Grpc_Metadata_X_Own_Bin="YQ==")
    yield with_headers("binary metadata without padding", Grpc_Metadata_X_Own_Bin="YQ")
    yield with_headers("binary metadata that is wrong", Grpc_Metadata_X_Own_Bin="!")
    yield with_headers("binary header that is wrong", X_Own_Bin="!")
    yield with_headers("metadata of other than ASCII", Grpc_Metadata_X_Own="\u00e9")
    yield with_headers("metadata of one shard's token", Grpc_Metadata_Token="x.1")
    yield with_headers("a token, auth off", Authorization="wrong")
    yield with_headers("a bearer token, auth off", Authorization="Bearer wrong.123")
    yield with_headers("a basic password, auth off", Authorization="Basic dTpw")
    yield with_headers("a token of other than ASCII", Authorization="\u00e9")
    yield with_headers("a long token", Authorization="x" * 4000)
    yield with_headers("cookies", Cookie="a=b; token=x")
    yield with_headers(
        "forwarded", X_Forwarded_For="1.2.3.4", X_Forwarded_Host="x.y", Forwarded="for=1.2.3.4", Via="1.1 x"
    )
    yield with_headers("origin", Origin="http://evil.example")
    yield with_headers("a method's override", X_HTTP_Method_Override="PUT")
    yield Case(
        "a method's override of a form",
        get,
        "key=x",
        headers={"X-HTTP-Method-Override": "GET", "Content-Type": "application/x-www-form-urlencoded"},
    )
    for path in [get, "/v3/nothing", "/nothing", "/health", "/v3"]:
        asked = {
            "Origin": "http://x",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
            "Content-Length": "",
        }
        yield Case(f"OPTIONS {path}", path, method="OPTIONS", headers=asked)
        yield Case(f"OPTIONS {path} with a body", path, good, method="OPTIONS")
    yield Case("OPTIONS *", "*", method="OPTIONS", headers={"Content-Length": ""})
    for host in listed(
        "localhost ¦ evil.example ¦ evil.example:99999 ¦ [::1]:2379 ¦ ::1 ¦ a b ¦ x/y ¦ a@b ¦ - ¦ 1.2.3.4:0"
    ):
        yield with_headers(f"host {host!r}", Host=host)
    yield Case("many headers", get, good, headers={f"X-{number}": "x" * 20 for number in range(150)})
    yield Case("headers of 12 kB", get, good, headers={f"X-{number}": "x" * 1200 for number in range(10)})
    yield with_headers(
        "upgrade to h2c", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABkAAQAAP__"
    )
    yield Case("headers of 1.2 MB", get, good, headers={f"X-{number}": "x" * 60_000 for number in range(20)})
    yield with_headers("upgrade to an unknown protocol", Connection="Upgrade", Upgrade="foo/2")
    yield with_headers("upgrade without saying so", Upgrade="foo/2")
    yield with_headers("keep alive", Connection="keep-alive", Keep_Alive="timeout=5")
    yield with_headers("close", Connection="close")
    yield with_headers("close in capitals", Connection="CLOSE")
    yield with_headers("a range of the answer", Range="bytes=0-3")
    yield with_headers("only if changed", If_None_Match="*")


def _framing() -> Iterator[Case]:
    """What HTTP/1.1 allows between a client and a server, and what smuggles requests."""
    good = as_bytes({"key": b64("b1")})
    half = len(good) // 2
    start, host, kind = "POST /v3/kv/range HTTP/1.1\r\n", "Host: x\r\n", "Content-Type: application/json\r\n"

    def raw(name: str, head: str, body: bytes = good) -> Case:
        return Case(name, raw=(head + "\r\n").encode("latin-1") + body)

    def chunks(*parts: bytes, extension: bytes = b"", trailer: bytes = b"") -> bytes:
        return (
            b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
        )

    chunked = start + host + kind + "Transfer-Encoding: chunked\r\n"
    length = f"Content-Length: {len(good)}\r\n"
    whole = start + host + kind + length
    yield raw("chunked", chunked, chunks(good))
    yield raw("chunked, byte by byte", chunked, chunks(*(good[i : i + 1] for i in range(len(good)))))
    yield raw("chunked with extensions", chunked, chunks(good[:half], good[half:], extension=b";a=b"))
    yield raw("chunked with trailers", chunked, chunks(good, trailer=b"X-Own: 1\r\n"))
    yield raw(
        "chunked with trailers that pose as headers",
        chunked,
        chunks(good, trailer=b"Content-Length: 3\r\nAuthorization: x\r\n"),
    )
    yield raw("chunked, nothing", chunked, chunks())
    yield raw("chunked in capitals", start + host + "Transfer-Encoding: CHUNKED\r\n", chunks(good))
    yield raw("chunks of a wrong size", chunked, b"zz\r\n" + good + b"\r\n0\r\n\r\n")
    yield raw("chunks of a negative size", chunked, b"-1\r\n" + good + b"\r\n0\r\n\r\n")
    yield raw("chunks of a huge size", chunked, b"f" * 40 + b"\r\n" + good + b"\r\n0\r\n\r\n")
    yield raw("chunks without their end", chunked, b"%x\r\n%sXX0\r\n\r\n" % (len(good), good))
    yield raw("expect", whole + "Expect: 100-continue\r\n")
    yield raw("expect in capitals", whole + "Expect: 100-Continue\r\n")
    yield raw("expect something else", whole + "Expect: 200-ok\r\n")
    yield raw("expect, without a body", start + host + "Content-Length: 0\r\nExpect: 100-continue\r\n", b"")
    yield raw("HTTP/1.0", whole.replace("HTTP/1.1", "HTTP/1.0"))
    yield raw("HTTP/1.0, kept alive", whole.replace("HTTP/1.1", "HTTP/1.0") + "Connection: keep-alive\r\n")
    yield raw("HTTP/1.0 without a host", start.replace("1.1", "1.0") + length)
    yield raw("HTTP/1.2", whole.replace("HTTP/1.1", "HTTP/1.2"))
    yield raw("HTTP/3.0", whole.replace("HTTP/1.1", "HTTP/3.0"))
    yield raw("HTTP/0.9", "POST /v3/kv/range\r\n", b"")
    yield raw("no host", start + length)
    yield raw("an empty host", start + "Host:\r\n" + length)
    yield raw("two hosts", start + host + host + length)
    yield raw("two lengths alike", whole + length)
    yield raw("two lengths", whole + "Content-Length: 3\r\n")
    yield raw("a list of lengths", start + host + f"Content-Length: {len(good)}, {len(good)}\r\n")
    yield raw("a length of text", start + host + "Content-Length: x\r\n")
    yield raw("a length with a sign", start + host + f"Content-Length: +{len(good)}\r\n")
    yield raw("a negative length", start + host + "Content-Length: -1\r\n")
    yield raw("a huge length", start + host + "Content-Length: 99999999999999999999\r\n")
    yield raw("an empty length", start + host + "Content-Length:\r\n", b"")
    yield raw("a length and chunks", chunked + length, chunks(good))
    yield raw("an unknown coding", start + host + "Transfer-Encoding: gzip\r\n", chunks(good))
    yield raw("two codings", start + host + "Transfer-Encoding: gzip, chunked\r\n", chunks(good))
    yield raw("chunked twice", chunked + "Transfer-Encoding: chunked\r\n", chunks(good))
    yield raw("coding identity", start + host + "Transfer-Encoding: identity\r\n" + length)
    yield raw("a blank before the colon", start + host + f"Content-Length : {len(good)}\r\n")
    yield raw("a folded header", whole + "X-Own: a\r\n b\r\n")
    yield raw("a header without a colon", whole + "nonsense\r\n")
    yield raw("a header without a name", whole + ": x\r\n")
    yield raw("a header with a zero byte", whole + "X-Own: a\0b\r\n")
    yield raw("a header with a lone carriage return", whole + "X-Own: a\rb\r\n")
    yield raw("a name with a blank", whole + "X Own: a\r\n")
    yield raw("a name of other than ASCII", whole + "X-\u00e9: a\r\n")
    yield raw("lines with a line feed only", whole.replace("\r\n", "\n")[:-1] + "\n")
    yield raw("an empty line first", "\r\n" + whole)
    yield raw("two blanks in the first line", whole.replace("POST ", "POST  "))
    yield raw("a method of other than ASCII", whole.replace("POST", "P\u00d6ST"))
    yield raw("no version", whole.replace(" HTTP/1.1", ""))
    yield raw("a version of text", whole.replace("HTTP/1.1", "HTTP/x.y"))
    yield raw("HTTPS' first bytes", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"")
    yield raw("a path of 6 kB", whole.replace("/range", "/range?" + "x" * 6000))
    yield raw(
        "three requests at once", whole, good + (whole + "\r\n").encode() + good + (whole + "\r\n").encode() + good
    )


GROUPS = {"paths": _paths, "headers": _headers, "framing": _framing}

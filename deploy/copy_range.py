#!/usr/bin/env python3
"""Copies a range of keys from one etcd cluster to another, with their leases: for docs/operations.md, "Move a range".

    deploy/copy_range.py --from http://10.0.1.1:2379 --to http://10.0.2.1:2379 START END

The range begins with START and ends before END, in text or as hex:00ff; END "" is the end of all keys, as in esp's
config. Nobody may write to the range meanwhile: a write is found out, and the exit code is then 1. Leases keep their
ids, so the target has to have them first (`esp lease-sync`). Keys and values are copied; revisions and versions are the
target's own. Talks to the JSON gateway that every etcd from 3.4 on has; needs nothing but Python.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

AT_ONCE = 100
"""Keys in one transaction; etcd's --max-txn-ops is 128."""
MOST_BYTES = 1_000_000
"""Bytes of a transaction, as JSON; etcd takes 1.5 MiB."""


class Etcd:
    """A cluster, by the client URL of one of its members."""

    def __init__(self, url: str, tls: ssl.SSLContext | None, user: str | None) -> None:
        self._url = url.rstrip("/")
        self._tls = tls
        self._token = ""
        if user:
            name, _, password = user.partition(":")
            self._token = self.ask("auth/authenticate", name=name, password=password)["token"]

    def ask(self, path: str, **body: Any) -> Any:
        """The answer to an RPC; exits with etcd's error."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        request = urllib.request.Request(f"{self._url}/v3/{path}", json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._tls) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"{self._url}: {json.load(error).get('message')}")
        except OSError as error:
            sys.exit(f"{self._url}: {error}")

    def state(self, key: str, end: str) -> tuple[int, str, str]:
        """How many keys the range has, the revision of the last write to one of them, and that of the cluster."""
        answer = self.ask("kv/range", key=key, range_end=end, limit=1, sort_target="MOD", sort_order="DESCEND")
        [last] = answer.get("kvs") or [{}]
        return int(answer.get("count", 0)), last.get("mod_revision", ""), answer["header"]["revision"]

    def keys(self, key: str, end: str, revision: str) -> Iterator[dict[str, Any]]:
        """All keys of the range with their values, as they were at this revision."""
        more = True
        while more:
            answer = self.ask("kv/range", key=key, range_end=end, revision=revision, limit=AT_ONCE)
            kvs = answer.get("kvs", [])
            yield from kvs
            more = bool(kvs) and answer.get("more", False)
            if more:
                key = coded(base64.b64decode(kvs[-1]["key"]) + b"\0")

    def put(self, kvs: list[dict[str, Any]]) -> None:
        """Writes the keys in one transaction."""
        fields = ("key", "value", "lease")
        puts = [{"request_put": {name: kv[name] for name in fields if name in kv}} for kv in kvs]
        self.ask("kv/txn", success=puts)


def key_of(text: str) -> str:
    """A key of the command line; a zero byte is the first of all keys, and the end behind the last, as in etcd."""
    return coded(bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode() or b"\0")


def coded(key: bytes) -> str:
    """Bytes as the gateway takes them."""
    return base64.b64encode(key).decode()


def copy(source: Etcd, target: Etcd, key: str, end: str) -> None:
    """Copies, and compares in the end."""
    if target.state(key, end)[0]:
        sys.exit("the target has keys in this range already; delete them there first (etcdctl del)")
    count, last, revision = source.state(key, end)
    batch: list[dict[str, Any]] = []
    size = 0
    for kv in source.keys(key, end, revision):
        bytes_ = len(kv["key"]) + len(kv.get("value", ""))
        if batch and (len(batch) == AT_ONCE or size + bytes_ > MOST_BYTES):
            target.put(batch)
            batch, size = [], 0
        batch.append(kv)
        size += bytes_
    if batch:
        target.put(batch)
    if source.state(key, end)[:2] != (count, last):
        sys.exit("somebody wrote to the range meanwhile: stop the writers, delete the copy and begin again")
    if (found := target.state(key, end)[0]) != count:
        sys.exit(f"the source has {count} keys, the target {found}: somebody writes to the target, or its leases end")
    sys.stdout.write(f"copied {count} keys\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="of a member of the source")
    parser.add_argument("--to", dest="target", required=True, metavar="URL", help="of a member of the target")
    parser.add_argument("--user", metavar="NAME:PASSWORD", help="of both clusters, if their auth is on")
    parser.add_argument("--cacert", metavar="FILE", help="CA of both clusters")
    parser.add_argument("--cert", metavar="FILE", help="client certificate for both clusters")
    parser.add_argument("--key", metavar="FILE", help="key of the client certificate")
    parser.add_argument("start")
    parser.add_argument("end")
    options = parser.parse_args()
    tls = None
    if options.source.startswith("https:") or options.target.startswith("https:"):
        tls = ssl.create_default_context(cafile=options.cacert)
        if options.cert:
            tls.load_cert_chain(options.cert, options.key)
    source, target = (Etcd(url, tls, options.user) for url in (options.source, options.target))
    copy(source, target, key_of(options.start), key_of(options.end))


if __name__ == "__main__":
    main()

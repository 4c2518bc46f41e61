"""The text of a transaction, beside etcdctl's own reading of the same text."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from esp.commands.txn_text import TxnTextError, read
from esp.core.pb import rpc_pb2
from tests.harness import peer

TEXTS = [
    '\n\n\n',
    'mod("a") > "0"\nver("b") = "1"\nversion("b") != "1"\nc("b") < "+7"\ncreate("b") = "-1"\nm("b") = "3"\n\n\n\n',
    'val("a") = "x y"\nvalue("\\x00\\xff\\u00e9\\U0001F600\\101\\n\\"") = `raw \\n`\n\n\n\n',
    '\nput a 1\nput --lease=1f --prev-kv b "2 3"\nput c --ignore-value\nput d --ignore-lease \'4 "\'\n\ndel e\n\n',
    '\nput a -- -1\nput -- -b 2\n\nget -- --c\n\n',
    '\nget a b\nget a --prefix\nget "" --prefix\n\nget a --from-key\nget "" --from-key\nget "\\xff\\xff" --prefix\n\n',
    '\ndel a\ndel --range a b\ndel a --prefix --prev-kv\ndel "" --prefix\ndel a --from-key\n\n\n',
    '\nget a --limit 5 --rev=3 --order descend --sort-by modify --keys-only --consistency s\n\n\n',
    '\nget a --order=ASCEND\nget a --sort-by=VALUE --order=ASCEND\nget a --count-only=true --keys-only=false\n\n\n',
    '\nget a --min-create-rev 1 --max-create-rev 2 --min-mod-rev 3 --max-mod-rev 4\nget a --rev -1\n\n\n',
    '  \n  get   a\tb  \n\t\n\n',
    '\nput "a\\tb" \'\\t\'\nput é ü\n\n\n',
    '\nget --prefix=false a\nget a --prefix=1\nget a --print-value-only\n\n\n',
]  # fmt: skip


@pytest.fixture(scope="module")
def etcdctl() -> Path:
    return peer("etcdctl")


@pytest.fixture(scope="module")
def heard() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that takes any Txn, and the requests that it has got."""
    requests: list[bytes] = []

    def take(request: bytes, _: object) -> bytes:
        requests.append(request)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(take)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Txn": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", requests
    server.stop(None).wait()


@pytest.mark.parametrize("text", TEXTS)
def test_the_transaction_is_the_one_that_etcdctl_sends(
    text: str, heard: tuple[str, list[bytes]], etcdctl: Path
) -> None:
    address, requests = heard
    subprocess.run([etcdctl, "--endpoints", address, "txn"], input=text.encode(), capture_output=True, check=True)
    assert read(text).request == rpc_pb2.TxnRequest.FromString(requests.pop())


def test_the_last_blank_line_may_be_missing_and_the_parts_have_their_lines() -> None:
    parts = read('ver("k") = "1"\n\nput a 1\n\nget b c').parts
    assert [(part.section, part.line, part.key, part.range_end) for part in parts] == [
        ("compare", 1, b"k", b""),
        ("success", 3, b"a", b""),
        ("failure", 5, b"b", b"c"),
    ]


def test_bytes_that_are_not_text_are_kept() -> None:
    assert read(b"\nget \xff\n".decode("utf-8", "surrogateescape")).parts[0].key == b"\xff"


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("mod(a) > 0\n", 1, "malformed comparison"),
        ('mod("a")> "0"\n', 1, "malformed comparison"),
        ("# compares:\n", 1, "malformed comparison"),
        ('modd("a") > "0"\n', 1, "unknown target modd"),
        ('mod("a") >= "0"\n', 1, "unknown result op >="),
        ('mod("a") > "x"\n', 1, "mod of a compare is 'x', which is not a whole number"),
        ('mod("a") > "9223372036854775808"\n', 1, "is not a whole number"),
        ('lease("a") = "1"\n', 1, "etcdctl cannot compare leases"),
        ('val("\\q") = "1"\n', 1, "which Go does not read"),
        ('val("\\uD800") = "1"\n', 1, "which Go does not read"),
        ('val("\\777") = "1"\n', 1, "which Go does not read"),
        ("\nput a\n", 2, "put needs a key and a value; it has 1 arguments"),
        ("\nput a 1 --ignore-value\n", 2, "put needs a key alone"),
        ("\nput a -1\n", 2, "put has no flag -1; -- before a key or value that begins with a dash"),
        ("\nput a 1 --lease xyz\n", 2, "--lease is 'xyz', which is not a hexadecimal number"),
        ("\nget a b c\n", 2, "get needs a key, and may have a range end; it has 3 arguments"),
        ("\nget a --prefix --from-key\n", 2, "exclude each other"),
        ("\nget a b --prefix\n", 2, "get takes one key with --prefix"),
        ("\nget a --keys-only --count-only\n", 2, "exclude each other"),
        ("\nget a --limit\n", 2, "--limit needs a value"),
        ("\nget a --order up\n", 2, "--order is ASCEND or DESCEND"),
        ("\nget a --sort-by size\n", 2, "--sort-by is one of"),
        ("\nget a --prefix=maybe\n", 2, "--prefix is true or false"),
        ("\nwatch a\n", 2, "invalid txn request: watch a"),
        ("\nget\n", 2, "invalid txn request: get"),
        ("\n\n\nget a\n", 4, "etcdctl reads nothing behind the failure requests"),
    ],
)
def test_what_etcdctl_does_not_read_is_refused_with_its_line(text: str, line: int, error: str) -> None:
    with pytest.raises(TxnTextError) as refused:
        read(text)
    assert refused.value.line == line
    assert error in str(refused.value)

"""A server's end of TLS in memory, against a client's end in memory."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.local_tls import Pair
from esp.core.wire.frames import PREFACE
from esp.core.wire.tls import MOST_OPENED, Tls
from esp.core.wire.tls_faults import TlsFault
from esp.core.wire.tls_records import RUN_RECORDS
from tests.core.wire.certificates import (
    HOST,
    ClientEnd,
    authority,
    client_context,
    pair,
    server_context,
)


def meet(client: ClientEnd | None = None, server: Tls | None = None) -> tuple[ClientEnd, Tls]:
    """Both ends after the handshake."""
    client, server = client or ClientEnd(), server or Tls(server_context())
    for _ in range(2):
        said = client.shakes()
        if said:
            server.receive(said)
            opened(server)
        client.hears(server.output())
    client.hears(server.output())
    assert client.is_open
    assert server.is_open
    return client, server


def opened(server: Tls) -> bytes:
    """All plain bytes that have come."""
    plain = b""
    for _ in range(1000):
        if server.waiting:
            plain += server.open()
    assert not server.waiting
    return plain


def test_a_handshake_takes_two_steps_and_agrees_on_http2() -> None:
    client, server = meet()
    assert client.tls.selected_alpn_protocol() == "h2"
    assert client.tls.version() == "TLSv1.3"
    assert not server.waiting
    assert not server.has_output
    client.hears(server.seal(b"hello"))
    assert client.plain == b"hello"


def test_a_handshake_may_come_byte_by_byte() -> None:
    client, server = ClientEnd(), Tls(server_context())
    for _ in range(2):
        for byte in client.shakes():
            server.receive(bytes((byte,)))
            assert opened(server) == b""
        client.hears(server.output())
    assert server.is_open


def test_a_handshake_begins_when_its_first_record_is_whole() -> None:
    """Half of one is a few hundred bytes in esp; OpenSSL would take 50 KB for the connection."""
    hello, server = ClientEnd().shakes(), Tls(server_context())
    for piece in (hello[:3], hello[3:200], hello[200:-1]):
        server.receive(piece)
        assert not server.waiting
    server.receive(hello[-1:])
    assert server.waiting == len(hello)
    assert not server.has_begun
    server.open()
    assert server.has_begun
    assert server.has_output


def test_what_cannot_become_a_handshake_is_not_waited_for() -> None:
    for first in (b"\x16\x03\x01\xff\xff", b"P", b"\x80"):
        server = Tls(server_context())
        server.receive(first)
        assert server.waiting == len(first)


def test_plain_bytes_may_come_with_the_end_of_the_handshake() -> None:
    client, server = ClientEnd(), Tls(server_context())
    server.receive(client.shakes())
    assert server.open() == b""
    client.hears(server.output())
    server.receive(client.outgoing.read() + client.says(b"early"))
    assert opened(server) == b"early"
    assert server.is_open


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40_000), max_size=5), st.lists(st.integers(1, 30_000), max_size=12))
def test_bytes_arrive_whatever_pieces_they_come_in(sizes: list[int], cuts: list[int]) -> None:
    client, server = meet()
    plain = b"".join(bytes((number,)) * size for number, size in enumerate(sizes))
    sealed = client.says(*(bytes((number,)) * size for number, size in enumerate(sizes)))
    heard = b""
    while sealed:
        cut = cuts.pop() if cuts else len(sealed)
        piece, sealed = sealed[:cut], sealed[cut:]
        if server.is_one(piece):
            heard += server.open_one(piece)
        else:
            server.receive(piece)
            heard += server.open()  # perhaps not all of it
    assert heard + opened(server) == plain
    client.hears(server.seal(plain) if plain else b"")
    assert client.plain == plain


def test_many_small_records_are_opened_a_few_at_a_time() -> None:
    client, server = meet()
    server.receive(client.says(*[b"x"] * 1000))
    assert 0 < len(server.open()) <= RUN_RECORDS
    assert len(opened(server)) >= 1000 - RUN_RECORDS


def test_large_records_are_opened_as_far_as_the_connection_may_want_to_work_on_them() -> None:
    client, server = meet()
    server.receive(client.says(bytes(1_000_000)))
    assert MOST_OPENED - 20_000 < len(server.open()) < MOST_OPENED + 20_000
    assert server.waiting > 900_000


def test_a_client_that_ends_is_told_from_one_that_waits() -> None:
    client, server = meet()
    assert server.open_one(client.says(b"last")) == b"last"
    assert not server.is_ended
    server.receive(client.ends() + b"what comes behind is nothing")
    assert opened(server) == b""
    assert server.is_ended
    client.hears(server.seal(b"but it hears on"))
    client.hears(server.end())
    assert client.plain == b"but it hears on"
    assert client.is_ended


def test_when_both_ends_have_ended_nothing_is_a_fault() -> None:
    for as_one in (True, False):
        client, server = meet()
        client.hears(server.end())
        end = client.ends()
        if as_one:
            assert server.open_one(end) == b""
        else:
            server.receive(end)
            assert opened(server) == b""
        assert server.is_ended


def test_an_end_that_comes_as_one_record_is_one_too() -> None:
    client, server = meet()
    end = client.ends()
    assert server.is_one(end)
    assert server.open_one(end) == b""
    assert server.is_ended


def test_nothing_is_sealed_before_the_handshake_and_after_the_end() -> None:
    with pytest.raises(ssl.SSLError):
        Tls(server_context()).seal(b"secret")
    _, server = meet()
    assert server.end()
    with pytest.raises(ssl.SSLError):
        server.seal(b"more")


@pytest.mark.parametrize("as_one", [True, False])
def test_a_record_that_was_changed_on_the_way_is_a_fault(as_one: bool) -> None:
    client, server = meet()
    sealed = bytearray(client.says(b"put 1"))
    sealed[-1] ^= 1
    server.receive(b"" if as_one else bytes(sealed))
    with pytest.raises(TlsFault, match="TLS: decryption failed or bad record mac"):
        server.open_one(bytes(sealed)) if as_one else server.open()


PLAIN: dict[str, tuple[bytes, str]] = {
    "HTTP/2": (PREFACE, "HTTP/2 without TLS at a TLS port: let the client use https://, or give esp a listen URL with"),
    "the beginning of HTTP/2": (b"P", "HTTP/2 without TLS at a TLS port: "),
    "HTTP/1.1": (b"GET /health HTTP/1.1\r\n\r\n", "HTTP/1.1 without TLS at a TLS port: let the client use https://"),
    "PROXY": (b"PROXY TCP4 ", "a PROXY protocol header, which is not understood: leave out send-proxy in the"),
    "nothing known": (b"hello", "not TLS"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_client_without_tls_is_told_by_its_first_bytes(name: str) -> None:
    said, reason = PLAIN[name]
    server = Tls(server_context())
    server.receive(said)
    with pytest.raises(TlsFault) as caught:
        server.open()
    assert str(caught.value).startswith(reason)
    answer = caught.value.answer
    if "HTTP" in name:
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.endswith(b"\r\n\r\nthis port speaks TLS; use https://\n")
    else:
        assert answer == b""


def talks(client: ClientEnd, server: Tls) -> None:
    """The handshake, and a few words of each end."""
    for _ in range(3):
        with contextlib.suppress(ssl.SSLError):
            client._shake()
            client.hears(server.output())
        server.receive(client.outgoing.read())
        opened(server)


def fails(client: ClientEnd, server: Tls) -> str:
    """The fault in a handshake, as the server's log has it."""
    with pytest.raises(TlsFault) as caught:
        talks(client, server)
    return str(caught.value)


def older() -> ssl.SSLContext:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def with_one_cipher() -> ssl.SSLContext:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    return context


REFUSED: dict[str, tuple[Callable[[], ClientEnd], str]] = {
    "no certificate": (
        lambda: ClientEnd(client_context()),
        "the client shows no certificate, and client_ca asks for one: give the client a certificate and its key",
    ),
    "a certificate of another CA": (
        lambda: ClientEnd(client_context(authority("another CA").issue(["a"]))),
        "the client's certificate is refused: unable to get local issuer certificate: give the client one that a CA of "
        "client_ca has signed",
    ),
    "no trust": (
        lambda: ClientEnd(client_context(pair("a"), authority("another CA"))),
        "the client does not trust esp's certificate (unknown CA): give the client the CA of the certificate, and call "
        "esp by a name that the certificate has",
    ),
    "another name": (
        lambda: ClientEnd(client_context(pair("a")), "other.example"),
        "the client does not trust esp's certificate (bad certificate): ",
    ),
    "an old version": (
        lambda: ClientEnd(older()),
        "the client speaks only versions of TLS below min_version: let it speak TLS 1.2 or 1.3",
    ),
    "no cipher in common": (
        lambda: ClientEnd(with_one_cipher()),
        "the client speaks no cipher of TLS that esp does: let it speak TLS 1.3, or ECDHE with AES-GCM or ChaCha20",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_handshake_that_fails_is_told_with_the_cure(name: str) -> None:
    make, reason = REFUSED[name]
    context = server_context(asks=True, only_newest=name == "an old version")
    assert fails(make(), Tls(context)).startswith(reason)


def test_a_certificate_that_has_ended_is_refused() -> None:
    from datetime import timedelta

    own: Pair = authority().issue(["a"], life=timedelta(days=-1))
    text = fails(ClientEnd(client_context(own)), Tls(server_context(asks=True)))
    assert text.startswith("the client's certificate is refused: certificate has expired: ")


def test_garbage_never_is_more_than_a_fault() -> None:
    hello = ClientEnd().shakes()
    for spoilt in _spoilt(hello):
        server = Tls(server_context())
        server.receive(spoilt)
        with contextlib.suppress(TlsFault):
            opened(server)
        assert not server.is_open


def _spoilt(hello: bytes) -> Iterable[bytes]:
    for at in range(0, len(hello), 7):
        yield hello[:at] + bytes((hello[at] ^ 0xFF,)) + hello[at + 1 :]
    yield b"\x16\x03\x01\xff\xff" + bytes(70_000)
    yield b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(16_380)


def test_host_is_what_the_certificate_is_for() -> None:
    assert HOST in str(meet()[0].tls.getpeercert())

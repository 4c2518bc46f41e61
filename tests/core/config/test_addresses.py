"""Addresses that people write, and the hints in errors: the address in a hint is always valid."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esp.core.config.addresses import address, nearest

KINDS = [("listen URL", 0, True), ("endpoint", 1, False), ("advertise URL", 1, True)]

WRONG = {
    ":2379": "http://127.0.0.1:2379",
    "2379": "http://127.0.0.1:2379",
    "http://2379": "http://127.0.0.1:2379",
    "": "http://127.0.0.1:2379",
    "http://u:p@host": "http://host:2379",
    "http://u:p@host:1": "http://host:1",
    "etcd": "http://etcd:2379",
    "https://etcd:1/": "https://etcd:1",
    "tcp://etcd:1": "http://etcd:1",
    "http://etcd:1/v3?x": "http://etcd:1",
    "http:/etcd:1": "http://etcd:1",
    "::1": "http://[::1]:2379",
    "fe80::1:2379": "http://[fe80::1]:2379",
    "[::1]": "http://[::1]:2379",
    "etcd:": "http://etcd:2379",
    "etcd:http": "http://etcd:2379",
    " http://etcd:1": "http://etcd:1",
    "http://k\u00f6ln:1": "http://xn--kln-sna:1",
    "unix:///run/etcd": "http://127.0.0.1:2379",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_was_probably_meant(text: str) -> None:
    assert nearest(text) == WRONG[text]


def hints(message: str) -> list[str]:
    """Every URL that it says to write."""
    several = re.search("write each as an entry of its own: (.*)", message)
    if several:
        return several[1].split(", ")
    return re.findall(r"write (https?://\S+)", message.rpartition("; ")[2])


@given(st.one_of(st.text(), st.from_regex(r"\A(https?://)?[a-z0-9:.@,\[\]/ -]{0,20}(:[0-9]{0,6})?/?\Z")))
@example("http://a:1,http://b:2")
@example("http://a:1 http://b:2")
@example("0")
@example("host:99999999999")
@example("http://[::1%eth0]:1")
def test_every_hint_is_taken(text: str) -> None:
    for what, lowest_port, needs_scheme in KINDS:
        try:
            host, port = address(text, what, lowest_port, needs_scheme=needs_scheme)
        except ValueError as error:
            message = str(error)
            assert "; " in message
            assert hints(message) or "correct it" in message or "write one from" in message or "write it as" in message
            for url in hints(message):
                address(url, what, lowest_port, needs_scheme=needs_scheme)
        else:
            assert host
            assert lowest_port <= port <= 65_535


@pytest.mark.parametrize("value", [2379, 0, -1, 1.5, True, None, {"h": 1}, ["h:1"]])
def test_what_is_no_text_has_a_hint_as_well(value: object) -> None:
    with pytest.raises(ValueError, match="is not text; write http://") as error:
        address(value, "endpoint")
    [url] = hints(str(error.value))
    address(url, "endpoint")


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("a..b", "nothing between two dots"),
        (".a", "nothing between two dots"),
        ("a" * 70, "longer than 63"),
        ("a." * 130 + "a", "at most 253"),
        ("-a", "cannot be part"),
        ("300.1.1.1", "no IPv4 address"),
        ("1.2.3", "no IPv4 address"),
        ("[:::1]", "no IPv6 address"),
        ("[host]", "no IPv6 address"),
    ],
)
def test_names_that_cannot_be_any(host: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        address(f"http://{host}:2379", "endpoint")


@pytest.mark.parametrize("host", ["a", "a.", "a_b.c-d", "1a", "127.0.0.1", "[::1]", "a" * 63, "xn--kln-sna"])
def test_names_that_may_be(host: str) -> None:
    assert address(f"http://{host}:2379/", "endpoint") == (host.strip("[]"), 2379)

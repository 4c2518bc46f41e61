"""Whether a client's first bytes ask something, as the bytes come one by one."""

from __future__ import annotations

import pytest

from esp.core.wire.first_bytes import MOST_FRAMES, asks
from esp.core.wire.frames import PREFACE, SETTINGS_ACK, settings, window_update
from tests.core.wire.conversation import call, data, headers

HEAD = headers(1, call(b"/etcdserverpb.KV/Range"))


@pytest.mark.parametrize(
    ("before", "head", "after"),
    [
        (PREFACE, HEAD, data(1, b"abc", end=True)),
        (PREFACE + settings({4: 70_000}) + SETTINGS_ACK + window_update(0, 1000), HEAD, data(1, b"abc", end=True)),
        (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /"),
        (PREFACE + settings({}) * (MOST_FRAMES - 1), HEAD, b""),
    ],
)
def test_a_client_asks_when_the_head_of_its_request_is_whole(before: bytes, head: bytes, after: bytes) -> None:
    said = before + head + after
    whole = len(before) + len(head)
    assert [asks(said[:size]) for size in range(len(said) + 1)] == [size >= whole for size in range(len(said) + 1)]


def test_only_the_first_frames_are_looked_at() -> None:
    assert not asks(PREFACE + settings({}) * MOST_FRAMES + HEAD)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x00\xc8\x01", b"SSH-2.0-x\r\n", PREFACE, PREFACE + settings({})])
def test_others_ask_nothing_yet(said: bytes) -> None:
    assert not asks(said)

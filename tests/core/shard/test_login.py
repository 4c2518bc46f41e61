"""esp's own user at a shard: when esp authenticates, its errors about the password, and the secrecy of the password."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from esp.core import errors
from esp.core.auth_tokens import OWN, OwnParts
from esp.core.background import Background
from esp.core.config import ConfigError, User, parse, read_password
from esp.core.pb import rpc_pb2
from esp.core.shard import login
from esp.core.shard.login import Login
from esp.core.wire.hpack import decode
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, RpcError, Status

SECRET = "correct horse battery staple"
WRONG = Status(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")


class Etcd:
    """Answers Authenticate."""

    def __init__(self) -> None:
        self.asked: list[rpc_pb2.AuthenticateRequest] = []
        self.refusal: Status | None = None
        self.pause = 0.0

    async def call(self, forward: Forward, message: bytes) -> bytes:
        assert forward == (b"/etcdserverpb.Auth/Authenticate", b"")
        self.asked.append(rpc_pb2.AuthenticateRequest.FromString(message))
        await asyncio.sleep(self.pause)
        if self.refusal is not None:
            raise RpcError(self.refusal)
        return rpc_pb2.AuthenticateResponse(token=f"t{len(self.asked)}").SerializeToString()


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def world(password: Path) -> tuple[Etcd, OwnParts, Login]:
    etcd, parts = Etcd(), OwnParts("a")
    return etcd, parts, Login("a", User("esp", password), parts, etcd.call, Background())


World = tuple[Etcd, OwnParts, Login]


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def test_without_a_token_nothing_goes_along() -> None:
    assert OwnParts("a").of(OWN) == b""


def test_the_token_goes_with_esps_own_questions_and_no_others(world: World) -> None:
    etcd, parts, own = world

    async def work() -> None:
        assert await own.renew(0.0)

    run(work)
    assert [(one.name, one.password) for one in etcd.asked] == [("esp", SECRET)]
    assert decode(parts.of(OWN)) == [(b"token", b"t1")]
    assert parts.of(bytes(OWN)) == b""


def test_many_that_were_refused_at_once_authenticate_once(world: World) -> None:
    etcd, _, own = world
    etcd.pause = 0.01

    async def work() -> None:
        assert all(await asyncio.gather(*(own.renew(0.0) for _ in range(50))))

    run(work)
    assert len(etcd.asked) == 1


def test_who_cannot_wait_leaves_the_attempt_to_the_next(world: World) -> None:
    etcd, _, own = world
    etcd.pause = 0.05

    async def work() -> None:
        assert not await own.renew(0.0, seconds=0.001)
        assert await own.renew(0.0, seconds=10)

    run(work)
    assert len(etcd.asked) == 1


def test_a_token_that_is_refused_at_once_is_not_renewed_in_a_circle(world: World) -> None:
    etcd, _, own = world

    async def work() -> None:
        assert await own.renew(0.0)
        assert not await own.renew(monotonic())

    run(work)
    assert len(etcd.asked) == 1


def test_a_new_password_is_read_and_a_wrong_one_not_sent_again_at_once(
    world: World, password: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    etcd, _, own = world
    etcd.refusal = WRONG

    async def work() -> None:
        for _ in range(5):
            assert not await own.renew(0.0)
        assert len(etcd.asked) == 1
        assert own.trouble == f'as "esp": {WRONG.message}'
        etcd.refusal = None
        password.write_text("another")  # noqa: ASYNC240 - a few bytes
        monkeypatch.setattr(login, "PAUSE_SECONDS", 0.0)
        assert await own.renew(0.0)
        assert own.trouble == ""

    with caplog.at_level(logging.WARNING):
        run(work)
    assert etcd.asked[-1].password == "another"
    assert [record.getMessage() for record in caplog.records] == [
        f'shard a: esp cannot authenticate: as "esp": {WRONG.message}'
    ]


def test_where_auth_is_off_no_token_goes_along_any_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    etcd, parts, own = world
    monkeypatch.setattr(login, "PAUSE_SECONDS", 0.0)

    async def work() -> None:
        assert await own.renew(0.0)
        etcd.refusal = errors.AUTH_NOT_ENABLED
        assert not await own.renew(1e12)

    run(work)
    assert parts.of(OWN) == b""


def test_nothing_that_people_see_has_the_password(
    world: World, password: Path, caplog: pytest.LogCaptureFixture
) -> None:
    etcd, _, own = world
    etcd.refusal = WRONG
    with caplog.at_level(logging.DEBUG):
        run(lambda: _refused(own))
    seen = [repr(own), repr(vars(own)), repr(own._user), own.trouble, caplog.text]
    assert not [text for text in seen if SECRET in text]


async def _refused(own: Login) -> None:
    assert not await own.renew(0.0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * 5000, "is larger than a password"),
    ],
)
def test_a_file_without_a_password_is_told_and_its_content_is_not(password: Path, content: bytes, told: str) -> None:
    password.write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        read_password(password)
    assert str(caught.value) == f"{password} {told}"


def test_a_password_keeps_its_blanks(password: Path) -> None:
    password.write_bytes(b" a b \r\n")
    assert read_password(password) == " a b "


SHARDS = """
shards:
  - {name: a, endpoints: [127.0.0.1:1], ranges: [{start: "", end: m}]}
  - {name: b, endpoints: [127.0.0.1:2], ranges: [{start: m, end: ""}], OWN}
"""


def config(folder: Path, top: str = "", own: str = "") -> Any:
    return parse(top + SHARDS.replace(", OWN", own), folder / "esp.yaml")


class TestConfig:
    def test_one_user_for_all_shards_and_another_for_one(self, password: Path, tmp_path: Path) -> None:
        (tmp_path / "other").write_text("x")
        loaded = config(
            tmp_path,
            f"auth: {{user: esp, password_file: {password}}}",
            ", auth: {user: root, password_file: other}",
        )
        users = {shard.name: shard.user for shard in loaded.shards}
        assert users == {"a": User("esp", password), "b": User("root", tmp_path / "other")}
        assert SECRET not in repr(loaded)

    def test_by_default_there_is_none(self, tmp_path: Path) -> None:
        assert [shard.user for shard in config(tmp_path).shards] == [None, None]

    @pytest.mark.parametrize(
        ("auth", "told"),
        [
            ("{user: esp}", '"auth" has no "password_file"; write auth: {user: NAME, password_file: PATH}'),
            ("{password_file: x}", '"auth" has no "user"; write auth: {user: NAME, password_file: PATH}'),
            ("{user: esp, password: x}", 'unknown field "password"; did you mean "password_file"?'),
            ("{user: esp, password_file: absent}", "absent cannot be read: no such file or directory"),
            ("{user: esp, password_file: empty}", "empty is empty; write the password into it, and nothing else"),
            ("esp", '"auth" must be a mapping, not text'),
        ],
    )
    def test_what_is_wrong_is_told_with_the_line(self, tmp_path: Path, auth: str, told: str) -> None:
        (tmp_path / "empty").write_text("")
        with pytest.raises(ConfigError) as caught:
            config(tmp_path, f"auth: {auth}")
        assert caught.value.line == 1
        assert told in caught.value.text

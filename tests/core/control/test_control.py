"""The control socket: requests, progress, descriptors, hostile input, and who has the place."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from esp.core.background import Background
from esp.core.control import (
    Call,
    Client,
    Control,
    DeniedError,
    NoneRunsError,
    Place,
    PlaceError,
    RefusedError,
    lines,
    server,
)


async def echo(call: Call) -> Mapping[str, Any]:
    return {"asked": call.request}


@asynccontextmanager
async def listening(place: Place, **commands: server.Command) -> AsyncIterator[Control]:
    async with Background() as background:
        control = Control(background, {"echo": echo, **commands})
        await control.open(place)
        yield control
        await control.close()
        assert not background.tasks
        assert not background.failures


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "esp.sock")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    uvloop.run(bounded())


def ask(
    path: Path, command: str = "echo", told: Callable[[Mapping[str, Any]], None] | None = None, **arguments: Any
) -> dict[str, Any]:
    with Client(path) as client:
        return client.ask(command, seconds=20, told=told, **arguments)


def talk(path: Path, *sent: bytes) -> bytes:
    """What the server says to bytes, until it closes the connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(20)
        for data in sent:
            client.sendall(data)
        received = b""
        try:
            while data := client.recv(65_536):
                received += data
        except ConnectionResetError:
            pass
        return received


def test_a_command_is_answered_and_a_connection_carries_several(place: Place) -> None:
    async def test() -> None:
        async with listening(place):

            def both() -> list[Any]:
                with Client(place.path) as client:
                    return [client.ask("echo", seconds=20, n=n)["asked"]["n"] for n in (1, 2)]

            assert await asyncio.to_thread(both) == [1, 2]

    run(test)


def test_progress_comes_before_the_result(place: Place) -> None:
    async def slow(call: Call) -> Mapping[str, Any]:
        for done in range(3):
            await call.tell({"done": done})
        return {"done": 3}

    async def test() -> None:
        told: list[Any] = []
        async with listening(place, slow=slow):
            result = await asyncio.to_thread(ask, place.path, "slow", told=told.append)
        assert (told, result) == ([{"done": 0}, {"done": 1}, {"done": 2}], {"done": 3})

    run(test)


def test_file_descriptors_are_passed_with_progress(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")

    async def gives(call: Call) -> Mapping[str, Any]:
        with (tmp_path / "file").open() as file:
            await call.tell({"large": "x" * 600_000}, [file.fileno(), file.fileno()])
        return {}

    def takes() -> tuple[list[str], list[bool]]:
        with Client(place.path) as client:
            client.ask("gives", seconds=20)
            descriptors = client.take()
        inherited = [os.get_inheritable(descriptor) for descriptor in descriptors]
        texts = []
        for descriptor in descriptors:
            with os.fdopen(descriptor) as file:
                file.seek(0)
                texts.append(file.read())
        return texts, inherited

    async def test() -> None:
        async with listening(place, gives=gives):
            assert await asyncio.to_thread(takes) == (["text"] * 2, [False] * 2)

    run(test)


def test_a_command_may_be_a_dialogue(place: Place) -> None:
    heard: list[Any] = []

    async def talks(call: Call) -> Mapping[str, Any]:
        await call.tell({"say": "more"})
        heard.append(await call.receive())
        heard.append(await call.receive())  # the client has left
        assert call.is_gone
        await call.tell({"to": "nobody"})
        return {}

    def talk_back() -> None:
        with Client(place.path) as client:
            client.send({"command": "talks"})
            assert client.receive(20) == {"progress": {"say": "more"}}
            client.send({"more": 1})

    async def test() -> None:
        async with listening(place, talks=talks):
            await asyncio.to_thread(talk_back)
            while len(heard) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        assert heard == [{"more": 1}, None]

    run(test)


def test_refusals_bugs_and_unknown_commands_are_answers(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(call: Call) -> Mapping[str, Any]:
        raise DeniedError("not now; try later")

    async def fails(call: Call) -> Mapping[str, Any]:
        raise ZeroDivisionError

    def errors() -> list[str]:
        texts = []
        for command in ("refuses", "fails", "unknown"):
            with pytest.raises(RefusedError) as refused:
                ask(place.path, command)
            texts.append(str(refused.value))
        return texts

    async def test() -> None:
        async with Background() as background:
            control = Control(background, {"refuses": refuses, "fails": fails})
            await control.open(place)
            assert await asyncio.to_thread(errors) == [
                "not now; try later",
                "fails: a bug in esp, see its log",
                "this esp has no such command; it has refuses, fails",
            ]
            assert background.failures == {"the command fails": 1}
            await control.close()

    run(test)
    assert "the command fails: a bug in esp" in caplog.text


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"{}\n", "no such command"),
        (b'{"command": ["echo"]}\n', "no such command"),
    ],
)
def test_a_request_without_a_known_command_is_answered(place: Place, sent: bytes, said: str) -> None:
    async def test() -> None:
        async with listening(place):
            reader, writer = await asyncio.open_unix_connection(place.path)
            writer.write(sent * 2)
            assert said in json.loads(await reader.readline())["error"]
            assert said in json.loads(await reader.readline())["error"]
            writer.close()
            await writer.wait_closed()

    run(test)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b'{"error":"the line is not JSON"}\n'),
        (b"\xff\n", b'{"error":"the line is not JSON"}\n'),
        (b"[1]\n", b'{"error":"the line is no JSON object"}\n'),
        (b"[" * 60_000 + b"\n", b'{"error":"the line is not JSON"}\n'),
        (b"x" * lines.MAX_REQUEST_BYTES, b'{"error":"the line is longer than 65536 bytes"}\n'),
    ],
    ids=["http", "no text", "a list", "deep", "long"],
)
def test_garbage_ends_the_connection_and_nothing_else(place: Place, sent: bytes, said: bytes) -> None:
    async def test() -> None:
        async with listening(place):
            assert await asyncio.to_thread(talk, place.path, sent) == said
            assert (await asyncio.to_thread(ask, place.path))["asked"] == {"command": "echo"}

    run(test)


def test_the_longest_request_is_taken(place: Place) -> None:
    async def test() -> None:
        async with listening(place):
            empty = len(lines.encode({"command": "echo", "text": ""}))
            text = "x" * (lines.MAX_REQUEST_BYTES - empty)
            assert (await asyncio.to_thread(ask, place.path, text=text))["asked"]["text"] == text

    run(test)


def test_an_answer_that_is_too_long_is_an_error(place: Place) -> None:
    async def long(call: Call) -> Mapping[str, Any]:
        return {"text": "x" * lines.MAX_ANSWER_BYTES}

    async def test() -> None:
        async with listening(place, long=long):
            with pytest.raises(RefusedError, match="is more than 1048576"):
                await asyncio.to_thread(ask, place.path, "long")

    run(test)


def test_slow_clients_and_too_many_are_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with listening(place) as control:
            clients = [socket.socket(socket.AF_UNIX) for _ in range(server.MAX_CONNECTIONS + 1)]
            for client in clients:
                client.connect(str(place.path))
            assert await asyncio.to_thread(clients[-1].recv, 1) == b""
            assert control.refused == 1
            clients[0].close()
            while True:
                try:
                    assert await asyncio.to_thread(ask, place.path)
                    break
                except NoneRunsError:  # the place of the client that left is not free yet
                    pass
            for client in clients:
                client.close()
            monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)
            assert await asyncio.to_thread(talk, place.path, b"{") == b""

    run(test)


def test_a_client_that_reads_nothing_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
    ended: list[bool] = []

    async def floods(call: Call) -> Mapping[str, Any]:
        while not call.is_gone:
            await call.tell({"text": "x" * 100_000})
        ended.append(True)
        return {}

    async def test() -> None:
        async with listening(place, floods=floods):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place.path))
                client.sendall(b'{"command": "floods"}\n')
                while not ended:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)

    run(test)


def test_only_this_user_can_connect_and_nothing_is_left(place: Place) -> None:
    async def test() -> None:
        async with listening(place):
            assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
            assert list(place.path.parent.iterdir()) == [place.path]
        assert list(place.path.parent.iterdir()) == []

    run(test)
    with pytest.raises(NoneRunsError, match=f"no esp listens at {place.path}: no such file"):
        Client(place.path)


def test_a_dead_processs_socket_is_replaced(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.path))
    place.path.with_name(f".{os.getpid()}").write_text("left by a dead process with this number")

    async def test() -> None:
        async with listening(place):
            assert await asyncio.to_thread(ask, place.path)

    run(test)


def test_a_live_process_keeps_its_socket(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async def first(call: Call) -> Mapping[str, Any]:
            return {"who": "first"}

        async with listening(place, who=first):
            async with listening(place) as second:
                assert second.place == place.beside(os.getpid())
                assert (await asyncio.to_thread(ask, place.path, "who")) == {"who": "first"}
                assert await asyncio.to_thread(ask, second.place.path)
            assert list(place.path.parent.iterdir()) == [place.path]

    run(test)
    assert f"another esp has the control socket {place.path}; that of this process is " in caplog.text


def test_a_process_takes_the_place_of_another_which_does_not_remove_it_at_its_end(place: Place) -> None:
    async def test() -> None:
        async with listening(place) as old, Background() as background:
            new = Control(background, {"new": echo})
            await new.open(place, take=True)
            await old.close()
            assert (await asyncio.to_thread(ask, place.path, "new"))["asked"] == {"command": "new"}
            await new.close()
            assert list(place.path.parent.iterdir()) == []

    run(test)


def test_a_command_goes_on_when_the_place_is_released(place: Place) -> None:
    async def test() -> None:
        gone_on = asyncio.Event()

        async def hands_over(call: Call) -> Mapping[str, Any]:
            controls[0].release()
            await call.tell({})
            gone_on.set()
            return {"done": True}

        controls: list[Control] = []
        async with listening(place, hands_over=hands_over) as control:
            controls.append(control)
            assert await asyncio.to_thread(ask, place.path, "hands_over") == {"done": True}
            assert list(place.path.parent.iterdir()) == []
            async with listening(place):
                assert await asyncio.to_thread(ask, place.path)

    run(test)


def test_what_is_no_socket_is_left_alone(place: Place) -> None:
    place.path.write_text("precious")

    async def test() -> None:
        with pytest.raises(PlaceError, match="is there already and is no socket; remove it"):
            async with listening(place):
                pass

    run(test)
    assert place.path.read_text() == "precious"


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(PlaceError, match="no such file or directory"):
            async with listening(Place(tmp_path / "gone" / "esp.sock")):
                pass

    run(test)


@pytest.mark.parametrize(("answer", "why"), [(b"", "ended before it answered"), (b"220 smtp\n", "is no esp")])
def test_what_is_no_esp_is_told(place: Place, answer: bytes, why: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place.path))
        listening.listen()
        with Client(place.path) as client:
            other, _ = listening.accept()
            other.sendall(answer)
            other.close()
            with pytest.raises(NoneRunsError, match=why):
                client.receive(20)


def test_a_silent_esp_is_told(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place.path))
        listening.listen()
        with Client(place.path) as client, pytest.raises(NoneRunsError, match=r"has not answered within 0.05 s"):
            client.ask("echo", seconds=0.05)

"""A client of a JSON gateway whose answers go on, and what it heard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from tests.harness import Server, wait_until
from tests.integration.json_talk import Answer, Body, Conversation, as_bytes, b64, comparable, comparable_body, post

Heard = list[object]


class Stream:
    """A call whose answer goes on, on a connection of its own. The request is in chunks, one for each body.

    etcd answers when the whole request is there, as Go's HTTP/1.1 does; esp when the first message of the answer is.
    """

    def __init__(self, server: Server, path: str, *bodies: Body, headers: str = "", is_whole: bool = True) -> None:
        self.conversation = Conversation(server)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
        # At once: Go stops to read a body when its answer begins, so that etcd would lose the rest, now and then.
        self.conversation.says(head.encode() + b"".join(map(_chunk, bodies)) + (b"0\r\n\r\n" if is_whole else b""))
        self.answer: Answer | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._part = b""

    def says(self, body: Body) -> None:
        self.conversation.says(_chunk(body))

    def begins(self) -> tuple[object, ...]:
        """The head of the answer."""
        self.answer = self.conversation.head()
        if self.answer is not None:
            self._pieces = self.conversation.body(self.answer)
        return comparable(self.answer)

    def lines(self) -> Iterator[bytes]:
        """The lines of the answer that are to come."""
        if self.answer is None:
            self.begins()
        while True:
            while b"\n" in self._part:
                line, self._part = self._part.split(b"\n", 1)
                yield comparable_body(line)
            piece = next(self._pieces, b"")
            assert piece.count(b"\n") <= 1, "some clients take a chunk for a message"
            if not piece:
                if self._part:
                    yield b"half a line: " + comparable_body(self._part)
                return
            self._part += piece

    def hears(self, count: int = 1) -> list[bytes]:
        lines = self.lines()
        return [next(lines, b"the end") for _ in range(count)]


def _chunk(body: Body) -> bytes:
    content = as_bytes(body)
    return b"%x\r\n%s\r\n" % (len(content), content)


class Client:
    """One program's client.

    Attributes:
        heard: the answers to `ask`, and what the program adds.
    """

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.heard: Heard = []
        self._stack = stack
        self._conversation = stack.enter_context(Conversation(server))

    def ask(self, path: str, body: Body, **headers: str) -> Any:
        """The answer, which is JSON."""
        answer = self._asked(path, body, headers)
        assert answer is not None
        self.heard.append((answer.status, comparable_body(answer.body)))
        return answer.json()

    def compare(self, path: str, body: Body, **headers: str) -> None:
        """Hears all of an answer."""
        self.heard.append(comparable(self._asked(path, body, headers)))

    def authenticates(self, name: str) -> str:
        """A token, which is not heard."""
        answer = self._asked("/v3/auth/authenticate", {"name": name, "password": "p"}, {})
        assert answer is not None
        token: str = answer.json()["token"]
        return token

    def _asked(self, path: str, body: Body, headers: dict[str, str]) -> Answer | None:
        return self._conversation.ask(
            post(path, body, {name.replace("_", "-"): told for name, told in headers.items()})
        )

    def waits_for_keys(self, key: str, end: str, count: int) -> None:
        """Until a range has so many keys; nothing of this is heard."""
        request = {"key": b64(key), "range_end": b64(end), "count_only": True}

        def are_there() -> bool:
            answer = self._asked("/v3/kv/range", request, {})
            return answer is not None and answer.json().get("count") == str(count)

        wait_until(are_there)

    def put(self, key: str, value: str = "v") -> Any:
        return self.ask("/v3/kv/put", {"key": b64(key), "value": b64(value)})

    def stream(self, path: str, *bodies: Body, headers: str = "", is_whole: bool = True) -> Stream:
        stream = Stream(self.server, path, *bodies, headers=headers, is_whole=is_whole)
        self._stack.enter_context(stream.conversation)
        return stream

    def watch(self, *bodies: Body, headers: str = "", is_whole: bool = True) -> Stream:
        return self.stream("/v3/watch", *bodies, headers=headers, is_whole=is_whole)

    def hear(self, stream: Stream, count: int = 1) -> None:
        self.heard += stream.hears(count)

    def hear_the_end(self, stream: Stream) -> None:
        self.heard += [*stream.lines(), "the end"]
        assert stream.answer is not None
        self.heard.append(sorted(stream.answer.trailers))


def create(key: str, end: str | None = None, **more: Any) -> dict[str, Any]:
    """A request for a watch."""
    return {"create_request": {"key": b64(key)} | ({"range_end": b64(end)} if end else {}) | more}


_REVISION = re.compile(rb'("(?:\w+_)?rev(?:ision)?":)"(\d+)"')


def heard_by(program: Callable[[Client], None], server: Server) -> Heard:
    """What the program hears of a server, with the revisions since it began."""
    with ExitStack() as stack:
        client = Client(server, stack)
        base = int(client.ask("/v3/kv/range", {"key": b64("f")})["header"]["revision"])
        client.heard.clear()
        program(client)
        return [_since(base, one) for one in client.heard]


def _since(base: int, told: Any) -> Any:
    if isinstance(told, tuple | list):
        return [_since(base, part) for part in told]
    if isinstance(told, bytes):
        return _REVISION.sub(lambda found: b'%s"+%d"' % (found[1], int(found[2]) - base), told)
    return told

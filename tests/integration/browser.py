"""A real Chromium, led through its DevTools protocol over a pipe: what it shows, tells screen readers and does on keys.

https://chromedevtools.github.io/devtools-protocol/ describes the methods and events that are named here.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

KEYS = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " ")}
"""Of each key its code, the number that Windows has for it, and its text."""
SHIFT = 8


class Browser:
    """A running Chromium; each answer may take `PATIENCE` seconds."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        its_input, self._to = os.pipe()
        self._from, its_output = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        options.append(f"--user-data-dir={folder / 'profile'}")
        self._log = folder / "chromium.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # The pipe is expected at the descriptors 3 and 4.
                ["bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash", CHROMIUM, *options],
                stdout=log,
                stderr=log,
                pass_fds=(its_input, its_output),
            )
        os.close(its_input)
        os.close(its_output)
        self._received = b""
        self._last = 0
        self.hears: Callable[[dict[str, Any]], object] = lambda event: None

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """The result of a method; events that come before it are heard."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            found = self._next(until)
            if found.get("id") != self._last:
                self.hears(found)
                continue
            assert "error" not in found, (method, found)
            return found["result"]  # type: ignore[no-any-return]

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            readable, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            more = os.read(self._from, 1 << 20) if readable else b""
            assert more, f"chromium does not answer: {self._log.read_text(errors='replace')[-2000:]}"
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def close(self) -> None:
        os.close(self._to)  # which ends it
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._from)


@contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()


class Tab:
    """A page in a tab of its own.

    Attributes:
        complaints: what the browser and the page have written on the console, and uncaught exceptions.
    """

    def __init__(self, browser: Browser, url: str, width: int, height: int, *, dark: bool = False) -> None:
        self._browser = browser
        self.complaints: list[str] = []
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        browser.hears = self._hear
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        is_phone = width < 500
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Waits until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < until, (script, self.run("document.body.innerText"))
            time.sleep(0.05)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, number, text = KEYS[key]
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def told(self) -> list[Told]:
        """What a screen reader gets to know, in the order of the page."""
        return [Told(node) for node in self.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]

    def close(self) -> None:
        self._browser.hears = lambda event: None
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _hear(self, event: dict[str, Any]) -> None:
        what = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(what["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(what["exceptionDetails"]))
            case "Log.entryAdded":
                entry = what["entry"]
                # On a busy machine Chromium takes the loopback for a slow network, and says what it does about that.
                if entry["source"] != "intervention" or "slow network" not in entry["text"].lower():
                    self.complaints.append(f"{entry['source']}: {entry['text']}")


class Told:
    """A node of the accessibility tree."""

    def __init__(self, node: dict[str, Any]) -> None:
        self.role: str = node["role"]["value"]
        self.name: str = node.get("name", {}).get("value", "")
        self.states: dict[str, Any] = {one["name"]: one["value"].get("value") for one in node.get("properties", ())}

    def __repr__(self) -> str:
        return f"{self.role} {self.name!r} {self.states}"


def of_role(told: Sequence[Told], *roles: str) -> list[Told]:
    return [one for one in told if one.role in roles]

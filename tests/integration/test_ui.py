"""The status page in a real browser: what it shows, by keys alone, to screen readers, in the dark, on a phone."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from html import unescape
from itertools import pairwise

import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2
from tests.harness import Esps, Server, connect, is_listening, wait_until
from tests.integration.browser import Browser, Tab, needs_chromium, of_role, running_browser
from tests.stubs import rpc_pb2_grpc

pytestmark = needs_chromium
DESK, PHONE = (1280, 1000), (360, 700)
SIZES = pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
DARK = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
BUTTONS = 16  # pause, three ranges, twelve columns
IN_ORDER = [
    "Skip to the shards",
    "Pause",
    "from the first key to i: shard a, up",
    "from i to r: shard b, up",
    "from r to the last key: shard c.d, down",
    *("shard", "state", "ranges", "calls/s", "failed/s", "p50", "p99"),
    *("open calls", "watchers", "events/s", "size", "endpoints"),
]
"""All that the Tab key goes to."""
CALLS = "Clients\u2019 calls"

Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def server(shards: list[LocalEtcd], module_esps: Esps) -> Server:
    """Shards `a` and `b`, and `c.d`, whose endpoint refuses connections; a range has moved from `b` to `a`."""
    config = module_esps.folder / "ui.yaml"
    refuses = free_port()

    def write(edge: str) -> None:
        config.write_text(
            f"""
            shards:
              - {{name: a, endpoints: ["{shards[0].endpoint}"], ranges: [{{start: "", end: "{edge}"}}]}}
              - {{name: b, endpoints: ["{shards[1].endpoint}"], ranges: [{{start: "{edge}", end: "r"}}]}}
              - {{name: c.d, endpoints: ["http://127.0.0.1:{refuses}"], ranges: [{{start: "r", end: ""}}]}}
            """
        )

    write("h")
    esp = module_esps.launch("-c", config, config=config)
    esp.wait_ready()
    write("i")
    esp.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "layout 2 is in force" in esp.log())
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for _ in range(3):
            kv.Put(rpc_pb2.PutRequest(key=b"j"), timeout=30)
    return esp


@pytest.fixture(scope="module")
def many_shards(module_esps: Esps) -> Server:
    """Twelve shards, none of which answers."""
    config = module_esps.folder / "many.yaml"
    port = free_port()
    edges = ["", *"bcdefghijkl", ""]
    shards = "".join(
        f'- {{name: s{at}, endpoints: ["127.0.0.{at + 1}:{port}"], ranges: [{{start: "{start}", end: "{end}"}}]}}\n'
        for at, (start, end) in enumerate(pairwise(edges))
    )
    config.write_text(f"shards:\n{shards}")
    esp = module_esps.launch("-c", config, config=config)
    wait_until(lambda: is_listening(esp.address))
    return esp


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens the page of a server, and has it ask twice: with the second answer rates begin."""
    tabs: list[Tab] = []

    def open_(server: Server, size: tuple[int, int] = DESK, *, dark: bool = False) -> Tab:
        tab = Tab(browser, f"http://{server.address}/ui", *size, dark=dark)
        tabs.append(tab)
        tab.wait("typeof now !== 'undefined' && now !== null && ask().then(() => before !== null)")
        return tab

    yield open_
    for tab in tabs:
        tab.close()
        assert tab.complaints == []  # neither errors nor what the Content-Security-Policy forbids


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def element(html: str, name: str, identity: str) -> str:
    found = re.search(rf'<{name}[^>]* id="{identity}".*?</{name}>', html, re.DOTALL)
    assert found is not None, identity
    return text_of(found[0])


@SIZES
def test_a_browser_shows_the_shards(server: Server, opened: Open, size: tuple[int, int]) -> None:
    html = opened(server, size).run("document.documentElement.outerHTML")
    assert (
        element(html, "p", "verdict")
        == "1 of 3 shards cannot be used: c.d. Calls for their keys fail; all others go on."
    )
    assert "<title>✗ 1 down: esp</title>" in html
    for name, state in (("a", "✓ up"), ("b", "✓ up"), ("c.d", "✗ down")):
        row = element(html, "tr", f"shard-{name}")
        assert row.startswith(f"{name} {state} ")
    assert "connection refused" in element(html, "tr", "shard-c.d")
    assert "in use, " in element(html, "tr", "shard-a")
    keys = element(html, "ol", "keys")
    assert keys == "first key a i b r ✗ c.d"
    assert re.search(r"KV/Put [\d.]+ [\d.]+ \S+( ms)? \S+( ms)? 3\b", text_of(html))
    moved = element(html, "tbody", "moves")
    assert re.fullmatch(r'\["h", "i"\) b a .*\d+:\d+.* reload of the file', moved), moved
    assert "got another shard since this process began, newest first." in element(html, "caption", "moves-told")
    assert "no endpoint can be used" in element(html, "ol", "recent")
    buttons = re.findall(r"<button[^>]*>.*?</button>", html, re.DOTALL)
    assert len(buttons) == BUTTONS
    assert all(text_of(button) or "aria-label=" in button for button in buttons)


FOCUSED = """(() => {
    const it = document.activeElement, box = it.getBoundingClientRect(), style = getComputedStyle(it);
    const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    return {
        name: it.getAttribute("aria-label") || it.innerText.trim(),
        isTable: it.className === "wide", // which can be scrolled by keys
        isSeen: box.width > 0 && it.contains(document.elementFromPoint(x, y)),
        box: [box.left, box.top, box.right, box.bottom],
        isMarked: it.matches(":focus-visible") && style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2,
        inPage: it !== document.body,
    };
})()"""


def enter(tab: Tab) -> None:
    """Goes into the page by the Tab key. Chromium has the focus elsewhere then, and hands it over some time later."""
    tab.press("Tab")
    tab.wait("document.activeElement !== document.body")


@SIZES
def test_the_tab_key_goes_to_all_that_can_be_used(server: Server, opened: Open, size: tuple[int, int]) -> None:
    """In the order of the page, each in sight (its middle) and marked, and there is a way out."""
    tab = opened(server, size)
    names: list[str] = []
    enter(tab)
    while (found := tab.run(FOCUSED))["inPage"] and found["name"] not in names:  # Chromium may begin again
        assert found["isSeen"], found
        assert found["isMarked"], found
        if not found["isTable"]:
            names.append(found["name"])
        tab.press("Tab")
    assert [name.rstrip(" ▴▾") for name in names] == IN_ORDER


@SIZES
def test_the_tab_key_goes_back_too(server: Server, opened: Open, size: tuple[int, int]) -> None:
    tab = opened(server, size)
    focus(tab, "endpoints")
    names: list[str] = []
    while (name := tab.run(FOCUSED)["name"].rstrip(" ▴▾")) != IN_ORDER[0]:
        assert name not in names
        names.append(name)
        tab.press("Tab", shift=True)
    assert [*reversed(names)] == IN_ORDER[1:]


def test_the_first_key_skips_to_the_shards(server: Server, opened: Open) -> None:
    tab = opened(server)
    enter(tab)
    tab.press("Enter")
    assert tab.run("document.activeElement.id") == "shards"
    tab.press("Tab")
    assert tab.run(FOCUSED)["name"].startswith("shard")


def focus(tab: Tab, name: str) -> None:
    """Goes there by the Tab key."""
    enter(tab)
    for _ in range(40):
        if tab.run(FOCUSED)["name"].startswith(name):
            return
        tab.press("Tab")
    raise AssertionError(f"the Tab key does not go to {name}")


def again(tab: Tab) -> None:
    """Has the page ask and draw all anew, as it does every two seconds."""
    tab.run("window.seen = now, 0")
    tab.wait("ask().then(() => now !== window.seen)")


def test_a_range_is_chosen_by_a_key_and_keeps_the_focus(server: Server, opened: Open) -> None:
    tab = opened(server)
    focus(tab, "from i to r")
    tab.press("Enter")
    assert tab.run("document.getElementById('chosen').innerText") == "from i to r: shard b, up"
    assert tab.run("[...document.querySelectorAll('tr.chosen')].map(row => row.id).join()") == "shard-b"
    again(tab)
    assert tab.run(FOCUSED)["name"] == "from i to r: shard b, up"
    assert tab.run("[...document.querySelectorAll('tr.chosen')].map(row => row.id).join()") == "shard-b"


@SIZES
def test_columns_are_sorted_by_a_key(server: Server, opened: Open, size: tuple[int, int]) -> None:
    tab = opened(server, size)
    rows = "[...document.querySelectorAll('#shard-rows tr')].map(row => row.id.slice(6)).join(' ')"
    assert tab.run(rows) == "a b c.d"
    focus(tab, "state")
    tab.press(" ")
    assert tab.run(rows) == "c.d a b"
    assert tab.run("document.querySelector('[aria-sort]').innerText.trim()").startswith("state")
    assert tab.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"
    assert tab.run(FOCUSED)["name"].startswith("state")
    tab.press("Enter")
    assert tab.run(rows) == "a b c.d"
    assert tab.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    again(tab)
    assert tab.run(FOCUSED)["name"].startswith("state")


def test_the_page_is_stopped_and_goes_on_by_a_key(server: Server, opened: Open) -> None:
    tab = opened(server)
    focus(tab, "Pause")
    tab.press(" ")
    assert tab.run(FOCUSED)["name"] == "Go on"
    tab.wait("document.getElementById('age').innerText === 'paused'")
    tab.run("window.seen = now, ask()")  # as its clock would
    assert tab.run("now === window.seen")
    tab.press(" ")
    assert tab.run(FOCUSED)["name"] == "Pause"
    tab.wait("now !== window.seen")


def test_many_shards_are_filtered(many_shards: Server, opened: Open) -> None:
    tab = opened(many_shards)
    assert tab.run("document.querySelectorAll('#shard-rows tr').length") == 12
    focus(tab, "endpoints")
    tab.press("Tab", shift=True)
    for _ in range(11):
        tab.press("Tab", shift=True)
    assert tab.run("document.activeElement.id") == "filter"
    tab.type("s1")
    assert tab.run("document.getElementById('left-out').innerText") == "3 of 12"
    assert tab.run("[...document.querySelectorAll('#shard-rows tr')].map(row => row.id).join()") == (
        "shard-s1,shard-s10,shard-s11"
    )
    again(tab)
    assert tab.run("document.activeElement.id + document.activeElement.value") == "filters1"
    [field] = of_role(tab.told(), "searchbox")
    assert field.name == "Only names with"


@SIZES
def test_what_screen_readers_are_told(server: Server, opened: Open, size: tuple[int, int]) -> None:
    tab = opened(server, size)
    told = tab.told()
    parts = ["Now", "Keys and their shards", "Shards", CALLS, "Moves", "Last lines about shards"]
    assert [(one.name, one.states["level"]) for one in of_role(told, "heading")] == [
        ("esp", 1),
        *((part, 2) for part in parts),
    ]
    assert [one.name for one in of_role(told, "region")] == parts
    assert len(of_role(told, "main")) == len(of_role(told, "banner")) == 1
    [verdict] = of_role(told, "status")
    assert verdict.states["live"] == "polite"
    assert tab.run("document.documentElement.lang") == "en"
    assert [one.name for one in of_role(told, "table")] == ["Shards", CALLS, "Moves"]
    heads = of_role(told, "columnheader")
    assert [one.name for one in heads[:4]] == ["shard", "state", "ranges", "calls/s"]
    assert tab.run("document.querySelector('#shard-head [aria-sort]').getAttribute('aria-sort')") == "ascending"
    assert [one.name for one in of_role(told, "rowheader")][:3] == ["a", "b", "c.d"]
    assert len(of_role(told, "cell", "gridcell")) >= 3 * 11
    buttons = of_role(told, "button")
    assert len(buttons) == BUTTONS
    assert [one.name for one in buttons[:4]] == [
        "Pause",
        "from the first key to i: shard a, up",
        "from i to r: shard b, up",
        "from r to the last key: shard c.d, down",
    ]
    assert [one for one in of_role(told, "button", "link", "searchbox", "meter", "image") if not one.name] == []


def test_the_same_news_are_not_told_again_and_again(server: Server, opened: Open) -> None:
    """A live region whose text is set anew is read aloud, even if the text is the same."""
    tab = opened(server)
    tab.run(
        "window.changes = 0, new MutationObserver(found => window.changes += found.length)"
        ".observe(document.getElementById('verdict'), {childList: true, characterData: true, subtree: true})"
    )
    again(tab)
    again(tab)
    assert tab.run("window.changes") == 0


CONTRASTS = """(() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const numbers = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(one => one / 255)
        .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
        .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = element => {
        for (let one = element; one; one = one.parentElement) {
            const found = numbers(getComputedStyle(one).backgroundColor);
            if (found[3] === 255) return found;
        }
        return [255, 255, 255, 255];
    };
    const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const low = [];
    let seen = 0;
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
        if (!text || !element.checkVisibility() || ["SCRIPT", "NOSCRIPT"].includes(element.tagName)) continue;
        seen++;
        const found = contrast(numbers(getComputedStyle(element).color), behind(element));
        if (found < 4.5) low.push(`${found.toFixed(1)} ${element.tagName} ${text.slice(0, 40)}`);
    }
    const root = getComputedStyle(document.documentElement);
    const mark = contrast(numbers(root.getPropertyValue("--focus")), numbers(root.getPropertyValue("--back")));
    return {seen, low, mark, back: light(behind(document.body))};
})()"""


@DARK
@SIZES
def test_all_can_be_read_in_the_dark_and_in_the_light(
    server: Server, opened: Open, size: tuple[int, int], dark: bool
) -> None:
    """By the contrast that WCAG 2 asks of text (4.5 in 1.4.3) and of marks (3 in 1.4.11)."""
    found = opened(server, size, dark=dark).run(CONTRASTS)
    assert found["seen"] > 80
    assert found["low"] == []
    assert found["mark"] >= 3
    assert found["back"] < 0.1 if dark else found["back"] > 0.9


WIDE = """(() => {
    const wide = document.documentElement.scrollWidth;
    const beyond = [...document.querySelectorAll("body *")].filter(one => {
        const box = one.getBoundingClientRect();
        return box.width && box.right > innerWidth + 0.5 && !one.closest(".wide") && !one.closest(".skip");
    });
    return {wide, beyond: beyond.map(one => one.outerHTML.slice(0, 80))};
})()"""


@pytest.mark.parametrize("width", [320, 360, 740, 1280])
def test_nothing_is_wider_than_the_window(server: Server, opened: Open, width: int) -> None:
    tab = opened(server, (width, 700))
    found = tab.run(WIDE)
    assert found["beyond"] == []
    assert found["wide"] <= width
    if width < 500:  # there the shards are cards, which do not scroll either
        assert tab.run("(one => one.scrollWidth - one.clientWidth)(document.querySelector('#shards .wide'))") <= 0


def test_on_a_phone_all_can_be_touched(server: Server, opened: Open) -> None:
    """WCAG 2.2, 2.5.8: 24 by 24 pixels."""
    tab = opened(server, PHONE)
    boxes = tab.run(
        "[...document.querySelectorAll('button')].map(one => [one.innerText, one.getBoundingClientRect().width,"
        " one.getBoundingClientRect().height])"
    )
    assert [box for box in boxes if box[1] < 24 or box[2] < 24] == []


def test_a_browser_without_an_esp_says_so(module_esps: Esps, shards: list[LocalEtcd], opened: Open) -> None:
    config = module_esps.folder / "ends.yaml"
    config.write_text(f'shards: [{{name: a, endpoints: ["{shards[0].endpoint}"], ranges: [{{prefix: ""}}]}}]')
    esp = module_esps.launch("-c", config, config=config)
    esp.wait_ready()
    tab = opened(esp)
    esp.stop()
    tab.wait("document.getElementById('verdict').innerText.startsWith('esp does not answer')")
    assert "what is below is old" in tab.run("document.getElementById('verdict').innerText")
    tab.complaints[:] = [one for one in tab.complaints if "ERR_CONNECTION_REFUSED" not in one]

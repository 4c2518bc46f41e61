"""The findings about the map that shards hold, from what the shards tell."""

from __future__ import annotations

from pathlib import Path

from esp.core.config import Config, parse
from esp.core.fleet import Registered
from esp.core.health.shared import judge_shared_map
from esp.core.shared_map import Held, Next, SharedMap
from esp.core.wire.status import Code, Status
from tests.core.shared_map.made import MAP, after, made

SAME = "[{end: i, start: ''}], [{start: i, end: s}], [{start: s, end: ''}]"
OTHER = "[{end: k, start: ''}], [{start: k, end: s}], [{start: s, end: ''}]"


def config(ranges: str = SAME) -> Config:
    entries = [
        f"- {{name: {name}, endpoints: [{name}:1], ranges: [{one}]}}"
        for name, one in zip("abc", ranges.strip("[]").split("], ["), strict=True)
    ]
    return parse("shards:\n" + "\n".join(entries), Path("esp.yaml"))


def held(shared: SharedMap, **changes: Held | Status) -> dict[str, Held | Status]:
    """What the shards tell when all hold this map, but for changes."""
    return {name: Held(guard, shared, None) for name, guard in shared.guards.items()} | changes


def found(told: dict[str, Held | Status], of: Config | None = None) -> list[tuple[tuple[str, ...], str]]:
    problems, notes = judge_shared_map(of or config(), told)
    return [(one.shards, one.text) for one in (*problems, *notes)]


def test_no_map_and_a_map_that_all_hold_are_no_findings() -> None:
    nothing = Held(None, None, None)
    assert config().shard_map.fingerprint == MAP.fingerprint
    assert found(dict.fromkeys("abc", nothing)) == []
    assert found(dict.fromkeys("abc", Status(Code.UNAVAILABLE, "refused"))) == []
    assert found(held(made())) == []


def test_a_change_that_hangs() -> None:
    shared = made()
    change = Next(shared, after(shared, "a", "b", "c", "d"))
    told = held(shared, a=Held(shared.guards["a"], shared, change))
    text = "a change of the map on the shards to epoch 2 is half done; esp map finish carries it out"
    assert found(told) == [((), text)]


def test_shards_that_do_not_stand_to_the_map() -> None:
    before = made()
    shared = after(before, "a", "b", "c", "d")
    told = held(shared, b=Held(shared.guards["b"], before, None), c=Held(None, None, None))
    texts = {shards: text for shards, text in found(told) if shards}
    assert texts == {
        ("b",): "has an older map than the other shards; esp map finish tells it the newest",
        ("c",): "has not the guard of the map on the shards: data was lost there, or restored from a backup; "
        "esp map fence gives it a new one",
    }


def test_two_maps_of_one_epoch() -> None:
    one, two = made(), made()
    ((shards, text),) = found(held(one, c=Held(two.guards["c"], two, None)))
    assert shards == ()
    assert text.startswith("shards a and c hold different maps of epoch 1")


def test_a_config_with_another_map_is_a_note() -> None:
    problems, (note,) = judge_shared_map(config(OTHER), held(made()))
    assert problems == []
    assert note.text.startswith(f"the map on the shards, of epoch 1, is {MAP.fingerprint}, and that of the config is ")


def test_a_proxy_that_serves_by_an_older_map_is_a_note() -> None:
    before = made()
    shared = after(before, "a", "b", "c", "d")

    def proxy(number: int, epoch: int, url: str = "http://10.0.0.1:2379") -> Registered:
        return Registered(number=number, urls=(url,), peers=(url,), version="1", epoch=epoch)

    proxies = [proxy(1, 1), proxy(2, 1), proxy(3, 2, "http://10.0.0.2:2379")]
    problems, notes = judge_shared_map(config(), held(shared), proxies)
    assert problems == []
    assert [one.text for one in notes if "proxy" in one.text] == [
        "the proxy at http://10.0.0.1:2379 serves by the map of epoch 1, and the shards have 2; if that lasts, see its "
        "log"
    ]

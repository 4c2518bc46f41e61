"""What `esp top` shows: one picture of several proxies, for a terminal of any size, and as JSON."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from math import inf
from typing import TYPE_CHECKING, Final

from esp.core.ui.rates import SLOW, Rates, ShardTold, State
from esp.core.ui.state import Numbers
from esp.core.wording import size_of

if TYPE_CHECKING:
    from rich.console import RenderableType

NOTHING: Final = Numbers()
_SLOWER: Final = f"SLOWER THAN {SLOW:g} S"
_NEED: Final = {110: ("SLOW/S", "LEASES", "OPEN", "CONNS"), 80: ("MAP", "WATCHERS", "EVENTS/S", _SLOWER)}
"""What is left out of terminals with fewer columns, so that no row folds."""
LEAST_ROWS: Final = 3
"""Rows that a table has, however low the terminal is."""
MOST_TROUBLES: Final = 3
"""Shards in trouble of which the reason is told."""
_TEXTS: Final = ("PROXY", "MAP", "SHARD", "STATE", "RPC", "HOT PREFIX")
"""Columns that begin so are texts; all others are numbers."""


class Seen:
    """A proxy, as seen so far.

    Attributes:
        url: of the proxy.
        before, now: the last two answers.
        trouble: why there was no answer at the last time; "" if there was.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.before: State | None = None
        self.now: State | None = None
        self.trouble = ""

    def take(self, answer: State | str) -> None:
        """Takes an answer, or the reason why there is none."""
        if isinstance(answer, str):
            self.trouble, self.before, self.now = answer, None, None
        else:
            self.trouble, self.before, self.now = "", self.now, answer

    def rates(self) -> Rates | None:
        """All clients' calls."""
        if self.now is None or self.before is None:
            return None
        found = Rates(self.now.bounds)
        for name, numbers in self.now.methods.items():
            found.add(self.before.methods.get(name, NOTHING), numbers, self.now.now - self.before.now)
        return found


class ShardSeen:
    """A shard as all proxies together see it."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.rates = Rates(bounds)
        self.conditions: Counter[str] = Counter()
        self.open = self.watchers = self.events = self.bytes = 0.0
        self.trouble = ""

    def add(self, shard: ShardTold, before: ShardTold | None, seconds: float) -> None:
        """Adds what a proxy tells."""
        more = shard.numbers.more
        self.conditions[shard.condition] += 1
        self.open += more.get("open", 0)
        self.watchers += more.get("watchers", 0)
        self.bytes = max(self.bytes, more.get("db_bytes", 0))
        if before is not None and seconds > 0:
            self.rates.add(before.numbers, shard.numbers, seconds)
            self.events += max(0, more.get("events", 0) - before.numbers.more.get("events", 0)) / seconds
        for endpoint in shard.endpoints:
            if shard.condition != "up" and endpoint.get("trouble"):
                self.trouble = f"{endpoint.get('url')}: {endpoint['trouble']}"

    @property
    def condition(self) -> str:
        """The state, and at how many proxies if they differ."""
        if len(self.conditions) == 1:
            return next(iter(self.conditions))
        return ", ".join(f"{word} at {times}" for word, times in sorted(self.conditions.items()))

    @property
    def is_up(self) -> bool:
        """Whether all proxies can use it."""
        return set(self.conditions) == {"up"}


def shards_of(seen: Sequence[Seen]) -> list[ShardSeen]:
    """The shards: those in trouble first, then those with the most calls."""
    found: dict[str, ShardSeen] = {}
    for one in seen:
        if one.now is None:
            continue
        before = {} if one.before is None else {shard.name: shard for shard in one.before.shards}
        seconds = 0.0 if one.before is None else one.now.now - one.before.now
        for shard in one.now.shards:
            total = found.setdefault(shard.name, ShardSeen(shard.name, one.now.bounds))
            total.add(shard, before.get(shard.name), seconds)
    return sorted(found.values(), key=lambda shard: (shard.is_up, -shard.rates.calls, shard.name))


def methods_of(seen: Sequence[Seen]) -> list[tuple[str, Rates]]:
    """The RPCs that had calls lately, those with the most first."""
    found: dict[str, Rates] = {}
    for one in seen:
        if one.now is not None and one.before is not None:
            for name, numbers in one.now.methods.items():
                rates = found.setdefault(name, Rates(one.now.bounds))
                rates.add(one.before.methods.get(name, NOTHING), numbers, one.now.now - one.before.now)
    ordered = sorted(found.items(), key=lambda item: (-item[1].calls, item[0]))
    return [(name.removeprefix("etcdserverpb."), rates) for name, rates in ordered if rates.calls]


def hot_of(seen: Sequence[Seen]) -> list[tuple[str, float, float]]:
    """The prefixes with the most calls: each with calls and writes a second."""
    found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in seen:
        for hot in one.now.hot if one.now is not None else ():
            found[hot.prefix][0] += hot.calls
            found[hot.prefix][1] += hot.writes
    return sorted(((name, calls, writes) for name, (calls, writes) in found.items()), key=lambda hot: -hot[1])


def picture(seen: Sequence[Seen], width: int, height: int | None) -> RenderableType:
    """Everything, for a terminal of this width, in at most `height` lines; the rows of the longer tables give way."""
    from rich.console import Group

    left_out = {column for least, columns in _NEED.items() if width < least for column in columns}
    shards, methods, hot = shards_of(seen), methods_of(seen), hot_of(seen)
    lines = sorted((line for one in seen if one.now for line in one.now.recent), key=lambda line: line.at)
    troubles = [f"{shard.name}: {shard.trouble}" for shard in shards if shard.trouble][:MOST_TROUBLES]
    wanted = [len(shards), min(8, len(methods)), min(8, len(hot)), min(5, len(lines))]
    if height is not None:
        wanted = _fit(wanted, height - 4 - len(seen) - len(troubles) - 2 * sum(map(bool, wanted)))
    parts: list[RenderableType] = [_proxies(seen, left_out=left_out)]
    if shards:
        parts += ["", _shards(shards[: wanted[0]], len(shards), left_out=left_out)]
        parts += [_line(trouble, "red") for trouble in troubles]
    if methods:
        parts += ["", _methods(methods[: wanted[1]], left_out)]
    if hot:
        parts += ["", _hot(hot[: wanted[2]])]
    if lines and wanted[3]:
        parts += ["", *[_line(line.text, "") for line in lines[-wanted[3] :]]]
    if height is not None:
        parts.append(_line("q ends", "dim"))
    return Group(*parts)


def _line(text: str, style: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style=style, overflow="ellipsis", no_wrap=True)


def _fit(rows: Sequence[int], room: int) -> list[int]:
    """Fewer rows, so that they fit; the longest tables give most."""
    found = list(rows)
    while sum(found) > max(0, room) and max(found) > LEAST_ROWS:
        found[found.index(max(found))] -= 1
    return found


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[RenderableType]], *, left_out: Container[str] = ()
) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    kept = [place for place, column in enumerate(columns) if column not in left_out]
    for place in kept:
        table.add_column(columns[place], justify="left" if columns[place].startswith(_TEXTS) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[place] for place in kept if place < len(row)))
    return table


def _proxies(seen: Sequence[Seen], *, left_out: Container[str]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    columns = ["PROXY", "MAP", "CALLS/S", "FAILED/S", "P99", "SLOW/S", "CONNS", "WATCHERS", "LEASES", "MEMORY"]
    maps = {one.now.map.fingerprint for one in seen if one.now is not None}
    style = "red" if len(maps) > 1 else ""
    rows: list[Sequence[RenderableType]] = []
    silent = []
    for one in seen:
        if one.now is None:
            silent.append(_line(f"{one.url}: {one.trouble}", "red"))
            continue
        proxy = one.now.proxy
        numbers = [_amount(proxy.get(name)) for name in ("connections", "watchers", "leases")]
        memory = _bytes(proxy.get("memory_bytes", 0))
        rows.append([one.url, Text(one.now.map.fingerprint[:8], style), *_cells(one.rates()), *numbers, memory])
    if style:
        silent.append(
            _line("The proxies have different maps: a key written through one is another key through others.", style)
        )
    return Group(*([_table(columns, rows, left_out=left_out)] if rows else []), *silent)


def _shards(shards: Sequence[ShardSeen], all_of_them: int, *, left_out: Container[str]) -> RenderableType:
    from rich.text import Text

    more = f" ({len(shards)} of {all_of_them})" if len(shards) < all_of_them else ""
    columns = [f"SHARD{more}", "STATE", "CALLS/S", "FAILED/S", "P99", "SLOW/S", "OPEN", "WATCHERS", "EVENTS/S", "SIZE"]
    rows: list[Sequence[RenderableType]] = []
    for shard in shards:
        state = Text(shard.condition, style="green" if shard.is_up else "red")
        numbers = map(_amount, (shard.open, shard.watchers, shard.events))
        rows.append([shard.name, state, *_cells(shard.rates), *numbers, _bytes(shard.bytes)])
    return _table(columns, rows, left_out=left_out)


def _methods(methods: Sequence[tuple[str, Rates]], left_out: Container[str]) -> RenderableType:
    columns = ["RPC", "CALLS/S", "FAILED/S", "P99", _SLOWER]
    return _table(columns, [[name, *_cells(rates)] for name, rates in methods], left_out=left_out)


def _hot(hot: Sequence[tuple[str, float, float]]) -> RenderableType:
    rows = [[name or '""', _amount(calls), _amount(writes)] for name, calls, writes in hot]
    return _table(["HOT PREFIX", "CALLS/S", "WRITES/S"], rows)


def _cells(rates: Rates | None) -> list[str]:
    """Calls, failed calls, p99 and slow calls."""
    if rates is None:
        return ["-"] * 4
    return [_amount(rates.calls), _amount(rates.failed), _took(rates.quantile(0.99)), _amount(rates.slow)]


def _amount(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) or value >= 100:
        return f"{round(value):,}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds == inf:
        return "> 10 s"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _bytes(value: float) -> str:
    return size_of(value) if value else "-"


def as_json(seen: Sequence[Seen]) -> str:
    """Everything as JSON, in one line: rates are a second, times in seconds, None stands for no calls."""
    proxies = [
        {
            "url": one.url,
            "trouble": one.trouble or None,
            "version": None if one.now is None else one.now.esp,
            "map": None if one.now is None else one.now.map.fingerprint,
            **({} if one.now is None else {"numbers": one.now.proxy}),
            **_rates_json(one.rates()),
        }
        for one in seen
    ]
    shards = [
        {
            "name": shard.name,
            "state": shard.condition,
            "trouble": shard.trouble or None,
            "open": shard.open,
            "watchers": shard.watchers,
            "events": shard.events,
            "db_bytes": shard.bytes,
            **_rates_json(shard.rates),
        }
        for shard in shards_of(seen)
    ]
    methods = [{"rpc": name, **_rates_json(rates)} for name, rates in methods_of(seen)]
    hot = [{"prefix": name, "calls": calls, "writes": writes} for name, calls, writes in hot_of(seen)]
    return json.dumps({"proxies": proxies, "shards": shards, "methods": methods, "hot": hot})


def _rates_json(rates: Rates | None) -> dict[str, float | str | None]:
    if rates is None:
        return {"calls": None, "failed": None, "p50": None, "p99": None, "slow": None}
    took = {f"p{round(part * 100)}": rates.quantile(part) for part in (0.5, 0.99)}
    return {
        "calls": rates.calls,
        "failed": rates.failed,
        **{name: None if value == inf else value for name, value in took.items()},
        "slow": rates.slow,
    }

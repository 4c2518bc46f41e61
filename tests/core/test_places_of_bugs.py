"""Every place where work begins that the supervisor guards: a bug is planted there, or a reason says why not.

So a place that is new is found by this test, and test_blast_radius.py shows what a bug does there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import esp
from tests.core.test_blast_radius import PLACES

WORK_AT = {"start": 0, "spawn": 0, "_spawn": 0, "keep": 1, "again": 1, "later": 1, "guard": 1}
"""The functions that begin guarded work, and which of their arguments is the work."""
ALONE = {"spawn", "_spawn", "guard"}
"""Those that go by their name alone, whoever has them."""


def _work(node: ast.expr) -> ast.expr:
    """The function that does the work."""
    if isinstance(node, ast.Lambda):
        return _work(node.body)
    if isinstance(node, ast.Call):
        is_partial = isinstance(node.func, ast.Name) and node.func.id == "partial"
        return _work(node.args[0] if is_partial else node.func)
    return node


def _begins(call: ast.Call) -> str | None:
    """The name of the function that begins work, if the call is one of those."""
    match call.func:
        case ast.Attribute(attr=name, value=owner) if name in WORK_AT:
            is_supervisor = ast.unparse(owner).rpartition(".")[2] in ("background", "_background")
            return name if is_supervisor or name in ALONE else None
        case ast.Name(id=name) if name in ALONE:
            return name
    return None


def _sites(node: ast.AST, scope: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*scope, child.name)
        elif isinstance(child, ast.Call) and (begins := _begins(child)) is not None:
            work = ast.unparse(_work(child.args[WORK_AT[begins]]))
            name = work.removeprefix("self.")
            is_own = work.startswith("self.") and "." not in name
            yield f"{scope[0]}.{name}" if is_own else f"{'.'.join(scope)}: {work}"
        yield from _sites(child, inner)


def sites() -> set[str]:
    """The work that is begun: `Class.method`, or where it is begun and what."""
    folder = Path(esp.__file__).parent
    return {site for path in folder.rglob("*.py") for site in _sites(ast.parse(path.read_text()), ())}


MET = {
    "Connected._serve: self._links.dial_streams": "Links.dial",
    "Connected._stay_connected": "Shard._serve",
    "CoroutineCall.start: timed": "CoroutineCall._finish",
    "LeaseKeepAlive.tick: lane.tick": "Lane.tick",
    "LeaseRepair._work": "LeaseRepair._do",
    "Leases.tick: step": "LeaseTable.sweep",
    "Link._refuse: refuse": "ParkedCall.refuse",
    "Link.go: call.go": "ParkedCall.go",
    "Proxy._tick: self._listener.tick": "Listener.tick",
    "Proxy._tick: self.routing.tokens.expire": "Tokens.expire",
    "Running.tick: shard.tick": "Shard.tick",
    "Served.tick: self.leases.tick": "Leases.tick",
}
"""Work in which a bug is planted under another name."""

REASONS = {
    "the supervisor itself: tests/core/test_background.py": {
        "Background.failed: on_bug",
        "Background.start.ended: on_end",
        "Timer._callback",
    },
    "a step like Listener.tick, beside it and guarded alike: a bug in one lets the others be done": {
        "Proxy._tick: self._fence.tick",
        "Proxy._tick: self._garbage.tick",
        "Proxy._tick: self._heap.tick",
        "Proxy._tick: self._hot.tick",
        "Proxy._tick: self._metrics_listener.tick",
        "Proxy._tick: self.calls.tick",
        "Proxy._tick: self.rerouting.tick",
        "Proxy._tick: step",
        "Served.tick: self.gate.tick",
        "Served.tick: self.health.tick",
    },
    "only this task is kept up, and begins anew (test_background.py): no call of a client waits for it": {
        "Connected._serve: self._second_look.at",
        "Control._accept",
        "Control.open: accepting",
        "Following._watch: watch",
        "Proxy.__aenter__: self.routing.apiservers.run",
        "Proxy.__aenter__: self.running.tick",
        "Proxy.__aenter__: self.tls_files.watch",
        "Proxy.__aenter__: self.traces.run",
        "Proxy._tick",
        "Reloading.open: look",
        "Running._begin: shard.run",
        "Served._begin_sampling: work",
        "Together._flush",
        "Together._watch",
        "Together._watch: watch",
        "Together.begin: self.registration.run",
        "_Whole._tick",
        "_serve: Following(proxy).run",
    },
    "it ends its own call, client or page by on_bug or on_end; tested in tests/core where it is": {
        "Checks._begin: _check",
        "Control._talk",
        "Doubts._settle",
        "Gate._begin: _let_begin",
        "Link.go: opener.go",
        "Links._on_change.changed: look",
        "Fellows._begin",
        "Links._retire: stream.on_retired",
        "Mover._watch: feed.run",
        "Round._show",
        "SpanProgress._begin_again",
        "_Auth._change_on: making",
    },
    "needs the map on the shards or several proxies, which the scene of test_blast_radius.py has not": {
        "Crossing._run",
        "Fellows._ask_wanted",
        "Following._give_up",
        "Following._install: _bring_leases",
        "GuardedShard._check",
        "Upstream._look_at_guard",
        "Watch._end_divided: _end_divided",
        "Watch._tell",
    },
    "one question or one deed that is lost with its bug, and is asked or done again when it is due": {
        "Connected._ask_as_user",
        "Connected._look_for_auth",
        "Login._try",
        "Waits._delete",
        "Waits._look_for",
        "Waits._look_for_last",
        "Waits._pace",
    },
    "the process's own beginning, end, workers and commands, not work for clients": {
        "Channel._read",
        "Channel._serve",
        "HandOver._watch",
        "Here._give_positions",
        "Here._outlive",
        "Import.run: self._leases.keep_alive",
        "MetricsHere._answer",
        "OneAtATime._begun",
        "Predecessor._outlive",
        "Proxy._let_go",
        "Proxy.share_clients.take: self._listener.take",
        "Rounds._round",
        "Service._give_positions",
        "Service.begin_successor: begin_successor",
        "Supervisor._kill",
        "Supervisor._start_again",
        "Supervisor._stop",
        "Watches.on_positions: self._hand_over.end_positions",
        "_Whole._begin_successor: begin_successor",
        "_Whole._tell_ready",
        "_look_at_names: _warn_of_advertised",
        "_look_at_names: _warn_of_unknown_names",
        "answering: _tick",
        "answering: shard.run",
        "commanded: _open_after",
        "connected: _tick",
        "connected: shard.run",
        "connecting: shard.run",
        "examine_endpoint: shard.run",
    },
}
"""Work in which no bug is planted, by the reason."""


def test_a_bug_is_planted_wherever_work_begins_or_a_reason_says_why_not() -> None:
    planted = {f"{getattr(owner, '__name__', '').rpartition('.')[2]}.{name}" for owner, name, *_ in PLACES}
    excepted = [site for some in REASONS.values() for site in some]
    found = sites()
    known = planted | MET.keys() | set(excepted)
    assert found - known == set(), "plant a bug there (test_blast_radius.py), or say here why not"
    assert (MET.keys() | set(excepted)) - found == set(), "no work begins there any more"
    assert set(MET.values()) <= planted
    assert len(excepted) == len(set(excepted))
    assert not planted & set(excepted)

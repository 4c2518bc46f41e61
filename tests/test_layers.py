"""The layers of docs/design.md: imports point downwards only, checked for every import in the package."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. A package stands for all modules in it that have no entry of their own; modules of one layer may
# import each other.
LAYERS = [
    {
        "esp.core.background",
        "esp.core.former",
        "esp.core.keys",
        "esp.core.log",
        "esp.core.namespace",
        "esp.core.notify",
        "esp.core.varint",
        "esp.core.wording",
    },
    {"esp.core.wire", "esp.core.pb", "esp.core.control", "esp.core.workers"},
    {
        "esp.core.shard_map",
        "esp.core.errors",
        "esp.core.metrics.calls",
        "esp.core.descriptors",
        "esp.core.garbage",
        "esp.core.heap",
        "esp.core.tokens",
        "esp.core.shared_tokens",
        "esp.core.own_keys",
        "esp.core.auth_tokens",
        "esp.core.certificate",
        "esp.core.tls_paths",
        "esp.core.tls_files",
    },
    {"esp.core.kubernetes"},
    {"esp.core.config"},
    {"esp.core.shard", "esp.core.log.calls"},
    {
        "esp.core.advertise",
        "esp.core.identity",
        "esp.core.moves",
        "esp.core.names",
        "esp.core.server_certificates",
        "esp.core.sockets",
        "esp.core.undivided",
    },
    {"esp.core.activation", "esp.core.takeover"},
    {"esp.core.layout"},
    {"esp.core.apiservers", "esp.core.samples"},
    {"esp.core.routing", "esp.core.running"},
    {"esp.core.health", "esp.core.lease_sync", "esp.core.connected_shards", "esp.core.shared_map", "esp.core.fleet"},
    {"esp.core.lease_survey", "esp.core.export", "esp.core.giving_up"},
    {"esp.core.load", "esp.core.move"},
    {"esp.core.plan"},
    {"esp.core.services"},
    {"esp.core.services.lease", "esp.core.services.watch", "esp.core.services.namespace"},
    {"esp.core.services.kv", "esp.core.services.lock"},
    {"esp.core.services.own_keys"},
    {"esp.core.services.router", "esp.core.services.pages"},
    {"esp.core.gateway", "esp.core.metrics"},
    {"esp.core.traces", "esp.core.ui", "esp.core.served", "esp.core.together"},
    {"esp.core.proxy", "esp.core.local", "esp.core.local_shards", "esp.core.local_tls"},
    {"esp.core.reload", "esp.core.following"},
    {"esp.commands"},
    {"esp.cli"},
    {"esp.quick"},
    {"esp.__main__"},
]
# Packages of which others import only the names in `__all__`.
CLOSED = (
    "esp.core.config",
    "esp.core.control",
    "esp.core.workers",
    "esp.core.export",
    "esp.core.fleet",
    "esp.core.health",
    "esp.core.load",
    "esp.core.move",
    "esp.core.plan",
    "esp.core.shared_map",
    "esp.core.reload",
    "esp.core.services.kv",
    "esp.core.services.lease",
    "esp.core.services.namespace",
    "esp.core.services.watch",
    "esp.core.shard",
)
# The modules of the wire that move bytes or await; all others can be fed by hand.
WIRE_WITH_ASYNCIO = {
    f"esp.core.wire.{name}" for name in ("transport", "client_tls", "accepted", "accepted_tls", "listener", "call")
}
# The modules of the wire that are plain values.
WIRE_FOR_ALL = {"esp.core.wire.status", "esp.core.wire.limits"}
PB_READERS = (
    "esp.core.pb",
    "esp.core.shard",
    "esp.core.apiservers",
    "esp.core.samples",
    "esp.core.health",
    "esp.core.lease_sync",
    "esp.core.lease_survey",
    "esp.core.export",
    "esp.core.load",
    "esp.core.move",
    "esp.core.plan",
    "esp.core.shared_map",
    "esp.core.fleet",
    "esp.core.reload",
    "esp.core.services",
    "esp.core.gateway",
    "esp.commands",
)

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "esp").rglob("*.py"))
}


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@functools.cache
def import_nodes(module: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree_of(module)) if isinstance(node, (ast.Import, ast.ImportFrom))]


@functools.cache
def imports(module: str) -> list[str]:
    """The modules that it imports, wherever in the file; names are resolved to modules where they are some."""
    found: list[str] = []
    for node in import_nodes(module):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.append(name if name in MODULES else str(node.module))
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> int:
    found = [
        (len(member), height) for height, members in enumerate(LAYERS) for member in members if within(module, member)
    ]
    assert found, f"{module} is new: give it a layer here and in docs/design.md"
    return max(found)[1]


def own(module: str) -> list[str]:
    """Its imports from esp, without the packages themselves, whose __init__ holds nothing."""
    return [name for name in imports(module) if within(name, "esp") and name not in ("esp", "esp.core")]


LAYERED = [module for module in MODULES if module not in ("esp", "esp.core")]


def breaches(modules: Iterable[str], of: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    """What `of` finds in each of these modules; those in which there is nothing are left out."""
    return {module: found for module in modules if (found := list(of(module)))}


def test_imports_point_downwards() -> None:
    assert breaches(LAYERED, lambda module: (name for name in own(module) if layer(name) > layer(module))) == {}


def test_the_wire_knows_nothing_of_etcd_and_its_protocol_nothing_of_sockets() -> None:
    wires = [module for module in MODULES if within(module, "esp.core.wire")]
    assert breaches(wires, lambda module: (name for name in own(module) if not within(name, "esp.core.wire"))) == {}
    sockets = {"asyncio", "socket", "ssl", "uvloop", "selectors"}
    without = [module for module in wires if module not in WIRE_WITH_ASYNCIO]
    assert breaches(without, lambda module: (n for n in imports(module) if n.partition(".")[0] in sockets)) == {
        f"esp.core.wire.{module}": ["ssl"]  # in memory
        for module in ("tls", "tls_faults")
    }


WIRE = "esp.core.wire"
_WIRES_OWN_WORDS = ast.get_docstring(ast.parse(MODULES[WIRE].read_text())) or ""
_FILES, _NAMES = _WIRES_OWN_WORDS.split("The names that the layers above may use")


def listed(text: str) -> list[tuple[list[str], str]]:
    """The indented lines of a list: what stands before the colon, and behind it."""
    return [(before.split(", "), behind) for before, behind in re.findall(r"(?m)^    ([\w, ]+): (.+)$", text)]


def test_the_list_of_the_wires_files_is_complete_and_goes_from_the_bottom_up() -> None:
    lines = [{f"{WIRE}.{name}" for name in names} for names, _ in listed(_FILES)]
    assert sorted(name for line in lines for name in line) == sorted(
        m for m in MODULES if within(m, WIRE) and m != WIRE
    )
    known: set[str] = set()
    for line in lines:
        known |= line
        assert {module: set(own(module)) - known for module in line} == {module: set() for module in line}


def test_the_layers_above_use_the_names_of_the_wire_that_are_listed() -> None:
    """In `esp/core/wire/__init__.py`: a name that is missing there is one that the wire may change or take away."""
    allowed = {f"{WIRE}.{file}": set(names.split(", ")) for (file,), names in listed(_NAMES)}

    def not_listed(module: str) -> Iterator[str]:
        for node in import_nodes(module):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if within(alias.name, WIRE))
            elif within(str(node.module), WIRE):
                yield from {alias.name for alias in node.names} - allowed.get(str(node.module), set())

    assert breaches((module for module in MODULES if not within(module, WIRE)), not_listed) == {}


def test_the_listed_names_of_the_wire_exist() -> None:
    for (file,), names in listed(_NAMES):
        module = importlib.import_module(f"{WIRE}.{file}")
        assert [name for name in names.split(", ") if not hasattr(module, name)] == [], file


def test_of_a_closed_package_others_import_what_it_exports() -> None:
    for package in CLOSED:
        exported = set(importlib.import_module(package).__all__)

        def others(module: str, package: str = package, exported: set[str] = exported) -> Iterator[str]:
            yield from (name for name in imports(module) if name.startswith(package + "."))
            yield from names_from(module, package) - exported

        assert breaches((module for module in LAYERED if not within(module, package)), others) == {}


def names_from(module: str, package: str) -> set[str]:
    """The names that a module imports from a package."""
    return {
        alias.name
        for node in import_nodes(module)
        if isinstance(node, ast.ImportFrom) and node.module == package
        for alias in node.names
    }


def test_generated_messages_are_read_where_etcd_is_known() -> None:
    others = [module for module in LAYERED if not any(within(module, reader) for reader in PB_READERS)]
    assert breaches(others, lambda module: (name for name in own(module) if within(name, "esp.core.pb"))) == {}


def test_commands_know_no_frames() -> None:
    def frames(module: str) -> Iterator[str]:
        return (name for name in own(module) if within(name, "esp.core.wire") and name not in WIRE_FOR_ALL)

    above = (module for module in MODULES if within(module, "esp.cli") or within(module, "esp.commands"))
    assert breaches(above, frames) == {}


def test_the_bottom_stands_alone() -> None:
    bottom = ("esp.core.keys", "esp.core.shard_map", "esp.core.config.yaml_lines")
    assert breaches(bottom, lambda module: set(own(module)) - {"esp.core.keys"}) == {}


# Two files may know each other: a connection and its streams, for one.
MOST_IN_A_CIRCLE = 2


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of modules each of which imports every other, if not by itself then by way of others."""
    reached = {module: _reached(graph, module) for module in graph}
    found = {frozenset({module, *(other for other in reached[module] if module in reached[other])}) for module in graph}
    return sorted(sorted(members) for members in found if len(members) > 1)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"f", "a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_no_more_than_two_files_know_one_another() -> None:
    """Imports for types are counted: whoever reads one file of a circle has to read them all."""
    graph = {module: {name for name in imports(module) if name in MODULES} for module in MODULES}
    assert [circle for circle in circles(graph) if len(circle) > MOST_IN_A_CIRCLE] == []


def counted_shards(tree: ast.AST) -> Iterator[str]:
    """Expressions in which shards are known by their positions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_shards(node.value) and _is_number(node.slice):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            inner = node.args[-1]
            counts = node.func.id == "range" and isinstance(inner, ast.Call) and bool(inner.args)
            if _is_shards(node.args[0]) if node.func.id == "enumerate" else counts and _is_length(inner):
                yield ast.unparse(node)


def _is_shards(node: ast.AST) -> bool:
    """Whether an expression ends in `shards`, `owners` or `lanes`, or is the keys or values of such a table."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("keys", "values", "items") and _is_shards(node.func.value)
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_") in ("shards", "owners", "lanes")


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _is_length(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "len" and _is_shards(node.args[0])


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("for i, shard in enumerate(self.routing.shards): pass", True),
        ("for i, shard in enumerate(layout.shards.values(), 1): pass", True),
        ("for i in range(len(self._shards)): pass", True),
        ("x = [0 for _ in range(1, len(shards))]", True),
        ("x = routing.shards[0]", True),
        ("x = routing.shards[name]; y = dict.fromkeys(shards); z = enumerate(parts); w = range(len(parts))", False),
    ],
)
def test_positions_of_shards_are_found(code: str, found: bool) -> None:
    assert bool(list(counted_shards(ast.parse(code)))) == found


def test_shards_are_known_by_their_names() -> None:
    """A position in a list means another shard in the next layout."""
    concerned = [module for module in LAYERED if within(module, "esp.core") and not within(module, "esp.core.wire")]
    assert breaches(concerned, lambda module: counted_shards(tree_of(module))) == {}

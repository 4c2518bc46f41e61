"""What mypyc compiles (pyproject.toml): compiled code must not go past what the interpreter would find."""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp import build

ROOT = Path(__file__).parent.parent
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["hooks"]["custom"]
COMPILED: list[str] = HOOK["compiled"]


def classes(module: str) -> Iterator[ast.ClassDef]:
    """The classes of a file of the checkout, of classes and functions in it too."""
    return (node for node in ast.walk(ast.parse((ROOT / module).read_text())) if isinstance(node, ast.ClassDef))


def bases(node: ast.ClassDef) -> set[str]:
    plain = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return {base.id for base in plain if isinstance(base, ast.Name)}


def attributes(node: ast.ClassDef) -> set[str]:
    """The slots of a class, and what its body and its methods set."""
    found = set[str]()
    for each in ast.walk(node):
        match each:
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                found.update(ast.literal_eval(value))
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def of_the_class(node: ast.ClassDef) -> set[str]:
    """The properties of a class, and its own values."""
    found = set[str]()
    for each in node.body:
        match each:
            case ast.FunctionDef(name=name, decorator_list=by) if "property" in {ast.unparse(one) for one in by}:
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) if name != "__slots__":
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
                found.add(name)
    return found


def test_no_class_has_something_in_the_place_of_an_attribute_of_a_compiled_class() -> None:
    """Compiled code would read, and set, the attribute: a wrong answer, and no error."""
    everywhere = [node for path in (ROOT / "esp").rglob("*.py") for node in classes(str(path.relative_to(ROOT)))]
    hidden = {node.name: attributes(node) for module in COMPILED for node in classes(module)}
    assert {"ServerStream", "ClientStream", "Stream"} <= hidden.keys()
    for _ in range(10):  # more than any class has ancestors
        for node in everywhere:
            inherited = [hidden[base] for base in bases(node) if base in hidden]
            if inherited:
                hidden[node.name] = set.union(hidden.get(node.name, set()), *inherited)
    own = {node.name: of_the_class(node) for node in everywhere if any(base in hidden for base in bases(node))}
    assert {name: found & hidden[name] for name, found in own.items() if found & hidden[name]} == {}


def imported(tree: ast.Module) -> dict[str, str]:
    """The names that a module imports from others, with the files of these."""
    return {
        name.asname or name.name: node.module.replace(".", "/") + ".py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }


def test_compiled_classes_allow_the_subclasses_that_are_not_compiled() -> None:
    """Python makes the class all the same; the first object of it is a TypeError."""
    allowed = {
        (module, node.name): any("allow_interpreted_subclasses" in ast.unparse(by) for by in node.decorator_list)
        for module in COMPILED
        for node in classes(module)
    }
    refused = []
    looked_at = 0
    for folder in ("esp", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            file = str(path.relative_to(ROOT))
            if file in COMPILED:
                continue
            of = imported(ast.parse(path.read_text()))
            for node in classes(file):
                for base in bases(node):
                    found = allowed.get((of.get(base, ""), base))
                    looked_at += found is not None
                    if found is False:
                        refused.append(f"{file}:{node.lineno}: {node.name} inherits from {base}")
    assert looked_at > 10
    assert refused == []


def test_compiled_modules_do_without_what_means_something_else_there() -> None:
    """mypyc says nothing of these."""
    found = []
    for module in COMPILED:
        tree = ast.parse((ROOT / module).read_text())
        used_up = {id(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 1}
        used_up |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Starred)}
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef() if bases(node) & {"Counter", "OrderedDict", "defaultdict", "deque", "list", "set"}:
                    found.append(f"{module}:{node.lineno}: {node.name} has not the size of its base")
                case ast.GeneratorExp() if id(node) not in used_up:
                    found.append(f"{module}:{node.lineno}: a generator expression is a list there")
    assert found == []


@pytest.mark.skipif(build() == "interpreted", reason="scripts/compiled pytest tests/test_compiled.py")
@pytest.mark.parametrize("path", COMPILED)
def test_a_compiled_module_has_the_attributes_of_its_source(path: str) -> None:
    """An attribute that a base has as a property is none to mypyc, unless the class declares it."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert not str(module.__file__).endswith(".py"), "it is not compiled"
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef) and not bases(node) & {"dict"}:
            slots = [
                ast.literal_eval(each.value)
                for each in node.body
                if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__slots__"
            ]
            assert [name for name in slots[0] if name not in vars(getattr(module, node.name))] == [] if slots else True


def test_the_list_names_files_of_the_checkout_in_order() -> None:
    assert [path for path in COMPILED if not (ROOT / path).is_file()] == []
    assert sorted(set(COMPILED)) == sorted(COMPILED)

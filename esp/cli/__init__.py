"""The command line: what can be typed, and which function of `esp.commands` is called for it.

    about     `version`, `help`, `completion`
    bench, check, config, exec_, leases, map, move, plan, reload, route, serve, top, transfer
              the command of that name; `leases` has `lease-sync`, `transfer` has `export` and `import`
    options   options that several commands have
    frame     what all commands have: the help with examples and exit codes, the errors

Each part is imported only when a command of it is called, and a part imports the command itself only when that is
called. The help, the completion scripts and the manual pages are made from what the parts say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Final

PARTS: Final = {
    "serve": "serve",
    "route": "route",
    "check": "check",
    "config": "config",
    "reload": "reload",
    "top": "top",
    "exec": "exec_",
    "export": "transfer",
    "import": "transfer",
    "bench": "bench",
    "lease-sync": "leases",
    "map": "map",
    "move": "move",
    "plan": "plan",
    "completion": "about",
    "help": "about",
    "version": "about",
}
"""The part of each command."""
_ABOUT_ALL: Final = ("help", "completion")


def main() -> None:
    """The entry point of `esp`: runs the command line."""
    app_of(needed(sys.argv[1:]))(prog_name="esp")


def needed(arguments: list[str]) -> Iterable[str]:
    """The parts that a command line needs: that of its command, or all if it is about all of them, or wrong."""
    called = next((word for word in arguments if word not in ("-v", "--verbose", "-q", "--quiet")), "")
    if called in PARTS and called not in _ABOUT_ALL:
        return [PARTS[called]]
    return dict.fromkeys(PARTS.values())


def app_of(parts: Iterable[str]) -> Any:
    """The typer app with these parts, in this order."""
    from esp.cli.frame import main_app

    app = main_app()
    for part in parts:
        module = import_module(f"esp.cli.{part}")
        app.add_typer(module.commands, name=getattr(module, "NAME", None))
    return app

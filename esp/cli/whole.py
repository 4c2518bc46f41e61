"""The typer app with every command, for whoever reads the command line as data."""

from __future__ import annotations

from esp.cli import PARTS, app_of

app = app_of(dict.fromkeys(PARTS.values()))

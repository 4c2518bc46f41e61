"""`esp config check`, `show`, `example` and `schema`: everything about a config file, without a connection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from esp.commands.output import FAILED, USAGE, CommandError, Format, note, write, write_data, write_json, write_table
from esp.core import config as configs
from esp.core.config import Config
from esp.core.kubernetes import cuts
from esp.core.wording import counted, shard_called


class Flags(NamedTuple):
    """The options of `esp serve` that go before the config."""

    listen: list[str]
    workers: str | None = None
    log_format: str | None = None
    log_level: str | None = None


def check(file: Path | None, output: Format) -> None:
    """Prints all faults of a config file, each with its line and its cure.

    Raises:
        ConfigError: there is no file, or none that can be read.
        CommandError: there are faults; they have been printed.
    """
    path = configs.find(file, os.environ)
    text = configs.text_of(path)
    note(f"config {path.absolute()}, {counted(text.count(chr(10)), 'line')}")
    loaded, faults = configs.faults_of(text, path)
    notes = [] if loaded is None else _notes(loaded)
    if output is Format.JSON:
        write_json(
            {
                "config": str(path),
                "good": not faults,
                "faults": [{"line": fault.line, "text": fault.text} for fault in faults],
                "notes": notes,
                "map": None if loaded is None else _fingerprint(loaded),
            }
        )
    else:
        for fault in faults:
            write(str(fault))
        for text_of_note in notes:
            write(f"{path}: note: {text_of_note}")
        if loaded is not None and not faults:
            endpoints = sum(len(shard.endpoints) for shard in loaded.shards)
            shards = f"{counted(len(loaded.shards), 'shard')} with {counted(endpoints, 'endpoint')}"
            write(f"{path} is good: {shards}, {_map_of(loaded)}.")
    if faults:
        raise CommandError(f"{path} has {counted(len(faults), 'fault')}", FAILED)


def _fingerprint(loaded: Config) -> str | None:
    return loaded.shard_map.fingerprint if loaded.map == "file" else None


def _map_of(loaded: Config) -> str:
    return f"map {loaded.shard_map.fingerprint}" if loaded.map == "file" else "the map is on the shards"


def _notes(loaded: Config) -> list[str]:
    """What `esp serve` would warn of."""
    divided = (
        [cut.explain() for root in loaded.apiserver_roots for cut in cuts(loaded.shard_map, root)]
        if loaded.map == "file"
        else []
    )
    unverified = [shard.name for shard in loaded.shards if shard.tls is not None and not shard.tls.verify]
    return [
        *(f"for Kubernetes: {text}" for text in divided),
        *(f"the certificates of {shard_called(name)} are not checked (insecure_skip_verify)" for name in unverified),
    ]


def show(file: Path | None, flags: Flags, output: Format) -> None:
    """Prints every value that `esp serve` would use with the config and the flags, and where each comes from.

    Raises:
        ConfigError: there is no file, or it is wrong, or a flag is.
        CommandError: a flag is wrong.
    """
    path = configs.find(file, os.environ)
    text = configs.text_of(path)
    note(f"config {path.absolute()}, {counted(text.count(chr(10)), 'line')}")
    loaded = configs.parse(text, path)
    given = _of_flags(flags)
    rows: list[tuple[str, str, dict[str, Any]]] = []
    for name, value, line in configs.effective_values(text, loaded):
        source: dict[str, Any] = {"kind": "default"} if line is None else {"kind": "file", "line": line}
        if name in given:
            value, flag = given[name]
            source = {"kind": "flag", "flag": flag}
        if name == "control" and loaded.control == "auto":
            value, source = _control(path, source)
        if name == "workers" and value == "auto":
            value = f"auto: {configs.workers_of('auto')} here"
        rows.append((name, value, source))
    found = "given" if file is not None else "ESP_CONFIG" if os.environ.get("ESP_CONFIG") else "found"
    if output is Format.JSON:
        fields = [{"name": name, "value": value, "from": source} for name, value, source in rows]
        write_json({"config": str(path), "found": found, "map": _fingerprint(loaded), "fields": fields})
        return
    cells = [[name, _from(source, path), value] for name, value, source in rows]
    write_table(["FIELD", "FROM", "VALUE"], cells, ragged=True)
    how = {"given": "given on the command line", "ESP_CONFIG": "named by ESP_CONFIG", "found": "found here"}[found]
    write(f"\nConfig {path}, {how}; {_map_of(loaded)}.")


def _of_flags(flags: Flags) -> dict[str, tuple[str, str]]:
    """By field, the value of a flag, and the flag.

    Raises:
        ConfigError, CommandError: a flag is wrong.
    """
    given = {}
    if flags.listen:
        given["listen"] = (f"[{', '.join(map(str, configs.listen_of(flags.listen)))}]", "--listen")
    if flags.workers is not None:
        try:
            configs.workers_of(flags.workers)
        except ValueError as error:
            raise CommandError(str(error), USAGE) from None
        given["workers"] = (flags.workers, "--workers")
    if flags.log_format is not None:
        given["log.format"] = (flags.log_format, "--log-format")
    if flags.log_level is not None:
        given["log.level"] = (flags.log_level, "--log-level")
    return given


def _control(path: Path, source: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where the control socket may be, which the environment decides as well."""
    from esp.core.control import looked_at

    places = looked_at("auto", path, os.environ)
    if os.environ.get("XDG_RUNTIME_DIR"):
        source = {**source, "environment": "XDG_RUNTIME_DIR"}
    return f"auto: {' or '.join(map(str, places))}", source


def _from(source: dict[str, Any], path: Path) -> str:
    match source["kind"]:
        case "file":
            text = f"{path.name}:{source['line']}"
        case "flag":
            text = source["flag"]
        case _:
            text = "default"
    return f"{text}, {source['environment']}" if "environment" in source else text


def example() -> None:
    """Prints a config with all fields and what they mean.

    Raises:
        CommandError: stdout cannot be written.
    """
    write_data(configs.EXAMPLE.read_text(encoding="utf-8").removesuffix("\n"))


def schema() -> None:
    """Prints the JSON schema of a config.

    Raises:
        CommandError: stdout cannot be written.
    """
    write_json(configs.json_schema())

"""TLS towards the shards: `shard_tls` of a config file for all shards, `tls` of a shard for one.

Only shards whose endpoints begin with https:// use TLS. The files are read once to find faults, and again when a
shard's client is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from esp.core.config.addresses import fault_of_host
from esp.core.config.fields import Fields
from esp.core.config.shape import Shape
from esp.core.config.yaml_lines import Place
from esp.core.tls_paths import Files, TlsFileError

SYSTEM: Final = Files()
"""The system's CAs, and no certificate of esp's own."""


@dataclass(frozen=True, slots=True)
class ShardTls:
    """TLS towards one shard.

    Attributes:
        files: the CAs of the members' certificates, by default the system's; and esp's own certificate, if any.
        server_name: the name that the members' certificates must have; with "", the host of each endpoint.
        verify: False if any certificate will do (`insecure_skip_verify`).
    """

    files: Files = SYSTEM
    server_name: str = ""
    verify: bool = True


class ShardTlsShape(Shape):
    """The fields of `shard_tls`."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


def shard_tls_at(value: Any, place: Place, fields: Fields, folder: Path | None, checked: set[Files]) -> ShardTls:
    """The TLS that a mapping describes; relative paths begin at `folder`.

    Files that stand in `checked` are not read again; others are added to it.

    Raises:
        LineError: a field is wrong, or a file cannot be used.
    """
    subject = f'"{place[-1]}"'
    shape = fields.shaped(value, ShardTlsShape, place, subject)
    for name in ("ca", "cert", "key", "server_name"):
        if getattr(shape, name) == "":
            fields.fail((*place, name), f'{subject}: "{name}" is empty; leave it out')
    if (shape.cert is None) != (shape.key is None):
        have, missing = ("key", "cert") if shape.cert is None else ("cert", "key")
        cure = "write both, the same file if it has both"
        fields.fail((*place, have), f'{subject}: "{have}" is given without "{missing}"; {cure}')
    if shape.insecure_skip_verify and shape.ca is not None:
        text = '"ca" has no use with "insecure_skip_verify": no certificate is checked; leave one out'
        fields.fail((*place, "insecure_skip_verify"), f"{subject}: {text}")
    server_name = (shape.server_name or "").strip("[]")
    if server_name and (fault := fault_of_host(f"[{server_name}]" if ":" in server_name else server_name)):
        fields.fail((*place, "server_name"), f'{subject}: "server_name": {fault}')

    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text) if folder is None else folder / text

    files = Files(path(shape.cert), path(shape.key), path(shape.ca))
    if files not in checked:
        from esp.core.tls_files import check_files  # loads TLS, which most commands do without

        try:
            check_files(files)
        except TlsFileError as error:
            name = {files.ca: "ca", files.key: "key", files.cert: "cert"}[error.path]
            fields.fail((*place, name), f'{subject}: "{name}": {error}')
        checked.add(files)
    return ShardTls(files, server_name, not shape.insecure_skip_verify)

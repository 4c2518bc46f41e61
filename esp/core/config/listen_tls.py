"""The `tls` of a config file: the certificates of the listeners, and the CA of the clients'.

All listen URLs with https:// and unixs: use them. The files are read once to find faults, and again by the listeners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from esp.core.config.fields import Fields
from esp.core.config.listen import Listen
from esp.core.config.shape import Shape
from esp.core.config.yaml_lines import Place
from esp.core.tls_paths import Files, TlsFileError

MOST_CERTS: Final = 1000
"""The most certificates; all of them are looked at every few seconds."""

_PROTOCOLS: Final = ("http/1.1", "h2")
_WRITE: Final = "write tls: {cert: FILE, key: FILE}"


@dataclass(frozen=True, slots=True)
class ListenTls:
    """TLS of the listeners.

    Attributes:
        files: at least one certificate, each with its key and the CAs of clients' certificates. The first is for
            clients that name no server, or one that no certificate is for. Without CAs, clients need no certificate.
        min_version: the oldest version of TLS that esp speaks.
        alpn: the protocols that esp offers, the best first. Clients of JSON offer both, and JSON needs HTTP/1.1;
            clients of gRPC offer h2 alone.
    """

    files: tuple[Files, ...]
    min_version: Literal["1.2", "1.3"] = "1.2"
    alpn: tuple[str, ...] = _PROTOCOLS

    def __str__(self) -> str:
        ca = self.files[0].ca
        asks = f", client_ca {ca}" if ca is not None else ""
        certs = ", ".join(str(each.cert) for each in self.files)
        return f"{certs}{asks}, from version {self.min_version}, {' before '.join(self.alpn)}"


class PairShape(Shape):
    """A certificate with its key."""

    cert: str | None = None
    key: str | None = None


class ListenTlsShape(Shape):
    """The fields of `tls`."""

    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    min_version: Any = "1.2"
    alpn: list[Any] = list(_PROTOCOLS)
    certs: list[Any] = []


def listen_tls_at(
    value: dict[str, Any] | None, of_tls: Mapping[Place, Listen] | None, fields: Fields, folder: Path | None
) -> ListenTls | None:
    """The TLS that the field `tls` describes; relative paths begin at `folder`. None without the field.

    `of_tls` are the addresses with TLS in the same file and their places, None if the file does not tell.

    Raises:
        LineError: something in it is wrong, or a file cannot be used; or a listen URL needs the field, or none does.
    """
    if value is None:
        for at, listen in (of_tls or {}).items():
            fields.note_at(at, needs_certificate(listen))
        return None
    if of_tls == {}:
        fields.note_at(("tls",), 'no listen URL uses "tls"; write listen: ["https://HOST:PORT"], or leave "tls" out')
    shape = fields.shaped(value, ListenTlsShape, ("tls",), '"tls"')
    version = str(shape.min_version)
    if version not in ("1.2", "1.3"):
        fields.note_at(("tls", "min_version"), f'"tls": "min_version" is "{version}"; write "1.2" or "1.3"')
    pairs: list[tuple[PairShape | ListenTlsShape, Place]] = []
    if shape.cert is not None or shape.key is not None:
        pairs.append((shape, ("tls",)))
    for number, entry in enumerate(shape.certs):
        place: Place = ("tls", "certs", number)
        pairs.append((fields.shaped(entry, PairShape, place, f'"certs" item {number + 1}'), place))
    if not pairs:
        fields.fail(("tls",), f'"tls" has no "cert"; {_WRITE}')
    if len(pairs) > MOST_CERTS:
        text = f'"tls" has more than {MOST_CERTS} certificates; use certificates with several names'
        fields.fail(("tls", "certs"), text)
    ca = fields.tried(None, _path, shape.client_ca, "client_ca", ("tls",), fields, folder)
    read = [fields.tried(None, _files, pair, place, ca, fields, folder) for pair, place in pairs]
    files = [one for one in read if one is not None]
    if not shape.alpn or any(one not in _PROTOCOLS for one in shape.alpn):
        fields.fail(
            ("tls", "alpn"), '"tls": "alpn" has the protocols "h2" and "http/1.1", the best first; write one or both'
        )
    return ListenTls(tuple(files), "1.3" if version == "1.3" else "1.2", tuple(shape.alpn))


def needs_certificate(listen: Listen) -> str:
    """The sentence for an address of TLS in a config without certificates."""
    return f"listen URL {listen} needs a certificate; {_WRITE}"


def _files(
    pair: PairShape | ListenTlsShape, place: Place, ca: Path | None, fields: Fields, folder: Path | None
) -> Files:
    cert = _path(pair.cert, "cert", place, fields, folder)
    key = _path(pair.key, "key", place, fields, folder)
    if cert is None or key is None:
        have, missing = ("key", "cert") if cert is None else ("cert", "key")
        text = f'"tls": "{have}" is given without "{missing}"; write both, the same file if it has both'
        fields.fail(place if key is cert else (*place, have), text)
    files = Files(cert, key, ca)
    from esp.core.tls_files import check_files  # loads TLS, which most commands do without

    try:
        check_files(files)
    except TlsFileError as error:
        name = "cert" if error.path == cert else "key" if error.path == key else "client_ca"
        at: Place = ("tls", name) if name == "client_ca" else (*place, name)
        fields.fail(at, f'"tls": "{name}": {error}')
    return files


def _path(text: str | None, name: str, place: Place, fields: Fields, folder: Path | None) -> Path | None:
    if text == "":
        fields.fail((*place, name), f'"tls": "{name}" is empty; leave it out')
    return None if text is None else Path(text) if folder is None else folder / text

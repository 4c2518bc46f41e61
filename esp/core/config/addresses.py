"""Addresses as the config file and the command line write them; for a text that is none, the address to write instead.

The hint of every error is a valid URL.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

DEFAULT_PORT: Final = 2379
_HOST_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]/?#@\s,]+)(?::([0-9]{1,9}))?")
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{1,}")


def address(url: object, what: str, lowest_port: int = 1, *, needs_scheme: bool = False) -> tuple[str, int]:
    """Host and port of `http://host:port` or, unless it `needs_scheme`, `host:port`; an IPv6 host loses its brackets.

    `https` is taken as well. `what` names the value in messages.

    Raises:
        ValueError: `text` is no such address; the message is a sentence with the reason and the cure.
    """
    text = str(url)
    cure = f"write {nearest(text, lowest_port)}"
    if not isinstance(url, str):
        raise ValueError(f"{what} {text} is not text; {cure}")
    several = [one for one in re.split(r"[,\s]+", text) if one]
    if len(several) > 1 and "," not in text and not all(map(_is_whole, several)):
        raise ValueError(f'{what} "{url}" has a blank in it; write {_without_blanks(text, lowest_port)}')
    if len(several) > 1:
        each = ", ".join(nearest(one, lowest_port) for one in several)
        raise ValueError(f'{what} "{url}" is {len(several)} in one; write each as an entry of its own: {each}')
    scheme, _, rest = text.rpartition("://")
    rest = rest.removesuffix("/")
    if text.startswith("unix"):
        raise ValueError(f'{what} "{url}": esp has no use for a unix socket here; {cure}')
    if scheme not in ("", "http", "https"):
        raise ValueError(f'{what} "{url}": unknown scheme "{scheme}"; {cure}')
    match = _HOST_PORT.fullmatch(rest)
    if match is None or rest.isdigit():
        raise ValueError(f'{what} "{url}" {_why_none(rest)}; {cure}')
    host, port = match.groups()
    if fault := fault_of_host(host):
        raise ValueError(f'{what} "{url}": {fault}')
    if port is None:
        raise ValueError(f'{what} "{url}" has no port; {cure}')
    if not lowest_port <= int(port) <= 65_535:
        raise ValueError(f'{what} "{url}": there is no port {port}; write one from {lowest_port} to 65535')
    if not scheme and needs_scheme:
        raise ValueError(f'{what} "{url}" has no scheme; {cure}')
    return host.strip("[]").lower(), int(port)


def nearest(text: str, lowest_port: int = 1) -> str:
    """The URL that was probably meant: a valid one for every `text`."""
    text = text.strip()
    scheme = "https" if text.startswith("https:") else "http"
    if text.startswith("unix"):
        return f"http://127.0.0.1:{DEFAULT_PORT}"
    rest = re.split(r"[/?#,\s]", _SCHEME.sub("", text, count=1), maxsplit=1)[0].rpartition("@")[2]
    host, port = _split(rest)
    if not host:
        host = "127.0.0.1" if lowest_port else "0.0.0.0"  # noqa: S104 - what `:2379` means to who listens there
    elif _is_ipv6(host):
        host = f"[{host}]"
    elif fault_of_host(host):
        host = _in_ascii(host)
    known = port.isascii() and port.isdigit() and len(port) < 9 and lowest_port <= int(port) <= 65_535
    return f"{scheme}://{host}:{port if known else DEFAULT_PORT}"


def _is_whole(text: str) -> bool:
    """Whether the text has a port, as an address must."""
    rest = _SCHEME.sub("", text, count=1)
    return rest.isdigit() or bool(_split(rest.rstrip("/"))[1])


def _without_blanks(text: str, lowest_port: int) -> str:
    """The URL that was probably meant by a text with blanks inside; a lone number at the end is the port."""
    one = re.sub(r"(?<=[^:\s])\s+(?=[0-9]+$)", ":", text.strip())
    return nearest(re.sub(r"\s", "", one), lowest_port)


def _split(rest: str) -> tuple[str, str]:
    """Host and port, either of which may be missing; an IPv6 host without brackets."""
    if rest.isdigit():
        return "", rest
    if _is_ipv6(rest.strip("[]")) and not _is_ipv6(rest.rpartition(":")[0]):
        return rest.strip("[]"), ""
    host, colon, port = rest.rpartition(":")
    if not colon:
        return rest, ""
    return host.strip("[]"), port


def _why_none(rest: str) -> str:
    if not rest:
        return "is empty"
    if rest.isdigit():
        return "is only a port"
    if rest.startswith(":") and rest[1:].isdigit():
        return "has no host"
    if "@" in rest:
        return "has a user, and esp has none of its own"
    if re.search(r"[/?#]", rest):
        return "has a path"
    if "[" not in rest and (_is_ipv6(rest) or _is_ipv6(rest.rpartition(":")[0])):
        return "has an IPv6 address without brackets"
    return "is not an address"


def fault_of_host(host: str) -> str:
    """The reason why no host can have this name, as a clause with its cure; "" if the name is possible."""
    if host.startswith("["):
        if _is_ipv6(host[1:-1]):
            return ""
        return f"{host} is no IPv6 address; correct it, as in [::1]"
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return f'"{host}" is no IPv4 address; correct it, as in 127.0.0.1'
        return ""
    if not host.isascii():
        return f'the host name "{host}" is not ASCII; write it as {_in_ascii(host)}'
    if len(host) > 253:
        return "a host name has at most 253 characters; correct it or use an address"
    for label in labels:
        if not label:
            return f'the host name "{host}" has nothing between two dots; correct it or use an address'
        if len(label) > 63:
            return f'"{label}" is longer than 63 characters, the most between dots; correct it or use an address'
        if not _LABEL.fullmatch(label):
            return f'"{label}" cannot be part of a host name; correct it or use an address'
    return ""


def is_wildcard(host: str) -> bool:
    """Whether a server at `host` listens on all addresses of its machine; no client can connect to such a host."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def _in_ascii(host: str) -> str:
    """An international name as DNS has it; "host" if DNS cannot have it."""
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        return "host"
    return "host" if not name or fault_of_host(name) else name

"""What a proposal comes to in files and command lines: a config, and the lines of `esp move`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence

from esp.core.keys import KeyRange, prefix_end
from esp.core.kubernetes import DEFAULT_PREFIX
from esp.core.plan import Move, Proposal


def config_text(proposal: Proposal, endpoints: Mapping[str, Sequence[str]]) -> str:
    """A config with the shards of a proposal; those without `endpoints` have some to be replaced."""
    lines = ["# The shards as esp plan proposes them. All other fields stay as they are in your config."]
    if any(name not in endpoints for name in proposal.map.names):
        lines.append("# Replace the endpoints of new shards, whose hosts end with .example.")
    lines.append("shards:")
    rest = _rest(proposal)
    for name in proposal.map.names:
        urls = endpoints.get(name) or [f"http://{name}.example:2379"]
        ranges = [KeyRange(b"", None)] if name == rest else proposal.map.ranges_of(name)
        lines.append(f"  - name: {name}")
        lines.append(f"    endpoints: [{', '.join(urls)}]")
        if not ranges:
            lines.append("    ranges: []")
            continue
        lines.append("    ranges:")
        lines += [f"      - {_range_text(one, proposal)}" for one in ranges]
    return "\n".join(lines) + "\n"


def _rest(proposal: Proposal) -> str | None:
    """The shard that can be written as the owner of all that no other owns: it has the first keys and the last."""
    first, last = proposal.map.owners[0], proposal.map.owners[-1]
    return first if first == last and len(proposal.map.names) > 1 else None


def _range_text(key_range: KeyRange, proposal: Proposal) -> str:
    for cluster in proposal.clusters:
        for resource in cluster.resources:
            if resource.range == key_range:
                root = cluster.root.decode().rstrip("/") or "/"
                prefix = "" if root == DEFAULT_PREFIX else f", etcd_prefix: {_key_text(root.encode())}"
                return f"{{kubernetes: {resource.name}{prefix}}}"
    if key_range.start and prefix_end(key_range.start) == key_range.end:
        return f"{{prefix: {_key_text(key_range.start)}}}"
    return f"{{start: {_key_text(key_range.start)}, end: {_key_text(key_range.end or b'')}}}"


def _key_text(key: bytes) -> str:
    """A key as the config takes it."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return f'"hex:{key.hex()}"'
    if not text.isprintable() or text.startswith(("hex:", "base64:")):
        return f'"hex:{key.hex()}"'
    return json.dumps(text, ensure_ascii=False)


def move_line(move: Move) -> str:
    """The command line that makes a move."""
    start, end = move.range
    option = ["--prefix"] if start and prefix_end(start) == end else []
    keys = [start] if option else [start, end or b""]
    texts = list(_texts(keys))
    if len(texts) < len(keys):
        option, texts = ["--hex", *option], [key.hex() for key in keys]
    return shlex.join(["esp", "move", *option, *texts, "--to", move.target, "--experimental"])


def _texts(keys: Sequence[bytes]) -> Iterator[str]:
    """The keys as text, up to the first that cannot be a word of a command line."""
    for key in keys:
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return
        if not text.isprintable() or text.startswith("-"):
            return
        yield text

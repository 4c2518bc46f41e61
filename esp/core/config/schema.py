"""The JSON schema of a config file, for editors: made of the shapes that the reader of the file uses.

A schema cannot say all that the reader checks, such as gaps between ranges. It accepts whatever the reader accepts.
"""

from __future__ import annotations

from typing import Any, Final

from esp.core.config.file import DEFRAGMENT, DELETES, LEASES, MAX_DRAIN_SECONDS, RANGE_READS, TXN_READS, FileShape
from esp.core.config.hot import MAX_DEPTH, MAX_KEEP, HotShape
from esp.core.config.hot import MAX_ONE_OF as HOT_ONE_OF
from esp.core.config.listen_tls import ListenTlsShape, PairShape
from esp.core.config.log import MAX_ONE_OF, MAX_SLOW_SECONDS, LogShape
from esp.core.config.ranges import RangeShape
from esp.core.config.shard_tls import ShardTlsShape
from esp.core.config.shards import NAME, OriginalShardShape, ShardShape
from esp.core.config.traces import MOST_SPANS, TracesShape
from esp.core.config.user import UserShape
from esp.core.config.workers import MOST_WORKERS
from esp.core.log.levels import FORMATS, LEVELS
from esp.core.wire.limits import Limits, bounds

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": "boolean"}
_KEY: Final[Schema] = {"type": "string", "description": "A key as text, or hex: and hexadecimal digits."}
_URL: Final[Schema] = {"type": "string", "examples": ["http://127.0.0.1:2379"]}
_FILE: Final[Schema] = {"type": "string", "description": "A file; a relative path begins at the config's folder."}


def _list(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of, **more}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


_RANGE_OR_PREFIX: Final[Schema] = {"anyOf": [_KEY, _ref("range")]}
_BYTES: Final[Schema] = {"anyOf": [_TEXT, _list({"type": "integer", "minimum": 0, "maximum": 255}), {"type": "null"}]}
_OFF: Final[Schema] = {"enum": ["off", False]}

_FIELDS: Final[dict[str, Schema]] = {
    "listen": _or_null(
        _list(_URL, minItems=1, description="http://, https://, unix: and unixs: addresses for clients.")
    ),
    "tls": _or_null(_ref("listen_tls")),
    "advertise": _list(_URL, description="URLs under which clients reach this proxy, for MemberList."),
    "namespace": _or_null({**_KEY, "description": "Clients see only the keys with this prefix, and without it."}),
    "cors": _list(_TEXT, description='Origins that browsers may read answers from; "*" for any.'),
    "host_whitelist": _list(_TEXT, description='Names that HTTP/1.1 requests may use for this host; "*" for any.'),
    "map": {"enum": ["file", "shards"], "description": "Where the map is: in this file, or on the shards."},
    "shards": {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_ref("shard"), _ref("original_shard")]},
        "description": "One entry for each etcd cluster.",
    },
    "auth": _or_null(_ref("auth")),
    "shard_tls": _or_null(_ref("shard_tls")),
    "whole": _list(_RANGE_OR_PREFIX, description="Prefixes or ranges that no boundary may divide."),
    "across_shards": {
        "description": "Requests over several shards: served or refused.",
        "anyOf": [
            {"enum": ["auto", "serve", "refuse"]},
            {
                "type": "object",
                "properties": {"refuse": _list(_RANGE_OR_PREFIX, minItems=1)},
                "required": ["refuse"],
                "additionalProperties": False,
            },
        ],
    },
    "compaction": {
        "description": "The shard to which a plain revision in a Compact belongs.",
        "anyOf": [
            {"enum": ["kubernetes", "refuse"]},
            {
                "type": "object",
                "properties": {"revisions_of": _KEY},
                "required": ["revisions_of"],
                "additionalProperties": False,
            },
        ],
    },
    "deletes_across_shards": {"enum": list(DELETES), "description": "A DeleteRange over several shards."},
    "defragment": {"enum": list(DEFRAGMENT), "description": "A Defragment over several shards."},
    "leases": {"enum": list(LEASES), "description": "What an unreachable shard means for leases."},
    "range_reads": {"enum": list(RANGE_READS), "description": "A Range over several shards."},
    "txn_reads": {"enum": list(TXN_READS), "description": "A Txn over several shards that only reads."},
    "drain_seconds": {
        "type": "number",
        "minimum": 0,
        "maximum": MAX_DRAIN_SECONDS,
        "description": "Seconds for calls in flight to finish when esp stops.",
    },
    "workers": {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": MOST_WORKERS},
            {"type": "string", "pattern": "^(auto|[1-9][0-9]?)$"},
        ],
        "description": "Processes that serve; auto: one for each processor.",
    },
    "limits": _ref("limits"),
    "control": {"anyOf": [_TEXT, _OFF], "description": "The socket for esp reload: auto, off or a path."},
    "watch_config": {**_FLAG, "description": "Reload when the file changes."},
    "log": _ref("log"),
    "traces": _or_null(_ref("traces")),
    "metrics_for_clients": {**_FLAG, "description": "Whether the client port has /metrics."},
    "metrics_listen": _list(_URL, description="Further addresses that have only the pages."),
    "hot_prefixes": {
        "anyOf": [{"enum": ["off", "on", False, True]}, _ref("hot_prefixes")],
        "description": "Find out which prefixes have the most calls.",
    },
    "ui": {**_FLAG, "description": "Whether there is a status page at /ui."},
}

_SHARD: Final[dict[str, Schema]] = {
    "name": _or_null({"type": "string", "pattern": f"^{NAME.pattern}$"}),
    "endpoints": _list(_URL, minItems=1, description="Client URLs of the cluster's members."),
    "ranges": _list(_ref("range"), minItems=1, description="The keys of this shard."),
    "auth": _or_null(_ref("auth")),
    "tls": _or_null(_ref("shard_tls")),
}
_DEFS: Final[dict[str, tuple[Any, dict[str, Schema]]]] = {
    "shard": (ShardShape, _SHARD),
    "original_shard": (
        OriginalShardShape,
        {
            "name": _SHARD["name"],
            "address": _URL,
            "start": _or_null(_KEY),
            "end": _or_null(_KEY),
            "startBytes": _BYTES,
            "endBytes": _BYTES,
        },
    ),
    "range": (
        RangeShape,
        {
            "prefix": _KEY,
            "start": {**_KEY, "description": 'The first key; "" for the first there is.'},
            "end": {**_KEY, "description": 'The first key behind the range; "" for no upper bound.'},
            "kubernetes": {"type": "string", "examples": ["pods", "apps/deployments"]},
            "etcd_prefix": _TEXT,
        },
    ),
    "auth": (UserShape, {"user": _TEXT, "password_file": _FILE}),
    "shard_tls": (
        ShardTlsShape,
        {
            "ca": _or_null(_FILE),
            "cert": _or_null(_FILE),
            "key": _or_null(_FILE),
            "server_name": _or_null(_TEXT),
            "insecure_skip_verify": _FLAG,
        },
    ),
    "listen_tls": (
        ListenTlsShape,
        {
            "cert": _or_null(_FILE),
            "key": _or_null(_FILE),
            "client_ca": _or_null(_FILE),
            "min_version": {"enum": ["1.2", "1.3", 1.2, 1.3]},
            "alpn": _list({"enum": ["h2", "http/1.1"]}, minItems=1),
            "certs": _list(_ref("cert")),
        },
    ),
    "cert": (PairShape, {"cert": _or_null(_FILE), "key": _or_null(_FILE)}),
    "log": (
        LogShape,
        {
            "format": {"enum": list(FORMATS)},
            "level": {"enum": list(LEVELS)},
            "access": {
                "anyOf": [
                    {"enum": ["off", "all", False, True]},
                    {
                        "type": "object",
                        "properties": {"one_of": {"type": "integer", "minimum": 1, "maximum": MAX_ONE_OF}},
                        "required": ["one_of"],
                        "additionalProperties": False,
                    },
                ]
            },
            "slow_seconds": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SLOW_SECONDS}, _OFF]},
        },
    ),
    "hot_prefixes": (
        HotShape,
        {
            "separator": {"type": "string", "minLength": 1},
            "depth": {"type": "integer", "minimum": 1, "maximum": MAX_DEPTH},
            "keep": {"type": "integer", "minimum": 1, "maximum": MAX_KEEP},
            "one_of": {"type": "integer", "minimum": 1, "maximum": HOT_ONE_OF},
        },
    ),
    "traces": (
        TracesShape,
        {
            "endpoint": {"type": "string", "pattern": "^https?://"},
            "sample": {"type": "number", "minimum": 0, "maximum": 1},
            "service": {"type": "string", "minLength": 1},
            "max_spans": {"type": "integer", "minimum": 1, "maximum": MOST_SPANS},
        },
    ),
}
_REQUIRED: Final = {"shard": ["endpoints", "ranges"], "auth": ["user", "password_file"], "traces": ["endpoint"]}
_RANGE_FORMS: Final = [["prefix"], ["start", "end"], ["kubernetes"]]


def schema() -> Schema:
    """The schema, as JSON schema of the draft 2020-12."""
    found: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config of esp, the etcd sharding proxy",
        **_object(FileShape, _FIELDS),
        "required": ["shards"],
        "$defs": {name: _object(shape, fields) for name, (shape, fields) in _DEFS.items()},
    }
    for name, required in _REQUIRED.items():
        found["$defs"][name]["required"] = required
    found["$defs"]["range"]["anyOf"] = [{"required": names} for names in _RANGE_FORMS]
    found["$defs"]["limits"] = _limits()
    return found


def _object(shape: Any, fields: dict[str, Schema]) -> Schema:
    """A mapping with the fields of a shape, of each of which `fields` must say the values."""
    properties = {name: fields[name] for name in shape.names}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _limits() -> Schema:
    limits = Limits()
    properties: Schema = {}
    for name in Limits.__dataclass_fields__:
        default = getattr(limits, name)
        low, high = bounds(name)
        lower = {"minimum": low} if low else {"exclusiveMinimum": 0}
        kind = "integer" if isinstance(default, int) else "number"
        properties[name] = {"type": kind, **lower, "maximum": high, "default": default}
    return {"type": "object", "properties": properties, "additionalProperties": False}

"""Labels of calls: the names that gRPC's libraries give to methods and codes in metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from esp.core.services import reflection
from esp.core.services.router import METHODS
from esp.core.wire.ended import UNKNOWN
from esp.core.wire.status import CODE_NAMES

METHOD: Final = ("grpc_type", "grpc_service", "grpc_method")
"""The labels of a method."""
Method = tuple[str, str, str]
"""Their values."""


def code_name(code: int) -> str:
    """The name of a code; "Unknown" for a number that is no code."""
    return CODE_NAMES[code] if 0 <= code < len(CODE_NAMES) else "Unknown"


def _type(method: MethodDescriptor) -> str:
    if method.client_streaming:
        return "bidi_stream" if method.server_streaming else "client_stream"
    return "server_stream" if method.server_streaming else "unary"


def _split(path: bytes) -> tuple[str, str]:
    service, _, name = path.decode()[1:].rpartition("/")
    return service, name


def _named(methods: Mapping[bytes, MethodDescriptor], bidi: Iterable[bytes]) -> dict[bytes, Method]:
    names = {path: (_type(method), *_split(path)) for path, method in methods.items()}
    names |= {path: ("bidi_stream", *_split(path)) for path in bidi}
    return names | {UNKNOWN: ("unknown", "unknown", "unknown")}


NAMES: Final = _named(METHODS, reflection.PATHS)
"""The values of the labels METHOD by path. All paths that esp does not know share one."""
KNOWN: Final = NAMES.keys() - {UNKNOWN}
"""The paths that esp knows: a bounded set, whatever clients ask for."""

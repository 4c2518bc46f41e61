"""A transaction in the syntax of `etcdctl txn`: compares, then requests for success, then for failure.

A blank line ends each of the three. Quoting is etcdctl's: keys and values of compares as Go quotes them, words of
requests bare, in single quotes as they are, or in double quotes with Go's escapes.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple, NoReturn

from esp.core.keys import OPEN_END, prefix_end
from esp.core.pb import rpc_pb2

MAX_BYTES: Final = 16_777_216
"""The most bytes of a transaction; an etcd takes 1.5 MiB by default."""

SECTIONS: Final = ("compare", "success", "failure")
_SPACE: Final = " \t\n\v\f\r\x85\xa0"
_WORDS: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^'\"\s]\S*[^'\"\s]?", re.ASCII)
_COMPARE: Final = re.compile(
    r'(\w+)\(\s*("(?:[^"\\]|\\.)*"|`[^`]*`)\)\s+(\S+)\s+("(?:[^"\\]|\\.)*"|`[^`]*`).*', re.DOTALL | re.ASCII
)
_ESCAPE: Final = re.compile(
    r"""\\(?:([abfnrtv\\"'])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))|(\\)|(")"""
)
_SHORT: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39}
_RESULTS: Final = {
    "=": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    ">": rpc_pb2.Compare.GREATER,
    "<": rpc_pb2.Compare.LESS,
}
_TARGETS: Final = {
    "ver": "version",
    "version": "version",
    "c": "create_revision",
    "create": "create_revision",
    "m": "mod_revision",
    "mod": "mod_revision",
    "val": "value",
    "value": "value",
}
_KINDS: Final = {
    "version": rpc_pb2.Compare.VERSION,
    "create_revision": rpc_pb2.Compare.CREATE,
    "mod_revision": rpc_pb2.Compare.MOD,
    "value": rpc_pb2.Compare.VALUE,
}
_Range = rpc_pb2.RangeRequest
_SORTS: Final = {
    "CREATE": _Range.CREATE,
    "KEY": _Range.KEY,
    "MODIFY": _Range.MOD,
    "VALUE": _Range.VALUE,
    "VERSION": _Range.VERSION,
}
_ORDERS: Final = {"": _Range.NONE, "ASCEND": _Range.ASCEND, "DESCEND": _Range.DESCEND}
_FLAGS: Final = {
    "put": ({"lease"}, {"prev-kv", "ignore-value", "ignore-lease"}),
    "get": (
        {"consistency", "order", "sort-by", "limit", "rev"}
        | {f"{end}-{what}-rev" for end in ("min", "max") for what in ("create", "mod")},
        {"prefix", "from-key", "keys-only", "count-only", "print-value-only"},
    ),
    "del": (set[str](), {"prefix", "from-key", "prev-kv", "range"}),
}
"""By request, the flags with a value, and those without."""
_INT64: Final = range(-(2**63), 2**63)


class TxnTextError(Exception):
    """The fault in the text, with its cure.

    Attributes:
        line: counted from 1.
    """

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class Part(NamedTuple):
    """A compare or a request.

    Attributes:
        section: one of SECTIONS.
        line: counted from 1.
        text: as it was written.
        key, range_end: the keys that it touches, as in etcd's messages.
    """

    section: str
    line: int
    text: str
    key: bytes
    range_end: bytes


class WrittenTxn(NamedTuple):
    """A transaction, and the lines of which it was made."""

    request: rpc_pb2.TxnRequest
    parts: list[Part]


def read(text: str) -> WrittenTxn:
    """The transaction in `text`, whose surrogate escapes are bytes that are not UTF-8.

    Raises:
        TxnTextError: etcdctl would not read it either.
    """
    made = WrittenTxn(rpc_pb2.TxnRequest(), [])
    section = 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip(_SPACE)
        if not line:
            section += 1
        elif section >= len(SECTIONS):
            if text.split("\n")[number - 1 :] != [""]:
                _fail(
                    number,
                    "etcdctl reads nothing behind the failure requests; a blank line ends each of the three parts",
                )
        else:
            made.parts.append(_part(made.request, SECTIONS[section], number, line))
    return made


def _part(request: rpc_pb2.TxnRequest, section: str, number: int, line: str) -> Part:
    if section == "compare":
        key, range_end = _compare(request.compare.add(), number, line), b""
    else:
        operations: Any = request.success if section == "success" else request.failure
        key, range_end = _operation(operations.add(), number, line)
    return Part(section, number, line, key, range_end)


def _compare(compare: rpc_pb2.Compare, number: int, line: str) -> bytes:
    match = _COMPARE.fullmatch(line)
    if match is None:
        cure = 'write such as mod("key") > "0"; a blank line ends the compares'
        _fail(number, f"malformed comparison: {line}; {cure}")
    target, quoted, result, value = match.groups()
    if target == "lease":
        _fail(number, "etcdctl cannot compare leases; compare with a client library")
    if target not in _TARGETS:
        _fail(number, f"malformed comparison: unknown target {target}; there are {', '.join(_TARGETS)}")
    if result not in _RESULTS:
        _fail(number, f"unknown result op {result}; there are {' '.join(_RESULTS)}")
    field = _TARGETS[target]
    compare.key = _unquoted(quoted, number)
    compare.result = _RESULTS[result]
    compare.target = _KINDS[field]
    told = _unquoted(value, number)
    setattr(compare, field, told if field == "value" else _whole(told, number, f"{target} of a compare"))
    return compare.key


def _operation(operation: rpc_pb2.RequestOp, number: int, line: str) -> tuple[bytes, bytes]:
    words = [_word(word, number) for word in _WORDS.findall(line)]
    name = words[0].decode("utf-8", "replace") if words else ""
    if name not in _FLAGS or len(words) < 2:
        _fail(number, f"invalid txn request: {line}; write put KEY VALUE, get KEY [END] or del KEY [END]")
    arguments, flags = _flags(name, words[1:], number)
    if name == "put":
        return _put(operation.request_put, arguments, flags, number)
    if len(arguments) not in (1, 2):
        _fail(number, f"{name} needs a key, and may have a range end; it has {len(arguments)} arguments")
    key, range_end = _range(name, arguments, flags, number)
    if name == "del":
        deleted = operation.request_delete_range
        deleted.key, deleted.range_end, deleted.prev_kv = key, range_end, "prev-kv" in flags
        return key, range_end
    _get(operation.request_range, flags, number)
    operation.request_range.key, operation.request_range.range_end = key, range_end
    return key, range_end


def _put(put: rpc_pb2.PutRequest, arguments: list[bytes], flags: dict[str, bytes], number: int) -> tuple[bytes, bytes]:
    wanted = 1 if "ignore-value" in flags else 2
    if len(arguments) != wanted:
        ways = "a key alone, with --ignore-value" if wanted == 1 else "a key and a value"
        _fail(number, f"put needs {ways}; it has {len(arguments)} arguments")
    put.key = arguments[0]
    put.value = b"".join(arguments[1:])
    put.lease = _whole(flags.get("lease", b"0"), number, "--lease", 16)
    put.prev_kv, put.ignore_value = "prev-kv" in flags, "ignore-value" in flags
    put.ignore_lease = "ignore-lease" in flags
    return put.key, b""


def _range(name: str, arguments: list[bytes], flags: dict[str, bytes], number: int) -> tuple[bytes, bytes]:
    prefix, from_key = "prefix" in flags, "from-key" in flags
    if prefix and from_key:
        _fail(number, "--prefix and --from-key exclude each other; give one")
    if len(arguments) > 1 and (prefix or from_key):
        _fail(number, f"{name} takes one key with --prefix or --from-key; leave the range end out")
    if prefix or from_key:
        key = arguments[0] or b"\0"
        whole = from_key or not arguments[0]
        return key, OPEN_END if whole else prefix_end(key) or OPEN_END
    return arguments[0], arguments[1] if len(arguments) > 1 else b""


def _get(asked: rpc_pb2.RangeRequest, flags: dict[str, bytes], number: int) -> None:
    consistency = flags.get("consistency", b"l")
    if consistency not in (b"l", b"s"):
        _fail(number, "--consistency is l or s")
    asked.serializable = consistency == b"s"
    order = flags.get("order", b"").decode("utf-8", "replace").upper()
    target = flags.get("sort-by", b"").decode("utf-8", "replace").upper() or "KEY"
    if order not in _ORDERS:
        _fail(number, "--order is ASCEND or DESCEND")
    if target not in _SORTS:
        _fail(number, f"--sort-by is one of {', '.join(_SORTS)}")
    if target == "KEY" and order == "ASCEND":
        order = ""  # as clientv3, which sends no order for the one that etcd has anyway
    asked.sort_target, asked.sort_order = _SORTS[target], _ORDERS[order]
    asked.keys_only, asked.count_only = "keys-only" in flags, "count-only" in flags
    if asked.keys_only and asked.count_only:
        _fail(number, "--keys-only and --count-only exclude each other; give one")
    asked.limit = _whole(flags.get("limit", b"0"), number, "--limit")
    asked.revision = max(0, _whole(flags.get("rev", b"0"), number, "--rev"))
    for what in ("create", "mod"):
        for end in ("min", "max"):
            flag = f"{end}-{what}-rev"
            setattr(asked, f"{end}_{what}_revision", max(0, _whole(flags.get(flag, b"0"), number, f"--{flag}")))


def _flags(name: str, words: list[bytes], number: int) -> tuple[list[bytes], dict[str, bytes]]:
    """The arguments, and the flags that are set, as etcdctl's parser takes them."""
    with_value, without = _FLAGS[name]
    arguments: list[bytes] = []
    found: dict[str, bytes] = {}
    waiting = iter(words)
    for word in waiting:
        if word == b"--":
            arguments += waiting
        elif not word.startswith(b"-") or word == b"-":
            arguments.append(word)
        else:
            flag, equals, value = word.decode("utf-8", "surrogateescape").partition("=")
            flag = flag.removeprefix("--")
            if flag in with_value:
                given = os_bytes(value) if equals else next(waiting, None)
                if given is None:
                    _fail(number, f"--{flag} needs a value")
                found[flag] = given
            elif flag in without:
                _switch(found, flag, value if equals else "true", number)
            else:
                text = word.decode("utf-8", "replace")
                _fail(number, f"{name} has no flag {text}; -- before a key or value that begins with a dash")
    return arguments, found


def _switch(found: dict[str, bytes], flag: str, value: str, number: int) -> None:
    if value in ("true", "True", "TRUE", "t", "T", "1"):
        found[flag] = b""
    elif value in ("false", "False", "FALSE", "f", "F", "0"):
        found.pop(flag, None)
    else:
        _fail(number, f"--{flag} is true or false")


def _word(word: str, number: int) -> bytes:
    if word.startswith("'"):
        return os_bytes(word[1:-1])
    return _unquoted(word, number) if word.startswith('"') else os_bytes(word)


def _unquoted(quoted: str, number: int) -> bytes:
    """The bytes of a text that Go has quoted."""
    inner = quoted[1:-1]
    if quoted.startswith("`"):
        return os_bytes(inner)
    done, position = bytearray(), 0
    for match in _ESCAPE.finditer(inner):
        done += os_bytes(inner[position : match.start()])
        position = match.end()
        short, digits, octal, small, large, wrong, _ = match.groups()
        if short is not None and short != "'":
            done.append(_SHORT[short])
        elif digits is not None:
            done.append(int(digits, 16))
        elif octal is not None and int(octal, 8) < 256:
            done.append(int(octal, 8))
        elif (small or large) is not None and _is_rune(int(small or large, 16)):
            done += chr(int(small or large, 16)).encode()
        else:
            what = wrong or match[0]
            _fail(number, f"{quoted} has {what}, which Go does not read; write \\\\ for a backslash, \\x00 for a byte")
    return bytes(done + os_bytes(inner[position:]))


def _is_rune(number: int) -> bool:
    return number < 0xD800 or 0xE000 <= number <= 0x10FFFF


def _whole(text: bytes, number: int, what: str, base: int = 10) -> int:
    try:
        value = int(text, base) if re.fullmatch(rb"[+-]?[0-9a-fA-F]+", text) else None
    except ValueError:
        value = None
    if value is None or value not in _INT64:
        kind = "a hexadecimal number" if base == 16 else "a whole number"
        _fail(number, f"{what} is {text.decode('utf-8', 'replace')!r}, which is not {kind}")
    return value


def os_bytes(text: str) -> bytes:
    """The bytes of a text as it was read."""
    return text.encode("utf-8", "surrogateescape")


def _fail(number: int, text: str) -> NoReturn:
    raise TxnTextError(number, text)

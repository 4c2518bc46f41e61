"""Bodies in every form that JSON's mapping to protobuf takes, and in those that it does not."""

from __future__ import annotations

from collections.abc import Iterator

from tests.integration.json_case import Case, listed
from tests.integration.json_talk import b64


def _forms() -> Iterator[Case]:
    """What JSON's protobuf mapping takes and does not."""
    put, get = "/v3/kv/put", "/v3/kv/range"
    key = b64("b1")

    def ranged(name: str, **fields: object) -> Case:
        return Case(name, get, {"key": key} | fields)

    yield Case("put", put, {"key": key, "value": b64("?>~")})
    yield ranged("camel names", rangeEnd=b64("b2"), sortOrder="ASCEND", keysOnly=True)
    yield ranged("both names of a field", range_end=b64("b2"), rangeEnd=b64("b3"))
    yield ranged("names in another case", Range_End=b64("c"), LIMIT="x", Key="!")
    yield ranged("unknown fields", unknown={"deep": [1, {"x": None}]}, other="y")
    yield ranged("null everywhere", range_end=None, limit=None, sort_order=None, serializable=None)
    yield ranged("the name of an extension", **{"[a.b]": 1})
    yield ranged("a field of reserved number", **{"1": "x"})
    yield ranged("a type URL", **{"@type": "type.googleapis.com/x"})
    yield ranged("an empty name", **{"": 1})
    yield Case("a name twice", get, f'{{"key":"{key}","key":"{key}"}}')
    yield Case("an unknown name twice", get, f'{{"key":"{key}","zz":1,"zz":2}}')
    yield Case("a name twice, once null", get, f'{{"key":"{key}","limit":null,"limit":1}}')
    yield Case("an escaped name", get, f'{{"\\u006bey":"{key}"}}')
    yield Case("escapes in base64", get, '{"key":"YjE\\u003d"}')
    for number in listed(
        "1 ¦ 0 ¦ -0 ¦ 1.0 ¦ 1.5 ¦ 1e0 ¦ 1e1 ¦ 10e-1 ¦ 1E+1 ¦ 1e400 ¦ -1 ¦ 01 ¦ +1 ¦ 1. ¦ .5 ¦ 0x1 ¦ "
        "1_0 ¦ NaN ¦ Infinity ¦ - ¦ 1e ¦ 9223372036854775807 ¦ 9223372036854775808 ¦ "
        "-9223372036854775808 ¦ -9223372036854775809 ¦ 1e18 ¦ 1e19 ¦ 9.223372036854775807e18 ¦ "
        "0.1e1 ¦ 1e-1 ¦ 100000000000000000000000000000000000000000 ¦ true ¦ [] ¦ {} ¦ 1 2"
    ):
        yield Case(f"limit {number}", get, f'{{"key":"{key}","limit":{number}}}')
        yield Case(f'limit "{number}"', get, f'{{"key":"{key}","limit":"{number}"}}')
    for text in listed(" ¦  1 ¦ 1  ¦ 1\\n ¦ \\u0031 ¦ null ¦ \uff11"):
        yield Case(f'limit "{text}"', get, f'{{"key":"{key}","limit":"{text}"}}')
    for number in listed("0 ¦ 18446744073709551615 ¦ 18446744073709551616 ¦ -1 ¦ 1.0 ¦ 1e2 ¦ -0 ¦ -0.0"):
        yield Case(f"an unsigned {number}", "/v3/maintenance/alarm", f'{{"memberID":{number}}}', one_shard=True)
        yield Case(f'an unsigned "{number}"', "/v3/maintenance/alarm", f'{{"memberID":"{number}"}}', one_shard=True)
    for value in listed(
        '"NONE" ¦ "ASCEND" ¦ "ascend" ¦ "Ascend " ¦ "UP" ¦ "" ¦ 0 ¦ 1 ¦ 2 ¦ 7 ¦ -1 ¦ 1.0 ¦ 1e0 ¦ '
        '1.5 ¦ "1" ¦ 2147483647 ¦ 2147483648 ¦ -2147483649 ¦ null ¦ true ¦ [] ¦ {}'
    ):
        yield Case(f"enum {value}", get, f'{{"key":"{key}","range_end":"{b64("b9")}","sort_order":{value}}}')
    for value in listed('true ¦ false ¦ "true" ¦ "false" ¦ 1 ¦ 0 ¦ null ¦ tru ¦ TRUE ¦ "" ¦ []'):
        yield Case(f"bool {value}", get, f'{{"key":"{key}","keys_only":{value}}}')
    base64s = listed(
        "YjE= ¦ YjE ¦ YjE== ¦ YjE=\\n ¦  YjE= ¦ Yj E= ¦ YjE=YjE= ¦ YjF= ¦ Y ¦ YQ ¦ Yg== ¦ ! ¦ Pz5- ¦ "
        "Pz5+ ¦ Pz5_ ¦ Pz5/ ¦ -_+/ ¦ = ¦ ==== ¦  ¦ \xe9 ¦ YjE\\u0000"
    )
    for text in base64s:
        yield Case(f'base64 "{text}"', get, f'{{"key":"{text}"}}')
        yield Case(f'a value of base64 "{text}"', put, f'{{"key":"{key}","value":"{text}","prev_kv":true}}')
    for value in ["1", "null", "[]", "{}", "true", "[98,49]"]:
        yield Case(f"bytes {value}", get, f'{{"key":{value}}}')
    for value in listed('1 ¦ null ¦ "" ¦ true ¦ [] ¦ [1] ¦ ["x"] ¦ [{"key":"YQ=="}] ¦ {} ¦ [[]] ¦ [null]'):
        yield Case(f"a list {value}", "/v3/kv/txn", f'{{"success":{value}}}')
    for value in listed(
        '"x" ¦ 1 ¦ null ¦ "\\ud800" ¦ "\\ud83d\\ude00" ¦ "\\x" ¦ "\\u12" ¦ "a\tb" ¦ "\\/\\b\\f\\n\\r\\t" ¦ []'
    ):
        yield Case(f"a string {value}", "/v3/auth/user/get", f'{{"name":{value}}}')
    yield Case("a string that is no UTF-8", "/v3/auth/user/get", b'{"name":"\xff\xfe"}')
    yield Case("a name that is no UTF-8", get, b'{"\xff":1}')
    yield Case("a string with a surrogate in UTF-8", "/v3/auth/user/get", b'{"name":"\xed\xa0\x80"}')
    yield Case("a string of a control character", "/v3/auth/user/get", '{"name":"\x01"}')
    yield Case(
        "a text that JSON escapes, in an error", "/v3/auth/user/add", {"name": 'a<b>&\u2028"\\', "password": "x"}
    )
    yield Case("a text that JSON escapes, in an answer", "/v3/auth/user/get", {"name": 'a<b>&\u2028"\\'})
    yield Case("users", "/v3/auth/user/list", {})
    yield Case("and its end", "/v3/auth/user/delete", {"name": 'a<b>&\u2028"\\'})


def _texts() -> Iterator[Case]:
    """Bodies that are not one JSON object."""
    get, key = "/v3/kv/range", b64("b1")
    good = f'{{"key":"{key}"}}'
    bodies: dict[str, str | bytes] = {
        "nothing": "", "blanks": " \n\t ", "null": "null", "a number": "1", "a string": '"x"', "a list": "[]",
        "a list of one": f"[{good}]", "true": "true", "a word": "range", "an open object": "{", "a closed object": "}",
        "half a name": '{"ke', "a name alone": '{"key"}', "no value": '{"key":}', "no colon": '{"key" "YQ=="}',
        "single quotes": "{'key':'YQ=='}", "no quotes": "{key:1}", "a comma too many": f'{{"key":"{key}",}}',
        "a comma too early": '{,"key":""}', "two commas": f'{{"key":"{key}",,"limit":1}}',
        "no comma": '{"key":"" "limit":1}',
        "a comment": f"{good}/* x */", "a comment before": f"// x\n{good}", "two objects": good + good,
        "two objects, two lines": f"{good}\n{good}\n", "garbage behind": good + "garbage",
        "an object and a brace": good + "}",
        "half an object behind": good + '{"ke', "blanks around": f" \r\n\t{good} \n",
        "a byte order mark": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": good.encode("utf-16"), "a zero byte": b"\0", "a zero byte behind": good.encode() + b"\0",
        "a form feed before": "\f" + good, "a no-break space before": "\u00a0" + good, "protobuf": b"\n\x02b1",
        "a form": "key=YjE%3D", "XML": "<key/>", "a deep list": '{"x":' + "[" * 200 + "]" * 200 + "}",
        "a list of a depth of 9999": '{"x":' + "[" * 9998 + "]" * 9998 + "}",
        "a list of a depth of 10001": '{"x":' + "[" * 10001 + "]" * 10001 + "}",
        "an open list of a depth of 20000": '{"x":' + "[" * 20000, "a deep object": '{"x":' * 300 + "1" + "}" * 300,
        "a txn of a depth of 40": '{"success":[{"request_txn":' * 40 + "{}" + "}]}" * 40,
        "a txn of a depth of 6000": '{"success":[{"request_txn":' * 6000 + "{}" + "}]}" * 6000,
        "a number without an end": '{"limit":1', "half a word": '{"serializable":tr',
        "a string without an end": '{"key":"YjE=',
        "half an escape": '{"key":"\\u00', "a wrong word": '{"serializable":trua}', "nothing but a minus": "-",
    }  # fmt: skip
    for name, body in bodies.items():
        yield Case(name, get if "txn" not in name else "/v3/kv/txn", body)
    for body in ["null", "1", "[]", "{} {}"]:
        yield Case(f"an empty request: {body}", "/v3/auth/status", body, masked=("authRevision",))


GROUPS = {"forms": _forms, "texts": _texts}

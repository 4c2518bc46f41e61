"""JSON values cut from a body, with the refusals of Go's encoding/json."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.gateway.values import MAX_DEPTH, MAX_ESCAPES, NotJson, Values


def cut(*pieces: bytes, most: int = 1000) -> list[bytes]:
    """All values of a body that comes in these pieces."""
    values = Values()
    found = []
    for piece in pieces:
        values.feed(piece)
        more = True
        while more:
            value, more = values.next(most)
            if value is not None:
                found.append(value)
                more = True
    last = values.end()
    return found if last is None else [*found, last]


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"", []),
        (b" \n\t\r", []),
        (b"{}", [b"{}"]),
        (b'{"a":1}{"b":2}', [b'{"a":1}', b'{"b":2}']),
        (b' {"a": [1, {}]}\n\n [] ', [b'{"a": [1, {}]}', b"[]"]),
        (b'"a" "\\"" "{" null true false', [b'"a"', b'"\\""', b'"{"', b"null", b"true", b"false"]),
        (b"1 -2 3.5 4e5 6E-7 0", [b"1", b"-2", b"3.5", b"4e5", b"6E-7", b"0"]),
        (b"12{}", [b"12", b"{}"]),
        (b"01", [b"0", b"1"]),
        (b'{"\xff":"\xc3"}', [b'{"\xff":"\xc3"}']),
        (b'"\\u12aF\\n"', [b'"\\u12aF\\n"']),
    ],
)
def test_the_values_of_a_body(body: bytes, values: list[bytes]) -> None:
    assert cut(body) == values
    assert cut(*(body[i : i + 1] for i in range(len(body)))) == values
    assert cut(body, most=1) == values


# Each text is that of Go 1.26's json.Decoder.
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"'", "invalid character '\\'' looking for beginning of value"),
        (b"\xff", "invalid character 'ÿ' looking for beginning of value"),
        (b"\x01", "invalid character '\\x01' looking for beginning of value"),
        (b"[,", "invalid character ',' looking for beginning of value"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b"{1", "invalid character '1' looking for beginning of object key string"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b'{"a" 1', "invalid character '1' after object key"),
        (b'{"a":1 "', "invalid character '\"' after object key:value pair"),
        (b'"\n', "invalid character '\\n' in string literal"),
        (b'"\\x', "invalid character 'x' in string escape code"),
        (b'"\\u12g', "invalid character 'g' in \\u hexadecimal character escape"),
        (b"-x", "invalid character 'x' in numeric literal"),
        (b"1.x", "invalid character 'x' after decimal point in numeric literal"),
        (b"1ex", "invalid character 'x' in exponent of numeric literal"),
        (b"1e+x", "invalid character 'x' in exponent of numeric literal"),
        (b"trux", "invalid character 'x' in literal true (expecting 'e')"),
        (b"fx", "invalid character 'x' in literal false (expecting 'a')"),
        (b"nulx", "invalid character 'x' in literal null (expecting 'l')"),
        (b"}", "invalid character '}' looking for beginning of value"),
        (b"{", "unexpected EOF"),
        (b'"abc', "unexpected EOF"),
        (b"tru", "unexpected EOF"),
        (b"1.", "unexpected EOF"),
        (b"[1", "unexpected EOF"),
        (b'{"a":1', "unexpected EOF"),
        (b"[" * (MAX_DEPTH + 1), "invalid character '[' exceeded max depth"),
    ],
)
def test_what_is_no_json(body: bytes, text: str) -> None:
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        with pytest.raises(NotJson) as refusal:
            cut(*pieces)
        assert str(refusal.value) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values=st.lists(JSON, max_size=4), size=st.integers(1, 30), ascii_only=st.booleans())
def test_what_python_writes_is_cut_alike(values: list[object], size: int, ascii_only: bool) -> None:
    written = [json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for value in values]
    body = b" ".join(written)
    assert cut(*(body[i : i + size] for i in range(0, len(body), size))) == written


@given(body=st.binary(max_size=40) | st.text('{}[]",:0123.e-+truefalsn\\ ', max_size=40).map(str.encode))
def test_what_it_takes_python_takes_too(body: bytes) -> None:
    try:
        values = cut(body)
    except NotJson:
        return
    for value in values:
        json.loads(value.decode("latin-1"))


def test_a_string_of_too_many_escapes() -> None:
    enough = b'"' + b"\\n" * MAX_ESCAPES + b'"'
    assert cut(enough + enough, most=10**6) == [enough, enough]
    with pytest.raises(NotJson, match="esp: more than 100000 escapes in a string"):
        cut(b'"' + b"\\n" + enough[1:], most=10**6)


def test_a_long_string_in_pieces_is_looked_at_once() -> None:
    values = Values()
    values.feed(b'"')
    for _ in range(100):
        values.feed(b"x" * 1000)
        assert values.next(10) == (None, False)
        assert values._at == values.held

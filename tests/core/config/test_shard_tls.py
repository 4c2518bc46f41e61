"""TLS towards the shards, as the config file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp.core.config import ConfigError, Endpoint, ShardTls, parse
from esp.core.local_tls import Authority, write_file
from esp.core.tls_paths import Files

CA = Authority()
PAIR = CA.issue()
ALL = '  ranges: [{start: "", end: ""}]\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    write_file(folder / "ca.crt", CA.cert)
    PAIR.write(folder, "esp")
    write_file(folder / "both.pem", PAIR.cert + PAIR.key)
    write_file(folder / "empty", b"")
    CA.issue().write(folder, "other")
    return folder


def shards(folder: Path, text: str) -> list[ShardTls | None]:
    return [shard.tls for shard in parse(text, folder / "esp.yaml").shards]


def one(tls: str = "", url: str = "https://etcd:2379") -> str:
    return f"shards:\n- name: a\n  endpoints: ['{url}']\n{ALL}" + (f"  tls: {tls}\n" if tls else "")


def test_an_endpoint_with_https_is_one_of_tls(folder: Path) -> None:
    shard = parse(one(), folder / "esp.yaml").shards[0]
    assert shard.endpoints == (Endpoint("etcd", 2379, tls=True),)
    assert str(shard.endpoints[0]) == "https://etcd:2379"
    assert str(Endpoint("::1", 2379, tls=True)) == "https://[::1]:2379"
    assert shard.tls == ShardTls(Files(), "", verify=True)
    assert shards(folder, one(url="http://etcd:2379")) == shards(folder, one(url="etcd:2379")) == [None]


def test_the_files_stand_beside_the_config_file(folder: Path) -> None:
    ca, cert, key = folder / "ca.crt", folder / "esp.crt", folder / "esp.key"
    assert shards(folder, one("{ca: ca.crt, cert: esp.crt, key: esp.key}")) == [ShardTls(Files(cert, key, ca))]
    assert shards(folder, one(f"{{ca: {ca}}}")) == [ShardTls(Files(ca=ca))]
    both = folder / "both.pem"
    assert shards(folder, one("{cert: both.pem, key: both.pem}")) == [ShardTls(Files(both, both))]


def test_the_name_of_the_server_and_skipping_the_check(folder: Path) -> None:
    assert shards(folder, one("{server_name: etcd.example}")) == [ShardTls(server_name="etcd.example")]
    assert shards(folder, one("{server_name: '::1'}")) == shards(folder, one("{server_name: '[::1]'}"))
    assert shards(folder, one("{insecure_skip_verify: true}")) == [ShardTls(verify=False)]
    assert shards(folder, one("{insecure_skip_verify: false}")) == [ShardTls()]


def test_a_shard_s_own_tls_takes_the_place_of_that_for_all(folder: Path) -> None:
    text = (
        "shard_tls: {ca: ca.crt}\n"
        "shards:\n"
        "- {name: a, endpoints: ['https://a:1'], ranges: [{start: '', end: b}]}\n"
        "- {name: b, endpoints: ['https://b:1'], ranges: [{start: b, end: c}], tls: {server_name: x}}\n"
        "- {name: c, endpoints: ['http://c:1'], ranges: [{start: c, end: ''}]}\n"
    )
    assert shards(folder, text) == [ShardTls(Files(ca=folder / "ca.crt")), ShardTls(server_name="x"), None]


def test_the_original_format_takes_tls_for_all(folder: Path) -> None:
    text = "shard_tls: {ca: ca.crt}\nshards: [{address: 'https://a:1', end: m}, {address: 'https://b:1', start: m}]\n"
    assert shards(folder, text) == [ShardTls(Files(ca=folder / "ca.crt"))] * 2


NONE = "shards:\n- name: a\n  endpoints: ['http://etcd:1']\n" + ALL
FAULTS = {
    "a plain shard with tls": (
        one("{}", "http://etcd:2379"),
        '5: shard "a" has "tls", but endpoint http://etcd:2379 is plain; write https://etcd:2379, or leave out "tls"',
    ),
    "a plain shard without scheme": (
        one("{}", "etcd:2379"),
        '5: shard "a" has "tls", but endpoint http://etcd:2379 is plain; write https://etcd:2379, or leave out "tls"',
    ),
    "no shard of tls": (
        NONE + "shard_tls: {}\n",
        '5: "shard_tls" is given, but all endpoints are plain; write https:// before those of TLS',
    ),
    "a mixture": (
        "shards:\n- name: a\n  endpoints:\n  - https://a:1\n  - http://b:1\n" + ALL,
        '5: shard "a": endpoints https://a:1 and http://b:1 differ: all of a shard are https://, or none',
    ),
    "one endpoint as two": (
        "shards:\n- name: a\n  endpoints: ['https://a:1', 'http://a:1']\n" + ALL,
        '3: shard "a": endpoint http://a:1 is listed in shard "a" already; remove it from one',
    ),
    "an endpoint twice": (
        "shards:\n- name: a\n  endpoints: ['https://a:1', 'https://a:1']\n" + ALL,
        '3: shard "a": endpoint https://a:1 is listed in shard "a" already; remove it from one',
    ),
    "no such file": (
        one("{ca: missing}"),
        '5: "tls": "ca": {folder}/missing cannot be read: no such file or directory',
    ),
    "no such file for all": (
        "shard_tls:\n  ca: ca.crt\n  cert: missing\n  key: esp.key\n" + one(),
        '3: "shard_tls": "cert": {folder}/missing cannot be read: no such file or directory',
    ),
    "an empty file": (one("{ca: empty}"), '5: "tls": "ca": {folder}/empty is empty'),
    "a key of another certificate": (
        one("{cert: esp.crt, key: other.key}"),
        '5: "tls": "key": {folder}/other.key does not belong to the certificate {folder}/esp.crt; name the pair',
    ),
    "the key for the certificate": (
        one("{cert: esp.key, key: esp.key}"),
        '5: "tls": "cert": {folder}/esp.key is a private key; name the certificate',
    ),
    "a certificate alone": (
        one("{cert: esp.crt}"),
        '5: "tls": "cert" is given without "key"; write both, the same file if it has both',
    ),
    "a key alone": (
        one("{key: esp.key}"),
        '5: "tls": "key" is given without "cert"; write both, the same file if it has both',
    ),
    "an empty name": (one("{ca: ''}"), '5: "tls": "ca" is empty; leave it out'),
    "no host": (
        one("{server_name: 'a b'}"),
        '5: "tls": "server_name": "a b" cannot be part of a host name; correct it or use an address',
    ),
    "a CA that is not used": (
        one("{ca: ca.crt, insecure_skip_verify: true}"),
        '5: "tls": "ca" has no use with "insecure_skip_verify": no certificate is checked; leave one out',
    ),
    "another spelling": (
        one("{insecure-skip-verify: true}"),
        '5: "tls": unknown field "insecure-skip-verify"; did you mean "insecure_skip_verify"?',
    ),
    "no truth value": (
        one("{insecure_skip_verify: 1}"),
        '5: "tls": "insecure_skip_verify" must be true or false, not a number',
    ),
    "no mapping": (one("yes"), '5: shard "a": "tls" must be a mapping, not true or false'),
    "a password": (one("{password: x}"), '5: "tls": unknown field "password"; the fields here are ca, cert, key'),
}


@pytest.mark.parametrize(("text", "error"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_told_with_its_line(folder: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, folder / "esp.yaml")
    assert str(caught.value).startswith(f"{folder}/esp.yaml:" + error.replace("{folder}", str(folder)))


def test_files_of_many_shards_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Files] = []
    monkeypatch.setattr("esp.core.tls_files.check_files", read.append)
    entries = [
        f"- {{endpoints: ['https://h{n}:1'], ranges: [{{start: '{n or ''}', end: '{n + 1 if n < 9 else ''}'}}], "
        "tls: {ca: ca.crt}}\n"
        for n in range(10)
    ]
    parse("shards:\n" + "".join(entries), folder / "esp.yaml")
    assert read == [Files(ca=folder / "ca.crt")]

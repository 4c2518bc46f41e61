"""`esp serve` in front of shards with TLS: starts that are refused, and what is told at the start."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from tests.core.shard.secured_etcds import Certificates, start
from tests.harness import PATIENCE, Esps

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def etcd(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, etcd_binary: Path
) -> Iterator[LocalEtcd]:
    etcd = start(tmp_path_factory.mktemp("etcds"), "secured", etcd_binary, certificates.server)
    yield etcd
    etcd.kill()


def config(folder: Path, etcd: LocalEtcd, tls: dict[str, object]) -> Path:
    shard = {"name": "a", "endpoints": [etcd.endpoint], "ranges": [{"start": "", "end": ""}]}
    path = folder / "secured.yaml"
    path.write_text(json.dumps({"shards": [shard], "shard_tls": tls}))
    return path


def test_skipping_the_check_is_told_at_the_start(
    etcd: LocalEtcd, certificates: Certificates, start_esp: Esps, etcdctl: Etcdctl, tmp_path: Path
) -> None:
    pair = {"cert": str(certificates.client.cert), "key": str(certificates.client.key)}
    esp = start_esp.launch("-c", config(tmp_path, etcd, {"insecure_skip_verify": True, **pair}))
    esp.wait_ready()
    told, *_ = esp.log().splitlines()
    assert told.endswith(
        "WARNING the certificates of shard a are not checked (insecure_skip_verify): whoever is on the way reads all"
    )
    assert etcdctl(esp, "put", "a", "1").stdout == "OK\n"


def test_a_certificate_with_a_common_name_is_no_start_where_auth_is_on(
    etcd: LocalEtcd, certificates: Certificates, start_esp: Esps, etcdctl: Etcdctl, tmp_path: Path
) -> None:
    named = certificates.make("named", common_name="root")
    tls = {"ca": str(named.ca), "cert": str(named.cert), "key": str(named.key)}
    path = config(tmp_path, etcd, tls)
    esp = start_esp.launch("-c", path)
    esp.wait_ready()  # auth is off
    for words in ("user add root:r", "user grant-role root root", "auth enable"):
        etcdctl(esp, *words.split())
    assert esp.stop() == 0
    refused = start_esp.launch("-c", path)
    assert refused.wait(PATIENCE) == 1
    assert refused.log().splitlines()[-1] == (
        f'esp: shard "a" cannot be served: auth is on, and esp\'s certificate {named.cert} has the common name "root": '
        "every client without a token would act as that user; "
        "make a certificate without common name (openssl req -subj /)"
    )

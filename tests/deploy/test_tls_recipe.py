"""The recipe of docs/tls.md as it stands: certificates made by openssl, TLS on both sides of esp, stock clients."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.tls_paths import Files
from tests.deploy.page import boxes
from tests.harness import PATIENCE, Esps, Etcds, peer, run_etcdctl, wait_ready

RECIPE = boxes("tls.md")


def test_certificates_of_the_recipe_serve_clients_shards_and_strict_readers(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    made = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", RECIPE["certificates"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    files = Files(tmp_path / "etcd.crt", tmp_path / "etcd.key", tmp_path / "ca.crt")
    shards = [LocalEtcd(name, tmp_path / name, binary=peer("etcd"), tls=files) for name in ("a", "b")]
    start_etcd.started.extend(shards)
    for shard in shards:
        shard.start()
    wait_ready(*shards)
    text = RECIPE["tls-config"]
    for shard in shards:
        published = f"https://etcd-{shard.name}.example:2379"
        assert published in text
        text = text.replace(published, shard.endpoint)
    config = tmp_path / "esp.yaml"
    config.write_text(text)
    url = f"https://127.0.0.1:{free_port()}"
    esp = start_esp.launch("-c", config, "--listen", url, config=config)
    esp.wait_ready()
    flags = ["--cacert", "ca.crt", "--cert", "client.crt", "--key", "client.key"]
    flags = [word if word.startswith("--") else str(tmp_path / word) for word in flags]
    for key in ("a", "z"):
        assert run_etcdctl(peer("etcdctl"), url, *flags, "put", key, "1").stdout == "OK\n"
    with_none = run_etcdctl(
        peer("etcdctl"), url, "--cacert", str(tmp_path / "ca.crt"), "--command-timeout", "1s", "get", "a", check=False
    )
    assert with_none.returncode != 0
    assert "the client shows no certificate" in esp.log()
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of clients in Python from 3.13 on
    context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
    with urllib.request.urlopen(f"{url}/version", context=context, timeout=PATIENCE) as page:
        assert page.status == 200

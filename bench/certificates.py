"""A throw-away certificate for peers that speak TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.processes import HOST, BenchError


def make_pair(folder: Path) -> Path:
    """One file with a new certificate for HOST and its key: ECDSA P-256, signed by itself."""
    cert, key, both = folder / "cert.pem", folder / "key.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-keyout",
        str(key),
        "-out",
        str(cert),
        "-days",
        "2",
        "-subj",
        "/",
        "-addext",
        f"subjectAltName=IP:{HOST}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"openssl: {done.stderr[-500:]}")
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    return both

"""Bytes that esp writes by hand: protobufs of other languages must read them as upb does.

scripts/foreign builds the decoders of other languages; a test without its decoder skips. Those of Go and Rust (prost)
do not run here: the programs in tests/foreign/go and rust read esp's answers in trials, and take no bytes to decode.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from esp.core.pb import auth_pb2, kv_pb2, rpc_pb2
from tests.core.services.written import written
from tests.harness import foreign

HERE = Path(__file__).parent
TEN_BYTES = "2086808080808080808000"
"""A count of 6, in the form that protobuf-java reads as another number."""


def command(decoder: str, folder: Path) -> Sequence[str | Path]:
    if decoder in ("upb", "python"):
        return [sys.executable, HERE / "reencode.py", decoder]
    if decoder == "protobufjs":
        return ["node", foreign("node") / "reencode.js", HERE.parent.parent / "proto"]
    java = foreign("java")
    files = FileDescriptorSet()
    for module in (kv_pb2, auth_pb2, rpc_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    described = folder / "descriptors"
    described.write_bytes(files.SerializeToString())
    jars = [java / "newer" / "*"] if decoder == "protobuf-java 4" else []
    return ["java", "-cp", ":".join(map(str, [java / "classes", *jars, java / "lib" / "*"])), "Reencode", described]


def reencoded(decoder: str, folder: Path, lines: Sequence[str]) -> list[str]:
    environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb" if decoder == "upb" else "python"}
    done = subprocess.run(
        command(decoder, folder),
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        cwd=HERE.parent.parent,
        env=environment | {"PYTHONPATH": str(HERE.parent.parent)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


DECODERS = ("upb", "python", "protobuf-java 3", "protobuf-java 4", "protobufjs")


@pytest.mark.parametrize("decoder", DECODERS)
def test_it_reads_the_same(decoder: str, tmp_path: Path) -> None:
    samples = written()
    lines = [f"{message.DESCRIPTOR.full_name} {data.hex()}" for message, data in samples]
    answers = reencoded(decoder, tmp_path, lines)
    for (message, data), got in zip(samples, answers, strict=True):
        assert message.FromString(bytes.fromhex(got)) == message.FromString(data), data.hex()


@pytest.mark.parametrize("decoder", ["protobuf-java 3", "protobuf-java 4"])
def test_a_number_of_ten_bytes_is_what_it_does_not_read_the_same(decoder: str, tmp_path: Path) -> None:
    """So the comparison finds what it is for."""
    [got] = reencoded(decoder, tmp_path, [f"etcdserverpb.RangeResponse {TEN_BYTES}"])
    assert rpc_pb2.RangeResponse.FromString(bytes.fromhex(got)).count == 6 - 2**63

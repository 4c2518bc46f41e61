"""Reads lines "message hex" and writes each message's bytes, in hex, as this Python's protobuf writes what it has read.

Run with PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python for the decoder that is written in Python.
"""

from __future__ import annotations

import sys

from google.protobuf.internal import api_implementation
from google.protobuf.message_factory import GetMessageClass

from esp.core.pb import rpc_pb2

assert api_implementation.Type() == sys.argv[1]
for line in sys.stdin:
    name, data = line.split()
    message = GetMessageClass(rpc_pb2.DESCRIPTOR.pool.FindMessageTypeByName(name))
    sys.stdout.write(message.FromString(bytes.fromhex(data)).SerializeToString().hex() + "\n")

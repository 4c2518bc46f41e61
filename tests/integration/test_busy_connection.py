"""Much at once over one connection, as honest clients have it: a shard in trouble costs only the calls to it."""

from __future__ import annotations

import signal

import grpc

from esp.core.pb import rpc_pb2
from tests.harness import Esps, Etcds
from tests.integration.watch_talk import talking

Range = rpc_pb2.RangeRequest


def test_deadlines_that_run_out_on_a_stopped_shard_cost_nothing_else(start_etcd: Etcds, start_esp: Esps) -> None:
    """300 calls with a time-out of half a second, again and again; their client takes each back when it has run out."""
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    assert shards[1].process
    with talking(esp, shards[0]) as talk:
        talk.created(key=b"a")
        shards[1].process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(8):
                late = [talk.kv.Range.future(Range(key=b"z%d" % number), timeout=0.5) for number in range(300)]
                for number in range(20):
                    talk.puts(b"b%d" % number)
                assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        finally:
            shards[1].process.send_signal(signal.SIGCONT)
        talk.puts(b"a")
        assert [event.kv.key for event in talk.hears()[0].events] == [b"a"]
    assert "ENHANCE_YOUR_CALM" not in esp.log()

"""The search for kube-apiservers, and its bounds; integration/test_kubernetes.py shows how one is found."""

from __future__ import annotations

from esp.core.apiservers import MAX_ROOTS, ApiServers, roots_in_question
from esp.core.background import Background
from esp.core.keys import KeyRange
from esp.core.kubernetes import COMPACT_KEY
from esp.core.layout import Layout
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

MAP = ShardMap.build([("x", KeyRange(b"", b"/a/b/c")), ("y", KeyRange(b"/a/b/c", None))], ["x", "y"])


def wanted(*keys: bytes) -> list[bytes]:
    """What is looked for, besides the compactor's key, after these keys were seen."""
    context, background = WireContext(Limits()), Background()
    layout = Layout.of(MAP, [Shard(name, [], context, background) for name in MAP.names])
    found = ApiServers(layout, (), protects=True)
    for key in keys:
        found.saw(key)
    return [key for key in found._wanted if key != COMPACT_KEY]


def test_what_apiservers_write_makes_esp_look_for_their_namespace() -> None:
    assert wanted(b"/registry/masterleases/10.0.0.1") == [b"/registry/namespaces/kube-system"]
    assert wanted(b"/k/s/leases/kube-system/apiserver-ab12") == [b"/k/s/namespaces/kube-system"]
    assert wanted(b"/masterleases/10.0.0.1") == [b"/namespaces/kube-system"]


def test_other_keys_do_not() -> None:
    assert wanted(b"/registry/leases/kube-system/other", b"masterleases/", b"", b"/registry/pods/a/b") == []


def test_no_more_than_so_many_are_looked_for() -> None:
    assert len(wanted(*(b"/%d/masterleases/x" % number for number in range(100)))) == MAX_ROOTS
    assert wanted(b"/" + b"x" * 2000 + b"/masterleases/x") == []


def test_the_directories_that_a_boundary_lies_in() -> None:
    assert roots_in_question(MAP) == [b"/", b"/a/", b"/a/b/"]

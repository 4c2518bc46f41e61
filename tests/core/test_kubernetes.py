# ruff: noqa: E501 - a table reads best with one case on each line
"""The keys in which kube-apiserver keeps resources, and the resources that a shard map divides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from esp.core.config import load
from esp.core.keys import KeyRange
from esp.core.kubernetes import Cut, cuts, directory, is_built_in, resource_range
from esp.core.shard_map import ShardMap, carve

ROOT = b"/registry/"


def a_map(*ranges: KeyRange) -> ShardMap:
    """Shard 0 owns all but these ranges, of which shard i owns the i-th."""
    names = [f"s{number}" for number in range(len(ranges) + 1)]
    parts = carve([(name, part) for name, part in zip(names, (KeyRange(b"", None), *ranges), strict=True)])
    return ShardMap.build([(names[number], part) for number, part in parts], names)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("pods", b"/registry/pods"),
        ("apps/deployments", b"/registry/deployments"),
        ("deployments", b"/registry/deployments"),
        ("rbac.authorization.k8s.io/roles", b"/registry/roles"),
        ("nodes", b"/registry/minions"),
        ("services", b"/registry/services/specs"),
        ("endpoints", b"/registry/services/endpoints"),
        ("services/specs", b"/registry/services/specs"),
        ("networking.k8s.io/ingresses", b"/registry/ingress"),
        ("example.com/widgets", b"/registry/example.com/widgets"),
        ("example.com/nodes", b"/registry/example.com/nodes"),
        ("gateway.networking.k8s.io/httproutes", b"/registry/gateway.networking.k8s.io/httproutes"),
        ("apiregistration.k8s.io/apiservices", b"/registry/apiregistration.k8s.io/apiservices"),
        ("apiextensions.k8s.io/customresourcedefinitions", b"/registry/apiextensions.k8s.io/customresourcedefinitions"),
        ("ingresses", b"/registry/ingress"),
        ("replicationcontrollers", b"/registry/controllers"),
        ("events", b"/registry/events"),
        ("events.k8s.io/events", b"/registry/events"),
    ],
)
def test_a_resource_has_its_path(name: str, path: bytes) -> None:
    assert resource_range(name) == KeyRange(path, path + b"0")


@pytest.mark.parametrize(
    ("etcd_prefix", "root"), [("/registry", ROOT), ("k8s/a/", b"/k8s/a/"), ("/", b"/"), ("", b"/")]
)
def test_another_prefix(etcd_prefix: str, root: bytes) -> None:
    assert directory(etcd_prefix) == root
    assert resource_range("pods", etcd_prefix) == KeyRange(root + b"pods", root + b"pods0")


@pytest.mark.parametrize("name", ["", "/pods", "pods/", "a/b/c", "Pods", "po ds", "/registry/pods"])
def test_what_is_no_resource(name: str) -> None:
    with pytest.raises(ValueError, match="is no resource; write pods"):
        resource_range(name)


@pytest.mark.parametrize("name", ["pods", "nodes", "services", "endpoints", "events", "example.com/widgets", "a.b/c"])
def test_the_shorthand_cuts_nothing(name: str) -> None:
    assert cuts(a_map(resource_range(name)), ROOT) == []


def test_neither_does_a_shorthand_inside_the_keys_of_another() -> None:
    # "." comes before "/", so the keys of this group are among those that begin with "events".
    assert cuts(a_map(resource_range("events"), resource_range("events.example.com/widgets")), ROOT) == []


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        # The form that looks right: the key without a slash stays behind.
        (KeyRange(b"/registry/pods/", b"/registry/pods0"), Cut(b"/registry/pods", b"/registry/pods/", ("s0", "s1"), False)),
        (KeyRange(b"/registry/pods/m", b"/registry/pods0"), Cut(b"/registry/pods", b"/registry/pods/m", ("s0", "s1"), True)),
        (
            KeyRange(b"/registry/example.com/widgets/", b"/registry/example.com/widgets0"),
            Cut(b"/registry/example.com/widgets", b"/registry/example.com/widgets/", ("s0", "s1"), False),
        ),
        (
            KeyRange(b"/registry/services/specs/x", b"/registry/services/specs0"),
            Cut(b"/registry/services/specs", b"/registry/services/specs/x", ("s0", "s1"), True),
        ),
        # Not a resource that is known, but a boundary that lies in one.
        (KeyRange(b"/registry/things/x", b"/registry/u"), Cut(b"/registry/things", b"/registry/things/x", ("s0", "s1"), True)),
        # Neither key nor objects are named, and they are parted all the same.
        (KeyRange(b"/registry/pods-", b"/registry/q"), Cut(b"/registry/pods", b"/registry/pods-", ("s0", "s1"), False)),
    ],
)  # fmt: skip
def test_a_resource_that_is_cut_is_found(cut: KeyRange, expected: Cut) -> None:
    assert cuts(a_map(cut), ROOT) == [expected]


@pytest.mark.parametrize(
    "apart",
    [
        KeyRange(b"/registry/", b"/registry0"),
        KeyRange(b"/registry/m", b"/registry/o"),
        KeyRange(b"/registry/services/", b"/registry/services0"),
        KeyRange(b"/registry/example.com/", b"/registry/example.com0"),
        KeyRange(b"/registry/ranges/", b"/registry/ranges0"),
        KeyRange(b"a", b"b"),
    ],
)
def test_a_boundary_between_resources_cuts_none(apart: KeyRange) -> None:
    assert cuts(a_map(apart), ROOT) == []


def test_below_another_prefix() -> None:
    shard_map = a_map(KeyRange(b"/k8s/pods/", b"/k8s/pods0"))
    assert cuts(shard_map, ROOT) == []
    assert [cut.resource for cut in cuts(shard_map, b"/k8s/")] == [b"/k8s/pods"]


def test_it_says_what_is_wrong_and_the_cure() -> None:
    (aside,) = cuts(a_map(KeyRange(b"/registry/pods/", b"/registry/pods0")), ROOT)
    assert aside.explain() == (
        'the key "/registry/pods" is in another shard than the objects below "/registry/pods/", s0, s1 '
        '(boundary "/registry/pods/"): kube-apiserver reads from that key which revision a list must have; '
        'give one shard {start: "/registry/pods", end: "/registry/pods0"}, which {kubernetes: RESOURCE} stands for'
    )
    (split,) = cuts(a_map(KeyRange(b"/registry/pods/m", b"/registry/pods0")), ROOT)
    assert split.explain() == (
        'the objects below "/registry/pods/" are in several shards, s0, s1 '
        '(boundary "/registry/pods/m"): kube-apiserver can neither list nor watch them rightly; '
        'give one shard {start: "/registry/pods", end: "/registry/pods0"}, which {kubernetes: RESOURCE} stands for'
    )


@pytest.mark.parametrize(
    ("key", "range_end", "known"),
    [
        (b"/registry/pods/", b"/registry/pods0", True),
        (b"/registry/services/specs/", b"/registry/services/specs0", True),
        (b"/registry/apiregistration.k8s.io/apiservices/", b"/registry/apiregistration.k8s.io/apiservices0", True),
        (b"/registry/pods/", b"", False),
        (b"/registry/pods/", b"\0", False),
        (b"/registry/pods/", b"/registry/pods1", False),
        (b"/registry/pods", b"/registry/pod0", False),
        (b"/registry/pods/default/", b"/registry/pods/default0", False),
        (b"/registry/mine/", b"/registry/mine0", False),
        (b"/registry/", b"/registry0", False),
        (b"/else/pods/", b"/else/pods0", False),
        (b"", b"0", False),
    ],
)
def test_all_objects_of_a_built_in_resource(key: bytes, range_end: bytes, known: bool) -> None:
    assert is_built_in(ROOT, key, range_end) is known


def test_the_layout_in_the_docs_cuts_nothing(tmp_path: Path) -> None:
    document = Path(__file__).parents[2] / "docs" / "kubernetes.md"
    (layout,) = re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "esp.yaml"
    path.write_text(layout)
    shard_map = load(path).shard_map
    assert cuts(shard_map, ROOT) == []
    owners = {name: shard_map.owner(b"/registry/" + name) for name in (b"leases", b"pods", b"secrets/x")}
    assert owners == {b"leases": "events", b"pods": "pods", b"secrets/x": "main"}

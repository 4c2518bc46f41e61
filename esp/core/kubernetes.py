"""The keys in which kube-apiserver keeps its resources, and the resources that a shard map divides.

As in the source of kube-apiserver 1.37, a built-in resource lies below PREFIX/RESOURCE/, without its group. Resources
of custom resource definitions, and those of the extension and aggregation servers, lie below PREFIX/GROUP/RESOURCE/.
The revision of a list comes from the key PREFIX/RESOURCE itself, without the slash behind. A list, a watch and that
key have to be in one shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from esp.core.keys import KeyRange, format_key
from esp.core.shard_map import ShardMap

DEFAULT_PREFIX: Final = "/registry"
"""The default of kube-apiserver's --etcd-prefix."""
COMPACT_KEY: Final = b"compact_rev_key"
"""The key by which kube-apiservers agree which of them compacts; its value is the last compacted revision."""

_GROUPS: Final = frozenset(
    (
        "admissionregistration.k8s.io",
        "apps",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "extensions",
        "flowcontrol.apiserver.k8s.io",
        "internal.apiserver.k8s.io",
        "lifecycle.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
        "storagemigration.k8s.io",
    )
)
"""The built-in groups; their names are not in the path."""

_SPECIAL: Final = {
    "replicationcontrollers": "controllers",
    "endpoints": "services/endpoints",
    "nodes": "minions",
    "services": "services/specs",
    "ingresses": "ingress",
}
"""Resources whose path has another name than the API."""

_NAMES: Final = {path: name for name, path in _SPECIAL.items()}
_OF_TWO: Final = ("services", "ranges")
"""First parts of paths of built-in resources that have two."""

_BUILT_IN: Final = tuple(
    """
    apiextensions.k8s.io/customresourcedefinitions apiregistration.k8s.io/apiservices
    certificatesigningrequests clusterrolebindings clusterroles clustertrustbundles compositepodgroups configmaps
    controllerrevisions controllers cronjobs csidrivers csinodes csistoragecapacities daemonsets deployments
    deviceclasses devicetaintrules endpointslices events evictionrequests evictions flowschemas
    horizontalpodautoscalers ingress ingressclasses ipaddresses jobs leasecandidates leases limitranges masterleases
    minions mutatingadmissionpolicies mutatingadmissionpolicybindings mutatingwebhookconfigurations namespaces
    networkpolicies peerserverleases persistentvolumeclaims persistentvolumes podcertificaterequests
    poddisruptionbudgets podgroups pods podtemplates priorityclasses prioritylevelconfigurations replicasets
    resourceclaims resourceclaimtemplates resourcepoolstatusrequests resourcequotas resourceslices rolebindings roles
    runtimeclasses secrets serviceaccounts servicecidrs services/endpoints services/specs statefulsets storageclasses
    storageversionmigrations storageversions validatingadmissionpolicies validatingadmissionpolicybindings
    validatingwebhookconfigurations volumeattachments volumeattributesclasses workloads
    """.split()  # noqa: SIM905 - eighty lines otherwise
)

_LISTED: Final = frozenset(path.encode() for path in _BUILT_IN)

_NAME = re.compile(r"([a-z0-9][a-z0-9.-]*/)?[a-z0-9][a-z0-9.-]*")


class Cut(NamedTuple):
    """A resource that is not whole in one shard.

    Attributes:
        resource: its key, such as `/registry/pods`.
        boundary: a boundary that cuts it.
        shards: the shards that share the resource, in key order.
        is_split: whether the objects are in several shards; if not, the resource's key is in another shard than the
            objects.
    """

    resource: bytes
    boundary: bytes
    shards: tuple[str, ...]
    is_split: bool

    def explain(self) -> str:
        """The fault and the cure, in one sentence."""
        name, shards = format_key(self.resource), ", ".join(self.shards)
        if self.is_split:
            text = f'the objects below "{name}/" are in several shards, {shards}'
            harm = "kube-apiserver can neither list nor watch them rightly"
        else:
            text = f'the key "{name}" is in another shard than the objects below "{name}/", {shards}'
            harm = "kube-apiserver reads from that key which revision a list must have"
        cure = f'give one shard {{start: "{name}", end: "{name}0"}}, which {{kubernetes: RESOURCE}} stands for'
        return f'{text} (boundary "{format_key(self.boundary)}"): {harm}; {cure}'


def resource_range(name: str, etcd_prefix: str = DEFAULT_PREFIX) -> KeyRange:
    """The keys of a resource, its own key included.

    Args:
        name: as in the API: `pods`, `nodes`, `apps/deployments`, `example.com/widgets`.
        etcd_prefix: kube-apiserver's flag of that name.

    Raises:
        ValueError: `name` is no such name; the message has the cure.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f'"{name}" is no resource; write pods, apps/deployments or example.com/widgets')
    group, _, resource = name.rpartition("/")
    path = _SPECIAL.get(resource, resource)
    if group == "services" or (group and group not in _GROUPS):
        path = name  # services/specs, as the path has it already, or a resource of a group that is not built in
    return _keys(directory(etcd_prefix) + path.encode())


def directory(etcd_prefix: str) -> bytes:
    """The prefix of all keys of a kube-apiserver, which reads its flag --etcd-prefix with or without slashes."""
    inner = etcd_prefix.strip("/")
    return f"/{inner}/".encode() if inner else b"/"


def assumed_roots(configured: Iterable[bytes], namespace: bytes = b"") -> tuple[bytes, ...]:
    """The directories in which an apiserver is expected: the default in the namespace, and those in a config."""
    return tuple(dict.fromkeys((namespace + directory(DEFAULT_PREFIX), *configured)))


def cuts(shard_map: ShardMap, root: bytes) -> list[Cut]:
    """The resources below `root`, a `directory`, that are not whole in one shard.

    The search covers the built-in resources, and any resource that a boundary seems to lie in.
    """
    paths = dict.fromkeys(path.encode() for path in _BUILT_IN)  # the order in which they are reported
    for boundary in shard_map.starts[1:]:
        if boundary.startswith(root):
            first, *rest = boundary[len(root) :].split(b"/")
            if b"." in first:
                if len(rest) > 1:
                    paths[first + b"/" + rest[0]] = None
            elif first and rest and first.decode("latin-1") not in _OF_TWO:
                paths[first] = None
    found = (_cut(shard_map, root + path) for path in paths)
    return [cut for cut in found if cut is not None]


def built_in(root: bytes) -> list[KeyRange]:
    """The built-in resources below `root`, a `directory`."""
    return [_keys(root + path) for path in sorted(_LISTED)]


def resource_below(root: bytes, prefix: bytes) -> str | None:
    """The name of a resource as `resource_range` takes it, given the prefix of its objects below `root`.

    None if the prefix is not that of a resource. The first part of a path with a dot is taken for a group.
    """
    if not prefix.startswith(root) or prefix[-1:] != b"/" or len(prefix) == len(root):
        return None
    try:
        path = prefix[len(root) : -1].decode("ascii")
    except UnicodeDecodeError:
        return None
    first, _, rest = path.partition("/")
    if bool(rest) != ("." in first or first in _OF_TWO) or "/" in rest:
        return None
    name = _NAMES.get(path, path)
    return name if _NAME.fullmatch(name) else None


def is_listed(root: bytes, prefix: bytes) -> bool:
    """Whether the prefix is that of the objects of a built-in resource below `root`, a `directory`."""
    return prefix.startswith(root) and prefix[-1:] == b"/" and prefix[len(root) : -1] in _LISTED


def objects_of(resource: bytes) -> KeyRange:
    """The keys of all objects of a resource, given its own key."""
    return KeyRange(resource + b"/", resource + b"0")


def is_built_in(root: bytes, key: bytes, range_end: bytes) -> bool:
    """Whether these keys are all objects of a built-in resource below `root`, a `directory`."""
    return range_end == key[:-1] + b"0" and is_listed(root, key)


def _keys(resource: bytes) -> KeyRange:
    return KeyRange(resource, resource + b"0")


def _cut(shard_map: ShardMap, resource: bytes) -> Cut | None:
    objects = objects_of(resource)
    boundary = shard_map.first_boundary(objects)
    if boundary is not None:
        names = dict.fromkeys(segment.shard for segment in shard_map.split(objects))
        return Cut(resource, boundary, tuple(names), True)
    own, theirs = shard_map.owner(resource), shard_map.owner(objects.start)
    if own == theirs:
        return None
    between = shard_map.first_boundary(KeyRange(resource, objects.start + b"\0"))
    assert between is not None, "two owners have a boundary between them"
    return Cut(resource, between, (own, theirs), False)

"""The manifests of deploy/kubernetes: valid by Kubernetes' own schemas, and of one mind with each other and with esp.

`scripts/kubernetes deploy` applies them to a real kube-apiserver.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from esp.core import config
from esp.core.config import Config
from esp.core.proxy import Proxy
from esp.core.services.pages import Pages
from esp.core.wire.exchange import Page

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.30", "1.37"
"""preStop's sleep came with 1.30."""

LIST = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: dict[str, dict[str, Any]] = {}
for _name in LIST["resources"]:
    _object = yaml.safe_load((FOLDER / _name).read_text())
    OBJECTS[_object["kind"]] = _object
POD = OBJECTS["Deployment"]["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.fixture(scope="module")
def served() -> Config:
    """The config of the pods, as esp reads it."""
    return config.parse(OBJECTS["ConfigMap"]["data"]["esp.yaml"], None)


def test_every_file_is_in_the_kustomization_once() -> None:
    assert sorted([*LIST["resources"], "kustomization.yaml"]) == sorted(path.name for path in FOLDER.iterdir())
    assert len(OBJECTS) == len(LIST["resources"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", OBJECTS)
def test_it_is_valid_for_the_oldest_and_the_newest_kubernetes(kind: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


@pytest.mark.parametrize("kind", OBJECTS)
def test_it_is_in_the_namespace_under_the_name_of_all(kind: str) -> None:
    metadata = OBJECTS[kind]["metadata"]
    assert metadata["name"] == "esp"
    assert metadata.get("namespace", "esp") == LIST["namespace"]


def test_all_select_the_pods() -> None:
    labels = POD["metadata"]["labels"].items()
    [spread] = POD["spec"]["topologySpreadConstraints"]
    selectors = [
        OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels


def test_the_ports_of_service_policy_and_probes_are_those_on_which_esp_listens(served: Config) -> None:
    assert [listen.port for listen in served.listen] == [PORTS["clients"]]
    assert [listen.port for listen in served.metrics_listen] == [PORTS["metrics"]]
    assert {listen.host for listen in (*served.listen, *served.metrics_listen)} == {"0.0.0.0"}
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(PORTS["metrics"])
    for port in OBJECTS["Service"]["spec"]["ports"]:
        assert port["port"] == PORTS[port["targetPort"]]
    named = [port["port"] for rule in OBJECTS["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    assert named
    assert set(named) <= set(PORTS)


def test_esp_may_reach_its_shards(served: Config) -> None:
    allowed = {port["port"] for rule in OBJECTS["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]}
    assert {endpoint.port for shard in served.shards for endpoint in shard.endpoints} | {53} == allowed


def test_the_advertised_url_is_the_service(served: Config) -> None:
    metadata, [port, *_] = OBJECTS["Service"]["metadata"], OBJECTS["Service"]["spec"]["ports"]
    assert served.advertise == (f"http://{metadata['name']}.{metadata['namespace']}.svc:{port['port']}",)


def test_the_config_is_where_the_command_looks() -> None:
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert volumes["config"]["configMap"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
    [path] = [word for word in CONTAINER["args"] if word.startswith("/")]
    assert path == f"{mounts['config']}/{next(iter(OBJECTS['ConfigMap']['data']))}"


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe", "startupProbe"])
def test_the_pages_of_the_probes_exist(probe: str, served: Config) -> None:
    get = CONTAINER[probe]["httpGet"]
    assert get["port"] == "metrics"
    proxy = Proxy(served)
    answers: list[Page] = []
    for path in (get["path"], get["path"] + "-not"):
        Pages(proxy.routing, proxy.background).find("POST", path, answers.append)
    assert [page.status for page in answers] == [405, 404]  # a page that exists is not for POST


def test_a_pod_has_the_time_for_its_drain(served: Config) -> None:
    sleep = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["spec"]["terminationGracePeriodSeconds"] >= sleep + served.drain_seconds + 10


def test_the_limit_of_memory_is_above_what_esp_may_buffer(served: Config) -> None:
    limit = CONTAINER["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) * 2**30 > 2 * served.limits.max_buffered_bytes


def test_the_user_is_that_of_the_image() -> None:
    dockerfile = (FOLDER.parent / "image" / "Dockerfile").read_text()
    context = POD["spec"]["securityContext"]
    assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile

"""Alert rules and dashboard: Prometheus takes the rules; each metric and label that they name is one of esp's."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from esp.core import config as configs
from esp.core.proxy import Proxy
from tests.harness import peer

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "esp.json"
SCHEMA = Path(__file__).parent / "dashboard.schema.json"
OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that Prometheus adds."""
_WORD = re.compile(r"[a-z_][a-z0-9_:]*")
_STRING = re.compile(r'"[^"]*"')
_MATCHERS = re.compile(r"\{([^}]*)\}")
_LABELS = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
_FUNCTIONS = {
    *("by", "on", "sum", "max", "min", "count", "rate", "increase", "changes", "time", "vector", "or", "and"),
    *("histogram_quantile", "label_values"),
}


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The labels of each sample that esp tells, by its name."""
    text = "shards: [{name: a, endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]"
    found = {"up": set[str]()}
    for family in Proxy(configs.parse(text, None)).metrics.collect():
        if family is not None:
            endings = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
            found |= {family.name + ending: set(family.labels) for ending in endings}
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    yield from json.loads(DASHBOARD.read_text())["panels"]


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression with a name for it."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


def test_each_metric_and_label_of_an_expression_is_one_that_esp_tells(known: dict[str, set[str]]) -> None:
    for name, expression in expressions():
        bare = re.sub(r"\[[^\]]*\]", "", _STRING.sub('""', expression))
        labels = {word for inner in (*_MATCHERS.findall(bare), *_LABELS.findall(bare)) for word in _WORD.findall(inner)}
        rest = _LABELS.sub("", _MATCHERS.sub("", bare))
        metrics = {word for word in _WORD.findall(rest) if word not in _FUNCTIONS}
        if expression.startswith("label_values"):
            metrics -= {"job", "instance", "shard"}
        assert metrics, f"{name}: {expression}"
        assert metrics <= known.keys(), name
        assert labels <= OF_PROMETHEUS.union(*(known[metric] for metric in metrics)), name


def test_promtool_takes_the_rules() -> None:
    checked = subprocess.run(
        [peer("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(RULES)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_each_rule_is_whole_and_explained() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    told = re.findall(r"(?m)^\| `(Esp\w+)` \|", page)
    assert sorted(told) == sorted(rule["alert"] for rule in alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= {
            *("instance", "job", "shard", "endpoint", "limit", "path", "use"),
        }


def test_the_dashboard_fits_the_schema() -> None:
    """The schema has what Grafana needs to load and show a dashboard of this form."""
    dashboard = json.loads(DASHBOARD.read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([dashboard["panels"], dashboard["templating"]])))
    assert used == variables


def test_no_two_panels_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
                assert x < 24

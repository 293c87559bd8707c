"""Dashboard and alerts ask for metrics that the server has."""

import json
import re
from pathlib import Path

import yaml
from prometheus_client import REGISTRY

from serving.middleware import metrics

FOLDER = Path(__file__).resolve().parents[2] / "manifests" / "components" / "monitoring"


def names() -> set[str]:
    """What the server shows, as it is scraped."""
    assert metrics.RUNNING
    found = set()
    for family in REGISTRY.collect():
        found.add(family.name)
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [])
        found.update(family.name + suffix for suffix in suffixes)
    return found


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\b((?:vllm:|fovea_)[a-z0-9_]+)", expression))


def test_every_panel_asks_for_what_there_is() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 10
    for expression in expressions:
        assert asked(expression)
        assert asked(expression) <= names(), expression


def test_every_alert_asks_for_what_there_is() -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]:
        assert asked(rule["expr"])
        assert asked(rule["expr"]) <= names(), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")

"""deploy/: the Grafana dashboard and the alerts speak of metrics that a server really has, and the
alerts fire when they must (Prometheus' own promtool says so, where it is installed)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from server_harness import MODEL, RunningServer

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
TRIALS = RULES.with_name("alerts_test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "kveik.json"
PAGE = ROOT / "docs" / "MONITORING.md"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=Path(sys.executable).parent)

_METRIC = re.compile(r"\b((?:vllm|kveik):\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')


def alerts() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    return targets + [rule["expr"] for rule in alerts()]


@pytest.fixture(scope="module")
def samples(server: RunningServer) -> dict[str, list[dict[str, str]]]:
    """Labels of every sample by its name, after two requests."""
    body = {"model": MODEL, "prompt": "monitoring " * 20, "max_tokens": 3}
    with server.http() as http:
        for _ in range(2):
            assert http.post("/v1/completions", json=body).status_code == 200
        text = http.get("/metrics").text
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.mark.parametrize("expression", expressions())
def test_what_is_asked_for_is_there(
    expression: str, samples: dict[str, list[dict[str, str]]]
) -> None:
    metrics = _METRIC.findall(expression)
    assert metrics
    for name, matchers in metrics:
        assert name in samples, name
        wanted = {
            label: value.split("|") if how == "=~" else [value]
            for label, how, value in _MATCHER.findall(matchers)
            if label != "instance"  # Prometheus adds it
        }
        for label, values in wanted.items():
            there = {labels.get(label) for labels in samples[name]}
            assert set(values) <= there, f"{name}: {label} is one of {there}"


def test_the_curve_and_the_pins_are_numbers_of_this_server(server: RunningServer) -> None:
    with server.http() as http:
        text = http.get("/metrics").text
        curve = http.get("/v1/cache/curve").json()
    found = {
        (sample.name, sample.labels.get("pool")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for pool in ("half", "this", "twice"):
        assert found["kveik:lru_hit_ratio", pool] == curve[pool]
    assert found["kveik:kv_pool_bytes", None] == server.engine.info.pool_bytes
    (blocks,) = server.engine.info.pool_blocks
    budget = int(blocks * server.engine.config.pin_share)
    assert found["kveik:pin_budget_blocks", None] == budget
    room = found["kveik:pin_room_blocks", None]
    assert room == budget
    pinned = {"name": "pinned", "prompt": "hold " * 40, "pin": True}
    with server.http() as http:
        made = http.post("/v1/caches", json=pinned).json()
        text = http.get("/metrics").text
        http.delete("/v1/caches/pinned")
    after = re.search(r"^kveik:pin_room_blocks (\S+)$", text, re.MULTILINE)
    assert after is not None
    assert float(after[1]) == room - -(-made["tokens"] // server.engine.info.block_size)


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    whole = json.loads(DASHBOARD.read_text())
    assert {"uid", "title", "schemaVersion", "templating", "panels"} <= set(whole)
    assert {one["name"] for one in whole["templating"]["list"]} == {"datasource", "instance"}
    taken: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
    numbers = [panel["id"] for panel in whole["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_page_explains_every_panel_and_alert() -> None:
    page = PAGE.read_text()
    for panel in panels():
        assert f"**{panel['title']}**" in page
    for rule in alerts():
        assert f"### {rule['alert']}\n" in page


def test_every_alert_is_whole_and_tried_both_ways() -> None:
    trials = [
        trial
        for one in yaml.safe_load(TRIALS.read_text())["tests"]
        for trial in one["alert_rule_test"]
    ]
    for rule in alerts():
        assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        own = [trial for trial in trials if trial["alertname"] == rule["alert"]]
        assert {bool(trial.get("exp_alerts")) for trial in own} == {True, False}, rule["alert"]


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments], capture_output=True, text=True, check=False, cwd=RULES.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", RULES.name)


@needs_promtool
def test_each_alert_fires_when_it_must_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", TRIALS.name)


@needs_promtool
def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"panel:{panel['id']}:{target['refId']}",
            "expr": target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*"),
        }
        for panel in panels()
        for target in panel["targets"]
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))

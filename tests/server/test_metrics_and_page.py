"""/metrics under vLLM's names, the page, the OpenAPI document, and the log formats."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from server_harness import MODEL, RunningServer

from kveik.config import LIMITS
from kveik.server import logs
from kveik.server.routes import openapi_document


def scrape(server: RunningServer) -> dict[str, float]:
    with server.http() as http:
        text = http.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sorted(f"|{v}" for k, v in sample.labels.items() if k != "model_name")
            found[sample.name + "".join(labels)] = sample.value
    return found


def test_counters_move_with_a_request(server: RunningServer) -> None:
    body = {"model": MODEL, "prompt": "metrics " * 10, "max_tokens": 4, "ignore_eos": True}
    body["temperature"] = 0
    before = scrape(server)
    with server.http() as http:
        usages = [http.post("/v1/completions", json=body).json()["usage"] for _ in range(2)]
    after = scrape(server)

    def moved(name: str) -> float:
        return after[name] - before.get(name, 0)

    prompts = sum(usage["prompt_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert moved("vllm:prompt_tokens_total") == prompts
    assert moved("vllm:generation_tokens_total") == 8
    assert moved("vllm:prefix_cache_queries_total") == prompts
    assert moved("vllm:prefix_cache_hits_total") == cached > 0
    assert moved("kveik:saved_seconds_total") > 0
    assert moved("vllm:request_success_total|length") == 2
    assert moved("vllm:time_to_first_token_seconds_count") == 2
    assert moved("vllm:inter_token_latency_seconds_count") == 6
    assert moved("vllm:e2e_request_latency_seconds_count") == 2
    assert moved("kveik:http_requests_total|/v1/completions|200") == 2
    assert moved("kveik:steps_total") >= 8
    assert after["kveik:kv_leaked_blocks"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["kveik:kv_blocks|0|idle"] > 0
    assert after["kveik:kv_pool_tokens"] == server.engine.info.pool_tokens


def test_the_global_registry_is_untouched(server: RunningServer) -> None:
    names = {metric.name for metric in REGISTRY.collect()}
    assert not [name for name in names if name.startswith(("vllm", "kveik"))]


def test_the_page_reaches_nothing_outside(server: RunningServer) -> None:
    with server.http() as http:
        response = http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = response.text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "prefers-color-scheme" in page or "color-scheme" in page
    for route in ("/v1/chat/completions", "/v1/models", "/tokenize", "/metrics", "/openapi.json"):
        assert route in page
    assert "curl" in page
    assert "innerHTML" not in page


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema["$ref"].rsplit("/", 1)[1]
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


@pytest.mark.parametrize("name", ["n", "temperature", "top_p", "max_tokens", "seed", "min_p"])
def test_the_document_has_the_bounds_of_the_limits(name: str) -> None:
    document = openapi_document()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    schema = resolve(document, body["content"]["application/json"]["schema"])
    number = schema["properties"][name]["anyOf"][0]
    assert (number["minimum"], number["maximum"]) == (LIMITS[name].low, LIMITS[name].high)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "messages"}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log_lines(log_format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("kveik")
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        logs.configure(log_format)
        logging.getLogger("kveik.access").info("%s", "GET", extra={"fields": {"request_id": "r"}})
        line = capsys.readouterr().err.strip()
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
    if log_format == "json":
        record = json.loads(line)
        assert (record["message"], record["request_id"], record["level"]) == ("GET", "r", "info")
    else:
        assert line.endswith("kveik.access GET request_id=r")

"""Who may do what: keys on every route, namespaces, Host, Origin, CORS, and no secret anywhere."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator

import pytest
from server_harness import MODEL, RunningServer, running

from kveik.config import ServerConfig
from kveik.engine.engine import Engine
from kveik.errors import ConfigError, Unauthorized
from kveik.server import dashboard
from kveik.server.auth import KeyRing
from kveik.server.routes import PUBLIC_PATHS, ROUTES
from kveik.server.run import bind, refuse_open_door

ALICE, BOB, ADMIN = "alice-key-canary", "bob-key-canary", "admin-key-canary"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me " * 8}], "max_tokens": 2}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked(server_engine: Engine) -> Iterator[RunningServer]:
    config = ServerConfig(
        port=0,
        api_keys=(ALICE, BOB),
        admin_keys=(ADMIN,),
        cors_origins=("https://app.example",),
    )
    with running(server_engine, config) as one:
        yield one


def test_only_these_paths_are_public() -> None:
    assert {"/", "/health", "/ready", *dashboard.FILES} == PUBLIC_PATHS


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_needs_a_key(locked: RunningServer, route) -> None:  # type: ignore[no-untyped-def]
    path = re.sub(r"\{.*\}", MODEL, route.path)
    with locked.http() as http:
        for headers in ({}, bearer("wrong"), {"x-api-key": "wrong"}, {"authorization": ALICE}):
            response = http.request(route.method, path, headers=headers)
            if route.public:
                assert response.status_code == 200
                continue
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            error = response.json()["error"]
            code = error["details"]["error_code"] if route.operation.anthropic else error["code"]
            assert code == "invalid_api_key"
        for headers in (bearer(ADMIN), {"x-api-key": ADMIN}, {"authorization": f"bearer {ADMIN}"}):
            with http.stream(route.method, path, headers=headers) as answer:  # one is endless
                assert answer.status_code != 401


@pytest.mark.parametrize(
    "path",
    [
        "//", "/health/", "//health", "/HEALTH", "/health/../metrics", "/health%2f..%2fmetrics",
        "/%68ealth/x", "/./metrics", "/metrics/", "/metrics%00", "/v1//models", "/V1/models",
        "/health;/metrics", "/openapi.json?x=/health", "/metrics?/health", "/nope", "/ready/x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE", "QUERY"])
def test_no_spelling_of_a_path_opens_a_door(locked: RunningServer, path: str, method: str) -> None:
    """Sent as it is: a client library would tidy the path."""
    with locked.connect() as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: x/health\r\n\r\n".replace(
                "x/health", "localhost"
            ).encode()
        )
        status = connection.recv(65536).split(b" ", 2)[1]
    assert status == b"401"


def test_percent_encoding_reaches_the_same_route_with_the_same_rule(locked: RunningServer) -> None:
    with locked.connect() as connection:
        connection.sendall(b"GET /%6detrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")


def test_contradicting_keys_are_refused(locked: RunningServer) -> None:
    with locked.http() as http:
        both = {**bearer(ALICE), "x-api-key": BOB}
        assert http.get("/v1/models", headers=both).status_code == 401
        same = {**bearer(ALICE), "x-api-key": ALICE}
        assert http.get("/v1/models", headers=same).status_code == 200


def test_each_key_is_its_own_namespace(locked: RunningServer) -> None:
    with locked.http() as http:

        def cached(key: str) -> int:
            answer = http.post("/v1/chat/completions", json=CHAT, headers=bearer(key)).json()
            return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert cached(ALICE) == 0
        assert cached(ALICE) > 16
        assert cached(BOB) == 0
        assert cached(BOB) > 16
        # forgetting one's own leaves the other's
        assert http.post("/reset_prefix_cache", headers=bearer(ALICE)).json()["scope"] == "own"
        assert cached(ALICE) == 0
        assert cached(BOB) > 16


def test_what_concerns_others_needs_an_admin_key(locked: RunningServer) -> None:
    with locked.http() as http:
        for method, path in (("GET", "/metrics"), ("POST", "/reset_prefix_cache?scope=all")):
            refused = http.request(method, path, headers=bearer(ALICE))
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "permission_denied"
            assert http.request(method, path, headers=bearer(ADMIN)).status_code == 200
        bad = http.post("/reset_prefix_cache?scope=mine", headers=bearer(ADMIN))
        assert bad.json()["error"]["param"] == "scope"


def test_the_only_key_is_the_operator_s() -> None:
    headers = [(b"authorization", b"Bearer k")]
    assert KeyRing(("k",), ()).caller(headers).operator
    assert not KeyRing(("k", "l"), ()).caller(headers).operator
    assert not KeyRing(("k",), ("a",)).caller(headers).operator
    assert KeyRing((), ()).caller([]).operator


def test_keys_are_compared_whole(locked: RunningServer) -> None:
    ring = KeyRing((ALICE,), ())
    for wrong in (ALICE[:-1], ALICE + "x", ALICE.upper(), "", " ", ALICE + "\x00"):
        with pytest.raises(Unauthorized):
            ring.caller([(b"authorization", f"Bearer {wrong}".encode())])
    with pytest.raises(ConfigError):
        KeyRing(("", "x"), ())


def test_a_namespace_does_not_show_the_key() -> None:
    caller = KeyRing((ALICE,), ()).caller([(b"x-api-key", ALICE.encode())])
    assert caller.namespace
    assert ALICE not in caller.namespace


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "10.0.0.1", "localhost.evil"])
def test_without_keys_only_loopback_names_are_served(server: RunningServer, host: str) -> None:
    """A page that rebinds its name to 127.0.0.1 sends its own name."""
    with server.http() as http:
        assert http.get("/v1/models", headers={"host": host}).status_code == 403
        assert http.get("/health", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:80", "127.1.2.3"]
)
def test_loopback_names_are_served(server: RunningServer, host: str) -> None:
    with server.http() as http:
        assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["a/b", "a b", "a?b", "a#b", "a@b", "a\\b", "[::1", "a:b", "a:1:2"]
)
def test_odd_hosts_are_refused_with_a_key_too(locked: RunningServer, host: str) -> None:
    with locked.http() as http:
        response = http.get("/v1/models", headers={"host": host, **bearer(ALICE)})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_host"


def test_with_keys_any_name_is_served(locked: RunningServer) -> None:
    with locked.http() as http:
        headers = {"host": "llm.example:8000", **bearer(ALICE)}
        assert http.get("/v1/models", headers=headers).status_code == 200


def test_without_keys_a_foreign_page_may_not_call(server: RunningServer) -> None:
    with server.http() as http:
        foreign = {"origin": "https://evil.example"}
        assert http.post("/reset_prefix_cache", headers=foreign).status_code == 403
        assert http.get("/v1/models", headers={"origin": "null"}).status_code == 403
        own = {"origin": server.url}
        assert http.get("/v1/models", headers=own).status_code == 200


def test_cors(locked: RunningServer) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x"}
    good, bad = {"origin": "https://app.example"}, {"origin": "https://evil.example"}
    with locked.http() as http:
        preflight = http.options("/v1/chat/completions", headers={**good, **asks})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        refused = http.options("/v1/chat/completions", headers={**bad, **asks})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        answer = http.get("/v1/models", headers={**good, **bearer(ALICE)})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "Origin" in answer.headers["vary"]
        unkeyed = http.get("/v1/models", headers=good)
        assert unkeyed.status_code == 401
        assert unkeyed.headers["access-control-allow-origin"] == "https://app.example"
        other = http.get("/v1/models", headers={**bad, **bearer(ALICE)})
        assert "access-control-allow-origin" not in other.headers


def test_without_the_flag_there_are_no_cors_headers(server: RunningServer) -> None:
    with server.http() as http:
        response = http.get("/health", headers={"origin": server.url})
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_network_address_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_open_door(ServerConfig(host=host))
    assert "--api-key" in error.value.message
    refuse_open_door(ServerConfig(host=host, api_keys=("k",)))


def test_a_taken_port_names_the_remedy() -> None:
    with bind(ServerConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            bind(ServerConfig(port=port))
    assert f"--port {port + 1}" in error.value.message


SECRETS = ("prompt-canary", "user-canary", "stop-canary", "id-canary", ALICE, BOB, ADMIN)


def test_nothing_secret_is_logged_or_counted(
    locked: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "prompt-canary"}],
        "user": "user-canary",
        "stop": "stop-canary",
        "max_tokens": 2,
    }
    with caplog.at_level(logging.DEBUG), locked.http() as http:
        for key in (ALICE, BOB):
            http.post("/v1/chat/completions", json=body, headers=bearer(key))
        wrong = http.post("/v1/chat/completions", json=body, headers=bearer("id-canary"))
        odd = http.get("/v1/models/id-canary/prompt-canary?key=id-canary", headers=bearer(BOB))
        bad = http.post(
            "/v1/completions",
            json={"model": MODEL, "prompt": ["prompt-canary", 5], "temperature": "id-canary"},
            headers=bearer(ALICE),
        )
        metrics = http.get("/metrics", headers=bearer(ADMIN)).text
    assert (wrong.status_code, bad.status_code, odd.status_code) == (401, 400, 404)
    logged = "\n".join(
        str({**record.__dict__, "message": record.getMessage()})
        for record in caplog.records
        if record.name.startswith(("kveik", "uvicorn"))
    )
    assert "/v1/chat/completions" in logged
    for secret in SECRETS:
        assert secret not in logged
        assert secret not in metrics
        assert secret not in wrong.text
        assert secret not in bad.text


def test_a_fault_of_ours_is_a_500_with_the_request_id_and_no_trace(
    server: RunningServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(text: str, **_: object) -> list[int]:
        raise RuntimeError(f"cannot encode {text}")

    monkeypatch.setattr(server.engine.tokenizer, "encode", broken)
    with server.http() as http:
        response = http.post(
            "/tokenize", json={"prompt": "secret"}, headers={"x-request-id": "me-1"}
        )
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["type"] == "server_error"
    assert "me-1" in error["message"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "me-1" in caplog.text
    assert "secret" not in caplog.text


def test_label_values_come_from_fixed_lists(locked: RunningServer) -> None:
    with locked.http() as http:
        for number in range(20):
            http.get(f"/random-{number}", headers=bearer(ALICE))
            http.request(f"VERB{number}", "/v1/models", headers=bearer(ALICE))
        text = http.get("/metrics", headers=bearer(ADMIN)).text
    assert "random-" not in text
    routes = {route.path for route in ROUTES} | {"(none)"}
    for line in text.splitlines():
        if line.startswith("kveik:http_requests_total"):
            assert line.split('route="')[1].split('"')[0] in routes


def test_websockets_and_other_scopes_are_not_answered(locked: RunningServer) -> None:
    from kveik.server.gate import Gate

    async def nothing(*_: object) -> None:
        raise AssertionError("nothing may be sent")

    gate = Gate(locked.service)
    asyncio.run(gate({"type": "websocket", "path": "/metrics"}, nothing, nothing))  # type: ignore[arg-type]

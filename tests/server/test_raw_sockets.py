"""What no client library sends: cut, chunked, doubled and malformed requests. Never a 5xx."""

from __future__ import annotations

import json
import re
import socket
import struct

import pytest
from server_harness import MODEL, RunningServer, read_response, request_bytes, until

BODY = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 2}).encode()
PATH = "/v1/completions"
HOST = "Host: localhost\r\n"
JSON = "Content-Type: application/json\r\n"


def exchange(server: RunningServer, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with server.connect() as connection:
        connection.sendall(data)
        return read_response(connection)


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"POST {PATH} HTTP/1.1\r\n{HOST}{JSON}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end


MALFORMED: list[tuple[str, bytes]] = [
    ("no HTTP at all", b"hello\r\n\r\n"),
    ("TLS", bytes.fromhex("16030100c8010000c40303") + b"\r\n\r\n"),
    ("two content lengths", request_bytes(PATH, BODY, "Content-Length: 5")),
    ("length and chunked", f"POST {PATH} HTTP/1.1\r\n{HOST}{JSON}Content-Length: 4\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()),
    ("negative length", f"POST {PATH} HTTP/1.1\r\n{HOST}{JSON}Content-Length: -1\r\n\r\n".encode()),
    ("length in words", f"POST {PATH} HTTP/1.1\r\n{HOST}{JSON}Content-Length: x\r\n\r\n".encode()),
    ("bad chunk size", chunked(end=b"zz\r\n\r\n")),
    ("negative chunk size", chunked(end=b"-1\r\n\r\n")),
    ("a space before the colon", b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n"),
    ("a folded header", f"GET /health HTTP/1.1\r\n{HOST}X: a\r\n\x00b\r\n\r\n".encode()),
    ("no host", b"GET /health HTTP/1.1\r\n\r\n"),
    ("two hosts", b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"),
    ("a strange host", b"GET /health HTTP/1.1\r\nHost: local/host\r\n\r\n"),
    ("a host with a query", b"GET /health HTTP/1.1\r\nHost: x?/health\r\n\r\n"),
    ("a NUL in the path", f"GET /he\x00alth HTTP/1.1\r\n{HOST}\r\n".encode()),
    ("unknown transfer coding", f"POST {PATH} HTTP/1.1\r\n{HOST}{JSON}"
                                "Transfer-Encoding: gzip\r\n\r\n".encode()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), MALFORMED, ids=[name for name, _ in MALFORMED])
def test_malformed_requests(server: RunningServer, name: str, data: bytes) -> None:
    status, _, body = exchange(server, data)
    assert 400 <= status < 500, (status, body)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert exchange(server, request_bytes(PATH, BODY))[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        request_bytes(PATH, BODY),
        chunked(BODY),
        chunked(*(bytes([byte]) for byte in BODY)),
        request_bytes(PATH, BODY, "Connection: close"),
        request_bytes(PATH, BODY, "Upgrade: websocket", "Connection: upgrade"),
        b"GET /health HTTP/1.0\r\n\r\n",
        f"HEAD /health HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n".encode(),
        f"GET http://localhost/health HTTP/1.1\r\n{HOST}\r\n".encode(),
    ],
    ids=["plain", "one chunk", "a chunk per byte", "close", "upgrade", "1.0", "HEAD", "absolute"],
)  # fmt: skip
def test_unusual_but_good_requests(server: RunningServer, data: bytes) -> None:
    status, _, _ = exchange(server, data)
    assert status in (200, 404)  # an absolute target is no path of ours
    assert exchange(server, request_bytes(PATH, BODY))[0] == 200


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(request_bytes("/nope", b"{}") + request_bytes(PATH, BODY))
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 2:  # both may come in one piece
            part = connection.recv(65536)
            assert part, answers
            answers += part
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"404", b"200"]


def test_a_smuggled_request_is_only_a_body(server: RunningServer) -> None:
    inner = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(request_bytes("/nope", inner))
        assert read_response(connection)[0] == 404
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_expect_100_continue(server: RunningServer) -> None:
    with server.connect() as connection:
        head, body = request_bytes(PATH, BODY, "Expect: 100-continue").split(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert read_response(connection)[0] == 200


@pytest.mark.parametrize("cut", [1, 10, 60, 120, len(request_bytes(PATH, BODY)) - 1])
@pytest.mark.parametrize("how", ["close", "half close", "reset"])
def test_requests_that_are_cut(server: RunningServer, cut: int, how: str) -> None:
    connection = server.connect()
    connection.sendall(request_bytes(PATH, BODY)[:cut])
    if how == "half close":
        connection.shutdown(socket.SHUT_WR)
        status, _, _ = read_response(connection)
        assert status < 500
    elif how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    until(lambda: server.service.active == 0)
    assert exchange(server, request_bytes(PATH, BODY))[0] == 200


def test_nothing_is_left_behind(server: RunningServer) -> None:
    until(lambda: server.service.active == 0)
    until(lambda: server.leased() == 0)
    server.engine.check()

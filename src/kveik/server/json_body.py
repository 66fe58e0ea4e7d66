"""A request body as JSON, strictly: bounded bytes, depth and keys; no NaN, infinity, duplicate
keys or lone surrogates. Whatever is wrong is an InvalidRequest (or 408, 413, 415) that says where.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from kveik.errors import InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedMediaType

MAX_DEPTH = 32
MAX_KEYS = 1200  # of one object: more than the largest logit_bias
BODY_SECONDS = 30.0  # the longest pause between two parts of a body
DISCARD_SECONDS = 5.0  # how long a body that is too large is read on and thrown away
LARGE = 64 * 1024  # bytes from which a body is parsed beside the event loop


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as an object. Raises the errors above; ClientDisconnect when the client leaves."""
    _check_content_type(request.headers.get("content-type"))
    body = await _read(request, max_bytes)
    if len(body) > LARGE:
        return await asyncio.to_thread(parse_object, body)
    return parse_object(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """UTF-8 JSON whose root is an object."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"the body is not valid UTF-8 (byte {error.start})")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_constant,
        )
    except RecursionError:
        _refuse(f"the body is nested deeper than {MAX_DEPTH} levels")
    except json.JSONDecodeError as error:
        _refuse(f"the body is not valid JSON: {error.msg} at character {error.pos}")
    except ValueError:  # an integer of thousands of digits
        _refuse("the body holds a number with too many digits")
    if not isinstance(value, dict):
        _refuse(f"the body must be a JSON object, got {_kind(value)}")
    _check_tree(value, may_hold_surrogates="\\u" in text)
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        await _too_large(request, max_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), BODY_SECONDS)
        except TimeoutError:
            raise RequestTimeout(f"no part of the body came for {BODY_SECONDS:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            parts.clear()
            await _too_large(request, max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _check_content_type(header: str | None) -> None:
    kind, _, parameters = (header or "").partition(";")
    charset = parameters.replace(" ", "").lower()
    if kind.strip().lower() != "application/json" or charset not in (
        "",
        "charset=utf-8",
        'charset="utf-8"',
    ):
        raise UnsupportedMediaType("the body must have Content-Type: application/json")


def _check_tree(root: Any, *, may_hold_surrogates: bool) -> None:
    """Depth and strings, without recursion. Surrogates can only come from \\u escapes."""
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
                if may_hold_surrogates:
                    below.extend(value)
            elif isinstance(value, list):
                below.extend(value)
            elif may_hold_surrogates and isinstance(value, str):
                _check_text(value)
        if not below:
            return
        level = below
    _refuse(f"the body is nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse("the body holds a lone surrogate (half of a \\u pair)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        _refuse(f"an object of the body has more than {MAX_KEYS} keys")
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _refuse(f"{shown(twice)}: occurs twice in one object", param=shown(twice))
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(f"the number {text[:20]} is too large")
    return value


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is not a JSON number")


def shown(name: str) -> str:
    """A key that the client chose, safe to repeat in an error: printable and short."""
    safe = "".join(c if c.isalnum() or c in "_-.[]" else "?" for c in name[:64])
    return safe or "?"


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )


async def _too_large(request: Request, max_bytes: int) -> NoReturn:
    """Refuse, after throwing away what is on its way: a client that is still sending would see a
    reset connection instead of the answer."""
    if "expect" not in request.headers:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_discard(request), DISCARD_SECONDS)
    raise RequestTooLarge(f"the body is larger than {max_bytes} bytes; send less")


async def _discard(request: Request) -> None:
    while (await request.receive()).get("more_body", False):
        pass


def _refuse(message: str, param: str | None = None) -> NoReturn:
    raise InvalidRequest(message, param=param, code="invalid_json")

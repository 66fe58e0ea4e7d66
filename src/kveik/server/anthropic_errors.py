"""Errors as Anthropic's API tells them, on the paths where its clients call.

    {"type": "error", "error": {"type", "message", "details"?}, "request_id"}

The status stays but for 503, which is Anthropic's 529: its clients know both and try again after
both. details.error_code is our code, details.param the field at fault.
"""

from __future__ import annotations

from typing import Any

from kveik.errors import KveikError

PATH = "/v1/messages"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def speaks(path: str) -> bool:
    """Whether who calls this path reads Anthropic's errors."""
    return path == PATH or path.startswith(PATH + "/")


def status(error: KveikError) -> int:
    return 529 if error.status == 503 else error.status


def body(error: KveikError, request_id: str) -> dict[str, Any]:
    number = status(error)
    told: dict[str, Any] = {
        "type": _TYPES.get(number, "invalid_request_error" if number < 500 else "api_error"),
        "message": error.message,
    }
    details = {"error_code": error.code, "param": error.param}
    if known := {name: value for name, value in details.items() if value is not None}:
        told["details"] = known
    return {"type": "error", "error": told, "request_id": request_id}

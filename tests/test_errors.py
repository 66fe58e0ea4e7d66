"""The exception tree: statuses and bodies as OpenAI has them; logs never quote a message."""

from __future__ import annotations

import pytest

from kveik import errors
from kveik.errors import KveikError, fault


def leaves(kind: type[KveikError] = KveikError) -> list[type[KveikError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_error_has_openais_body(kind: type[KveikError]) -> None:
    body = kind("what to do", param="field").body()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] == "what to do"
    assert body["error"]["param"] == "field"
    assert 400 <= kind.status <= 599
    assert body["error"]["type"]


def test_statuses() -> None:
    statuses = {
        errors.InvalidRequest: 400,
        errors.ContextLengthExceeded: 400,
        errors.Unauthorized: 401,
        errors.PermissionDenied: 403,
        errors.NotFound: 404,
        errors.RequestTooLarge: 413,
        errors.Overloaded: 429,
        errors.Unavailable: 503,
    }
    assert {kind: kind.status for kind in statuses} == statuses


def test_a_logged_fault_says_where_but_not_what() -> None:
    def culprit(prompt: str) -> None:
        raise ValueError(prompt)

    with pytest.raises(ValueError) as caught:
        culprit("CANARY " + "of a prompt")
    text = fault(caught.value)
    assert "ValueError" in text
    assert "culprit" in text
    assert "CANARY of a prompt" not in text

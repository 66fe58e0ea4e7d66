"""The exception tree. Every leaf knows its HTTP status, OpenAI error type and code.

    KveikError                      500 server_error
      InvalidRequest                400 invalid_request_error
        ContextLengthExceeded       400   code context_length_exceeded
        UnsupportedFeature          400   code unsupported_feature
        PromptTooLarge              400   code pool_too_small (could never finish in this pool)
      Unauthorized                  401   code invalid_api_key
      PermissionDenied              403   code permission_denied
      NotFound                      404   code not_found / model_not_found
      MethodNotAllowed              405   code method_not_allowed
      RequestTimeout                408   code request_timeout (the body did not arrive)
      Conflict                      409   code conflict (cannot be done now)
        PinBudgetExceeded           409   code pin_budget_exceeded (more pins than the pool allows)
      RequestTooLarge               413   code request_too_large
      UnsupportedMediaType          415   code unsupported_media_type
      HeadersTooLarge               431   code request_too_large
      Overloaded                    429 rate_limit_error, with retry_after seconds
      Unavailable                   503 service_unavailable_error, with retry_after seconds
      ModelLoadError                a model folder that cannot be loaded; names file and remedy
      ConfigError                   an option or environment variable that cannot be used

A message names the field or file, the value and what to do. It never holds prompt text or keys.
"""

from __future__ import annotations

import traceback


class KveikError(Exception):
    """Base of every error that kveik raises on purpose.

    `param` is the request field (for example ``messages[0].content``) or option at fault.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The OpenAI error body: {"error": {message, type, param, code}}."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(KveikError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class UnsupportedFeature(InvalidRequest):
    code = "unsupported_feature"


class PromptTooLarge(InvalidRequest):
    """The request could never finish in this KV pool, however long it waited."""

    code = "pool_too_small"


class Unauthorized(KveikError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(KveikError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFound(KveikError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(KveikError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimeout(KveikError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(KveikError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class PinBudgetExceeded(Conflict):
    """More blocks would be pinned than the pool sets aside for pins."""

    code = "pin_budget_exceeded"


class UnsupportedMediaType(KveikError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadersTooLarge(KveikError):
    status = 431
    type = "invalid_request_error"
    code = "request_too_large"


class RequestTooLarge(KveikError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class Overloaded(KveikError):
    """The bounded queue is full (by requests or by tokens)."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: int = 1, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after


class StreamBudgetExceeded(Overloaded):
    """The windows of open streams and pinned blocks take all that may be set aside for them."""

    code = "stream_budget_exceeded"


class Unavailable(KveikError):
    """Loading, draining or stopped."""

    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"

    def __init__(self, message: str, *, retry_after: int = 5, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after = retry_after


class ModelLoadError(KveikError):
    code = "model_load_error"


class ConfigError(KveikError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_config"


def fault(error: BaseException) -> str:
    """What a log may say of an unexpected exception: its type and where it was raised, never its
    message, which may quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}\n{frames}"

"""What every error becomes in HTTP, in OpenAI's shape; nothing else decides that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.errors import (
    ContextTooLong,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExceeded,
    RequestError,
    Unauthorized,
)


@dataclass(frozen=True)
class HttpError:
    """A status, a body in OpenAI's shape, and headers."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


# The first class that fits decides: status, type, code.
STATUSES: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (ContextTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (Unauthorized, 401, "invalid_request_error", "invalid_api_key"),
    (QuotaExceeded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Overloaded, 429, "overloaded_error", "overloaded"),
    (EngineDead, 503, "server_error", "engine_dead"),
)


def http_error(error: Exception) -> HttpError:
    """``error`` for a client; of one that is no ``ServingError`` it learns nothing but that."""
    for cls, status, kind, code in STATUSES:
        if isinstance(error, cls):
            param = error.param if isinstance(error, RequestError) else ""
            headers: dict[str, str] = {}
            if isinstance(error, Overloaded | QuotaExceeded):
                headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
            if status == 401:
                headers["www-authenticate"] = "Bearer"
            return HttpError(status, _body(str(error), kind, param, code), headers)
    return HttpError(500, _body("the server failed at this request", "server_error", "", None))


def invalid_body(details: Sequence[Mapping[str, Any]]) -> HttpError:
    """What pydantic found in a request body; the first finding is the one to blame."""
    detail = details[0]
    parts = [str(part) for part in detail["loc"] if part != "body"]
    param = ".".join(parts)
    kind = str(detail["type"])
    if kind == "json_invalid":
        return HttpError(400, _body("the body is not JSON", "invalid_request_error", "", None))
    if kind == "extra_forbidden":
        message = f"unknown parameter: {param}"
    elif kind == "missing":
        message = f"missing parameter: {param or 'a JSON body'}"
    else:
        message = f"{param or 'the body'}: {detail['msg']}"
    return HttpError(400, _body(message, "invalid_request_error", param, None))


def plain_error(status: int, message: str) -> HttpError:
    """No such route, another method: what the framework found."""
    return HttpError(status, _body(message, "invalid_request_error", "", None))


def _body(message: str, kind: str, param: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code}}

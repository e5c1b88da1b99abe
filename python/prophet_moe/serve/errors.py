"""Every refusal in OpenAI's shape: a status, a type, and a sentence that says what to do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from prophet_moe.errors import ProphetError
from prophet_moe.serve.admission import Overloaded
from prophet_moe.serve.loop import Failed
from prophet_moe.serve.schemas import ErrorBody

PATHS = "/v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, and a page at /"
KINDS = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error", 429: "overloaded"}
CLIENT_GONE = 499  # nobody reads it; logs do


class Refused(Exception):
    """A request that cannot be served as it is."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_body(
    message: str, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """{"error": {...}}"""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": ErrorBody(message=message, type=kind, param=param, code=code).model_dump()}


def refusal(
    message: str, status: int, param: str | None = None, code: str | None = None, **headers: str
) -> JSONResponse:
    """The response for it."""
    return JSONResponse(error_body(message, status, param, code), status, headers or None)


def validation_sentence(error: RequestValidationError) -> tuple[str, str | None]:
    """(what is wrong, which parameter) of the first of pydantic's complaints."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON ({first.get('ctx', {}).get('error', 'malformed')}).", None
    steps = [str(step) for step in first["loc"][1:] if not str(step).startswith("function-")]
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "wrong_parameter":  # of schemas.wrong
        steps.append(first["ctx"]["param"])
        said = first["ctx"]["sentence"]
    place = ".".join(steps)
    if first["type"] == "extra_forbidden":
        said = "is no parameter of this server: leave it out"
    elif first["type"] == "missing":
        said = "is missing"
    return f"{place} {said}.".strip(), place or None


def told(error: Exception) -> JSONResponse:
    """Whatever was raised, for the client."""
    if isinstance(error, Refused):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return refusal(str(error), error.status, error.param, error.code, **headers)
    if isinstance(error, Overloaded):
        return refusal(str(error), 429, None, "overloaded", **{"Retry-After": str(error.retry_after)})
    if isinstance(error, RequestValidationError):
        message, place = validation_sentence(error)
        return refusal(message, 400, place)
    if isinstance(error, RecursionError):
        return refusal("the body is nested too deeply.", 400)
    if isinstance(error, HTTPException):
        sentence = str(error.detail)
        if error.status_code in (404, 405):
            sentence = f"{sentence}: this server has {PATHS}."
        return refusal(sentence, error.status_code, **dict(error.headers or {}))
    if isinstance(error, (Failed, ProphetError)):
        return refusal(str(error), 503, None, "model_failed", **{"Retry-After": "1"})
    return refusal(f"the server failed ({type(error).__name__}).", 500)


def install(app: FastAPI) -> None:
    """Makes `told` the answer to everything that is raised."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return told(error)

    for kind in (Refused, Overloaded, Failed, ProphetError, RecursionError, HTTPException,
                 RequestValidationError, Exception):  # fmt: skip
        app.add_exception_handler(kind, handle)

"""One JSON shape for everything that is refused.

{"error": {"code": "invalid_request", "message": "...", "details": [
    {"where": "k", "problem": "Input should be greater than or equal to 1"}]}}
"""

import http
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, Response

from tiger_jax.errors import InputError, LockedError
from tiger_jax.recommending.versions import ConflictError, UnconfirmedError

MAX_DETAILS, MAX_CHARACTERS = 5, 120


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    where: str
    problem: str


class ErrorBody(BaseModel):
    """Why a request was refused."""

    code: str
    message: str
    details: list[Problem] = []


class ErrorAnswer(BaseModel):
    """What every answer looks like whose status is not 2xx."""

    error: ErrorBody


class ApiError(HTTPException):
    """A refusal: status, a code for programs, a sentence for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[Problem] = (),
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        """Takes what is to be answered.

        Args:
            retry_after: Seconds after which another attempt makes sense.
            close: Whether the connection ends with this answer.
        """
        headers = {}
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        if close:
            headers["Connection"] = "close"
        if status == http.HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        body = ErrorBody(code=code, message=message, details=list(details))
        self.body = ErrorAnswer(error=body)

    def response(self) -> JSONResponse:
        return JSONResponse(
            self.body.model_dump(), self.status_code, headers=dict(self.headers or {})
        )


def answer_errors(app: FastAPI) -> None:
    """Makes an app answer all its errors in the one shape."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(LockedError, _locked)
    app.add_exception_handler(UnconfirmedError, _unconfirmed)


def describe_problems(errors: Sequence[Any]) -> list[Problem]:
    """Brings pydantic's errors into ours, short whatever the request held."""
    problems = []
    for error in errors[:MAX_DETAILS]:
        place = [str(part)[:60] for part in error["loc"]]
        if place and place[0] in ("body", "query", "path"):
            place = place[1:]
        where = ".".join(place)[:MAX_CHARACTERS] or "body"
        problems.append(Problem(where=where, problem=error["msg"][:MAX_CHARACTERS]))
    return problems


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = describe_problems(error.errors())
    message = f"{problems[0].where}: {problems[0].problem}"
    if more := len(error.errors()) - 1:
        message += f" (and {more} more)"
    return ApiError(422, "invalid_request", message, details=problems).response()


async def _http(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, StarletteHTTPException)
    path = request.url.path[:MAX_CHARACTERS]
    sentences = {
        404: ("not_found", f"there is nothing at {path}"),
        405: ("method_not_allowed", f"{request.method[:20]} is no method of {path}"),
    }
    status = error.status_code
    code, message = sentences.get(status, ("refused", str(error.detail)))
    answer = ApiError(status, code, message).response()
    answer.headers.update(error.headers or {})
    return answer


async def _input(_: Request, error: Exception) -> Response:
    if isinstance(error, ConflictError):
        return ApiError(409, "conflict", str(error)[:500]).response()
    return ApiError(422, "invalid_request", str(error)[:500]).response()


async def _locked(_: Request, error: Exception) -> Response:
    return ApiError(503, "busy", str(error)[:500], retry_after=5.0).response()


async def _unconfirmed(_: Request, error: Exception) -> Response:
    return ApiError(500, "unconfirmed", str(error)[:500]).response()


def internal_error() -> ApiError:
    """What is answered to a fault of ours, when it has been logged."""
    message = "a fault of this server, which its log describes"
    return ApiError(500, "internal", message)

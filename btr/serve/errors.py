"""Answer every fault in OpenAI's shape, without a path or a stack."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from btr.serve.desk import ClientLeft, Desk
from btr.serve.schema import RequestError, error_body

CODES = {404: "not_found", 405: "method_not_allowed", 408: "slow_body", 413: "too_large"}
CLIENT_LEFT = 499  # nginx's number; nobody receives it, the log and the metrics show it


def error_response(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as a response."""
    return JSONResponse({"error": error_body(status, message, code)}, status, headers=headers)


def refusal(error: RequestError) -> JSONResponse:
    """Return what a refused sender gets."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return error_response(error.status, error.message, error.code, headers)


def _describe(error: RequestValidationError) -> str:
    """Name each field at fault and its fault, without repeating what was sent."""
    faults = []
    for fault in error.errors()[:5]:
        where = ".".join(str(part)[:40] for part in fault["loc"][1:])
        named = f"{where or 'body'}: {fault['msg']}"
        faults.append("the body is not JSON" if fault["type"] == "json_invalid" else named)
    return "; ".join(faults)


def add_errors(app: FastAPI, desk: Desk) -> None:
    """Teach the application to answer faults."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        desk.metrics.errors.labels(error.code).inc()
        return refusal(error)

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        desk.metrics.errors.labels("malformed").inc()
        return error_response(422, _describe(error), "malformed")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "bad_request")
        desk.metrics.errors.labels(code).inc()
        return error_response(error.status_code, str(error.detail), code, dict(error.headers or {}))

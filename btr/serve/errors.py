"""Answer every fault in OpenAI's shape, without a path or a stack."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from btr.serve.dispatch import ClientLeft, Dispatcher
from btr.serve.faults import LONGEST, explain, shown
from btr.serve.schema import BatchRequest, RequestError, StreamableRequest, UpsertRequest, error_body

CODES = {404: "not_found", 405: "method_not_allowed", 408: "slow_body", 413: "too_large"}
FIELDS = [name for model in (StreamableRequest, BatchRequest, UpsertRequest) for name in model.model_fields]
CLIENT_LEFT = 499  # nginx's number; nobody receives it, the log and the metrics show it


def error_response(
    status: int, message: str, code: str, headers: dict[str, str] | None = None, param: str | None = None
) -> JSONResponse:
    """Return an error as a response."""
    return JSONResponse({"error": error_body(status, message, code, param)}, status, headers=headers)


def refusal(error: RequestError) -> JSONResponse:
    """Return what a refused sender gets."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return error_response(error.status, error.message, error.code, headers, error.param)


def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name each field at fault, what came and what is wanted."""
    faults, first = [], None
    for fault in error.errors()[:5]:
        where = ".".join(str(part)[:LONGEST] for part in fault["loc"][1:])
        if fault["type"] == "json_invalid":
            faults.append(f"the body is not JSON ({fault['ctx']['error']}, at character {where})")
        elif not where and isinstance(fault["input"], bytes):
            kind = request.headers.get("content-type", "")
            faults.append(f"the body is said to be {shown(kind)}; send JSON, with Content-Type: application/json")
        else:
            first = first or where or None
            faults.append(f"{where or 'the body'}: {explain(fault, FIELDS)}")
    return error_response(422, "; ".join(faults), "malformed", param=first)


def _unknown(app: FastAPI, request: Request) -> str:
    """Say which addresses there are, where another was asked for."""
    paths = [path for path in app.openapi()["paths"] if path.startswith("/v1/")]
    return f"there is no {shown(request.url.path)} here; this server has {', '.join(paths)} (/docs says more)"


def add_errors(app: FastAPI, dispatcher: Dispatcher) -> None:
    """Teach the application to answer faults."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        dispatcher.metrics.errors.labels(error.code).inc()
        return refusal(error)

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        dispatcher.metrics.errors.labels("malformed").inc()
        return _malformed(request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "bad_request")
        dispatcher.metrics.errors.labels(code).inc()
        headers, said = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            said = _unknown(app, request)
        elif error.status_code == 400:  # FastAPI, of a body that Python cannot take for text or JSON
            said = "the body cannot be read: it is not UTF-8, nested too deeply, or has a number of too many digits"
        elif error.status_code == 405:
            said = f"{request.method[:10]} is not answered here; use {headers.get('Allow', 'another method')}"
        return error_response(error.status_code, said, code, headers)

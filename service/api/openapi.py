"""The OpenAPI description, with the errors of each operation as problem+json, and the page that shows it.

The page takes its scripts from an installed package and not from a CDN: a script on this page can send every request
that the reader's key permits.
"""

import gzip
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from service.api.operations import TTLCache, in_thread
from service.api.problems import Problem, ProblemResponse
from service.core.errors import NotFound

router = APIRouter(include_in_schema=False)

# Every route may refuse values. The other errors of a route follow from its parameters.
PROBLEMS: dict[int | str, dict[str, object]] = {
    422: {"model": Problem, "description": "Invalid request"}
}
_REFERENCE = {"$ref": f"#/components/schemas/{Problem.__name__}"}
_ASSUMED = {"application/json": {"schema": _REFERENCE}}
_WORDS = {
    400: "The request body is not valid JSON, or incomplete",
    401: "Unauthorized: the key or token is missing or not valid",
    403: "Forbidden: the key does not permit this request",
    404: "Not found, or not visible to the key",
    409: "The request conflicts with the current state of the resource",
    412: "Precondition failed: the resource has changed since it was read",
    413: "Request body too large",
    415: "Unsupported media type",
    422: "Invalid request: `errors` has the fields",
    429: "Too many requests; Retry-After has the seconds to wait",
    500: "Internal server error; the service logs it under the request id",
    503: "Database or object storage unavailable; Retry-After has the seconds to wait",
}
# What does not follow from method, path and parameters: a resource that the body names, a full disk.
_BY_OPERATION = {"post_dataset": {404}, "post_webhook": {404}}

Operation = dict[str, Any]


def operation_id(route: APIRoute) -> str:
    """Return the function's name, which generated clients use."""
    return route.name


class DescribedApp(FastAPI):
    """FastAPI with problem+json in its description, where FastAPI assumes application/json."""

    def openapi(self) -> dict[str, Any]:
        """Return the description; generated on first use, because it takes long."""
        schema = super().openapi()
        schema["components"]["responses"] = {
            f"Problem{status}": _response(words) for status, words in _WORDS.items()
        }
        for path, item in schema["paths"].items():
            for method, operation in item.items():
                _list_errors(operation["responses"], _errors(method, path, operation))
        return schema


def _list_errors(responses: dict[str, Any], statuses: set[int]) -> None:
    """Add errors that the route does not describe, and correct the media type of those that FastAPI added."""
    for status in sorted(statuses):
        known = responses.get(str(status))
        if known is None or known.get("content") == _ASSUMED:
            responses[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}


def _errors(method: str, path: str, operation: Operation) -> set[int]:
    found = {422, 500, 503} | _BY_OPERATION.get(operation["operationId"], set())
    if operation.get("security"):
        found |= {401, 403, 429}
    if "requestBody" in operation:
        found |= {400, 413, 415}
    if "{" in path:
        found.add(404)
    if method != "get":
        found.add(409)
    if any(each["name"] == "If-Match" for each in operation.get("parameters", [])):
        found.add(412)
    return found


def _response(words: str) -> dict[str, Any]:
    return {"description": words, "content": {ProblemResponse.media_type: {"schema": _REFERENCE}}}


_PACKAGE = "fastapi_swagger"
# Swagger UI adds inline styles and small images to the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Relative addresses: an ingress may add a path prefix.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>cmcl control plane</title>
<link rel="stylesheet" href="docs/style">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/script"></script>
<script src="docs/start"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null
});
"""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Cached by the browser, and revalidated: 304 has no body.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class Document:
    """A static document, plain and compressed, with its ETag."""

    def __init__(self, body: bytes, media_type: str) -> None:
        self._bodies = {"": body, "gzip": gzip.compress(body)}
        self._media_type = media_type
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def answer(self, known: str, encodings: str) -> Response:
        """The response; 304 for a client that has the document."""
        headers = {**_HEADERS, "ETag": self._etag}
        if self._etag in known:
            return Response(status_code=304, headers=headers)
        encoding = "gzip" if "gzip" in encodings else ""
        if encoding:
            headers["Content-Encoding"] = encoding
        return Response(self._bodies[encoding], headers=headers, media_type=self._media_type)


class Description:
    """The documents of one app, each created on first use."""

    def __init__(self, describe: Callable[[], object]) -> None:
        makers: dict[str, Callable[[], Document]] = {
            "openapi": lambda: Document(json.dumps(describe()).encode(), "application/json"),
            "page": lambda: Document(_PAGE.encode(), "text/html"),
            "start": lambda: Document(_START.encode(), "text/javascript"),
            "script": lambda: _of_package("swagger-ui-bundle.js", "text/javascript"),
            "style": lambda: _of_package("swagger-ui.css", "text/css"),
        }
        self._documents = {name: TTLCache(in_thread(make)) for name, make in makers.items()}

    async def answer(self, name: str, request: Request) -> Response:
        """Serve a document. Raises NotFound if the package is not installed."""
        document = await self._documents[name].get()
        wanted = request.headers.get
        return document.answer(wanted("if-none-match", ""), wanted("accept-encoding", ""))


def _of_package(name: str, media_type: str) -> Document:
    try:
        file = resources.files(_PACKAGE) / "resources" / name
        return Document(file.read_bytes(), media_type)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise NotFound(f"the files of the page are not installed: {error}") from error


async def _answer(name: str, request: Request) -> Response:
    description: Description = request.app.state.description
    return await description.answer(name, request)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI description."""
    return await _answer("openapi", request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI."""
    return await _answer("page", request)


@router.get("/docs/{file}")
async def docs_file(file: Literal["start", "script", "style"], request: Request) -> Response:
    """A file of the page."""
    return await _answer(file, request)

"""The description of the API, and a page that shows it: rendered once, and served by this process alone.

The page takes its scripts from a package and not from a CDN: whoever serves a script can send every
request that the reader's key permits.
"""

import gzip
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.kept import Kept, in_thread
from service.errors import NotFound

router = APIRouter(include_in_schema=False)

_PACKAGE = "fastapi_swagger"
# Swagger UI writes styles and small pictures into the page by itself.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Addresses are relative: an ingress may lead here under a path of its own.
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
    # Kept by the browser, and asked for again: 304 has no body.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class Document:
    """Bytes of one address, plain and compressed, with their ETag."""

    def __init__(self, body: bytes, media_type: str) -> None:
        self._bodies = {"": body, "gzip": gzip.compress(body)}
        self._media_type = media_type
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def answer(self, known: str, encodings: str) -> Response:
        """304 to a client that has it."""
        headers = {**_HEADERS, "ETag": self._etag}
        if self._etag in known:
            return Response(status_code=304, headers=headers)
        encoding = "gzip" if "gzip" in encodings else ""
        if encoding:
            headers["Content-Encoding"] = encoding
        return Response(self._bodies[encoding], headers=headers, media_type=self._media_type)


class Description:
    """All documents of one app, each made when it is first asked for."""

    def __init__(self, describe: Callable[[], object]) -> None:
        makers: dict[str, Callable[[], Document]] = {
            "openapi": lambda: Document(json.dumps(describe()).encode(), "application/json"),
            "page": lambda: Document(_PAGE.encode(), "text/html"),
            "start": lambda: Document(_START.encode(), "text/javascript"),
            "script": lambda: _of_package("swagger-ui-bundle.js", "text/javascript"),
            "style": lambda: _of_package("swagger-ui.css", "text/css"),
        }
        self._documents = {name: Kept(in_thread(make)) for name, make in makers.items()}

    async def answer(self, name: str, request: Request) -> Response:
        """One of them. Raises NotFound where the package is not installed."""
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
    """The description."""
    return await _answer("openapi", request)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI."""
    return await _answer("page", request)


@router.get("/docs/{file}")
async def docs_file(file: Literal["start", "script", "style"], request: Request) -> Response:
    """What it consists of."""
    return await _answer(file, request)

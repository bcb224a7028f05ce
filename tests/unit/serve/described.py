"""Checks responses of a replica against the OpenAPI document.

Every request of the tests in this folder is checked (`Replica.run`): a status, a form or a field that is
sent and not described fails the test that received it.
"""

import json
import re
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from tests.architecture.repository import ROOT

Schema = dict[str, Any]
# The client has disconnected, so it is never read.
_CLIENT_CLOSED_REQUEST = 499


@cache
def description() -> Schema:
    """The committed one, which is kept up to date by a test."""
    document: Schema = json.loads((ROOT / "docs" / "openapi-embeddings.json").read_text())
    return document


@cache
def _operations() -> list[tuple[str, re.Pattern[str], Schema]]:
    return [
        (method.upper(), re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), operation)
        for path, item in description()["paths"].items()
        for method, operation in item.items()
    ]


@cache
def _validator(reference: str) -> Draft202012Validator:
    schema = {"$ref": reference, "components": description()["components"]}
    return Draft202012Validator(schema)


def check_described(response: httpx.Response) -> None:
    """Raises AssertionError. Responses without a route are not described, and not checked."""
    request = response.request
    found = [
        operation
        for method, pattern, operation in _operations()
        if method == request.method and pattern.fullmatch(request.url.path)
    ]
    if not found or response.status_code == _CLIENT_CLOSED_REQUEST:
        return
    where = f"{request.method} {request.url.path} {response.status_code}"
    described = found[0]["responses"].get(str(response.status_code))
    assert described is not None, f"{where} is not described"
    if "$ref" in described:
        described = description()["components"]["responses"][described["$ref"].rpartition("/")[2]]
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in described["content"], f"{where}: {kind} is not described"
    if kind == "application/json":
        reference = described["content"][kind]["schema"]["$ref"]
        errors = sorted(map(str, _validator(reference).iter_errors(response.json())))
        assert errors == [], f"{where}: {errors[0]}"
    assert response.headers["x-cmcl-server"] == "embeddings"

"""The OpenAPI description: responses, errors and parameters, as they are sent.

Routes read bodies themselves, because FastAPI would validate them a second time, and slower. So what FastAPI cannot
derive is described here: bodies, headers, and every status of a route.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from cmcl.contract.api.endpoint import ErrorResponse
from workers.serve.api.wire.vectors import JSON

BYTES = {"schema": {"type": "string", "format": "binary"}}
Schema = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_WORDS = {
    400: "A field, parameter or header has a value that is not permitted.",
    401: "Unauthorized: the key is missing or not valid.",
    403: "Forbidden: the key does not permit this request; or, without keys, the host is not permitted.",
    404: "The model, version or collection is not found, or not visible to the key.",
    408: "Request timeout: the body did not arrive in time.",
    409: "The request conflicts with the current state: the name is taken, or the encoder is not the one of the "
    "version's features.",
    413: "Request body too large.",
    415: "Unsupported media type.",
    422: "These versions cannot do what the request asks for.",
    429: "Too many requests; Retry-After has the seconds to wait.",
    431: "Request headers too large.",
    500: "Internal server error, or a stored object fails its checks.",
    501: "Not implemented: the endpoint was installed without the package onnx.",
    503: "Not ready, or object storage is unavailable; Retry-After has the seconds to wait.",
    504: "The request exceeded its deadline.",
    507: "Insufficient storage: the endpoint's limit is reached.",
}
# Statuses of every route that needs a key, of those that wait for something, and of those that read a body.
KEY = frozenset({401, 403, 500, 503})
WAIT = KEY | {400, 404, 429, 431, 504}
BODY = WAIT | {408, 413}


class DescribedApp(FastAPI):
    """Moves definitions of bodies to the components, and removes the 422 that FastAPI assumes."""

    def openapi(self) -> Schema:
        """Return the description, made at the first call."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            errors: Schema = {}
            schemas = components["schemas"]
            of_errors = ErrorResponse.model_json_schema(ref_template=_REFERENCE)
            schemas.update(of_errors.pop("$defs", {}), **{ErrorResponse.__name__: of_errors})
            for item in document["paths"].values():
                for each in item.values():
                    _hoist_body(each, schemas)
                    _remove_assumed(each["responses"])
                    _share_errors(each["responses"], errors)
            components["responses"] = dict(sorted(errors.items()))
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            components["schemas"] = dict(sorted(schemas.items()))
        return self.openapi_schema or {}


def operation_id(route: APIRoute) -> str:
    """The route's name: what generated clients call it."""
    return route.name


def operation(
    name: str,
    answer: type[BaseModel] | None,
    errors: Iterable[int],
    *,
    body: Schema | None = None,
    parameters: Iterable[Schema] = (),
    success: Schema | None = None,
) -> dict[str, Any]:
    """Arguments of a router's `get`, `post`, `put` or `delete` that describe the route.

    `answer`: of 200, in JSON; None: it is never JSON. `body`: by content type. `success`: what else to
    say of 200: `headers`, and the `content` that it may have beside JSON.
    """
    succeeds: Schema = {"description": "Success.", **(success or {})}
    if answer is not None:
        succeeds["model"] = answer
    fails = {status: _failure(status) for status in sorted(errors)}
    extra: Schema = {"parameters": list(parameters)}
    if 401 in fails:
        extra["security"] = [{"bearer": []}, {}]
    if body is not None:
        extra["requestBody"] = {"required": True, "content": body}
    return {"name": name, "responses": {200: succeeds, **fails}, "openapi_extra": extra}


def _failure(status: int) -> Schema:
    """A reference and not a model, for which FastAPI would make a validator in each route."""
    schema = {"$ref": _REFERENCE.format(model=ErrorResponse.__name__)}
    return {"description": _WORDS[status], "content": {JSON: {"schema": schema}}}


@cache
def _schemas(model: type[msgspec.Struct]) -> Schema:
    """The schemas of a body and of the structs in it, by name. Not to be changed."""
    _, found = msgspec.json.schema_components((model,), ref_template="#/components/schemas/{name}")
    return found


def json_body(model: type[msgspec.Struct]) -> Schema:
    """A body in JSON. Its definitions move to the components."""
    reference = _REFERENCE.format(model=model.__name__)
    return {JSON: {"schema": {"$ref": reference, "$defs": _schemas(model)}}}


def header_parameter(name: str, schema: Schema, description: str) -> Schema:
    """A header of the request. None is required."""
    return {"name": name, "in": "header", "schema": schema, "description": description}


def query_parameters(model: type[msgspec.Struct], when: str = "") -> list[Schema]:
    """The fields of a struct as parameters, none of them required. `when` they count."""
    found = []
    for name, field in _schemas(model)[model.__name__]["properties"].items():
        kinds = [each for each in field.get("anyOf", []) if each.get("type") != "null"]
        left_out = ("anyOf", "description", "default")
        schema = {key: value for key, value in field.items() if key not in left_out}
        words = f"{when}: {field.get('description', '')}".strip(": ")
        schema |= kinds[0] if kinds else {}
        found.append({"name": name, "in": "query", "schema": schema, "description": words})
    return found


def answered_header(schema: Schema, description: str) -> Schema:
    """A header of an answer."""
    return {"schema": schema, "description": description}


def _hoist_body(operation: Schema, schemas: Schema) -> None:
    """Generators resolve references into the components and nowhere else."""
    for media in operation.get("requestBody", {}).get("content", {}).values():
        schemas.update(media["schema"].pop("$defs", {}))


def _share_errors(responses: Schema, errors: Schema) -> None:
    """Each status has one description, to which all routes refer."""
    for status in responses:
        if int(status) >= 400:
            errors[f"Error{status}"] = responses[status]
            responses[status] = {"$ref": f"#/components/responses/Error{status}"}


def _remove_assumed(responses: Schema) -> None:
    """FastAPI describes a 422 of its own for every route with a parameter; none is ever sent."""
    schema = responses.get("422", {}).get("content", {}).get(JSON, {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]

"""The description of the API, true to what is sent: each operation's errors, as problem+json."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.api.problems import Problem, ProblemResponse

# Every route can refuse values; the other errors of a route follow from what it takes.
PROBLEMS: dict[int | str, dict[str, object]] = {
    422: {"model": Problem, "description": "Invalid request"},
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
    507: "Insufficient storage",
}
# What cannot be told from method, path and parameters: a thing that the body names, a full disk.
_BY_OPERATION = {"post_dataset": {404}, "post_webhook": {404}, "put_part": {507}}

Operation = dict[str, Any]


def operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call it."""
    return route.name


class DescribedApp(FastAPI):
    """FastAPI assumes application/json for every model; this names what is really sent."""

    def openapi(self) -> dict[str, Any]:
        """The description; made when it is first asked for, because it takes a while."""
        schema = super().openapi()
        schema["components"]["responses"] = {
            f"Problem{status}": _response(words) for status, words in _WORDS.items()
        }
        for path, item in schema["paths"].items():
            for method, operation in item.items():
                _list_errors(operation["responses"], _errors(method, path, operation))
        return schema


def _list_errors(responses: dict[str, Any], statuses: set[int]) -> None:
    """Add what the route does not describe itself, and correct the media type of what FastAPI did."""
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

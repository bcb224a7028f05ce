"""The description of the API, true to what is sent: errors are problem+json."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.api.problems import Problem, ProblemResponse

PROBLEMS: dict[int | str, dict[str, object]] = {
    "4XX": {"model": Problem, "description": "The request was refused; the problem says why"},
    422: {"model": Problem, "description": "Values that are not permitted"},
    "5XX": {"model": Problem, "description": "The service could not answer"},
}
_REFERENCE = {"$ref": f"#/components/schemas/{Problem.__name__}"}


def operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call it."""
    return route.name


class DescribedApp(FastAPI):
    """FastAPI assumes application/json for every model; this names the media type really sent."""

    def openapi(self) -> dict[str, Any]:
        """The description; made when it is first asked for, because it takes a while."""
        schema = super().openapi()
        for path in schema["paths"].values():
            for operation in path.values():
                for response in operation["responses"].values():
                    _name_media_type(response.get("content", {}))
        return schema


def _name_media_type(content: dict[str, Any]) -> None:
    if content.get("application/json", {}).get("schema") == _REFERENCE:
        content[ProblemResponse.media_type] = content.pop("application/json")

"""Responses of the servers with few fields given: the others are null, empty, zero or false."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

Response = TypeVar("Response", bound=BaseModel)

AT = "2026-11-24T00:00:00Z"
_EMPTY = {"str": "x", "int": 1, "float": 0.0, "bool": False, "datetime": AT}


def response(kind: type[Response], /, **given: Any) -> Response:
    """Return a response of this type."""
    return kind.model_validate(body(kind, **given), extra="allow")


def body(kind: type[BaseModel], /, **given: Any) -> dict[str, Any]:
    """Return the JSON of a response of this type; `given` may have fields that the type does not have."""
    required = {name: each for name, each in kind.model_fields.items() if each.is_required()}
    empty = {name: _empty(each.annotation) for name, each in required.items() if name not in given}
    return {**empty, **TypeAdapter(dict[str, Any]).dump_python(given, mode="json")}


def _empty(annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if NoneType in arguments:
        return None
    if origin is Annotated or origin in (Union, UnionType):
        return _empty(arguments[0])
    if origin is Literal:
        return arguments[0]
    if origin is not None:
        return {} if len(arguments) == 2 and arguments[1] is not ... else []
    if issubclass(annotation, BaseModel):
        return body(annotation)
    name = annotation.__name__
    return _EMPTY[name] if name in _EMPTY else next(iter(annotation))

"""Base class of responses."""

from collections.abc import Callable
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_serializer,
)
from pydantic.functional_validators import WrapValidator

# What a notebook shows of a type. The client registers it, because pictures stand beside the contract.
NOTEBOOK_HTML: dict[type["ApiModel"], Callable[[Any], str]] = {}


class ApiModel(BaseModel):
    """Base class of responses. Instances are frozen; the client keeps fields that a newer service adds.

    Fields can also be read by name, `job["state"]`, including those without an attribute.
    """

    # Validators are built on first use, because most programs use few of these types.
    model_config = ConfigDict(frozen=True, defer_build=True)

    def __getitem__(self, name: str) -> Any:
        """Return a field by name. Raises KeyError."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by name, or `default` if the response does not have it."""
        try:
            return self[name]
        except KeyError:
            return default

    @model_serializer(mode="wrap")
    def _with_unknown_fields(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Add the fields that a newer service has added."""
        values = serialize(self)
        return {**values, **self.__pydantic_extra__} if self.__pydantic_extra__ else values

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows; None without the client."""
        html = NOTEBOOK_HTML.get(type(self))
        return html(self) if html else None


def _known_or_text(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        if isinstance(value, str):
            return value
        raise


# Marks an enumeration whose unknown values, of a newer service, stay text.
KNOWN_OR_TEXT = WrapValidator(_known_or_text)

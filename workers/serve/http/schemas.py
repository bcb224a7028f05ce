"""What `POST /v1/embeddings` reads, and the one place that words its mistakes."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from workers.contract.modality import NAME_PATTERN
from workers.serve.http.errors import InvalidRequest

# Validation inside the parser is what makes lists of floats cheap: it costs 2 us per 1280 numbers
# on top of 45 us of parsing, json.loads alone 390 us. `fail_fast`, because otherwise a body of a
# million wrong entries makes a million error records.
_Feature = Annotated[list[float], Field(fail_fast=True)]
_Features = Annotated[list[_Feature], Field(fail_fast=True)]

_VERSION_PATTERN = r"[1-9][0-9]{0,8}"
_LONGEST_VALUE = 60


class EmbeddingRequest(BaseModel):
    """One feature or a list of features of one modality, as an encoder gave them."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(
        description="name, or name@version for exactly that one", examples=["street-scenes"]
    )
    modality: str = Field(examples=["image"])
    input: Annotated[_Feature | _Features, Field(union_mode="left_to_right")]
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: float32, little endian"
    )
    normalize: bool = Field(
        default=True, description="unit length; false: what the head gives, as it is"
    )

    @property
    def rows(self) -> list[list[float]]:
        """The input as a list of features, whichever way it was written."""
        if self.input and isinstance(self.input[0], list):
            return self.input
        return [self.input] if self.input else []  # type: ignore[list-item]


@dataclass(frozen=True)
class ModelReference:
    """`name`: whatever is live. `name@version`: that version and no other."""

    name: str
    version: int | None


def parse_request(body: bytes) -> EmbeddingRequest:
    """Raises InvalidRequest."""
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        raise _worded(error) from None


def parse_reference(text: str) -> ModelReference:
    """Raises InvalidRequest."""
    name, at, version = text.partition("@")
    if not re.fullmatch(NAME_PATTERN, name) or (at and not re.fullmatch(_VERSION_PATTERN, version)):
        raise InvalidRequest(
            f"model is {_shortened(text)}; permitted is a name of lower-case letters, digits and "
            "inner hyphens, up to 48 characters, optionally followed by @ and a version from 1",
            param="model",
        )
    return ModelReference(name, int(version) if at else None)


def parse_min_version(text: str | None) -> int:
    """The header x-min-model-version; 0 where it is absent. Raises InvalidRequest."""
    if text is None:
        return 0
    if not re.fullmatch(_VERSION_PATTERN, text):
        raise InvalidRequest(
            f"the header x-min-model-version is {_shortened(text)}; permitted is a version from 1",
            param="x-min-model-version",
        )
    return int(text)


def _worded(error: ValidationError) -> InvalidRequest:
    # The input is a union, so a mistake in it is reported once for each kind of list. The report
    # that got furthest is about the kind that was meant.
    detail = max(error.errors(include_url=False), key=lambda each: _indices(each["loc"]))
    field = str(detail["loc"][0]) if detail["loc"] else None
    code = "invalid_json" if detail["type"] == "json_invalid" else None
    return InvalidRequest(_message(detail, field), param=field, code=code)


def _message(detail: ErrorDetails, field: str | None) -> str:
    permitted = ", ".join(EmbeddingRequest.model_fields)
    match detail["type"]:
        case "json_invalid":
            return f"the body is not JSON: {detail['ctx']['error']}"
        case "missing":
            return f"the field {field!r} is missing; permitted are {permitted}"
        case "extra_forbidden":
            return f"there is no field {_shortened(field)}; permitted are {permitted}"
    if field is None:
        return f"the body must be a JSON object with the fields {permitted}"
    where = field + "".join(f"[{index}]" for index in _indices(detail["loc"]))
    reason = detail["msg"].removeprefix("Input should be ")
    return f"{where} is {_shortened(detail['input'])}; permitted is {reason}"


def _indices(location: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(part for part in location if isinstance(part, int))


def _shortened(value: object) -> str:
    """The user's value as it may stand in a message."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = json.dumps(value[:_LONGEST_VALUE] if isinstance(value, str) else value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."

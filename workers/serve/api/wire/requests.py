"""JSON bodies of requests, and the messages for their errors."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from workers.serve.api.wire.json_bounds import Bounds, no_field
from workers.serve.api.wire.json_scan import check_lengths
from workers.serve.errors import InvalidRequest, shortened

# Validation inside the parser is what makes lists of floats cheap: it costs 2 us per 1280 numbers
# on top of 45 us of parsing, json.loads alone 390 us. `fail_fast`, because otherwise a body of a
# million wrong entries makes a million error records.
Feature = Annotated[list[float], Field(fail_fast=True)]
_Features = Annotated[list[Feature], Field(fail_fast=True)]
_Texts = Annotated[list[str], Field(fail_fast=True)]

Encoding = Literal["float", "base64"]
# Items of one page of a list, and how many may come before it.
MOST_LISTED, LARGEST_OFFSET = 200, 2**31 - 1
# Of a list or an object where an item has none; the parser refuses it.
_MOST_BYTES = 4096
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_CONTENTS = ("feature", "text", "data", "numbers")


class Item(BaseModel):
    """One item of one modality: its feature, or a raw item for the encoder that the modality is bound to."""

    model_config = STRICT

    modality: str = Field(examples=["image"])
    feature: Feature | str | None = Field(
        default=None,
        description="as an encoder gave it; a string is base64 of float32, little endian",
    )
    text: str | None = Field(default=None, description="where the encoder takes texts")
    data: str | None = Field(
        default=None,
        description="base64 of a file, where the encoder takes images, audio or video",
    )
    numbers: Feature | None = Field(
        default=None,
        description="where the encoder takes numbers, such as latitude and longitude",
    )

    @model_validator(mode="after")
    def _has_one_content(self) -> Self:
        given = [name for name in _CONTENTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "one_content",
                "exactly one of feature, text, data and numbers; it has {given}",
                {"given": " and ".join(given) or "none"},
            )
        return self


Items = Annotated[list[Item], Field(fail_fast=True)]


class EmbeddingOptions(BaseModel):
    """All fields of a request but its input."""

    model_config = STRICT

    model: str = Field(
        description="name, or name@version for exactly that one", examples=["street-scenes"]
    )
    modality: str | None = Field(
        default=None,
        description="of all rows; by default `text` where the input is texts; omit it where "
        "each item has its own",
        examples=["image"],
    )
    encoding_format: Encoding = Field(default="float", description="base64: float32, little endian")
    normalize: bool = Field(default=True, description="unit length; false: the outputs of the head")
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="how many numbers of each embedding to return, the first ones, at unit length; at most "
        "the model's width, which is the default. Fewer only from heads of the policy improve, which order "
        "them by how much they tell",
    )
    user: str | None = Field(
        default=None,
        max_length=256,
        description="the end user, as OpenAI's clients send it; ignored",
    )


class EmbeddingRequest(EmbeddingOptions):
    """Features of one modality, texts, or items of several modalities; answered by one version."""

    input: Annotated[
        Feature | _Features | str | _Texts | Items, Field(union_mode="left_to_right")
    ] = Field(description="one feature or several, one text or several, or items")

    @property
    def texts(self) -> list[str] | None:
        """The input, where it is texts."""
        if isinstance(self.input, str):
            return [self.input]
        return _of_kind(self.input, str)

    @property
    def items(self) -> list[Item] | None:
        """The input, where it is items."""
        return None if isinstance(self.input, str) else _of_kind(self.input, Item)

    @property
    def rows(self) -> list[list[float]]:
        """The input, where it is features; one alone may be a plain list."""
        if not self.input or isinstance(self.input, str):
            return []
        several: list[list[float]] | None = _of_kind(self.input, list)
        return [self.input] if several is None else several  # type: ignore[list-item]

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.items or self.texts or self.rows)


def _of_kind(entries: list[Any], kind: type[T]) -> list[T] | None:
    """The entries, if they are of this kind; the parser has checked that all are of one kind."""
    return entries if entries and isinstance(entries[0], kind) else None


def parse(model: type[M], body: bytes, most: int, payload_bytes: int = _MOST_BYTES) -> M:
    """Parse a JSON body; `most`: entries in a list. Raises InvalidRequest."""
    check_lengths(body, bounds_of(model, most, payload_bytes))
    return validated(model, body)


def bounds_of(model: type[BaseModel], most: int, payload_bytes: int = _MOST_BYTES) -> Bounds:
    """Return what a body may contain before it is parsed."""
    return Bounds(
        tuple(model.model_fields), tuple(_inside(model).model_fields), most, payload_bytes
    )


def validated(model: type[M], body: bytes) -> M:
    """Parse a JSON body that was checked before. Raises InvalidRequest."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error, model) from None


def parse_number(text: str, where: str, smallest: int, largest: int) -> int:
    """A whole number in a parameter. Raises InvalidRequest."""
    # The length first: int() raises ValueError for thousands of digits.
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(largest))
    if not is_number or not smallest <= int(text) <= largest:
        raise InvalidRequest(
            f"{where} is {shortened(text)}; permitted are whole numbers from {smallest} to {largest}",
            param=where,
        )
    return int(text)


def parse_parameters(model: type[M], parameters: Mapping[str, str]) -> M:
    """Parse query parameters. Raises InvalidRequest."""
    try:
        return model.model_validate_strings(parameters)
    except ValidationError as error:
        raise _invalid_request(error, model) from None


def _invalid_request(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    detail = _most_specific(error.errors(include_url=False))
    field = str(detail["loc"][0]) if detail["loc"] else None
    code = "invalid_json" if detail["type"] == "json_invalid" else None
    return InvalidRequest(_message(detail, field, model), param=field, code=code)


def _most_specific(details: list[ErrorDetails]) -> ErrorDetails:
    """Choose one of the errors of a union, which are reported for each kind of value.

    That of items, where the first entry is one; otherwise the one that got furthest.
    """
    first_entries = [each["input"] for each in details if _indices(each["loc"]) == (0,)]
    of_items = [each for each in details if "Item" in "".join(map(str, each["loc"]))]
    if of_items and (not first_entries or isinstance(first_entries[0], dict)):
        return of_items[0]
    others = [each for each in details if each not in of_items] or details
    return max(others, key=lambda each: _indices(each["loc"]))


def _message(detail: ErrorDetails, field: str | None, model: type[BaseModel]) -> str:
    permitted = ", ".join(model.model_fields)
    if detail["type"] == "json_invalid":
        return f"the body is not JSON: {detail['ctx']['error']}"
    if field is None:
        return f"the body must be a JSON object with the fields {permitted}"
    where, is_inside = _path(detail["loc"]), len(detail["loc"]) > 1
    if detail["type"] == "missing":
        return f"the field {where!r} is missing" + (
            "" if is_inside else f"; permitted are {permitted}"
        )
    if detail["type"] == "extra_forbidden":
        return no_field(where, _inside(model).model_fields if is_inside else model.model_fields)
    reason = detail["msg"].removeprefix("Input should be ")
    return f"{where} is {shortened(detail['input'])}; permitted is {reason}"


def _inside(model: type[BaseModel]) -> type[BaseModel]:
    """The model of the entries of a body's lists."""
    inside: type[BaseModel] = getattr(model, "INSIDE", Item)
    return inside


def _path(location: Sequence[int | str]) -> str:
    """Return a path into the body: `input[2].feature[7]`.

    The location also has the names of kinds that were tried; only fields have plain names.
    """
    path = str(location[0])
    for before, part in pairwise(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif isinstance(before, int) and part.isidentifier():
            path += f".{part}"
    return path


def _indices(location: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(part for part in location if isinstance(part, int))
